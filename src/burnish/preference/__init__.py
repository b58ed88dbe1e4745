"""A reward model of one's own, learned from pairs of images of which one was preferred (docs/preference.md).

settings.py loads no torch; bradley_terry.py is the mathematics.
"""
