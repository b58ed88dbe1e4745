"""Asking reward servers (`serving.server`) about samples."""

from __future__ import annotations

import threading
from typing import Any, Protocol

from burnish.reward import name_of
from burnish.rollout import Samples
from burnish.serving import fleet, wire
from burnish.serving.answers import Missing
from burnish.serving.exchange import Exchange, Failure, Refusal

BYTES_A_REWARD = 64
"""Of an answer, besides `fleet.MAX_ANSWER`."""
ADVICE = {413: " (lower reward.batch, or raise the server's --max-bytes)"}


class Settings(fleet.Settings, Protocol):
    """`rewards.remote.Remote` says what each means."""

    @property
    def batch(self) -> int: ...
    @property
    def format(self) -> wire.Format: ...


def ask(settings: Settings, samples: Samples) -> list[float]:
    """One reward a sample, in order. Raises RewardError; `Unanswered` if the settings say `drop`."""
    starts = range(0, len(samples), settings.batch)
    requests = [
        _request(settings, start, samples[start : start + settings.batch]) for start in starts
    ]
    parts = fleet.ask(settings, requests, greet=_Greeting(), advice=ADVICE)
    rewards: dict[int, float] = {}
    for number, part in enumerate(parts):
        if not isinstance(part, Missing):
            rewards |= dict(enumerate(part, number * settings.batch))
    missing = [part for part in parts if isinstance(part, Missing)]
    return fleet.whole(settings, len(samples), rewards, missing)


def _request(settings: Settings, start: int, part: Samples) -> fleet.Request[list[float]]:
    """start: the place of the part's first sample"""
    return fleet.Request(
        whose=f"reward {name_of(settings)!r}, samples {start} to {start + len(part) - 1} (first "
        f"prompt: {part.prompts[0]!r})",
        path="/score",
        body=lambda: wire.encode(part, settings.format),
        most=fleet.MAX_ANSWER + BYTES_A_REWARD * len(part),
        read=lambda answer: wire.decode_rewards(answer, len(part)),
    )


class _Greeting:
    """Sees that a server is well, and that it offers what the others do."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._offered: tuple[str, Any] | None = None

    def __call__(self, exchange: Exchange, url: str) -> None:
        answer = exchange.ask(url, "GET", "/health", None, fleet.MAX_ANSWER)
        try:
            health = wire.decode_table(answer)
        except wire.WireError as error:
            if error.kind == "version":
                raise Refusal(f"it speaks {error}") from error
            raise Failure(f"its health is {error}") from error
        if health.get("ready") is not True:
            raise Failure("it is not ready")
        offered = health.get("reward")
        with self._lock:
            first_url, first = self._offered = self._offered or (url, offered)
        if offered != first:
            raise Refusal(f"it offers the reward {offered}, but {first_url} offers {first}")
