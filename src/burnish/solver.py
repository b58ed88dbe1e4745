"""DPM-Solver++ (Lu et al. 2022, arXiv 2211.01095): from a noisy state to clean data in few network calls.

A multistep method: a step uses what the network said at the steps before it too. So it is no Markov kernel,
and it has no density. It solves the ODE d(x / sigma) = x0_hat(x) d(signal / sigma), which every sampler
without noise discretises; order 1 is DDIM with eta = 0, and Euler's method in a flow.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from burnish.schedules import Level, Parameterisation

if TYPE_CHECKING:
    from diffusers import DPMSolverMultistepScheduler


@dataclass(frozen=True, slots=True, kw_only=True)
class Solver:
    """The end of a chain, or all of one, solved with the arithmetic of diffusers' scheduler.

    first: the chain's step in whose place, and in that of all later ones, it comes
    levels: where it asks the network, from noise to data; the first is that of the state that it is given,
        and clean data comes after the last
    order: 1 to 3; lower where there are too few steps behind or ahead
    """

    first: int
    levels: Level
    order: int
    parameterisation: Parameterisation

    def solve(self, predict: Callable[[Tensor, Tensor], Tensor], x: Tensor) -> Tensor:
        """Clean states, float32, of states (batch, *event) at the first level.

        predict: of states and times (batch,), the network's output
        """
        # A step does not depend on the scale of x = signal x0 + sigma e. Divided by signal + sigma it is
        # the state of a flow, whatever the family, and diffusers' scheduler has one rule to follow.
        scales = (self.levels.signal + self.levels.sigma).float()
        scheduler = self._scheduler()
        state = x.float() / scales[0]
        for k, time in enumerate(self.levels.time):
            x = scales[k] * state
            output = predict(x, time.expand(len(x))).float()
            signal, sigma = self.levels.signal[k].float(), self.levels.sigma[k].float()
            x0, _ = self.parameterisation.estimate(x, output, signal, sigma)
            state = scheduler.step(x0, k, state, return_dict=False)[0]
        return state

    def to(self, device: torch.device | str) -> Solver:
        """The same solver with its tables on `device`."""
        time, signal, sigma = self.levels.time, self.levels.signal, self.levels.sigma
        return replace(self, levels=Level(time.to(device), signal.to(device), sigma.to(device)))

    def _scheduler(self) -> DPMSolverMultistepScheduler:
        """A new one for each batch: it remembers the network's outputs."""
        from diffusers import DPMSolverMultistepScheduler  # here: a second that few chains need

        scheduler = DPMSolverMultistepScheduler(
            solver_order=self.order, prediction_type="sample", use_flow_sigmas=True
        )
        scheduler.set_timesteps(len(self.levels.time))
        share = self.levels.sigma / (self.levels.signal + self.levels.sigma)
        scheduler.sigmas = torch.cat([share, share.new_zeros(1)]).float().cpu()
        scheduler.set_begin_index(0)
        return scheduler
