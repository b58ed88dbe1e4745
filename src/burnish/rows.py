"""What one row of a minibatch is: index views of a collection, not copies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol, Self

import torch
from jaxtyping import Float, Int
from torch import Tensor

from burnish.policy import Cond, Policy, take
from burnish.rollout import Trajectory


class Rows(Protocol):
    """Rows that the loop can count and index; `key` labels each row for the report by step."""

    @property
    def key(self) -> Tensor: ...
    def __len__(self) -> int: ...
    def __getitem__(self, index: Tensor) -> Self: ...


@dataclass(frozen=True, slots=True)
class Transitions:
    """Denoising steps (x, step, x_next) of a trajectory, with the advantage of their sample.

    position: index into the trajectory's scored steps, one a row
    sample: index of the chain, one a row
    advantages: one a chain
    """

    trajectory: Trajectory
    advantages: Float[Tensor, " batch"]
    position: Int[Tensor, " rows"]
    sample: Int[Tensor, " rows"]

    def __len__(self) -> int:
        return len(self.sample)

    def __getitem__(self, index: Tensor) -> Transitions:
        return replace(self, position=self.position[index], sample=self.sample[index])

    @property
    def step(self) -> Int[Tensor, " rows"]:
        """The sampler's step, counted from noise."""
        return torch.tensor(self.trajectory.steps, device=self.position.device)[self.position]

    @property
    def key(self) -> Int[Tensor, " rows"]:
        return self.step

    @property
    def x(self) -> Float[Tensor, "rows *event"]:
        return self.trajectory.states[self.step, self.sample]

    @property
    def x_next(self) -> Float[Tensor, "rows *event"]:
        return self.trajectory.states[self.step + 1, self.sample]

    @property
    def old_log_prob(self) -> Float[Tensor, " rows"]:
        return self.trajectory.log_prob[self.position, self.sample]

    @property
    def event_size(self) -> int:
        return self.trajectory.states[0, 0].numel()

    @property
    def advantage(self) -> Float[Tensor, " rows"]:
        return self.advantages[self.sample]

    @property
    def cond(self) -> Cond:
        return take(self.trajectory.cond, self.sample)


def log_prob(policy: Policy, rows: Transitions) -> Float[Tensor, " rows"]:
    """Nats, summed over the event, of each row's step under `policy`; carries the gradient.

    Rows at different steps are one batch of the network.
    """
    return policy.transition(rows.step, rows.x, rows.cond).log_prob(rows.x_next)


def transitions(
    trajectory: Trajectory, advantages: Float[Tensor, " batch"], steps: Sequence[int]
) -> Transitions:
    """All chains at the given sampler steps, chain by chain.

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
