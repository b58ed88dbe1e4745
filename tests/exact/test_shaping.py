"""Potential-based shaping by hand, and that it leaves the policy gradient's mean in the closed-form world."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from worlds import COARSE, Always, linear, nearness, prompts

from burnish import rows
from burnish.advantages import centred
from burnish.algorithms import DDPOIS, DDPOSF, GRPO, WholeBatch
from burnish.config import load_recipe
from burnish.experience import Experience, Task, act
from burnish.policy import Policy
from burnish.randomness import Randomness
from burnish.reward import RewardError
from burnish.samplers.ddim import DDIM
from burnish.shaping import Potential
from burnish.tables import ConfigError

CHAINS, GROUPS, STEPS = 8_000, 32, 4
TARGET = (3.0, -2.0)
NEAR = nearness(TARGET)


def test_a_potential_is_centred_within_each_prompt_in_one_standard_deviation_for_all():
    """Deviations -1, 1 and -3, 3: their root mean square is the root of 5."""
    values = torch.tensor([1.0, 10.0, 3.0, 16.0])
    expected = torch.tensor([-1.0, -3.0, 1.0, 3.0]) / 5**0.5
    torch.testing.assert_close(centred(values, ("a", "b", "a", "b")), expected)
    alone = torch.tensor([1.0, 2.0, 6.0])
    assert centred(alone, ("a", "b", "c")).tolist() == pytest.approx(
        [-2 / (14 / 3) ** 0.5, -1 / (14 / 3) ** 0.5, 3 / (14 / 3) ** 0.5]
    )
    assert centred(torch.full((4,), 0.1), ("a", "b", "a", "b")).tolist() == [0.0] * 4


@pytest.fixture(scope="module")
def known() -> tuple[Policy, Experience, Tensor]:
    """A policy, its chains with their rewards, and the exact gradient of the expected reward."""
    model = linear((0.5, -0.5), -0.3, COARSE)
    policy = Policy(model, DDIM(num_steps=STEPS))
    asked = prompts("") * CHAINS
    acted = act(Task(policy, Always(asked), NEAR, CHAINS, CHAINS), asked, Randomness(0))
    return policy, acted, gradient_of(policy, model.expected_reward(policy.kernel, TARGET))


def gradient_of(policy: Policy, value: Tensor) -> Tensor:
    model = policy.denoiser
    parts = torch.autograd.grad(value, [model.mean, model.log_std])
    return torch.cat([part.flatten() for part in parts]).double()


def estimate(known, advantage: Tensor) -> tuple[Tensor, Tensor]:
    """Mean of the groups' estimates of the gradient, and its standard error."""
    policy, acted, _ = known
    chains = acted.trajectory
    everything = rows.transitions(chains, advantage, chains.steps)
    groups = []
    for group in range(GROUPS):
        mine = everything[torch.nonzero(everything.sample % GROUPS == group).flatten()]
        ascent = -DDPOSF().loss(policy, mine)[0].sum() * mine.event_size
        groups.append(gradient_of(policy, ascent / (CHAINS // GROUPS)))
    found = torch.stack(groups)
    return found.mean(0), found.std(0) / GROUPS**0.5


def advantages(known, reward=NEAR, weight=0.8) -> tuple[Tensor, Tensor]:
    """Of each chain, in the unit of the reward; and shaped, of each step."""
    policy, acted, _ = known
    chains, scale = acted.trajectory, acted.rewards.std()
    plain = acted.rewards - acted.rewards.mean()
    shaped, _ = Potential(reward, weight).shaped(
        policy, chains, acted.samples, plain / scale, chains.steps, CHAINS
    )
    return plain, shaped * scale


def unrelated(samples):
    """A potential that has nothing to do with the reward."""
    return samples.media.flatten(1).prod(dim=1).sin() * 5


@pytest.mark.parametrize("reward", [NEAR, unrelated])
def test_shaping_leaves_the_policy_gradient_unbiased(reward, known):
    _, shaped = advantages(known, reward)
    mean, error = estimate(known, shaped)
    exact = known[2]
    assert (5 * error < 0.4 * exact.norm()).all()
    assert ((mean - exact).abs() < 5 * error).all()


def test_a_potential_that_foresees_the_reward_makes_the_estimate_sharper(known):
    plain, shaped = advantages(known)
    assert estimate(known, shaped)[1].norm() < 0.9 * estimate(known, plain)[1].norm()


def test_the_same_reward_paid_as_a_bonus_is_a_bias(known):
    """What the next state promises, without what this one did: the policy gradient of another goal."""
    exact = known[2]
    plain, shaped = advantages(known)
    bonus = plain.expand(STEPS, -1).clone()
    bonus[:-1] += (plain - shaped)[1:]
    mean, error = estimate(known, bonus)
    assert ((mean - exact).abs() > 5 * error).any()


def test_what_is_foreseen_at_a_step_is_the_mean_of_the_clean_sample(known):
    """The network of this world knows E[x0 | x_t] exactly; a potential that reads it gives it back."""
    policy, acted, _ = known
    seen = []

    def reader(samples):
        seen.append(samples.media.clone())
        return samples.media.flatten(1)[:, 0]

    chains = acted.trajectory
    potential = Potential(reader, 1.0)
    potential.shaped(policy, chains, acted.samples, acted.rewards, [1], 3000)
    step = torch.ones(CHAINS, dtype=torch.long)
    expected = policy.clean(step, chains.states[1], chains.cond)
    assert torch.equal(seen[0], expected.detach())
    # of the chains of a linear world the clean sample is drawn around that mean, so both have one mean
    spread = (chains.x0 - expected).flatten(1).std(0) / CHAINS**0.5
    assert ((chains.x0 - expected).flatten(1).mean(0).abs() < 5 * spread).all()


@pytest.mark.parametrize(
    "algorithm",
    [
        DDPOIS(baseline=WholeBatch(), train_steps=(0, 2)),
        DDPOSF(baseline=WholeBatch(), train_steps=(0, 2)),
        GRPO(group_size=4, train_steps=(0, 2)),
    ],
)
def test_the_trained_steps_are_shaped_and_counted_as_queries(algorithm):
    policy = Policy(linear(schedule=COARSE), DDIM(num_steps=STEPS))
    task = Task(policy, Always(prompts("a cat", "a dog")), NEAR, samples=16, batch=5)
    plain = algorithm.collect(task, memory={}, randomness=Randomness(0))
    shaping = replace(task, potential=Potential(NEAR, 0.5))
    shaped = algorithm.collect(shaping, memory={}, randomness=Randomness(0))
    assert plain.queries == 16
    assert shaped.queries == 3 * 16
    assert shaped.metrics["potential_explains"] not in (0.0, 1.0)
    moved = (shaped.rows.advantage != plain.rows.advantage).reshape(16, 2)
    assert moved.all()
    assert torch.equal(shaped.rewards, plain.rewards)


def test_a_potential_that_fails_stops_the_run(known):
    policy, acted, _ = known
    broken = Potential(lambda samples: torch.full((len(samples),), torch.nan), 1.0)
    with pytest.raises(RewardError, match="returned nan for sample 0"):
        broken.shaped(policy, acted.trajectory, acted.samples, acted.rewards, [0], CHAINS)


def test_a_recipe_shapes_policy_gradients_on_chains_only():
    shaping = ["--shaping.reward.name=brightness", "--shaping.weight=0.3"]
    assert load_recipe("compressibility", shaping).shaping.weight == 0.3
    with pytest.raises(ConfigError, match="'nft' is no policy gradient on chains"):
        load_recipe("nft", shaping)
