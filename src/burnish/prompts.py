"""Prompt sources: seeded draws for training, a fixed list held out for evaluation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from burnish.randomness import Randomness


@dataclass(frozen=True, slots=True)
class Prompt:
    """A text, and what its source knows of it (for example the attributes it asks for)."""

    text: str
    metadata: Mapping[str, Any] = field(default_factory=dict)


class PromptSource(Protocol):
    def draw(self, count: int, randomness: Randomness) -> list[Prompt]:
        """Training prompts; the i-th depends on `randomness` and i only."""
        ...

    def held_out(self, count: int) -> list[Prompt]:
        """Prompts never trained on, always the same. Raises ValueError if there are fewer."""
        ...


@dataclass(frozen=True, slots=True)
class Listed:
    """Prompts from two lists."""

    train: tuple[str, ...]
    """Training prompts; each draw takes one with equal chance."""
    test: tuple[str, ...] = ()
    """Held-out prompts for evaluation."""

    def __post_init__(self) -> None:
        if not self.train:
            raise ValueError("train is empty, expected at least one prompt")
        shared = sorted(set(self.train) & set(self.test))
        if shared:
            raise ValueError(f"held-out prompts must not be trained on: {shared[0]!r} is in both")

    def draw(self, count: int, randomness: Randomness) -> list[Prompt]:
        return [Prompt(text) for text in randomness.choices(self.train, count)]

    def held_out(self, count: int) -> list[Prompt]:
        if count > len(self.test):
            raise ValueError(
                f"{count} held-out prompts were asked for, but there are {len(self.test)}; "
                "list more, or lower evaluation.prompts"
            )
        return [Prompt(text) for text in self.test[:count]]


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptFile:
    """A text file with one prompt a line; a share of its lines is held out."""

    path: str
    """The file; blank lines are passed over, repeated lines count once."""
    held_out_every: int = 5
    """Every n-th line is held out for evaluation."""

    def __post_init__(self) -> None:
        if self.held_out_every < 2:
            raise ValueError(f"held_out_every = {self.held_out_every}, expected 2 or more")
        if not Path(self.path).is_file():
            raise ValueError(f"path = {self.path!r}: there is no such file")
        self._listed()

    def _listed(self) -> Listed:
        lines = Path(self.path).read_text(encoding="utf-8").splitlines()
        texts = list(dict.fromkeys(line.strip() for line in lines if line.strip()))
        return Listed(
            tuple(t for i, t in enumerate(texts) if (i + 1) % self.held_out_every),
            tuple(texts[self.held_out_every - 1 :: self.held_out_every]),
        )

    def draw(self, count: int, randomness: Randomness) -> list[Prompt]:
        return self._listed().draw(count, randomness)

    def held_out(self, count: int) -> list[Prompt]:
        return self._listed().held_out(count)
