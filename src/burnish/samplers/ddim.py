"""DDIM with noise (Song et al. 2020, arXiv 2010.02502, eq. 12 and 16)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from burnish import decays, kernels, schedules
from burnish.decays import Decay, Level

if TYPE_CHECKING:
    from burnish.randomness import Randomness
    from burnish.schedules import Schedule


@dataclass(frozen=True, slots=True, kw_only=True)
class DDIM:
    """The sampler of the DDPO paper, with eta = 1."""

    num_steps: int = 20
    """Denoising steps; the paper uses 50 on Stable Diffusion."""
    eta: Level = 1.0
    """Share of the full ancestral noise in [0, 1], or its decay over iterations; 0 is deterministic and has
    no density to learn by."""

    def __post_init__(self) -> None:
        if self.num_steps < 1:
            raise ValueError(f"num_steps = {self.num_steps}, expected at least 1")
        end, start = decays.bounds(self.eta)
        if not 0 <= end <= start <= 1:
            raise ValueError(f"eta = {self.eta}, expected a number from 0 (no noise) to 1 (DDPM)")

    @property
    def deterministic(self) -> bool:
        return decays.settled(self.eta) == 0

    def at(self, iteration: int, randomness: Randomness) -> DDIM:
        del randomness
        return replace(self, eta=self.eta.at(iteration)) if isinstance(self.eta, Decay) else self

    def on(self, schedule: Schedule) -> kernels.Kernel:
        grid = schedules.of_family(schedules.DiffusionSchedule, schedule, self).grid(self.num_steps)
        a, s = grid.alpha_bar, grid.next_alpha_bar
        eta = decays.settled(self.eta)
        std = eta * ((1 - s) / (1 - a) * (1 - a / s)).sqrt()
        return kernels.kernel(
            times=grid.time,
            signal=a.sqrt(),
            sigma=(1 - a).sqrt(),
            clean=s.sqrt(),
            noise=(1 - s - std.square()).clamp(min=0).sqrt(),
            std=std,
            parameterisation=schedule.parameterisation,
        )
