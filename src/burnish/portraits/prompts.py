"""Captions of portraits as a prompt source; each knows the attributes it asks for."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING

from burnish.portraits.attributes import SCHEMA, Split
from burnish.portraits.captions import draw_prompt
from burnish.prompts import Prompt

if TYPE_CHECKING:
    from burnish.randomness import Randomness


@dataclass(frozen=True, slots=True, kw_only=True)
class Portraits:
    """Training captions, and held-out ones with combinations that the base model never saw."""

    count: int | None = None
    """How many different training captions there are; without it, every draw is a new one."""
    about: tuple[str, ...] = ()
    """The attributes that a caption mentions, which leaves the model free in the others; without it,
    a random part of all, mostly nearly all."""
    terse: bool = False
    """Captions are lists of words without grammar, which the base model follows worse."""

    def __post_init__(self) -> None:
        if self.count is not None and self.count < 1:
            raise ValueError(f"count = {self.count}, expected at least 1")
        names = [attribute.name for attribute in SCHEMA]
        for name in self.about:
            if name not in names:
                raise ValueError(f"about = {name!r}: no such attribute, expected some of {names}")

    def draw(self, count: int, randomness: Randomness) -> list[Prompt]:
        return [self._one(randomness.at(i).python()) for i in range(count)]

    def _one(self, rng: random.Random) -> Prompt:
        if self.count is None:
            return self._prompt(rng, "train")
        return self._prompt(random.Random(f"train {rng.randrange(self.count)}"), "train")

    def held_out(self, count: int) -> list[Prompt]:
        return [self._prompt(random.Random(f"held-out {i}"), "held-out") for i in range(count)]

    def _prompt(self, rng: random.Random, split: Split) -> Prompt:
        caption, mentioned = draw_prompt(rng, split, self.about, terse=self.terse)
        return Prompt(caption, mentioned)
