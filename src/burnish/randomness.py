"""Randomness is addressed, not consumed.

Every draw comes from a generator seeded by an address: (seed, purpose, iteration, sample index, ...).
A run is therefore a function of its recipe and seed, and not of the batch size it was computed with or
of where it was stopped and resumed.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Randomness:
    """A node in the tree of addresses; `at` walks down, the other methods draw."""

    seed: int
    path: tuple[str | int, ...] = ()

    def at(self, *address: str | int) -> Randomness:
        return Randomness(self.seed, (*self.path, *address))

    def integer(self) -> int:
        """A whole number in [0, 2^63) that depends on the whole address."""
        address = repr((self.seed, *self.path)).encode()
        return int.from_bytes(hashlib.blake2b(address, digest_size=8).digest(), "big") >> 1

    def python(self) -> random.Random:
        return random.Random(self.integer())

    def generator(self) -> torch.Generator:
        """Always on the CPU, so that every device sees the same numbers."""
        return torch.Generator().manual_seed(self.integer())

    def normal(
        self, indices: Sequence[int], shape: Sequence[int]
    ) -> Float[Tensor, "indices *shape"]:
        """Standard normal float32 numbers; row i depends on the address and on `indices[i]` only."""
        rows = [torch.randn(*shape, generator=self.at(index).generator()) for index in indices]
        return torch.stack(rows) if rows else torch.empty(0, *shape)

    def uniform(self, indices: Sequence[int]) -> Float[Tensor, " indices"]:
        """float64 numbers in [0, 1); number i depends on the address and on `indices[i]` only."""
        return torch.tensor(
            [self.at(index).python().random() for index in indices], dtype=torch.float64
        )

    def choices(self, options: Sequence[T], count: int) -> list[T]:
        """`count` draws with replacement; the i-th depends on the address and on i only."""
        return [self.at(i).python().choice(options) for i in range(count)]

    def permutation(self, count: int) -> Int[Tensor, " count"]:
        return torch.randperm(count, generator=self.generator())
