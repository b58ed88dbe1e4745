"""Samplers: a time grid and a reverse kernel; they hold no network."""
