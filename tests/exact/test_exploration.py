"""Exploration: the mixture's density, and gradients that stay the policy's own.

The gradient's standard errors come from independent groups of chains.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal
from worlds import (
    ALPHA_BAR,
    COARSE,
    ENDS_NOISY,
    Network,
    affine_steps,
    linear,
    prompts,
    reward_of_chain,
)

from burnish import losses, rows
from burnish.algorithms.ddpo import DDPOIS, DDPOSF
from burnish.algorithms.dpok import DPOK
from burnish.policy import Policy
from burnish.randomness import Randomness
from burnish.rollout import Explore, Trajectory, join, rollout
from burnish.samplers.ddim import DDIM
from burnish.samplers.window import Window
from burnish.schedules import DiffusionSchedule, trailing
from burnish.transitions import Gaussian, Mixture, widened

EPSILON, SCALE = 0.5, 1.6
CHAINS, GROUPS, STEPS = 16_000, 32, 3
TARGET = (3.0, -2.0)


def wider(at: Gaussian, epsilon: float = EPSILON, scale: float = SCALE) -> Mixture:
    return Mixture(at, widened(at, scale), epsilon)


def explore(policy: Policy, epsilon: float = EPSILON) -> Explore:
    return lambda step, x, cond: wider(policy.transition(step, x, cond), epsilon)


# --- the mixture -------------------------------------------------------------------------------------


def normals(count: int, *event: int, seed: int = 0) -> Tensor:
    return torch.randn(count, *event, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("epsilon", [0.1, 0.9])
def test_the_density_is_that_of_torch_distributions(epsilon):
    mean, std, x = normals(6, 2, 3), torch.linspace(0.1, 2, 6), normals(6, 2, 3, seed=1)
    found = wider(Gaussian(mean, std), epsilon, 1.7).log_prob(x)
    both = torch.stack([std, 1.7 * std], 1).reshape(6, 2, 1, 1).expand(6, 2, 2, 3)
    components = Independent(Normal(mean[:, None].expand(6, 2, 2, 3), both), 2)
    share = Categorical(torch.tensor([1 - epsilon, epsilon]).expand(6, 2))
    torch.testing.assert_close(found, MixtureSameFamily(share, components).log_prob(x))


def test_the_density_by_hand():
    """At the mean of two dimensions with std 1 and 2: 0.9 / 2 pi + 0.1 / 8 pi. Not (0.9 + 0.1 / 2)^2 / 2 pi,
    which would choose for each dimension."""
    found = wider(Gaussian(torch.zeros(1, 2), torch.ones(1)), 0.1, 2.0).log_prob(torch.zeros(1, 2))
    assert found.item() == pytest.approx(math.log((0.9 + 0.1 / 4) / (2 * math.pi)), abs=1e-6)


def test_the_density_integrates_to_1():
    """Midpoint rule on [-12, 12]^2, 10 standard deviations of the wide part: exact but for rounding."""
    line = (torch.arange(240) + 0.5) / 10 - 12
    x = torch.cartesian_prod(line, line)
    policy = Gaussian(torch.zeros(len(x), 2), torch.full((len(x),), 0.6))
    assert wider(policy, 0.3, 2.0).log_prob(x).exp().sum().item() / 100 == pytest.approx(
        1, abs=1e-4
    )


def test_samples_have_the_mixtures_moments_and_one_component_a_row():
    """z^2 has mean s = 0.7 + 0.3 * 4 and its fourth moment is 3 (0.7 + 0.3 * 16). Where one choice serves a
    row, the squares of its two dimensions have covariance (0.7 + 0.3 * 16) - s^2; else 0."""
    count = 40_000
    policy = Gaussian(torch.full((count, 2), 5.0), torch.full((count,), 0.5))
    chance = Randomness(0).uniform(range(count))
    drawn = wider(policy, 0.3, 2.0).sample(normals(count, 2), chance)
    square = ((drawn - 5) / 0.5).double().square()
    mean, fourth = 0.7 + 0.3 * 4, 0.7 + 0.3 * 16
    assert (square.mean(0) - mean).abs().max() < 5 * ((3 * fourth - mean**2) / count) ** 0.5
    product = square[:, 0] * square[:, 1]
    assert abs(product.mean() - fourth) < 5 * product.std() / count**0.5
    assert fourth - mean**2 > 10 * product.std() / count**0.5  # such a covariance is seen


def test_without_exploration_it_is_the_policy_itself():
    policy = Gaussian(normals(5, 3), torch.rand(5) + 0.1)
    still = wider(policy, 0.0, 2.0)
    noise = normals(5, 3, seed=1)
    x = still.sample(noise, torch.zeros(5))
    assert torch.equal(x, policy.sample(noise))
    assert torch.equal(still.log_prob(x), policy.log_prob(x))


# --- chains ------------------------------------------------------------------------------------------


def test_both_densities_of_each_drawn_step_are_recorded():
    policy = Policy(linear(), Window(sampler=DDIM(num_steps=4), size=2, start=1), torch.bfloat16)
    drawn = rollout(policy, prompts("") * 9, Randomness(0), 4, explore=explore(policy))
    assert drawn.steps == (1, 2)
    for j, k in enumerate(drawn.steps):
        with torch.no_grad():
            at = policy.transition(torch.full((9,), k), drawn.states[j], drawn.cond)
        assert torch.equal(drawn.log_prob[j], at.log_prob(drawn.states[j + 1]))
        assert torch.equal(drawn.behaviour_log_prob[j], wider(at).log_prob(drawn.states[j + 1]))
    by_hand = (drawn.log_prob - drawn.behaviour_log_prob)[0] + (
        drawn.log_prob - drawn.behaviour_log_prob
    )[1]
    assert torch.equal(drawn.weight, by_hand.exp())


def test_what_is_explored_depends_on_the_chain_and_the_step_only():
    """In a linear world the states repeat bitwise: so does the choice, in any batch."""
    policy = Policy(linear(), DDIM(num_steps=6))
    whole = rollout(policy, prompts("") * 40, Randomness(0), 40, explore=explore(policy))
    parts = rollout(policy, prompts("") * 40, Randomness(0), 7, explore=explore(policy))
    assert torch.equal(whole.states, parts.states)
    torch.testing.assert_close(
        whole.behaviour_log_prob, parts.behaviour_log_prob
    )  # rounding of exp
    noise = Randomness(0).normal(range(40), (7, 2, 1, 1))
    wide = []
    for k in range(6):
        with torch.no_grad():
            at = policy.transition(torch.full((40,), k), whole.states[k], whole.cond)
        drawn = (whole.states[k + 1] - at.mean) / at.std.reshape(-1, 1, 1, 1)
        ratio = (drawn / noise[:, k + 1]).flatten(1).median(1).values
        chance = Randomness(0).at("explore", k).uniform(range(40))
        # a rounding error of 1e-7 over a std of 0.02 and a noise that may be small
        torch.testing.assert_close(
            ratio, torch.where(chance < EPSILON, SCALE, 1.0).float(), rtol=5e-3, atol=0
        )
        wide.append(chance < EPSILON)
    assert len({tuple(step.tolist()) for step in wide}) == 6


def test_exploring_moves_no_other_draw():
    policy = Policy(Network(), DDIM(num_steps=3))
    plain = rollout(policy, prompts("") * 5, Randomness(0), 5)
    still = rollout(policy, prompts("") * 5, Randomness(0), 5, explore=explore(policy, 0.0))
    assert plain.behaviour_log_prob is None
    assert torch.equal(plain.states, still.states)
    assert torch.equal(plain.weight, torch.ones(5))
    assert torch.equal(still.weight, torch.ones(5))


def test_chains_keep_their_weights_when_picked_and_joined():
    policy = Policy(linear(), DDIM(num_steps=3))
    drawn = rollout(policy, prompts("") * 6, Randomness(0), 6, explore=explore(policy))
    picked = join([drawn.chains([4, 1]), drawn.chains([0])])
    assert torch.equal(picked.weight, drawn.weight[[4, 1, 0]])
    everything = rows.transitions(drawn, torch.zeros(6), drawn.steps)
    assert torch.equal(everything.weight, drawn.weight.repeat_interleave(3))


# --- the gradient ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def world() -> tuple[Policy, Trajectory, Tensor, Tensor]:
    """A policy, explored chains, their rewards less the policy's expected reward, and its exact gradient."""
    model = linear((0.5, -0.5), -0.3, COARSE)
    policy = Policy(model, DDIM(num_steps=STEPS))
    drawn = rollout(policy, prompts("") * CHAINS, Randomness(0), CHAINS, explore=explore(policy))
    reward = -(drawn.x0.flatten(1) - torch.tensor(TARGET)).square().sum(1)
    expected = model.expected_reward(policy.kernel, TARGET)
    return policy, drawn, reward - expected.item(), gradient_of(expected, policy)


def gradient_of(value: Tensor, policy: Policy) -> Tensor:
    model = policy.denoiser
    parts = torch.autograd.grad(value, [model.mean, model.log_std])
    return torch.cat([part.flatten() for part in parts]).double()


Loss = Callable[[Policy, rows.Transitions], tuple[Tensor, object]]
SCORE_FUNCTION = DDPOSF().loss


def estimate(
    policy: Policy, drawn: Trajectory, advantage: Tensor, loss: Loss = SCORE_FUNCTION
) -> tuple[Tensor, Tensor]:
    """Mean of the groups' estimates, and its standard error."""
    everything = rows.transitions(drawn, advantage, drawn.steps)
    groups = []
    for group in range(GROUPS):
        mine = everything[torch.nonzero(everything.sample % GROUPS == group).flatten()]
        ascent = -loss(policy, mine)[0].sum() * mine.event_size
        groups.append(gradient_of(ascent / (drawn.states.shape[1] // GROUPS), policy))
    found = torch.stack(groups)
    return found.mean(0), found.std(0) / GROUPS**0.5


def assert_agree(found: tuple[Tensor, Tensor], exact: Tensor, *, sharp: float = 0.1) -> None:
    mean, error = found
    assert (5 * error < sharp * exact.norm()).all(), (error, exact)
    assert ((mean - exact).abs() < 5 * error).all(), (mean, exact, error)


def is_biased(found: tuple[Tensor, Tensor], exact: Tensor) -> bool:
    return bool(((found[0] - exact).abs() > 5 * found[1]).any())


def unweighted(drawn: Trajectory) -> Trajectory:
    """As if the policy itself had drawn the chains."""
    return replace(drawn, behaviour_log_prob=None)


@pytest.mark.parametrize("algorithm", [DDPOSF(), DDPOIS(clip=0.5)], ids=["SF", "IS"])
def test_explored_chains_estimate_the_exact_gradient_of_the_policy(algorithm, world):
    policy, drawn, advantage, exact = world
    assert drawn.weight.max() <= (1 - EPSILON) ** -STEPS
    assert_agree(estimate(policy, drawn, advantage, algorithm.loss), exact)


def test_explored_chains_taken_for_the_policys_own_are_biased(world):
    policy, drawn, advantage, exact = world
    assert is_biased(estimate(policy, unweighted(drawn), advantage), exact)


def test_a_weight_per_dimension_is_biased(world):
    """The mean log-ratio over dimensions, which DDPO clips, is no importance weight."""
    policy, drawn, advantage, exact = world
    per_dimension = drawn.weight ** (1 / 2)
    assert is_biased(estimate(policy, unweighted(drawn), advantage * per_dimension), exact)


def test_a_weight_per_step_estimates_one_step_of_the_policy_among_steps_of_the_behaviour(world):
    """A quadratic reward sees the first two moments only, and the mixture's variance is known."""
    policy, drawn, advantage, exact = world
    per_step = (drawn.log_prob - drawn.behaviour_log_prob).exp()
    own = affine_steps(policy)
    widened = (1 - EPSILON + EPSILON * SCALE**2) ** 0.5
    other = [(gain.detach(), bias.detach(), widened * std) for gain, bias, std in own]
    reward = sum(
        reward_of_chain([*other[:k], own[k], *other[k + 1 :]], TARGET) for k in range(STEPS)
    )
    surrogate = gradient_of(reward, policy)
    # a centred reward: its mean is that of chains with one step of the policy, which no constant changes
    assert_agree(estimate(policy, unweighted(drawn), advantage * per_step), surrogate, sharp=0.2)
    assert (surrogate - exact).norm() > 0.1 * exact.norm()


def test_dividing_by_the_drawn_component_has_no_bias_either_but_more_variance(world):
    """The mixture's weight is the mean of the component's, given the action (Rao-Blackwell)."""
    policy, drawn, advantage, exact = world
    log_weight = torch.zeros(CHAINS)
    for k in range(STEPS):
        with torch.no_grad():
            at = policy.transition(torch.full((CHAINS,), k), drawn.states[k], drawn.cond)
        wide = replace(at, std=SCALE * at.std).log_prob(drawn.states[k + 1])
        chance = Randomness(0).at("explore", k).uniform(range(CHAINS))
        log_weight += torch.where(chance < EPSILON, drawn.log_prob[k] - wide, 0.0)
    component = log_weight.exp()
    assert_agree(estimate(policy, unweighted(drawn), advantage * component), exact)
    assert component.var() > 1.5 * drawn.weight.var()


def test_the_kl_of_explored_chains_is_weighted_too(world):
    """With no advantage, DPOK's loss is the KL alone: of the policy's own states, whatever was explored."""
    policy, drawn, _, _ = world
    model = policy.denoiser
    shifted = model.mean.detach() + 0.5
    plain = rollout(policy, prompts("") * 8_000, Randomness(1), 8_000)

    def mean_kl(chains: Trajectory) -> tuple[float, float]:
        batch = rows.transitions(chains, torch.zeros(chains.states.shape[1]), chains.steps)
        with torch.no_grad():
            own = model.mean.clone()
            model.mean.copy_(shifted)
            model.log_std += 0.3
            reference = rows.transition(policy, batch).mean
            model.mean.copy_(own)
            model.log_std -= 0.3
            loss, _ = DPOK(kl=1.0).loss(
                policy, replace(batch, recorded={"reference_mean": reference})
            )
        return loss.mean().item(), loss.std().item() / len(loss) ** 0.5

    (explored, error), (own, other) = mean_kl(drawn), mean_kl(plain)
    # rows of one chain are correlated: at worst as if there were a third as many
    assert abs(explored - own) < 5 * (STEPS * (error**2 + other**2)) ** 0.5
    naive, _ = mean_kl(unweighted(drawn))
    assert abs(naive - own) > 5 * (STEPS * (error**2 + other**2)) ** 0.5


def test_off_policy_the_ratio_of_the_sum_has_no_bias_and_that_of_the_mean_over_dimensions_has():
    """One step of two dimensions, drawn by an older policy, without clipping: `event_size` = 1 is the sum."""
    schedule = DiffusionSchedule(alpha_bar=ALPHA_BAR, final_alpha_bar=0.5, spacing=trailing)
    older = Policy(linear((0.0, 0.0), -0.3, schedule), DDIM(num_steps=1))
    policy = Policy(linear((0.6, -0.4), -0.3, schedule), DDIM(num_steps=1))
    expected = policy.denoiser.expected_reward(policy.kernel, TARGET)
    drawn = rollout(older, prompts("") * 8_000, Randomness(0), 8_000)
    reward = -(drawn.x0.flatten(1) - torch.tensor(TARGET)).square().sum(1)

    def ratio(event_size: int) -> Loss:
        def loss(policy: Policy, batch: rows.Transitions) -> tuple[Tensor, object]:
            found, values = losses.clipped_ratio(
                rows.log_prob(policy, batch),
                batch.old_log_prob,
                batch.advantage,
                event_size,
                clip=1e9,
            )
            return found * event_size / batch.event_size, values

        return loss

    exact = gradient_of(expected, policy)
    advantage = reward - expected.item()
    assert_agree(estimate(policy, drawn, advantage, ratio(1)), exact, sharp=0.2)
    assert is_biased(estimate(policy, drawn, advantage, ratio(2)), exact)


def test_the_first_ratio_is_still_that_of_the_policy_to_itself():
    policy = Policy(linear(schedule=ENDS_NOISY), DDIM(num_steps=4))
    drawn = rollout(policy, prompts("") * 8, Randomness(0), 8, explore=explore(policy))
    batch = rows.transitions(drawn, torch.ones(8), drawn.steps)
    for algorithm in (DDPOIS(), DDPOSF()):
        loss, values = algorithm.loss(policy, batch)
        assert torch.equal(values["log_ratio"], torch.zeros(32))
        assert not torch.equal(loss / loss[0], torch.ones(32))
