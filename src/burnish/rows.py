"""What one row of a minibatch is: index views of a collection, not copies.

Transitions and endpoints have `recorded` tensors, whose first axis is the rows: what the collecting
policy, or a reference, said of each.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Generic, Protocol, Self, TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from burnish.policy import Cond, Policy, take
from burnish.randomness import Randomness
from burnish.rollout import Samples, Trajectory, chain_noise
from burnish.transitions import Gaussian


class Rows(Protocol):
    """Rows that the loop can count and index; `key` labels each row for the report by step."""

    @property
    def key(self) -> Tensor: ...
    def __len__(self) -> int: ...
    def __getitem__(self, index: Tensor) -> Self: ...


@dataclass(frozen=True, slots=True)
class Transitions:
    """Denoising steps (x, step, x_next) of a trajectory, with their advantage.

    position: index into the trajectory's scored steps, one a row
    sample: index of the chain, one a row
    advantages: one a chain, or one for each scored step of each chain
    """

    trajectory: Trajectory
    advantages: Float[Tensor, " batch"] | Float[Tensor, "scored batch"]
    position: Int[Tensor, " rows"]
    sample: Int[Tensor, " rows"]
    recorded: Cond = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.sample)

    def __getitem__(self, index: Tensor) -> Transitions:
        return replace(
            self,
            position=self.position[index],
            sample=self.sample[index],
            recorded=take(self.recorded, index),
        )

    @property
    def step(self) -> Int[Tensor, " rows"]:
        """The sampler's step, counted from noise."""
        return torch.tensor(self.trajectory.steps, device=self.position.device)[self.position]

    @property
    def key(self) -> Int[Tensor, " rows"]:
        return self.step

    @property
    def x(self) -> Float[Tensor, "rows *event"]:
        return self.trajectory.states[self.trajectory.before(self.step), self.sample]

    @property
    def x_next(self) -> Float[Tensor, "rows *event"]:
        return self.trajectory.states[self.trajectory.before(self.step) + 1, self.sample]

    @property
    def old_log_prob(self) -> Float[Tensor, " rows"]:
        return self.trajectory.log_prob[self.position, self.sample]

    @property
    def event_size(self) -> int:
        return self.trajectory.states[0, 0].numel()

    @property
    def advantage(self) -> Float[Tensor, " rows"]:
        each = self.advantages.expand(len(self.trajectory.steps), -1)
        return each[self.position, self.sample]

    @property
    def weight(self) -> Float[Tensor, " rows"]:
        """Importance weight of the row's chain; 1 where nothing was explored."""
        return self.trajectory.weight[self.sample]

    @property
    def cond(self) -> Cond:
        return take(self.trajectory.cond, self.sample)


def transition(policy: Policy, rows: Transitions) -> Gaussian:
    """Distribution of the next state at each row, under `policy`; carries the gradient.

    Rows at different steps are one batch of the network.
    """
    return policy.transition(rows.step, rows.x, rows.cond)


def log_prob(policy: Policy, rows: Transitions) -> Float[Tensor, " rows"]:
    """Nats, summed over the event, of each row's step under `policy`; carries the gradient."""
    return transition(policy, rows).log_prob(rows.x_next)


def transitions(
    trajectory: Trajectory,
    advantages: Float[Tensor, " batch"] | Float[Tensor, "scored batch"],
    steps: Sequence[int],
) -> Transitions:
    """All chains at the given sampler steps, chain by chain.

    advantages: one a chain, or one for each of the trajectory's scored steps of each chain

    Raises ValueError if one of `steps` has no density: there is nothing to learn from it.
    """
    for step in steps:
        if step not in trajectory.steps:
            raise ValueError(
                f"step {step} has no density under this sampler, expected one of "
                f"{list(trajectory.steps)}"
            )
    device = trajectory.states.device
    batch = trajectory.states.shape[1]
    positions = torch.tensor([trajectory.steps.index(step) for step in steps], device=device)
    return Transitions(
        trajectory=trajectory,
        advantages=advantages.to(device),
        position=positions.repeat(batch),
        sample=torch.arange(batch, device=device).repeat_interleave(len(steps)),
    )


@dataclass(frozen=True, slots=True)
class Endpoints:
    """Clean samples to be noised anew: `draws` rows a sample, each at a noise level of its own.

    The levels of a sample's rows are spread evenly over the times that the model was trained on. Levels and
    noise are addressed by the row, so they are the same whatever the batches are.

    x0: clean states; cond: their conditioning
    weight: one a sample: a weight, an advantage, an optimality
    id: sample * draws + draw, one a row
    """

    x0: Float[Tensor, "batch *event"]
    cond: Cond
    weight: Float[Tensor, " batch"]
    draws: int
    randomness: Randomness
    id: Int[Tensor, " rows"]
    recorded: Cond = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.id)

    def __getitem__(self, index: Tensor) -> Endpoints:
        return replace(self, id=self.id[index], recorded=take(self.recorded, index))

    @property
    def sample(self) -> Int[Tensor, " rows"]:
        return self.id // self.draws

    @property
    def quantile(self) -> Float[Tensor, " rows"]:
        """Of the row's noise level among all times, from data to noise, in [0, 1); float64."""
        chance = self.randomness.at("level").uniform(self.id.tolist()).to(self.id.device)
        return (self.id % self.draws + chance) / self.draws

    @property
    def key(self) -> Int[Tensor, " rows"]:
        """Tenth of the noise levels, counted from noise."""
        return 9 - (self.quantile * 10).long()


def endpoints(
    x0: Float[Tensor, "batch *event"],
    cond: Cond,
    weight: Float[Tensor, " batch"],
    *,
    draws: int,
    randomness: Randomness,
    places: Sequence[int] | None = None,
) -> Endpoints:
    """`draws` rows of every sample, or of the samples at `places` only, sample by sample."""
    number = torch.arange(len(x0) * draws, device=x0.device).reshape(-1, draws)
    if places is not None:
        number = number[list(places)]
    return Endpoints(x0, cond, weight.to(x0.device), draws, randomness, number.flatten())


@dataclass(frozen=True, slots=True)
class Noised:
    """Rows of clean samples at their noise levels, and what a perfect network says of them."""

    x: Float[Tensor, "rows *event"]
    time: Tensor
    cond: Cond
    target: Float[Tensor, "rows *event"]
    x0: Float[Tensor, "rows *event"]
    signal: Float[Tensor, " rows"]
    sigma: Float[Tensor, " rows"]


def noised(policy: Policy, rows: Endpoints) -> Noised:
    """x = signal x0 + sigma e for each row, float32."""
    schedule = policy.denoiser.schedule
    level = schedule.level(rows.quantile)
    x0 = rows.x0[rows.sample].float()
    e = rows.randomness.at("noise").normal(rows.id.tolist(), x0.shape[1:]).to(x0.device)
    signal, sigma = (
        table.float().reshape(-1, *[1] * (x0.ndim - 1)) for table in (level.signal, level.sigma)
    )
    return Noised(
        x=(signal * x0 + sigma * e).to(policy.storage),
        time=level.time,
        cond=take(rows.cond, rows.sample),
        target=schedule.parameterisation.target(x0, e, signal, sigma),
        x0=x0,
        signal=signal.flatten(),
        sigma=sigma.flatten(),
    )


def predict(policy: Policy, at: Noised) -> Float[Tensor, "rows *event"]:
    """The network's output, float32; carries the gradient."""
    return policy.denoiser.predict(at.x, at.time, at.cond).float()


def clean_estimate(policy: Policy, at: Noised, output: Tensor) -> Float[Tensor, "rows *event"]:
    """The clean sample that a network's output stands for."""
    signal, sigma = (each.reshape(-1, *[1] * (output.ndim - 1)) for each in (at.signal, at.sigma))
    return policy.denoiser.schedule.parameterisation.estimate(at.x.float(), output, signal, sigma)[
        0
    ]


def squared_error(output: Tensor, target: Tensor) -> Float[Tensor, " rows"]:
    """Mean over event dimensions, one a row, >= 0."""
    return (output - target).square().flatten(1).mean(1)


@dataclass(frozen=True, slots=True)
class Contexts:
    """Chains that a reward is to be differentiated through, each from a step of its own on.

    chains, samples, rewards: as they were drawn
    reward: to be asked again, of where the rows end
    noise: where the chains' noise comes from; that of chain i is addressed by i
    first: the step, counted from noise, at which the gradient begins, one a chain
    sample: index of the chain, one a row
    """

    chains: Trajectory
    samples: Samples
    rewards: Float[Tensor, " batch"]
    reward: Callable[[Samples], Tensor]
    noise: Randomness
    first: Int[Tensor, " batch"]
    sample: Int[Tensor, " rows"]

    def __len__(self) -> int:
        return len(self.sample)

    def __getitem__(self, index: Tensor) -> Contexts:
        return replace(self, sample=self.sample[index])

    @property
    def step(self) -> Int[Tensor, " rows"]:
        """The step at which the row's gradient begins, counted from noise."""
        return self.first[self.sample]

    @property
    def key(self) -> Int[Tensor, " rows"]:
        return self.step

    @property
    def x(self) -> Float[Tensor, "rows *event"]:
        """The state before that step."""
        return self.chains.states[self.chains.before(self.step), self.sample]

    @property
    def cond(self) -> Cond:
        return take(self.chains.cond, self.sample)

    @property
    def drawn(self) -> Float[Tensor, " rows"]:
        """The reward of the sample that the chain ended in."""
        return self.rewards[self.sample]

    def ending_in(self, media: Tensor) -> Samples:
        """What the reward is asked about: the rows' prompts and metadata, with other media."""
        places = self.sample.tolist()
        return Samples(
            media,
            tuple(self.samples.prompts[i] for i in places),
            tuple(self.samples.metadata[i] for i in places),
        )


def contexts(
    chains: Trajectory,
    samples: Samples,
    rewards: Float[Tensor, " batch"],
    reward: Callable[[Samples], Tensor],
    *,
    noise: Randomness,
    lengths: Sequence[int],
) -> Contexts:
    """One row a chain; the gradient flows through the last `lengths[i]` steps of chain i.

    The chains keep the states before these steps (`rollout`'s `keep`).
    """
    device = chains.states.device
    return Contexts(
        chains=chains,
        samples=samples,
        rewards=rewards.to(device),
        reward=reward,
        noise=noise,
        first=chains.num_steps - torch.tensor(lengths, device=device),
        sample=torch.arange(len(samples), device=device),
    )


def run_again(
    policy: Policy, rows: Contexts, *, checkpointed: bool
) -> Float[Tensor, "rows *event"]:
    """Where the rows' chains end when each takes its steps again from its own on; carries their gradient.

    The noise is that of the rollout: under the policy that drew the chains, they end where they ended.

    checkpointed: hold the states between the steps only, and compute each step again in the backward pass
        (Chen et al. 2016, arXiv 1604.06174): the same gradient, one more forward pass a step
    """
    noise = chain_noise(policy, rows.sample.tolist(), rows.noise)
    x, cond = rows.x, rows.cond
    for k in range(int(rows.step.min()), policy.kernel.num_steps):
        moving = torch.nonzero(rows.step <= k).flatten()
        advance = partial(_advance, policy, k, take(cond, moving), noise[k + 1, moving])
        if checkpointed:
            # The state of torch's generator, shared by all threads, is left alone: a step draws from none.
            moved = checkpoint(advance, x[moving], use_reentrant=False, preserve_rng_state=False)
        else:
            moved = advance(x[moving])
        x = x.index_copy(0, moving, moved)
    return x


def _advance(policy: Policy, k: int, cond: Cond, noise: Tensor, x: Tensor) -> Tensor:
    step = torch.full((len(x),), k, device=x.device)
    return policy.transition(step, x, cond).sample(noise).to(policy.storage)


def jump(policy: Policy, rows: Contexts) -> Float[Tensor, "rows *event"]:
    """The network's estimate of the clean sample at each row's state; carries the gradient."""
    return policy.clean(rows.step, rows.x, rows.cond)


P = TypeVar("P", bound=Rows)


@dataclass(frozen=True, slots=True)
class Pairs(Generic[P]):
    """Two rows of one prompt each: one that was preferred, and one that was not."""

    chosen: P
    rejected: P

    def __len__(self) -> int:
        return len(self.chosen)

    def __getitem__(self, index: Tensor) -> Pairs[P]:
        return Pairs(self.chosen[index], self.rejected[index])

    @property
    def key(self) -> Tensor:
        return self.chosen.key
