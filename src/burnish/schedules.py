"""Noise schedules: what a model was trained with, and the time grid that a sampler walks on it.

Everywhere x_t = signal_t x0 + sigma_t e, with signal_t^2 = abar_t and sigma_t^2 = 1 - abar_t for
diffusion, and signal_t = 1 - t and sigma_t = t for flow matching. Tables are float64.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor


def from_epsilon(x: Tensor, output: Tensor, signal: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
    """The network predicts the noise e (Ho et al. 2020)."""
    return (x - sigma * output) / signal, output


def from_velocity(
    x: Tensor, output: Tensor, signal: Tensor, sigma: Tensor
) -> tuple[Tensor, Tensor]:
    """The network predicts v = signal e - sigma x0 (Salimans & Ho 2022); signal^2 + sigma^2 = 1."""
    return signal * x - sigma * output, signal * output + sigma * x


def from_sample(x: Tensor, output: Tensor, signal: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
    """The network predicts the clean sample x0."""
    return output, (x - signal * output) / sigma


def from_flow(x: Tensor, output: Tensor, signal: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
    """The network predicts v = e - x0 (Lipman et al. 2022; Liu et al. 2022); signal + sigma = 1."""
    return x - sigma * output, x + signal * output


@dataclass(frozen=True, slots=True)
class Parameterisation:
    """What a network's output means.

    estimate: (x, output, signal, sigma) -> (x0_hat, e_hat)
    target: (x0, e, signal, sigma) -> the output that a perfect network gives
    """

    estimate: Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
    target: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


EPSILON = Parameterisation(from_epsilon, lambda x0, e, signal, sigma: e)
VELOCITY = Parameterisation(from_velocity, lambda x0, e, signal, sigma: signal * e - sigma * x0)
SAMPLE = Parameterisation(from_sample, lambda x0, e, signal, sigma: x0)
FLOW = Parameterisation(from_flow, lambda x0, e, signal, sigma: e - x0)

PARAMETERISATIONS: dict[str, Parameterisation] = {
    "epsilon": EPSILON,
    "v_prediction": VELOCITY,
    "sample": SAMPLE,
}
"""By the name that a diffusers scheduler's `prediction_type` gives it."""


def leading(num_train: int, num_steps: int, offset: int) -> Tensor:
    """Times 0, r, 2r, ... + offset with r = num_train // num_steps, from noise to data."""
    return (torch.arange(num_steps) * (num_train // num_steps) + offset).flip(0)


def trailing(num_train: int, num_steps: int, offset: int) -> Tensor:  # noqa: ARG001
    """Times num_train - 1 downwards in equal strides, rounded (Lin et al. 2023)."""
    stride = num_train / num_steps
    grid = torch.arange(num_steps, dtype=torch.float64)
    return (num_train - grid * stride).round().long() - 1


def linspace(num_train: int, num_steps: int, offset: int) -> Tensor:  # noqa: ARG001
    """`num_steps` times from num_train - 1 to 0, both included."""
    return torch.linspace(num_train - 1, 0, num_steps, dtype=torch.float64).round().long()


SPACINGS: dict[str, Callable[[int, int, int], Tensor]] = {
    "leading": leading,
    "trailing": trailing,
    "linspace": linspace,
}
"""By the name that a diffusers scheduler's `timestep_spacing` gives it."""


@dataclass(frozen=True, slots=True)
class Grid:
    """The times a sampler visits, counted from noise, with abar before and after each step."""

    time: Int[Tensor, " steps"]
    alpha_bar: Float[Tensor, " steps"]
    next_alpha_bar: Float[Tensor, " steps"]


@dataclass(frozen=True, slots=True)
class Level:
    """Noise levels of a batch: what the network is fed, and x = signal x0 + sigma e (float64)."""

    time: Tensor
    signal: Float[Tensor, " batch"]
    sigma: Float[Tensor, " batch"]


class Schedule(Protocol):
    """What a model was trained with. A sampler asks for the class whose grid it can walk."""

    @property
    def parameterisation(self) -> Parameterisation: ...

    def level(self, quantile: Float[Tensor, " batch"]) -> Level:
        """The level at a quantile in [0, 1) of the times, from data to noise: uniform quantiles are the
        levels that the model was trained on."""
        ...

    def levels(self, num_steps: int) -> Level:
        """Where a solver of the ODE asks the network, from noise on; after the last level comes clean data.

        Raises ValueError if there are no such levels.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class DiffusionSchedule:
    """A variance-preserving schedule over `num_train` discrete times.

    alpha_bar: cumulative product of 1 - beta, falling, in (0, 1)
    final_alpha_bar: abar after the last step; 1 means that the last step ends in clean data, so its
        DDIM variance is 0 and it has no density (`set_alpha_to_one` in diffusers)
    parameterisation: what the network's output means
    spacing: how a sampler's times are spread (a function of this module)
    offset: added to each time of the leading spacing (`steps_offset` in diffusers)
    """

    alpha_bar: Float[Tensor, " num_train"]
    final_alpha_bar: float
    parameterisation: Parameterisation = EPSILON
    spacing: Callable[[int, int, int], Tensor] = leading
    offset: int = 0

    def at(self, time: Int[Tensor, " batch"]) -> Level:
        """The level at a time that the network is fed."""
        alpha_bar = self.alpha_bar.to(time.device)[time]
        return Level(time, alpha_bar.sqrt(), (1 - alpha_bar).sqrt())

    def level(self, quantile: Float[Tensor, " batch"]) -> Level:
        return self.at((quantile * len(self.alpha_bar)).long())

    def levels(self, num_steps: int) -> Level:
        """As diffusers' `DPMSolverMultistepScheduler` has them: the times of a grid, but where a grid ends at
        the least time, one more of them and that one left out, since hardly any noise is left there.
        """
        time = self._times(num_steps)
        if time[-1] <= self.offset:
            time = self._times(num_steps + 1)[:-1]
        return self.at(time)

    def grid(self, num_steps: int) -> Grid:
        """Times and abar for `num_steps` steps; the same table as diffusers' `DDIMScheduler`.

        Raises ValueError if the schedule has no such grid.
        """
        time = self._times(num_steps)
        after = time - len(self.alpha_bar) // num_steps
        next_alpha_bar = torch.where(
            after >= 0, self.alpha_bar[after.clamp(min=0)], self.final_alpha_bar
        )
        return Grid(time=time, alpha_bar=self.alpha_bar[time], next_alpha_bar=next_alpha_bar)

    def _times(self, num_steps: int) -> Int[Tensor, " steps"]:
        num_train = len(self.alpha_bar)
        if not 1 <= num_steps <= num_train:
            raise ValueError(
                f"num_steps = {num_steps}, expected 1 to {num_train}: "
                "the model was trained on that many times"
            )
        time = self.spacing(num_train, num_steps, self.offset)
        if int(time.max()) >= num_train:
            raise ValueError(
                f"num_steps = {num_steps} with a steps offset of {self.offset} asks for time "
                f"{int(time.max())}, but the last one is {num_train - 1}; use fewer steps"
            )
        return time


@dataclass(frozen=True, slots=True)
class FlowGrid:
    """The times a sampler visits, counted from noise, with sigma before and after each step.

    time: float32, what the network is fed
    sigma, next_sigma: the flow's own time, from 1 (noise) to 0 (data)
    """

    time: Float[Tensor, " steps"]
    sigma: Float[Tensor, " steps"]
    next_sigma: Float[Tensor, " steps"]


@dataclass(frozen=True, slots=True, kw_only=True)
class FlowSchedule:
    """Flow matching: x_t = (1 - t) x0 + t e; a network is fed the time num_train * t.

    num_train: times that the model was trained on
    shift: moves all levels towards noise, t -> shift t / (1 + (shift - 1) t), as a larger image asks for
        (Esser et al. 2024, arXiv 2403.03206, eq. 23); 3 in Stable Diffusion 3, 1 for none
    parameterisation: `FLOW` (a velocity) or `SAMPLE`; at t = 1 no signal is left to read x0 from a noise by
    """

    num_train: int = 1000
    shift: float = 3.0
    parameterisation: Parameterisation = FLOW

    def __post_init__(self) -> None:
        if self.num_train < 1:
            raise ValueError(f"num_train = {self.num_train}, expected at least 1")
        if self.shift <= 0:
            raise ValueError(f"shift = {self.shift}, expected a positive number; 1 for none")
        if self.parameterisation not in (FLOW, SAMPLE):
            raise ValueError(
                "a FlowSchedule's parameterisation is schedules.FLOW or schedules.SAMPLE"
            )

    def at(self, time: Float[Tensor, " batch"]) -> Level:
        """The level at a time that the network is fed, in [0, num_train]."""
        sigma = time.double() / self.num_train
        return Level(time, 1 - sigma, sigma)

    def level(self, quantile: Float[Tensor, " batch"]) -> Level:
        sigma = self.shifted(((quantile * self.num_train).floor() + 1) / self.num_train)
        return Level(self._time(sigma), 1 - sigma, sigma)

    def levels(self, num_steps: int) -> Level:
        """From t = 1 in equal strides towards t = 0, then shifted. diffusers' flow sigmas begin one trained
        time later, where the signal is not 0; the noise that a chain begins with is of t = 1.
        """
        if num_steps < 1:
            raise ValueError(f"num_steps = {num_steps}, expected at least 1")
        sigma = self.shifted(torch.linspace(1, 0, num_steps + 1, dtype=torch.float64)[:-1])
        return Level(self._time(sigma), 1 - sigma, sigma)

    def grid(self, num_steps: int) -> FlowGrid:
        """The table of diffusers' `FlowMatchEulerDiscreteScheduler`: from t = 1 to the least trained t in
        equal strides, then shifted (a second time, as there: the least trained t is shifted itself), and a
        last step to t = 0.

        Raises ValueError if there is no such grid.
        """
        if num_steps < 1:
            raise ValueError(f"num_steps = {num_steps}, expected at least 1")
        least = self.shifted(torch.tensor(1 / self.num_train, dtype=torch.float64)).item()
        sigma = self.shifted(torch.linspace(1, least, num_steps, dtype=torch.float64))
        after = torch.cat([sigma[1:], torch.zeros(1, dtype=torch.float64)])
        return FlowGrid(time=self._time(sigma), sigma=sigma, next_sigma=after)

    def shifted(self, sigma: Tensor) -> Tensor:
        """Where the shift moves flow times in [0, 1]; 0 and 1 stay."""
        return self.shift * sigma / (1 + (self.shift - 1) * sigma)

    def _time(self, sigma: Tensor) -> Tensor:
        return (sigma * self.num_train).float()


Family = TypeVar("Family", DiffusionSchedule, FlowSchedule)


def of_family(family: type[Family], schedule: object, sampler: object) -> Family:
    """The schedule itself. Raises ValueError if it is not of the family that the sampler walks."""
    if isinstance(schedule, family):
        return schedule
    raise ValueError(
        f"{type(sampler).__name__} walks a {family.__name__}, but the model was trained with a "
        f"{type(schedule).__name__}. Take DDIM or DDPM for a DiffusionSchedule; FlowODE, FlowSDE, DanceSDE "
        "or CPS for a FlowSchedule"
    )


def scaled_linear(
    num_train: int = 1000, beta_start: float = 0.00085, beta_end: float = 0.012
) -> Float[Tensor, " num_train"]:
    """abar of Stable Diffusion: the square root of beta is linear in time (Rombach et al. 2022)."""
    root = torch.linspace(beta_start**0.5, beta_end**0.5, num_train, dtype=torch.float64)
    return (1 - root.square()).cumprod(0)
