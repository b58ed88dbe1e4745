"""Rewards: functions of samples to one number a sample."""
