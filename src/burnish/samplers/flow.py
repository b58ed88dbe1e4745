"""Samplers of flow-matching models: the ODE, and stochastic ones that a policy gradient can learn by.

With the network's opinions x0_hat = x - t v and e_hat = x + (1 - t) v, the ODE goes from t to s < t by
x_s = (1 - s) x0_hat + s e_hat. The score at t is -e_hat / t, so for any g(t) >= 0 the SDE

    dx = [v + g^2 / (2 t) e_hat] dt + g dw        (backwards in time)

has the ODE's marginals (Song et al. 2020, arXiv 2011.13456). Its Euler-Maruyama step is
N((1 - s) x0_hat + [s - (t - s) g^2 / (2 t)] e_hat, g^2 (t - s) I).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from burnish import decays, kernels, schedules
from burnish.decays import Decay, Level

if TYPE_CHECKING:
    from torch import Tensor

    from burnish.randomness import Randomness
    from burnish.schedules import FlowGrid, Schedule


@dataclass(frozen=True, slots=True, kw_only=True)
class FlowODE:
    """Euler's method; equal to diffusers' `FlowMatchEulerDiscreteScheduler`. No step has a density."""

    num_steps: int = 28
    """Denoising steps; 28 to 50 are usual on Stable Diffusion 3."""

    def __post_init__(self) -> None:
        _check(self.num_steps)

    @property
    def deterministic(self) -> bool:
        return True

    def at(self, iteration: int, randomness: Randomness) -> FlowODE:
        del iteration, randomness
        return self

    def on(self, schedule: Schedule) -> kernels.Kernel:
        grid = _grid(self, schedule)
        return _kernel(schedule, grid, noise=grid.next_sigma, std=0 * grid.sigma)


@dataclass(frozen=True, slots=True, kw_only=True)
class FlowSDE:
    """The SDE with g = eta sqrt(t / (1 - t)) (Flow-GRPO: Liu et al. 2025, arXiv 2505.05470, eq. 8 and 9).

    At t = 1, where g is infinite, 1 - t is replaced by 1 - s of that first step, as in the authors' code (the
    published eta assumes it): its std is then eta. The first steps change x by amounts that do not shrink
    with the grid, so what they do to the marginal goes away slower than 1 / num_steps; up to 400 steps it is
    less than Euler's own error (docs/samplers.md).
    """

    num_steps: int = 10
    """Denoising steps; the paper trains with 10 and evaluates with 40."""
    eta: Level = 0.7
    """Noise level, >= 0 (a in the paper, which uses 0.7), or its decay over iterations; 0 is the ODE."""

    def __post_init__(self) -> None:
        _check(self.num_steps, self.eta)

    @property
    def deterministic(self) -> bool:
        return decays.settled(self.eta) == 0

    def at(self, iteration: int, randomness: Randomness) -> FlowSDE:
        del randomness
        return replace(self, eta=self.eta.at(iteration)) if isinstance(self.eta, Decay) else self

    def on(self, schedule: Schedule) -> kernels.Kernel:
        grid = _grid(self, schedule)
        t = grid.sigma
        eta = decays.settled(self.eta)
        left = (1 - t).where(t < 1, 1 - grid.next_sigma)
        return _euler_maruyama(schedule, grid, eta**2 * t / left)


@dataclass(frozen=True, slots=True, kw_only=True)
class DanceSDE:
    """The SDE with g = eta at all times (DanceGRPO: Xue et al. 2025, arXiv 2505.07818)."""

    num_steps: int = 16
    """Denoising steps; 16 in the paper's recipe for FLUX."""
    eta: Level = 0.3
    """Noise level, >= 0, or its decay over iterations; 0.3 in the paper; 0 is the ODE."""

    def __post_init__(self) -> None:
        _check(self.num_steps, self.eta)

    @property
    def deterministic(self) -> bool:
        return decays.settled(self.eta) == 0

    def at(self, iteration: int, randomness: Randomness) -> DanceSDE:
        del randomness
        return replace(self, eta=self.eta.at(iteration)) if isinstance(self.eta, Decay) else self

    def on(self, schedule: Schedule) -> kernels.Kernel:
        grid = _grid(self, schedule)
        eta = decays.settled(self.eta)
        return _euler_maruyama(schedule, grid, eta**2 + 0 * grid.sigma)


@dataclass(frozen=True, slots=True, kw_only=True)
class CPS:
    """Coefficients-preserving sampling (Flow-CPS: Wang & Yu 2025, arXiv 2509.05952).

    x_s = (1 - s) x0_hat + s cos(eta pi / 2) e_hat + s sin(eta pi / 2) z: signal and total noise are those of
    the schedule, so no image is left noisy, and the last step has no noise and no density. The marginal is
    NOT that of the ODE: e_hat has less variance than e, so samples are drawn together (docs/samplers.md).
    The density is the true Gaussian one; the authors' code takes -|x_s - mean|^2 for it.
    """

    num_steps: int = 10
    """Denoising steps; as in Flow-GRPO."""
    eta: Level = 0.8
    """Share of fresh noise in [0, 1], or its decay over iterations: its angle over a right angle; 0.8 in
    Flow-GRPO's code; 0 is the ODE."""

    def __post_init__(self) -> None:
        _check(self.num_steps, self.eta)
        if decays.bounds(self.eta)[1] > 1:
            raise ValueError(
                f"eta = {self.eta}, expected a number from 0 (the ODE) to 1 (all fresh)"
            )

    @property
    def deterministic(self) -> bool:
        return decays.settled(self.eta) == 0

    def at(self, iteration: int, randomness: Randomness) -> CPS:
        del randomness
        return replace(self, eta=self.eta.at(iteration)) if isinstance(self.eta, Decay) else self

    def on(self, schedule: Schedule) -> kernels.Kernel:
        grid = _grid(self, schedule)
        eta = decays.settled(self.eta)
        s, angle = grid.next_sigma, eta * math.pi / 2
        return _kernel(schedule, grid, noise=s * math.cos(angle), std=s * math.sin(angle))


def _grid(sampler: FlowODE | FlowSDE | DanceSDE | CPS, schedule: Schedule) -> FlowGrid:
    flow = schedules.of_family(schedules.FlowSchedule, schedule, sampler)
    return flow.grid(sampler.num_steps)


def _euler_maruyama(schedule: Schedule, grid: FlowGrid, g_squared: Tensor) -> kernels.Kernel:
    t, s = grid.sigma, grid.next_sigma
    noise = s - (t - s) * g_squared / (2 * t)
    return _kernel(schedule, grid, noise=noise, std=(g_squared * (t - s)).sqrt())


def _kernel(schedule: Schedule, grid: FlowGrid, *, noise: Tensor, std: Tensor) -> kernels.Kernel:
    return kernels.kernel(
        times=grid.time,
        signal=1 - grid.sigma,
        sigma=grid.sigma,
        clean=1 - grid.next_sigma,
        noise=noise,
        std=std,
        parameterisation=schedule.parameterisation,
    )


def _check(num_steps: int, eta: Level = 0.0) -> None:
    """Raises ValueError for settings that cannot be."""
    if num_steps < 1:
        raise ValueError(f"num_steps = {num_steps}, expected at least 1")
    if decays.settled(eta) < 0:
        raise ValueError(f"eta = {eta}, expected 0 (the ODE) or more")
