"""A limit on how often servers are asked."""

from __future__ import annotations

import threading
import time
from functools import cache


class Pace:
    """Turns at least `spacing` seconds apart, for all threads that share it.

    Spaced evenly, so that no minute, wherever it begins, has more than its share.
    """

    def __init__(self, spacing: float) -> None:
        self._spacing = spacing
        self._lock = threading.Lock()
        self._next = 0.0

    def wait(self) -> float:
        """0 if it is one's turn, which is taken by asking; else the seconds until there may be one."""
        with self._lock:
            now = time.monotonic()
            if now < self._next:
                return self._next - now
            self._next = now + self._spacing
            return 0.0


UNHURRIED = Pace(0.0)
"""Whose turn is always."""


@cache
def pace_of(servers: tuple[str, ...], per_minute: float | None) -> Pace:
    """One for all who ask the same servers by the same limit, in this process."""
    del servers  # it tells one limit from another
    return UNHURRIED if per_minute is None else Pace(60 / per_minute)
