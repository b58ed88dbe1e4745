"""A value function of the states on a chain: how much reward is to be expected from here.

The network is a function of its weights, which are a list of tensors, so that a learner is a value that a
checkpoint can hold. It reads any event shape and any conditioning.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from burnish.policy import Cond
from burnish.randomness import Randomness
from burnish.rollout import Trajectory

CELLS = 8
"""States are averaged over at most so many cells a side."""
WAVES = 8
"""Cosines of the step's place in the chain."""
WEIGHT_DECAY = 1e-4


@dataclass(frozen=True, slots=True)
class Learner:
    """A value network and the optimiser that trains it.

    weights: of three layers, [matrix, bias] each
    moments: AdamW's first moments of the weights, then the second ones
    updates: optimiser steps taken
    unit: (location, scale) of the reward; the network's output v stands for location + scale v
    """

    weights: list[Tensor]
    moments: list[Tensor]
    updates: int
    unit: tuple[float, float]

    def value(self, inputs: Float[Tensor, "*rows features"]) -> Float[Tensor, "*rows"]:
        """Expected reward, in the reward's unit; no gradient."""
        with torch.no_grad():
            return self.unit[0] + self.unit[1] * _network(self.weights, inputs)


def beginner(features: int, width: int, rewards: Tensor, randomness: Randomness) -> Learner:
    """It says the mean of `rewards` everywhere, and measures in their standard deviation.

    On the device of `rewards`.
    """
    sizes, generator, weights = (features, width, width, 1), randomness.generator(), []
    for before, after in pairwise(sizes):
        matrix = torch.randn(after, before, generator=generator) / before**0.5
        weights += [matrix.to(rewards.device), rewards.new_zeros(after)]
    weights[-2] = torch.zeros_like(weights[-2])
    known = rewards.double()
    mean, std = known.mean().item(), known.std(correction=0).item()
    scale = std if std > 1e-7 * known.abs().max().item() else 1.0
    return Learner(weights, [torch.zeros_like(w) for w in [*weights, *weights]], 0, (mean, scale))


def fit(
    learner: Learner,
    inputs: Float[Tensor, "rows features"],
    rewards: Float[Tensor, " rows"],
    weight: Float[Tensor, " rows"],
    *,
    learning_rate: float,
    updates: int,
    batch: int,
    randomness: Randomness,
) -> Learner:
    """The learner after so many AdamW steps on the weighted squared error; each on `batch` rows, drawn by
    `randomness` with repetition. `learner` is not changed.

    rewards: of the chain that each row is on
    weight: of each row; importance weights make it the policy's own value
    """
    parameters = [tensor.clone().requires_grad_() for tensor in learner.weights]
    optimizer = torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=WEIGHT_DECAY)
    first, second = learner.moments[: len(parameters)], learner.moments[len(parameters) :]
    for parameter, mean, square in zip(parameters, first, second, strict=True):
        step = torch.tensor(float(learner.updates))
        state = {"step": step, "exp_avg": mean.clone(), "exp_avg_sq": square.clone()}
        optimizer.state[parameter] = state
    target = (rewards - learner.unit[0]) / learner.unit[1]
    for update in range(updates):
        generator = randomness.at(update).generator()
        index = torch.randint(len(inputs), (batch,), generator=generator).to(inputs.device)
        error = _network(parameters, inputs[index]) - target[index]
        optimizer.zero_grad()
        (weight[index] * error.square()).mean().backward()
        optimizer.step()
    names = ("exp_avg", "exp_avg_sq")
    moments = [optimizer.state[parameter][name] for name in names for parameter in parameters]
    weights = [parameter.detach() for parameter in parameters]
    return Learner(weights, moments, learner.updates + updates, learner.unit)


def inputs(trajectory: Trajectory) -> Float[Tensor, "scored batch features"]:
    """What the network reads of the state before each scored step: the state's cells, the step's place in
    the chain, and the mean of each conditioning tensor of numbers over its tokens. float32."""
    prompt = _prompt(trajectory.cond)
    rows = []
    for step in trajectory.steps:
        state = _cells(trajectory.states[trajectory.kept.index(step)].float())
        place = math.pi * step / trajectory.num_steps
        waves = state.new_tensor([math.cos(j * place) for j in range(1, WAVES + 1)])
        rows.append(torch.cat([state, waves.expand(len(state), -1), *prompt], dim=1))
    return torch.stack(rows)


def _network(weights: Sequence[Tensor], inputs: Tensor) -> Tensor:
    hidden = inputs
    for i in range(0, len(weights), 2):
        hidden = F.linear(F.silu(hidden) if i else hidden, weights[i], weights[i + 1])
    return hidden.squeeze(-1)


def _cells(x: Float[Tensor, "batch *event"]) -> Float[Tensor, "batch features"]:
    """Means and mean squares over cells of the last two event dimensions; of a vector, its numbers."""
    if x.ndim > 2:
        height, width = x.shape[-2:]
        size = (min(height, CELLS), min(width, CELLS))
        planes = x.reshape(len(x), -1, height, width)
        means = [F.adaptive_avg_pool2d(each, size) for each in (planes, planes.square())]
    else:
        means = [x, x.square()]
    return torch.cat([each.flatten(1) for each in means], dim=1)


def _prompt(cond: Cond) -> list[Tensor]:
    """The mean over tokens of each tensor of numbers, (batch, features). Integers are names, not numbers."""
    numbers = [cond[name].float() for name in sorted(cond) if cond[name].is_floating_point()]
    return [
        each.flatten(1, -2).mean(1) if each.ndim > 2 else each.reshape(len(each), -1)
        for each in numbers
    ]
