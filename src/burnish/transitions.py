"""The action distribution of the denoising MDP: p(x_next | x, step, prompt).

Rollout samples from it and update scores with it, so both take one path through the code and the
likelihood ratio before any update is 1 by construction.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from jaxtyping import Float
from torch import Tensor


class Transition(Protocol):
    """A distribution over the next state, one a batch row."""

    def sample(self, noise: Tensor) -> Tensor: ...
    def log_prob(self, x: Tensor) -> Tensor: ...
    def kl(self, other: Gaussian) -> Tensor: ...


@dataclass(frozen=True, slots=True)
class Gaussian:
    """N(mean, std^2 I) in float32, with one standard deviation for each batch row.

    std: >= 0. A row with std = 0 can be sampled from, but it has no density: its `log_prob` and `kl`
        are not defined, and nothing here clamps it into one. `Sampler.stochastic` names the steps
        that have a density.
    """

    mean: Float[Tensor, "batch *event"]
    std: Float[Tensor, " batch"]

    def sample(self, noise: Float[Tensor, "batch *event"]) -> Float[Tensor, "batch *event"]:
        """`mean + std * noise` for standard normal `noise`."""
        return self.mean + _over_event(self.std, self.mean) * noise

    def log_prob(self, x: Float[Tensor, "batch *event"]) -> Float[Tensor, " batch"]:
        """Log-density in nats, summed over the event dimensions.

        Differentiable in `mean`, `std` and `x`. `x` is read as it is: round a state to its storage
        dtype before scoring it.
        """
        standardised = (x.float() - self.mean) / _over_event(self.std, self.mean)
        size = self.mean[0].numel()
        return (
            -0.5 * standardised.square().flatten(1).sum(1)
            - size * self.std.log()
            - 0.5 * size * math.log(2 * math.pi)
        )

    def kl(self, other: Gaussian) -> Float[Tensor, " batch"]:
        """KL(self || other) in nats, summed over the event dimensions; differentiable in both."""
        distance = (self.mean - other.mean).square().flatten(1).sum(1)
        ratio = self.std / other.std
        size = self.mean[0].numel()
        return 0.5 * (distance / other.std.square() + size * (ratio.square() - 1)) - (
            size * ratio.log()
        )


@dataclass(frozen=True, slots=True)
class Mixture:
    """(1 - epsilon) N(mean, std^2) + epsilon N(mean, (scale std)^2): a policy that explores.

    One choice of component a batch row, for all event dimensions together: the density is not a product
    over dimensions. A KL has no closed form.

    policy: N(mean, std^2), with std > 0
    epsilon: chance of the wide component, in [0, 1]
    scale: how many times wider it is, > 0
    """

    policy: Gaussian
    epsilon: float
    scale: float

    def sample(
        self, noise: Float[Tensor, "batch *event"], chance: Float[Tensor, " batch"]
    ) -> Float[Tensor, "batch *event"]:
        """By standard normal `noise`, and by `chance`, uniform in [0, 1), which is wide below epsilon."""
        wide = torch.where(chance < self.epsilon, self.scale, 1.0).to(noise)
        return self.policy.sample(_over_event(wide, noise) * noise)

    def log_prob(self, x: Float[Tensor, "batch *event"]) -> Float[Tensor, " batch"]:
        """Log-density in nats, summed over the event, whichever component `x` came from."""
        wide = replace(self.policy, std=self.scale * self.policy.std)
        narrow_share, wide_share = self.policy.std.new_tensor(
            [1 - self.epsilon, self.epsilon]
        ).log()
        return torch.logaddexp(
            narrow_share + self.policy.log_prob(x), wide_share + wide.log_prob(x)
        )


def _over_event(value: Tensor, like: Tensor) -> Tensor:
    return value.reshape(-1, *[1] * (like.ndim - 1))
