"""Ancestral sampling (Ho et al. 2020, arXiv 2006.11239, eq. 6 and 7)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from burnish import kernels, schedules

if TYPE_CHECKING:
    from burnish.randomness import Randomness
    from burnish.schedules import Schedule


@dataclass(frozen=True, slots=True, kw_only=True)
class DDPM:
    """The posterior mean of DDPM with one of its two fixed variances.

    With the posterior variance it is DDIM at eta = 1, and its last step has no density where the
    schedule ends in clean data.
    """

    num_steps: int = 50
    """Denoising steps."""
    variance: Literal["posterior", "beta"] = "posterior"
    """`posterior`: best where x0 is known (`fixed_small` in diffusers); `beta`: best where x0 is
    standard normal (`fixed_large`); it leaves no step without a density."""

    def __post_init__(self) -> None:
        if self.num_steps < 1:
            raise ValueError(f"num_steps = {self.num_steps}, expected at least 1")

    @property
    def deterministic(self) -> bool:
        return False

    def at(self, iteration: int, randomness: Randomness) -> DDPM:
        del iteration, randomness
        return self

    def on(self, schedule: Schedule) -> kernels.Kernel:
        grid = schedules.of_family(schedules.DiffusionSchedule, schedule, self).grid(self.num_steps)
        a, s = grid.alpha_bar, grid.next_alpha_bar
        beta = 1 - a / s
        posterior = (1 - s) / (1 - a) * beta
        std = (posterior if self.variance == "posterior" else beta).sqrt()
        return kernels.kernel(
            times=grid.time,
            signal=a.sqrt(),
            sigma=(1 - a).sqrt(),
            clean=s.sqrt(),
            noise=(1 - s - posterior).clamp(min=0).sqrt(),
            std=std,
            parameterisation=schedule.parameterisation,
        )
