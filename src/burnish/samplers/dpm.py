"""DPM-Solver++ (Lu et al. 2022, arXiv 2211.01095): the ODE in few network calls, without a density."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from burnish import kernels, schedules, solver

if TYPE_CHECKING:
    from burnish.randomness import Randomness
    from burnish.schedules import Level, Schedule


@dataclass(frozen=True, slots=True, kw_only=True)
class DPMSolver:
    """diffusers' `DPMSolverMultistepScheduler`, for diffusion and for flow matching.

    Its chain has no steps that could be scored or trained on. It evaluates and draws, it samples for
    algorithms that look at finished samples only, and it is the `tail` of a `Window`.
    """

    num_steps: int = 20
    """Network calls; 15 to 20 in the paper, with guidance."""
    order: Literal[1, 2, 3] = 2
    """1 is DDIM or Euler's method; 2 is for guided models, 3 for those without guidance, as in the paper."""

    def __post_init__(self) -> None:
        if self.num_steps < 1:
            raise ValueError(f"num_steps = {self.num_steps}, expected at least 1")
        if self.order not in (1, 2, 3):
            raise ValueError(f"order = {self.order}, expected 1, 2 or 3")

    @property
    def deterministic(self) -> bool:
        return True

    def at(self, iteration: int, randomness: Randomness) -> DPMSolver:
        del iteration, randomness
        return self

    def on(self, schedule: Schedule) -> kernels.Kernel:
        """A kernel of no steps: the tail begins at noise."""
        levels = schedule.levels(self.num_steps)
        none = levels.sigma[:0]
        nothing = kernels.kernel(
            times=levels.time[:0],
            signal=none,
            sigma=none,
            clean=none,
            noise=none,
            std=none,
            parameterisation=schedule.parameterisation,
        )
        return self._tail(nothing, 0, levels)

    def after(self, kernel: kernels.Kernel, first: int) -> kernels.Kernel:
        """The kernel, with its steps from `first` on solved: at so many of their levels, evenly chosen, of
        which that of the step `first` is one."""
        left = kernel.num_steps - first
        assert self.num_steps <= left
        chosen = [first + k * left // self.num_steps for k in range(self.num_steps)]
        levels = schedules.Level(kernel.times[chosen], kernel.signal[chosen], kernel.sigma[chosen])
        return self._tail(kernel, first, levels)

    def _tail(self, kernel: kernels.Kernel, first: int, levels: Level) -> kernels.Kernel:
        tail = solver.Solver(
            first=first, levels=levels, order=self.order, parameterisation=kernel.parameterisation
        )
        return replace(kernel, tail=tail)
