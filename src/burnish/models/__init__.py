"""Denoisers: one file a family, each behind the same protocol."""
