"""Noise at a window of steps only (MixGRPO: Li et al. 2025, arXiv 2507.21802)."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

from burnish import kernels
from burnish.samplers.ddim import DDIM
from burnish.samplers.dpm import DPMSolver
from burnish.samplers.flow import CPS, DanceSDE, FlowSDE

if TYPE_CHECKING:
    from burnish.randomness import Randomness
    from burnish.schedules import Schedule


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """A sampler that draws at `size` neighbouring steps, and takes its deterministic step at all others.

    Only the window's steps have a density: they alone are stored and trained on, and a sample's reward is due
    to their noise alone. Without an iteration (evaluation, drawing) the window is at `start`, and its noise,
    if it falls, at its end.
    """

    sampler: DDIM | FlowSDE | DanceSDE | CPS = field(default_factory=DDIM)
    """What is walked; outside the window with eta = 0."""
    size: int = 4
    """Steps in the window; 4 in the paper."""
    start: int = 0
    """Its first step at first, counted from noise."""
    move: Literal["fixed", "sliding", "random"] = "fixed"
    """`sliding`: `stride` steps towards data at a time, and from the end back to `start`; `random`: anywhere
    from `start` on, all places alike."""
    stride: int = 1
    """Steps by which a sliding window moves; 1 in the paper."""
    every: int = 25
    """Iterations for which a moving window stays; 25 in the paper, where it slides."""
    tail: DPMSolver | None = None
    """What takes the place of the steps after the window, to save network calls (the paper's MixGRPO-Flash);
    where a moving window leaves fewer steps than it has calls, it takes as many as there are steps."""

    def __post_init__(self) -> None:
        for name in ("size", "stride", "every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} = {getattr(self, name)}, expected at least 1")
        if not 0 <= self.start <= self.num_steps - self.size:
            raise ValueError(
                f"start = {self.start} and size = {self.size}, expected a window within the sampler's "
                f"{self.num_steps} steps"
            )
        if self.tail is not None and self.tail.num_steps > self._left(self.start):
            raise ValueError(
                f"tail.num_steps = {self.tail.num_steps}, but the window leaves {self._left(self.start)} of "
                f"the sampler's {self.num_steps} steps after it; a tail is to have as many calls or fewer"
            )

    @property
    def num_steps(self) -> int:
        return self.sampler.num_steps

    @property
    def deterministic(self) -> bool:
        return self.sampler.deterministic

    @property
    def places(self) -> range:
        """First steps that the window may have."""
        if self.move == "fixed":
            return range(self.start, self.start + 1)
        stride = self.stride if self.move == "sliding" else 1
        return range(self.start, self.num_steps - self.size + 1, stride)

    def at(self, iteration: int, randomness: Randomness) -> Window:
        """The window where it is at an iteration, fixed there, over the sampler of that iteration."""
        moves = iteration // self.every
        if self.move == "random":
            start = randomness.at(moves).python().choice(self.places)
        else:
            start = self.places[moves % len(self.places)]
        inner = self.sampler.at(iteration, randomness)
        return replace(self, sampler=inner, start=start, move="fixed", tail=self._tail(start))

    def on(self, schedule: Schedule) -> kernels.Kernel:
        """Also raises ValueError if the window would at some place have no step with a density."""
        noisy = self.sampler.on(schedule)
        for place in self.places if not self.deterministic else ():
            if not set(self._steps(place)) & set(noisy.stochastic):
                raise ValueError(
                    f"a window of size = {self.size} at step {place} has no step with a density under "
                    f"{self.sampler}; take a larger size, or a start before it"
                )
        still = replace(self.sampler, eta=0.0).on(schedule)
        found = kernels.within(self._steps(self.start), noisy, still)
        return found if self.tail is None else self.tail.after(found, self.start + self.size)

    def _left(self, place: int) -> int:
        """Steps after a window at `place`."""
        return self.num_steps - (place + self.size)

    def _tail(self, place: int) -> DPMSolver | None:
        """What follows a window at `place`."""
        left = self._left(place)
        if self.tail is None or not left:
            return None
        return replace(self.tail, num_steps=min(self.tail.num_steps, left))

    def _steps(self, place: int) -> range:
        return range(place, place + self.size)
