"""Exploring without guidance: the mixture of two means, and gradients that stay the policy's own.

The gradient's standard errors come from independent groups of chains.
"""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal
from worlds import (
    COARSE,
    PROMPTS,
    Always,
    GuidedLinear,
    Network,
    affine_steps,
    linear,
    nearness,
    prompts,
    reward_of_chain,
)

from burnish import rows
from burnish.algorithms.ddpo import DDPOIS, DDPOSF, WholeBatch
from burnish.algorithms.exploration import Unguided
from burnish.algorithms.grpo import GRPO
from burnish.config import dump, load_recipe
from burnish.decays import LinearDecay
from burnish.experience import Task
from burnish.models.linear import Linear
from burnish.policy import Guided, Policy
from burnish.randomness import Randomness
from burnish.rollout import Trajectory, rollout
from burnish.samplers.ddim import DDIM
from burnish.tables import ConfigError
from burnish.train.loop import train
from burnish.train.settings import AdamW, Training
from burnish.transitions import Gaussian, Mixture, towards

CHAINS, GROUPS, STEPS = 16_000, 32, 3
TARGET = (3.0, -2.0)
HALF = LinearDecay(start=0.5, end=0.5)
CAT = "a cat"


def normals(count: int, *event: int, seed: int = 0) -> Tensor:
    return torch.randn(count, *event, generator=torch.Generator().manual_seed(seed))


# --- the mixture -------------------------------------------------------------------------------------


@pytest.mark.parametrize("epsilon", [0.1, 0.9])
def test_the_density_of_two_means_is_that_of_torch_distributions(epsilon):
    means, x = normals(6, 2, 2, 3), normals(6, 2, 3, seed=1)
    std = torch.linspace(0.1, 2, 6)
    found = Mixture(Gaussian(means[:, 0], std), Gaussian(means[:, 1], std), epsilon).log_prob(x)
    components = Independent(Normal(means, std.reshape(6, 1, 1, 1)), 2)
    share = Categorical(torch.tensor([1 - epsilon, epsilon]).expand(6, 2))
    torch.testing.assert_close(found, MixtureSameFamily(share, components).log_prob(x))


def test_the_density_by_hand():
    """On the line, means 0 and 2, both with std 1, at 2: 0.9 exp(-2) + 0.1 over sqrt(2 pi)."""
    at, away = (Gaussian(torch.full((1, 1), mean), torch.ones(1)) for mean in (0.0, 2.0))
    found = Mixture(at, away, 0.1).log_prob(torch.full((1, 1), 2.0))
    expected = math.log((0.9 * math.exp(-2) + 0.1) / math.sqrt(2 * math.pi))
    assert found.item() == pytest.approx(expected, abs=1e-6)


def test_the_density_integrates_to_1_and_its_mean_lies_towards_the_other_one():
    """Midpoint rule on [-8, 8]^2, 10 standard deviations beyond both means. It is exact but for the rounding
    of x to float32, of 1e-7 of a point's density and with either sign."""
    line = (torch.arange(320, dtype=torch.float64) + 0.5) / 20 - 8
    x = torch.cartesian_prod(line, line)
    std = x.new_full((len(x),), 0.6)
    means = x.new_tensor([[1.0, -0.5], [-1.5, 2.0]])
    own, other = (Gaussian(mean.expand(len(x), 2), std) for mean in means)
    density = Mixture(own, other, 0.3).log_prob(x).exp() / 400
    assert density.sum().item() == pytest.approx(1, abs=1e-7)
    torch.testing.assert_close(density @ x, 0.7 * means[0] + 0.3 * means[1], rtol=0, atol=1e-6)


def test_far_apart_means_leave_a_finite_density_in_many_dimensions():
    """Each component's density at the other's mean is exp(-8192) of its own: nothing under- or overflows."""
    at, away = (Gaussian(torch.full((1, 16384), mean), torch.ones(1)) for mean in (0.0, 1.0))
    mixture = Mixture(at, away, 0.05)
    for part, share in ((at, 0.95), (away, 0.05)):
        expected = part.log_prob(part.mean) + math.log(share)
        torch.testing.assert_close(mixture.log_prob(part.mean), expected)


def test_samples_have_the_mixtures_moments():
    """Of v = (x - m) / std, whose mean under the other part is 3: E v = 0.3 * 3 and E v^2 = 1 + 0.3 * 9. One
    choice serves a row: the product of its two dimensions has mean 0.3 * 9, and 0.9^2 if each chose."""
    count = 40_000
    std = torch.full((count,), 0.5)
    own, other = (Gaussian(torch.full((count, 2), mean), std) for mean in (5.0, 6.5))
    chance = Randomness(0).uniform(range(count)).float()
    drawn = (Mixture(own, other, 0.3).sample(normals(count, 2), chance) - 5) / 0.5

    def is_mean(values: Tensor, expected: float) -> bool:
        return abs(values.mean() - expected) < 5 * values.std() / count**0.5

    for dimension in drawn.double().T:
        assert is_mean(dimension, 0.9)
        assert is_mean(dimension.square(), 3.7)
    assert is_mean(drawn.double().prod(1), 2.7)


def test_the_mean_goes_all_the_way_to_one_in_reach_and_no_further_than_the_reach():
    """At distances 5, 5 and 0: 2.5, 10 and 0 deviations."""
    std = torch.tensor([2.0, 0.5, 1.0])
    own = Gaussian(torch.ones(3, 2), std)
    other = Gaussian(torch.ones(3, 2) + torch.tensor([[3.0, -4.0], [3.0, -4.0], [0.0, 0.0]]), std)
    found = towards(own, other, 4.0)
    expected = torch.tensor([[4.0, -3.0], [1 + 3 * 0.4, 1 - 4 * 0.4], [1.0, 1.0]])
    torch.testing.assert_close(found.mean, expected)
    assert torch.equal(found.std, std)
    torch.testing.assert_close(towards(own, other, math.inf).mean, other.mean)


# --- the two predictions -----------------------------------------------------------------------------


def guided(guidance: float = 2.5) -> GuidedLinear:
    return GuidedLinear(linear((0.5, -0.5), -0.3, COARSE, {CAT: 0.7}), guidance)


def test_a_guided_linear_world_is_a_linear_world_of_larger_shifts():
    """So its expected reward is known, and without guidance it is the world itself."""
    model = guided()
    policy, sampler = Policy(model, DDIM(num_steps=STEPS)), DDIM(num_steps=STEPS)
    x = normals(6, 2, 1, 1)
    step, cond = torch.tensor([0, 1, 2] * 2), model.encode([CAT] * 3 + [""] * 3)
    own, other = policy.with_and_without_guidance(step, x, cond)
    for found, world in ((own, model.guided_world), (other, model.conditional)):
        expected = Policy(world, sampler).transition(step, x, world.encode([CAT] * 3 + [""] * 3))
        torch.testing.assert_close(found.mean, expected.mean)
        assert torch.equal(found.std, expected.std)
    assert torch.equal(own.mean, policy.transition(step, x, cond).mean)
    assert ((own.mean - other.mean)[:3].abs() > 0.1).all()
    exact = model.guided_world.expected_reward(policy.kernel, TARGET, CAT)
    own_steps = affine_steps(policy, CAT)
    torch.testing.assert_close(exact, reward_of_chain(own_steps, TARGET), rtol=1e-5, atol=0)


@pytest.mark.parametrize(
    ("model", "match"),
    [(Network(), "Network cannot be explored without guidance"), (guided(1.0), "guidance = 1")],
)
@pytest.mark.parametrize(
    "algorithm", [DDPOSF(exploration=Unguided()), GRPO(group_size=4, exploration=Unguided())]
)
def test_a_model_without_guidance_is_refused_before_anything_is_drawn(algorithm, model, match):
    policy, asked = Policy(model, DDIM(num_steps=3)), []
    with pytest.raises(ValueError, match=match):
        algorithm.exploration.behaviour(policy, 0)
    task = Task(policy, PROMPTS, asked.append, samples=8, batch=8)
    with pytest.raises(ValueError, match=match):
        algorithm.collect(task, memory={}, randomness=Randomness(0))
    assert not asked
    assert not isinstance(Network(), Guided)


# --- the gradient ------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=[math.inf, 0.8], ids=["unguided", "within reach"])
def world(request) -> tuple[Policy, Trajectory, Tensor, Tensor]:
    """A policy, explored chains, their rewards less the policy's expected reward, and its exact gradient."""
    model = guided()
    policy = Policy(model, DDIM(num_steps=STEPS))
    explore = Unguided(epsilon=HALF, reach=request.param).behaviour(policy, 0)
    drawn = rollout(policy, prompts(CAT) * CHAINS, Randomness(0), CHAINS, explore=explore)
    reward = -(drawn.x0.flatten(1) - torch.tensor(TARGET)).square().sum(1)
    expected = model.guided_world.expected_reward(policy.kernel, TARGET, CAT)
    return policy, drawn, reward - expected.item(), gradient_of(expected, model)


def gradient_of(value: Tensor, model: GuidedLinear | Linear) -> Tensor:
    parts = torch.autograd.grad(value, list(model.parameters()))
    return torch.cat([part.flatten() for part in parts]).double()


def estimate(
    policy: Policy, drawn: Trajectory, advantage: Tensor, algorithm=None
) -> tuple[Tensor, Tensor]:
    """Mean of the groups' estimates, and its standard error."""
    everything = rows.transitions(drawn, advantage, drawn.steps)
    groups = []
    for group in range(GROUPS):
        mine = everything[torch.nonzero(everything.sample % GROUPS == group).flatten()]
        ascent = -(algorithm or DDPOSF()).loss(policy, mine)[0].sum() * mine.event_size
        groups.append(gradient_of(ascent / (CHAINS // GROUPS), policy.denoiser))
    found = torch.stack(groups)
    return found.mean(0), found.std(0) / GROUPS**0.5


def is_biased(found: tuple[Tensor, Tensor], exact: Tensor) -> bool:
    return bool(((found[0] - exact).abs() > 5 * found[1]).any())


@pytest.mark.parametrize("algorithm", [DDPOSF(), DDPOIS(clip=0.5)], ids=["SF", "IS"])
def test_unguided_chains_estimate_the_exact_gradient_of_the_guided_policy(algorithm, world):
    policy, drawn, advantage, exact = world
    assert drawn.weight.max() <= 0.5**-STEPS * (1 + 1e-5)
    mean, error = estimate(policy, drawn, advantage, algorithm)
    assert (5 * error < 0.15 * exact.norm()).all(), (error, exact)
    assert not is_biased((mean, error), exact), (mean, exact, error)


def test_unguided_chains_taken_for_the_policys_own_are_biased(world):
    policy, drawn, advantage, exact = world
    naive = replace(drawn, behaviour_log_prob=None)
    assert is_biased(estimate(policy, naive, advantage), exact)


def test_a_weight_of_half_the_log_ratio_is_biased(world):
    """The mean log-ratio over the two dimensions, which DDPO clips, is no importance weight."""
    policy, drawn, advantage, exact = world
    naive = replace(drawn, behaviour_log_prob=None)
    assert is_biased(estimate(policy, naive, advantage * drawn.weight**0.5), exact)


def test_explored_chains_lie_towards_the_unguided_samples(world):
    """The sign: the guided mean is the larger one in both dimensions, and weights take chains back to it."""
    policy, drawn, _, _ = world
    x0 = drawn.x0.flatten(1)
    moments = [
        each.moments(policy.kernel, CAT)[0].detach()
        for each in (policy.denoiser.guided_world, policy.denoiser.conditional)
    ]
    error = 5 * x0.std(0) / CHAINS**0.5
    assert (moments[0] > moments[1]).all()
    assert (x0.mean(0) < moments[0] - error).all()
    assert (x0.mean(0) > moments[1]).all()
    back = drawn.weight[:, None] * (x0 - moments[0])
    assert (back.mean(0).abs() < 5 * back.std(0) / CHAINS**0.5).all()


def test_an_unguided_run_learns_and_its_first_ratio_is_1():
    """The loop stops a run whose log-ratio is not 0 before an update."""
    model = guided()
    policy = Policy(model, DDIM(num_steps=STEPS))

    def expected() -> float:
        return model.guided_world.expected_reward(policy.kernel, (2.0, 2.0), CAT).item()

    before = expected()
    algorithm = DDPOIS(clip=0.1, baseline=WholeBatch(), exploration=Unguided(epsilon=HALF))
    reports = train(
        policy,
        algorithm,
        Always(prompts(CAT)),
        nearness((2.0, 2.0)),
        training=Training(iterations=25, samples=32, updates=2, sample_batch=32),
        optimizer=AdamW(learning_rate=0.1),
    )
    for report in reports:
        assert report.metrics["first_log_ratio"] < 1e-6
        assert 0.5**STEPS < report.metrics["effective_samples"] < 1
    assert expected() > before + 1
    assert report.metrics["exploration_epsilon"] == 0.5


# --- recipes -----------------------------------------------------------------------------------------

UNGUIDED = ["--algorithm.exploration.name", "unguided"]


def test_a_recipe_names_the_way_to_explore_and_writes_it_out(tmp_path):
    recipe = load_recipe("compressibility", [*UNGUIDED, "--algorithm.exploration.reach", "inf"])
    assert recipe.algorithm.exploration == Unguided(reach=math.inf)
    path = tmp_path / "again.toml"
    path.write_text(dump(recipe))
    assert load_recipe(str(path)) == recipe
    with pytest.raises(ConfigError, match=r"model\.guidance = 1 has none"):
        load_recipe("compressibility", [*UNGUIDED, "--model.guidance", "1"])
    with pytest.raises(ConfigError, match=r"algorithm\.exploration\.reach = 0"):
        load_recipe("compressibility", [*UNGUIDED, "--algorithm.exploration.reach", "0"])
    with pytest.raises(ConfigError, match="did you mean 'unguided'"):
        load_recipe("compressibility", ["--algorithm.exploration.name", "ungided"])
