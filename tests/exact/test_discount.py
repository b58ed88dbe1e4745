"""The discount over denoising steps, by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from worlds import Always, linear, prompts

from burnish.advantages import discounted
from burnish.algorithms.ddpo import DDPOIS, DDPOSF, WholeBatch
from burnish.algorithms.dpok import DPOK
from burnish.algorithms.grpo import GRPO
from burnish.experience import Task
from burnish.policy import Policy
from burnish.randomness import Randomness
from burnish.samplers.ddim import DDIM
from burnish.samplers.window import Window

ALGORITHMS = [
    DDPOIS(baseline=WholeBatch()),
    DDPOSF(baseline=WholeBatch()),
    DPOK(baseline=WholeBatch()),
    GRPO(group_size=4),
]


def collected(algorithm, sampler=None):
    policy = Policy(linear(), sampler or DDIM(num_steps=3))
    task = Task(policy, Always(prompts("a cat")), reward, samples=4, batch=4)
    return algorithm.collect(task, memory={}, randomness=Randomness(0)).rows


def reward(samples):
    del samples
    return torch.tensor([1.0, 2.0, 4.0, 9.0])


def test_the_weight_is_the_discount_to_the_steps_that_remain():
    """Steps 0, 2, 4 of 5: 4, 2 and 0 remain."""
    found = discounted(torch.tensor([1.0, -3.0]), [0, 2, 4], 5, 0.5)
    assert found.tolist() == [[1 / 16, -3 / 16], [1 / 4, -3 / 4], [1, -3]]


def test_advantages_of_their_own_at_each_step_are_weighted_at_theirs():
    found = discounted(torch.tensor([[1.0, 2.0], [3.0, 4.0]]), [1, 2], 3, 0.5)
    assert found.tolist() == [[0.5, 1], [3, 4]]


@pytest.mark.parametrize("algorithm", ALGORITHMS, ids=lambda a: type(a).__name__)
def test_every_policy_gradient_weights_its_rows(algorithm):
    plain = collected(replace(algorithm, discount=1.0))
    some = collected(replace(algorithm, discount=0.5))
    remaining = 2 - some.step
    assert torch.equal(some.advantage, plain.advantage * 0.5**remaining)
    assert some.step.tolist() == [0, 1, 2] * 4


@pytest.mark.parametrize("algorithm", ALGORITHMS, ids=lambda a: type(a).__name__)
def test_a_discount_of_1_changes_nothing_bitwise(algorithm):
    assert algorithm.discount == 1
    one = replace(algorithm, discount=1.0)
    before, after = collected(algorithm), collected(one)
    assert torch.equal(before.advantages, after.advantages)
    assert after.advantages.shape == (4,)
    full = discounted(before.advantages, before.trajectory.steps, 3, 1.0)
    assert torch.equal(full, before.advantages.expand(3, 4))


def test_the_steps_that_remain_are_all_of_the_samplers_and_not_the_scored_ones():
    """Of 5 steps, 1 and 2 have a density: 3 and 2 remain."""
    found = collected(
        DDPOIS(baseline=WholeBatch(), discount=0.5),
        Window(sampler=DDIM(num_steps=5), size=2, start=1),
    )
    plain = collected(
        DDPOIS(baseline=WholeBatch()), Window(sampler=DDIM(num_steps=5), size=2, start=1)
    )
    assert torch.equal(found.advantage, plain.advantage * torch.tensor([1 / 8, 1 / 4] * 4))


def test_an_advantage_is_clipped_before_it_is_discounted():
    clipped = DDPOIS(baseline=WholeBatch(), advantage_clip=0.5, discount=0.5)
    found = collected(clipped)
    assert found.advantage[found.sample == 3].tolist() == [0.125, 0.25, 0.5]


@pytest.mark.parametrize("discount", [0.0, -0.5, 1.1])
@pytest.mark.parametrize("algorithm", [DDPOIS, DDPOSF, DPOK, GRPO])
def test_a_discount_that_cannot_be_is_refused(algorithm, discount):
    with pytest.raises(ValueError, match="discount"):
        algorithm(discount=discount)
