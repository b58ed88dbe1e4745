"""GAE over denoising steps by hand, and what it does to the policy gradient in the closed-form world."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from worlds import COARSE, affine_steps, linear, prompts

from burnish import rows, values
from burnish.advantages import discounted, generalised
from burnish.algorithms.ddpo import DDPOSF
from burnish.policy import Policy
from burnish.randomness import Randomness
from burnish.rollout import Trajectory, rollout
from burnish.samplers.ddim import DDIM
from burnish.transitions import Mixture, widened

REWARDS = torch.tensor([10.0, 0.0])
VALUES = torch.tensor([[1.0, 0.0], [2.0, 3.0], [4.0, -1.0]])
"""Three steps of two chains. Their changes of value: 1, 2, 6 and 3, -4, 1."""

CHAINS, GROUPS, STEPS = 8_000, 32, 4
TARGET = (3.0, -2.0)


@pytest.mark.parametrize(
    ("decay", "expected"),
    [
        (1.0, [[9, 0], [8, -3], [6, 1]]),  # reward minus value
        (0.0, [[1, 3], [2, -4], [6, 1]]),  # change in one step
        (0.5, [[3.5, 1.25], [5, -3.5], [6, 1]]),
    ],
)
def test_gae_by_hand(decay, expected):
    assert generalised(REWARDS, VALUES, decay).tolist() == expected


@pytest.mark.parametrize("decay", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("discount", [0.5, 0.9, 1.0])
def test_discounted_it_is_the_textbooks_gae(discount, decay):
    """delta = gamma V(next) - V, A = delta + gamma lambda A(next), on discounted values; the reward is part
    of the last delta."""
    textbook = discounted(VALUES, [0, 1, 2], 3, discount)
    rewards = [torch.zeros(2), torch.zeros(2), REWARDS]
    following = [textbook[1], textbook[2], torch.zeros(2)]
    expected, running = [], torch.zeros(2)
    for j in (2, 1, 0):
        running = rewards[j] + discount * following[j] - textbook[j] + discount * decay * running
        expected.insert(0, running)
    found = discounted(generalised(REWARDS, VALUES, decay), [0, 1, 2], 3, discount)
    torch.testing.assert_close(found, torch.stack(expected))


def test_a_discounted_gae_by_hand():
    """gamma = lambda = 0.5: values 1/4, 1, 4; deltas 1/4, 1, 6; advantages 6, 1 + 6/4, 1/4 + 2.5/4."""
    found = discounted(generalised(REWARDS, VALUES, 0.5), [0, 1, 2], 3, 0.5)
    assert found[:, 0].tolist() == [0.875, 2.5, 6]


# --- in the closed-form world ------------------------------------------------------------------------


def world() -> tuple[Policy, Trajectory, Tensor, Tensor]:
    """A policy, its chains with their rewards, and the exact gradient of the expected reward."""
    model = linear((0.5, -0.5), -0.3, COARSE)
    policy = Policy(model, DDIM(num_steps=STEPS))
    drawn = rollout(policy, prompts("") * CHAINS, Randomness(0), CHAINS)
    return (
        policy,
        drawn,
        nearness(drawn),
        gradient_of(policy, model.expected_reward(policy.kernel, TARGET)),
    )


def nearness(drawn: Trajectory) -> Tensor:
    return -(drawn.x0.flatten(1) - torch.tensor(TARGET)).square().sum(1)


def gradient_of(policy: Policy, value: Tensor) -> Tensor:
    model = policy.denoiser
    parts = torch.autograd.grad(value, [model.mean, model.log_std])
    return torch.cat([part.flatten() for part in parts]).double()


def true_values(policy: Policy, drawn: Trajectory) -> Tensor:
    """E[reward | state] before each step, from the affine steps that remain."""
    steps = [tuple(part.detach() for part in step) for step in affine_steps(policy)]
    found = []
    for k in range(STEPS):
        mean, variance = drawn.states[k].flatten(1).double(), torch.zeros(2).double()
        for gain, bias, std in steps[k:]:
            mean, variance = gain * mean + bias, gain.square() * variance + std.square()
        found.append(-((mean - torch.tensor(TARGET)).square() + variance).sum(1).float())
    return torch.stack(found)


def wrong_values(policy: Policy, drawn: Trajectory) -> Tensor:
    del policy
    return 2 * drawn.states[:STEPS].flatten(2).sum(2) - 5


def no_values(policy: Policy, drawn: Trajectory) -> Tensor:
    del policy
    return torch.zeros(STEPS, drawn.states.shape[1])


@pytest.fixture(scope="module")
def known() -> tuple[Policy, Trajectory, Tensor, Tensor]:
    return world()


def estimate(
    known, of: Callable[[Policy, Trajectory], Tensor], decay: float
) -> tuple[Tensor, Tensor]:
    """Mean of the groups' estimates of the gradient, and its standard error."""
    policy, drawn, reward, _ = known
    advantage = generalised(reward, of(policy, drawn), decay)
    everything = rows.transitions(drawn, advantage, drawn.steps)
    groups = []
    for group in range(GROUPS):
        mine = everything[torch.nonzero(everything.sample % GROUPS == group).flatten()]
        ascent = -DDPOSF().loss(policy, mine)[0].sum() * mine.event_size
        groups.append(gradient_of(policy, ascent / (CHAINS // GROUPS)))
    found = torch.stack(groups)
    return found.mean(0), found.std(0) / GROUPS**0.5


@pytest.mark.parametrize(
    ("of", "decay"),
    [
        (true_values, 0.0),
        (true_values, 0.5),
        (true_values, 1.0),
        (wrong_values, 1.0),
        (no_values, 1.0),
    ],
)
def test_a_baseline_leaves_the_policy_gradient_unbiased(of, decay, known):
    """Any function of the state where lambda = 1; the true value whatever lambda is."""
    mean, error = estimate(known, of, decay)
    exact = known[3]
    assert (5 * error < 0.4 * exact.norm()).all()
    assert ((mean - exact).abs() < 5 * error).all()


def test_a_wrong_value_below_lambda_1_is_a_bias(known):
    mean, error = estimate(known, wrong_values, 0.0)
    assert ((mean - known[3]).abs() > 5 * error).any()


def test_true_values_take_variance_away_and_a_smaller_lambda_more(known):
    policy, drawn, reward, _ = known
    assert (
        estimate(known, true_values, 1.0)[1].norm()
        < 0.5 * estimate(known, no_values, 1.0)[1].norm()
    )
    true = true_values(policy, drawn)
    first = [generalised(reward, true, decay)[0].var() for decay in (0.0, 0.5, 1.0)]
    assert first[0] < 0.5 * first[1]
    assert first[1] < 0.5 * first[2]


# --- the regression ----------------------------------------------------------------------------------


def fitted(drawn: Trajectory, reward: Tensor, weight: Tensor) -> values.Learner:
    seen = values.inputs(drawn)
    learner = values.beginner(seen.shape[-1], 64, reward, Randomness(1))
    return values.fit(
        learner,
        seen.flatten(0, 1),
        reward.repeat(STEPS),
        weight.repeat(STEPS),
        learning_rate=3e-3,
        updates=300,
        batch=256,
        randomness=Randomness(2),
    )


def test_the_critic_learns_the_true_value_of_every_step(known):
    """On chains that it has not seen: 98% of the variance of all values, and more than nothing of those of
    the first step, where chance hides all but 0.07 of the rewards' variance of 14."""
    policy, drawn, reward, _ = known
    learner = fitted(drawn, reward, drawn.weight)
    fresh = rollout(policy, prompts("") * 2_000, Randomness(9), 2_000)
    true = true_values(policy, fresh)
    error = (learner.value(values.inputs(fresh)) - true).square()
    assert error.mean() < 0.02 * true.var()
    assert (error.mean(1) < true.var(1)).all()


def test_the_critic_of_explored_chains_learns_the_value_of_the_policy(known):
    """Weighted, the values of first states average to the policy's expected reward, not the behaviour's."""
    policy, count = known[0], 4_000

    def explore(step, x, cond):
        at = policy.transition(step, x, cond)
        return Mixture(at, widened(at, 2.5), 0.5)

    drawn = rollout(policy, prompts("") * count, Randomness(0), count, explore=explore)
    reward = nearness(drawn)
    expected = policy.denoiser.expected_reward(policy.kernel, TARGET).item()
    seen = values.inputs(drawn)[0]
    weighted = fitted(drawn, reward, drawn.weight).value(seen).mean()
    plain = fitted(drawn, reward, torch.ones(count)).value(seen).mean()
    # the mean of the weighted rewards, which is what a regression can know, has this standard error
    error = (drawn.weight * reward).std() / count**0.5
    assert abs(weighted - expected) < 0.25 * abs(plain - expected)
    assert abs(plain - expected) > 5 * error
