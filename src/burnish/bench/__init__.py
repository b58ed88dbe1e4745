"""Algorithms side by side: a grid of runs at equal reward queries, and the page that compares them."""
