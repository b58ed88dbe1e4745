"""Means over a few seeds and how sure they are. Pure functions of numbers."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

CONFIDENCE = 0.95


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean over seeds, and half the width of its 95% t-interval; None for a single seed, which has none."""

    mean: float
    half: float | None
    count: int

    @property
    def above_zero(self) -> bool:
        """True if all of the interval is; a single seed is sure of nothing."""
        return self.half is not None and self.mean - self.half > 0


def interval(values: Sequence[float]) -> Interval:
    """Student's interval: mean +- t s / sqrt(n), with s of n - 1 degrees of freedom. At least one value."""
    count, mean = len(values), statistics.fmean(values)
    if count < 2:
        return Interval(mean, None, count)
    error = statistics.stdev(values) / math.sqrt(count)
    return Interval(mean, t_quantile(count - 1) * error, count)


@cache
def t_quantile(degrees: int, confidence: float = CONFIDENCE) -> float:
    """The t for which |T| < t with probability `confidence`, T of Student's law; within 1e-9 of it."""
    low, high = 0.0, math.pi / 2
    for _ in range(60):
        middle = (low + high) / 2
        if _within(middle, degrees) < confidence:
            low = middle
        else:
            high = middle
    return math.sqrt(degrees) * math.tan(low)


def _within(theta: float, degrees: int) -> float:
    """P(|T| < sqrt(degrees) tan(theta)) for whole degrees of freedom (Abramowitz & Stegun, 26.7.3 and 4)."""
    odd = degrees % 2
    cosine, term, total = math.cos(theta), 1.0, 0.0
    if odd:
        term = math.cos(theta)
    for k in range(odd, degrees - 1, 2):
        total += term
        term *= (k + 1) / (k + 2) * cosine**2
    if odd:
        return 2 / math.pi * (theta + math.sin(theta) * total)
    return math.sin(theta) * total


def first_reached(x: Sequence[float], y: Sequence[float], level: float) -> float:
    """Where the line through the points first comes up to `level`; infinite if it never does."""
    if y[0] >= level:
        return x[0]
    for i in range(1, len(x)):
        if y[i] >= level:
            return x[i - 1] + (x[i] - x[i - 1]) * (level - y[i - 1]) / (y[i] - y[i - 1])
    return math.inf
