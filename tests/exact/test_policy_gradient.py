"""Both DDPO estimators against the exact gradient of the expected reward.

Advantages are raw rewards less a constant, since normalisation changes the gradient's length and a
baseline from the same chains its mean. The estimate is that of `losses` on `rows`, scaled back: the loss
is divided by the event size. Standard errors come from independent groups of chains.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor
from worlds import (
    ALPHA_BAR,
    COARSE,
    COARSE_FLOW,
    STRAIGHT,
    affine_steps,
    linear,
    prompts,
    reward_of_chain,
)

from burnish import losses, rows
from burnish.models.linear import Linear
from burnish.policy import Policy, Sampler
from burnish.randomness import Randomness
from burnish.rollout import Trajectory, rollout
from burnish.samplers.ddim import DDIM
from burnish.samplers.ddpm import DDPM
from burnish.samplers.flow import CPS, DanceSDE, FlowSDE
from burnish.samplers.window import Window
from burnish.schedules import DiffusionSchedule, FlowSchedule, trailing

CHAINS, GROUPS = 8_000, 32
UNCLIPPED = 1e9
Loss = Callable[[Tensor, rows.Transitions], Tensor]


def score_function(log_prob: Tensor, batch: rows.Transitions) -> Tensor:
    old, advantage, size = batch.old_log_prob, batch.advantage, batch.event_size
    return losses.score_function(log_prob, old, advantage, size)[0]


def importance(log_prob: Tensor, batch: rows.Transitions) -> Tensor:
    old, advantage, size = batch.old_log_prob, batch.advantage, batch.event_size
    return losses.clipped_ratio(log_prob, old, advantage, size, UNCLIPPED)[0]


def drawn(model: Linear, sampler: Sampler, target: tuple[float, ...]) -> tuple[Trajectory, Tensor]:
    """Chains, and their rewards less the expected reward."""
    policy = Policy(model, sampler)
    trajectory = rollout(policy, prompts("") * CHAINS, Randomness(0), CHAINS)
    reward = -(trajectory.x0.flatten(1) - torch.tensor(target)).square().sum(1)
    return trajectory, reward - model.expected_reward(policy.kernel, target).item()


def estimates(
    model: Linear, sampler: Sampler, trajectory: Trajectory, advantage: Tensor, loss: Loss
) -> Iterator[Tensor]:
    """One estimate of the gradient from each group of chains."""
    policy = Policy(model, sampler)
    everything = rows.transitions(trajectory, advantage, trajectory.steps)
    for group in range(GROUPS):
        mine = everything[torch.nonzero(everything.sample % GROUPS == group).flatten()]
        ascent = -loss(rows.log_prob(policy, mine), mine).sum() * mine.event_size
        gradient = torch.autograd.grad(ascent / (CHAINS // GROUPS), [model.mean, model.log_std])
        yield torch.cat([part.flatten() for part in gradient]).double()


def assert_agree(found: Iterator[Tensor], exact: Tensor, *, sharp: float) -> None:
    """Within 5 standard errors, and these are small: `sharp` of the gradient's length."""
    groups = torch.stack(list(found))
    standard_error = groups.std(0) / GROUPS**0.5
    assert (5 * standard_error < sharp * exact.norm()).all(), (standard_error, exact)
    assert ((groups.mean(0) - exact).abs() < 5 * standard_error).all(), (groups.mean(0), exact)


def exact_gradient(reward: Tensor, model: Linear) -> Tensor:
    gradient = torch.autograd.grad(reward, [model.mean, model.log_std])
    return torch.cat([part.flatten() for part in gradient]).double()


@dataclass(frozen=True)
class World:
    """A model and its chains under a sampler, drawn once for several estimators."""

    model: Linear
    sampler: Sampler
    target: tuple[float, ...]
    trajectory: Trajectory
    advantage: Tensor

    def estimates(self, loss: Loss) -> Iterator[Tensor]:
        return estimates(self.model, self.sampler, self.trajectory, self.advantage, loss)


def world(sampler: Sampler, schedule: DiffusionSchedule | FlowSchedule) -> World:
    model, target = linear((0.5, -0.5), -0.3, schedule), (3.0, -2.0)
    return World(model, sampler, target, *drawn(model, sampler, target))


WORLDS = [
    (DDIM(num_steps=5), COARSE),
    (DDIM(num_steps=4, eta=0.5), COARSE),
    (DDPM(num_steps=5, variance="beta"), COARSE),
    (FlowSDE(num_steps=4), STRAIGHT),
    (DanceSDE(num_steps=4, eta=0.7), COARSE_FLOW),
]


@pytest.fixture(scope="module", params=WORLDS, ids=lambda pair: str(pair[0]))
def on_policy(request: pytest.FixtureRequest) -> tuple[World, Tensor]:
    """A world, and the exact gradient of its expected reward."""
    found = world(*request.param)
    kernel = found.sampler.on(found.model.schedule)
    return found, exact_gradient(found.model.expected_reward(kernel, found.target), found.model)


@pytest.mark.parametrize("loss", [score_function, importance])
def test_on_policy_estimates_agree_with_the_exact_gradient(loss, on_policy):
    found, exact = on_policy
    assert len(found.trajectory.steps) == found.sampler.num_steps
    assert_agree(found.estimates(loss), exact, sharp=0.2)


def test_the_standard_errors_are_small_enough_to_see_a_gradient_wrong_by_a_quarter(on_policy):
    found, exact = on_policy
    with pytest.raises(AssertionError):
        assert_agree(found.estimates(score_function), 1.25 * exact, sharp=1.0)


WINDOWS = [
    (Window(sampler=DDIM(num_steps=5), size=2, start=1), COARSE, (1, 2)),
    (Window(sampler=FlowSDE(num_steps=5), size=2, start=2), STRAIGHT, (2, 3)),
    (CPS(num_steps=4), COARSE_FLOW, (0, 1, 2)),
]


@pytest.fixture(scope="module", params=WINDOWS, ids=lambda world: str(world[0]))
def window(request: pytest.FixtureRequest) -> tuple[World, Tensor]:
    """A world with noise at some steps only, and the exact gradient through those alone."""
    sampler, schedule, noisy = request.param
    found = world(sampler, schedule)
    policy = Policy(found.model, sampler)
    own, frozen = affine_steps(policy), detached_steps(policy)
    mixed = [own[k] if k in noisy else frozen[k] for k in range(sampler.num_steps)]
    return found, exact_gradient(reward_of_chain(mixed, found.target), found.model)


@pytest.mark.parametrize("loss", [score_function, importance])
def test_a_window_of_steps_estimates_the_gradient_through_those_steps_only(loss, window):
    found, exact = window
    assert_agree(found.estimates(loss), exact, sharp=0.2)


def test_one_off_policy_step_estimates_the_exact_gradient_of_the_new_policy():
    """With one step the step's ratio is the chain's: E_old[ratio A] has the gradient of E_new[r]."""
    schedule = DiffusionSchedule(alpha_bar=ALPHA_BAR, final_alpha_bar=0.5, spacing=trailing)
    old, new = linear((0.0,), -0.3, schedule), linear((0.6,), -0.3, schedule)
    sampler, target = DDIM(num_steps=1), (2.0,)
    exact = exact_gradient(new.expected_reward(sampler.on(schedule), target), new)
    found = estimates(new, sampler, *drawn(old, sampler, target), importance)
    on_policy = exact_gradient(old.expected_reward(sampler.on(schedule), target), old)
    assert (exact - on_policy).norm() > 0.25 * exact.norm()  # the ratio matters here
    assert_agree(found, exact, sharp=0.2)


def test_off_policy_chains_estimate_the_gradient_of_changing_one_step_at_a_time():
    """The surrogate of a whole chain: E_old[sum_t ratio_t A] = sum_t E[r | new at t, old elsewhere]."""
    old, new = linear((0.2,), -0.3, COARSE), linear((0.6,), -0.1, COARSE)
    sampler, target = DDIM(num_steps=4), (2.0,)
    before = detached_steps(Policy(old, sampler))
    after = affine_steps(Policy(new, sampler))
    surrogate = sum(
        reward_of_chain([*before[:t], after[t], *before[t + 1 :]], target) for t in range(4)
    )
    exact = exact_gradient(surrogate, new)
    found = estimates(new, sampler, *drawn(old, sampler, target), importance)
    assert_agree(found, exact, sharp=0.2)


def detached_steps(policy: Policy) -> list[tuple[Tensor, Tensor, Tensor]]:
    return [tuple(part.detach() for part in step) for step in affine_steps(policy)]
