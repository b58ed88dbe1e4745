"""The reverse kernel that every sampler is: a table of four numbers a step.

DDIM, DDPM and the flow samplers all have p(x_s | x_t) = N(clean x0_hat + noise e_hat, std^2), where
(x0_hat, e_hat) is the network's opinion of x_t = signal x0 + sigma e. A sampler is a way to fill
that table; the arithmetic is here, once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from burnish.schedules import Parameterisation
from burnish.solver import Solver
from burnish.transitions import Gaussian


@dataclass(frozen=True, slots=True, kw_only=True)
class Kernel:
    """A sampler on a time grid.

    Each table has one entry a step, counted from noise (float64, but for `times`):
    times: what the network is fed
    signal, sigma: x_t = signal x0 + sigma e before the step
    clean, noise: coefficients of x0_hat and e_hat in the mean
    std: standard deviation of the step, >= 0

    tail: what carries a state from the step `walked` to clean data, in place of the steps from there on
    """

    times: Tensor
    signal: Float[Tensor, " steps"]
    sigma: Float[Tensor, " steps"]
    clean: Float[Tensor, " steps"]
    noise: Float[Tensor, " steps"]
    std: Float[Tensor, " steps"]
    parameterisation: Parameterisation
    stochastic: tuple[int, ...]
    tail: Solver | None = None

    @property
    def walked(self) -> int:
        """Steps that a chain takes one by one: all of them, if there is no tail."""
        return self.num_steps if self.tail is None else self.tail.first

    @property
    def num_steps(self) -> int:
        return len(self.times)

    def time(self, step: Int[Tensor, " batch"]) -> Tensor:
        """What the network is fed at each row's step."""
        return self.times[step]

    def transition(self, step: Int[Tensor, " batch"], x: Tensor, prediction: Tensor) -> Gaussian:
        """The distribution of the next state, in float32 whatever dtype the network runs in.

        step: each row may be at a step of its own
        x: state, (batch, *event)
        prediction: the network's output at (x, time), same shape; gradients flow through it
        """
        x, prediction = x.float(), prediction.float()

        def at(table: Tensor) -> Tensor:
            return table[step].to(torch.float32).reshape(-1, *[1] * (x.ndim - 1))

        x0, e = self.parameterisation.estimate(x, prediction, at(self.signal), at(self.sigma))
        mean = at(self.clean) * x0 + at(self.noise) * e
        return Gaussian(mean, self.std[step].to(torch.float32))

    def to(self, device: torch.device | str) -> Kernel:
        """The same sampler with its tables on `device`."""
        names = ("times", "signal", "sigma", "clean", "noise", "std")
        moved = replace(self, **{name: getattr(self, name).to(device) for name in names})
        return replace(moved, tail=self.tail and self.tail.to(device))


def kernel(
    *,
    times: Tensor,
    signal: Tensor,
    sigma: Tensor,
    clean: Tensor,
    noise: Tensor,
    std: Tensor,
    parameterisation: Parameterisation,
) -> Kernel:
    """A `Kernel` whose `stochastic` steps are those with a variance."""
    return Kernel(
        times=times,
        signal=signal,
        sigma=sigma,
        clean=clean,
        noise=noise,
        std=std,
        parameterisation=parameterisation,
        stochastic=tuple(torch.nonzero(std > 0).flatten().tolist()),
    )


def within(steps: Sequence[int], inside: Kernel, outside: Kernel) -> Kernel:
    """`inside` at these steps and `outside` at all others; both walk the same grid."""
    chosen = torch.zeros(inside.num_steps, dtype=torch.bool)
    chosen[list(steps)] = True
    return kernel(
        times=inside.times,
        signal=inside.signal,
        sigma=inside.sigma,
        clean=torch.where(chosen, inside.clean, outside.clean),
        noise=torch.where(chosen, inside.noise, outside.noise),
        std=torch.where(chosen, inside.std, outside.std),
        parameterisation=inside.parameterisation,
    )
