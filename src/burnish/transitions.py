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
    """(1 - epsilon) policy + epsilon other: a policy that explores.

    One choice of component a batch row, for all event dimensions together: the density is not a product
    over dimensions. A KL has no closed form.

    policy, other: with std > 0
    epsilon: chance of `other`, in [0, 1]
    """

    policy: Gaussian
    other: Gaussian
    epsilon: float

    def sample(
        self, noise: Float[Tensor, "batch *event"], chance: Float[Tensor, " batch"]
    ) -> Float[Tensor, "batch *event"]:
        """By standard normal `noise`, and by `chance`, uniform in [0, 1): `other`'s where below epsilon."""
        explored = _over_event(chance < self.epsilon, noise)
        return torch.where(explored, self.other.sample(noise), self.policy.sample(noise))

    def log_prob(self, x: Float[Tensor, "batch *event"]) -> Float[Tensor, " batch"]:
        """Log-density in nats, summed over the event, whichever component `x` came from."""
        own, other = self.policy.std.new_tensor([1 - self.epsilon, self.epsilon]).log()
        return torch.logaddexp(own + self.policy.log_prob(x), other + self.other.log_prob(x))


def widened(policy: Gaussian, scale: float) -> Gaussian:
    """The same mean with `scale` times the standard deviation."""
    return replace(policy, std=scale * policy.std)


def towards(policy: Gaussian, other: Gaussian, reach: float) -> Gaussian:
    """`policy` with its mean moved to that of `other`, or where that is further than `reach` standard
    deviations of `policy` away, by so many towards it.

    The distance is the norm over event dimensions, of each batch row. reach: > 0, may be infinite
    """
    away = other.mean - policy.mean
    distance = away.flatten(1).norm(dim=1) / policy.std
    share = (reach / distance).clamp(max=1)
    return replace(policy, mean=policy.mean + _over_event(share, away) * away)


def _over_event(value: Tensor, like: Tensor) -> Tensor:
    return value.reshape(-1, *[1] * (like.ndim - 1))
