"""Rewards that are networks trained by others, from a folder or the hub (docs/rewards-learned.md).

The settings (aesthetic, clip_score, pick_score, hps_v2, image_reward) load no torch; what they call does.
"""
