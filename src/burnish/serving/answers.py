"""What comes of a question that was put to a server. It loads no torch, since settings read answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Missing:
    """There is no answer, or none that can be read; `why` is for a person."""

    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a language model said.

    cut: it would have gone on, had it been allowed more tokens
    first: log-probabilities, in nats, of the likeliest first tokens by their text; None if there are none
    """

    text: str
    cut: bool = False
    first: Mapping[str, float] | None = None
