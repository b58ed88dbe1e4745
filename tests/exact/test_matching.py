"""RWR, DiffusionNFT, AWM and the supervised baselines against gradients and fixed points derived by hand.

In the linear world the network is slope (x - signal mean), with slope = sigma / (abar exp(2 log_std) +
sigma^2), so the derivatives of its error and of its clean estimate are written out below, in float64, on
noise and levels that are drawn anew from the rows' addresses. Tolerances are float32's: 1e-5 of a gradient.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor
from worlds import Always, linear, prompts

from burnish import rows
from burnish.advantages import best_of_group, effective_share, softmax_weights, top_fraction
from burnish.algorithms.awm import AWM
from burnish.algorithms.ddpo import WholeBatch
from burnish.algorithms.nft import NFT
from burnish.algorithms.rwr import RWR, RWRSparse
from burnish.algorithms.sft import BestOf
from burnish.experience import Task
from burnish.losses import negative_aware, optimality
from burnish.models.linear import Linear
from burnish.policy import Policy
from burnish.randomness import Randomness
from burnish.samplers.ddim import DDIM

SIZE = 2
ASKED = prompts("a cat", "a dog", "a cat", "a cat", "a dog", "a dog", "a cat", "a bird")


def numbers(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float32)


def first(samples) -> Tensor:
    """The first number of each sample."""
    return samples.media[:, 0, 0, 0]


def collected(algorithm, model=None, reward=first, memory=None, asked=ASKED):
    policy = Policy(model or linear(), DDIM(num_steps=4, eta=0.0))
    task = Task(policy, Always(asked), reward, samples=len(asked), batch=3)
    return policy, algorithm.collect(task, memory=memory or {}, randomness=Randomness(0))


def gradient(algorithm, policy: Policy, found: rows.Endpoints) -> Tensor:
    """Of the mean loss, by mean and log_std."""
    loss = algorithm.loss(policy, found)[0].mean()
    model = policy.denoiser
    parts = torch.autograd.grad(loss, [model.mean, model.log_std])
    return torch.cat([part.flatten() for part in parts]).double()


@dataclass(frozen=True)
class ByHand:
    """Rows noised anew in float64, the network's output at them, and its derivatives."""

    x0: Tensor
    e: Tensor
    signal: Tensor
    sigma: Tensor
    output: Tensor
    by_mean: Tensor
    by_log_std: Tensor

    def of_error(self, weight: Tensor) -> Tensor:
        """Gradient of the mean of weight |output - e|^2 / size."""
        pull = 2 / SIZE * weight.double()[:, None] * (self.output - self.e)
        return self._chain(pull)

    def of_clean_estimate(self, pull: Tensor) -> Tensor:
        """Gradient of the mean of pull . (x - sigma output) / signal, `pull` a constant."""
        return self._chain(-pull * self.sigma / self.signal)

    @property
    def clean(self) -> Tensor:
        return self.x0 + self.sigma / self.signal * (self.e - self.output)

    def _chain(self, pull: Tensor) -> Tensor:
        by_log_std = (pull * self.by_log_std).sum(1).mean()
        return torch.cat([(pull * self.by_mean).mean(0), by_log_std[None]])


def by_hand(model: Linear, found: rows.Endpoints, x0: Tensor) -> ByHand:
    """x0: the samples as their reward saw them, (batch, size)"""
    numbers = found.id.tolist()
    x0 = x0.double()[[number // found.draws for number in numbers]]
    e = found.randomness.at("noise").normal(numbers, (SIZE, 1, 1)).double().flatten(1)
    chance = found.randomness.at("level").uniform(numbers)
    quantile = (torch.tensor(numbers) % found.draws + chance) / found.draws
    abar = model.schedule.alpha_bar[(1000 * quantile).floor().long()][:, None]
    mean, variance = model.mean.detach().double().flatten(), (2 * model.log_std.detach()).exp()
    signal, sigma, total = abar.sqrt(), (1 - abar).sqrt(), abar * variance + 1 - abar
    slope = sigma / total
    away = signal * x0 + sigma * e - signal * mean
    return ByHand(
        x0, e, signal, sigma, slope * away, -slope * signal, -2 * abar * variance / total * slope * away
    )  # fmt: skip


def assert_equal(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5 * expected.norm().item())


# --- weights -----------------------------------------------------------------------------------------


def test_softmax_weights_by_hand_over_prompts():
    """cat 1, 3 are -1, +1 standard deviations; dog has no spread; bird is alone."""
    weights = softmax_weights(numbers(1, 7, 3, 7, 5), ["cat", "dog", "cat", "dog", "bird"], 0.5)
    low, high = math.exp(-2), math.exp(2)
    expected = [2 * low / (low + high), 1, 2 * high / (low + high), 1, 1]
    assert weights.tolist() == pytest.approx(expected)


def test_softmax_weights_by_hand_over_the_collection():
    """2, 4, 4, 4, 5, 5, 7, 9 have mean 5 and standard deviation 2; exp(z / 2), mean 1."""
    weights = softmax_weights(numbers(2, 4, 4, 4, 5, 5, 7, 9), [""] * 8, 2.0)
    z = [math.exp(value / 2) for value in (-1.5, -0.5, -0.5, -0.5, 0, 0, 1, 2)]
    assert weights.tolist() == pytest.approx([8 * value / sum(z) for value in z])


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e6])
def test_a_cold_softmax_gives_all_to_the_best_and_ignores_the_scale(scale):
    weights = softmax_weights(scale * numbers(1, 2, 3), ["a"] * 3, 1e-3)
    assert weights.tolist() == pytest.approx([0, 0, 3])


@pytest.mark.parametrize(
    ("rewards", "fraction", "expected"),
    [
        ((1, 2, 3, 4, 5, 6, 7, 8, 9, 10), 0.1, (0, 0, 0, 0, 0, 0, 0, 0, 0, 1)),
        ((10, 2, 9, 4), 0.5, (1, 0, 1, 0)),
        ((5, 5, 1, 5), 0.25, (1, 1, 0, 1)),  # ties at the boundary are all in
        ((1, 3, 2), 0.01, (0, 1, 0)),  # at least one is
        ((1, 3, 2), 1.0, (1, 1, 1)),
        ((7,), 0.1, (1,)),
    ],
)
def test_the_top_fraction_by_hand(rewards, fraction, expected):
    assert tuple(top_fraction(numbers(*rewards), ["a"] * len(rewards), fraction)) == expected


def test_the_top_fraction_is_that_of_each_group():
    rewards, groups = numbers(1, 10, 2, 20, 3), ["a", "b", "a", "b", "c"]
    assert top_fraction(rewards, groups, 0.5).tolist() == [0, 0, 1, 1, 1]
    assert top_fraction(rewards, [""] * 5, 0.4).tolist() == [0, 1, 0, 1, 0]


def test_the_best_of_a_group_by_hand():
    rewards = numbers(1, 3, 2, 5, 5, 0, 4, 4, 4)
    assert best_of_group(rewards, 3).tolist() == [0, 1, 0, 1, 0, 0, 0, 0, 0]


def test_effective_share_by_hand():
    assert effective_share(numbers(2, 2, 2)) == pytest.approx(1)
    assert effective_share(numbers(0, 5, 0, 0)) == pytest.approx(1 / 4)
    assert effective_share(numbers(1, 3)) == pytest.approx(16 / 20)


# --- reward-weighted regression ----------------------------------------------------------------------


def test_the_gradient_of_rwr_is_that_of_the_weighted_denoising_error():
    algorithm = RWR(temperature=0.7, over="collection", draws=3)
    policy, found = collected(algorithm)
    z = (found.rewards.double() - found.rewards.double().mean()) / found.rewards.double().std(
        correction=0
    )
    weight = 8 * (z / 0.7).exp() / (z / 0.7).exp().sum()
    assert found.metrics["effective_samples"] == pytest.approx(8 / weight.square().sum().item())
    exact = by_hand(policy.denoiser, found.rows, found.samples.media.flatten(1))
    assert_equal(
        gradient(algorithm, policy, found.rows), exact.of_error(weight.repeat_interleave(3))
    )


@pytest.mark.parametrize(
    ("algorithm", "asked"),
    [
        (RWRSparse(top=0.25, over="collection", draws=3), ASKED),
        (BestOf(group_size=4, draws=3), prompts("a cat", "a dog")),
    ],
    ids=["sparse", "best of"],
)
def test_the_gradient_of_the_best_samples_is_that_of_their_denoising_error(algorithm, asked):
    policy = Policy(linear(), DDIM(num_steps=4, eta=0.0))
    task = Task(policy, Always(asked), first, samples=8, batch=3)
    found = algorithm.collect(task, memory={}, randomness=Randomness(0))
    halves = [found.rewards[:4], found.rewards[4:]]
    best = (
        set(found.rewards.topk(2).indices.tolist())
        if asked is ASKED
        else {halves[0].argmax().item(), 4 + halves[1].argmax().item()}
    )
    assert set(found.rows.sample.tolist()) == best
    assert found.metrics["samples_used"] == 0.25
    exact = by_hand(policy.denoiser, found.rows, found.samples.media.flatten(1))
    assert_equal(gradient(algorithm, policy, found.rows), exact.of_error(torch.ones(6)))


def test_the_fixed_point_of_rwr_is_the_reward_weighted_law():
    """N(m, s^2) times exp(-|x - a|^2 / T) is Gaussian: 1 / s*^2 = 1 / s^2 + 2 / T, and its mean is
    s*^2 (m / s^2 + 2 a / T). There the expected gradient is 0, and with m or s in its place it is not."""
    count, groups, target = 6_000, 30, torch.tensor([2.0, -1.0])
    base = linear()
    mean, variance = base.mean.detach().flatten(), (2 * base.log_std.detach()).exp()
    x0 = mean + variance.sqrt() * torch.randn(
        count, SIZE, generator=torch.Generator().manual_seed(0)
    )
    reward = -(x0 - target).square().sum(1)
    heat = reward.std(correction=0)  # a temperature of 1, in the unit of the rewards
    fixed_variance = 1 / (1 / variance + 2 / heat)
    fixed_mean = fixed_variance * (mean / variance + 2 * target / heat)
    fixed = linear(fixed_mean.tolist(), 0.5 * fixed_variance.log().item())
    found = rows.endpoints(
        x0.reshape(-1, SIZE, 1, 1),
        {"shift": torch.zeros(count)},
        softmax_weights(reward, [""] * count, 1.0),
        draws=1,
        randomness=Randomness(0),
    )

    def estimates(model: Linear) -> tuple[Tensor, Tensor]:
        policy = Policy(model, DDIM(num_steps=1))
        parts = torch.stack(
            [gradient(RWR(), policy, found[torch.arange(g, count, groups)]) for g in range(groups)]
        )
        return parts.mean(0), parts.std(0) / groups**0.5

    there, error = estimates(fixed)
    assert (there.abs() < 5 * error).all(), (there, error)
    misplaced, error = estimates(linear(mean.tolist(), fixed.log_std.item()))
    assert (misplaced[:2].abs() > 5 * error[:2]).all(), (misplaced, error)
    too_wide, error = estimates(linear(fixed_mean.tolist(), base.log_std.item()))
    assert too_wide[2] > 5 * error[2], (too_wide, error)


# --- DiffusionNFT ------------------------------------------------------------------------------------


def test_optimality_by_hand():
    found = optimality(numbers(-9, -5, 0, 2.5, 5, 9), 5.0)
    assert found.tolist() == pytest.approx([0, 0, 0.5, 0.75, 1, 1])


def event(*values: float) -> Tensor:
    return torch.tensor([values], dtype=torch.float32)


def test_negative_aware_values_and_gradient_by_hand():
    """b = 1/2, r = 3/4: x+ = (0.5, 1.5) errs by (-1.5, 2.5), x- = (-0.5, -1.5) by (-2.5, -0.5). Mean
    squares 4.25 and 3.25 over mean absolute values 2 and 1.5, which are constants."""
    new = event(1, 3).requires_grad_()
    loss, found = negative_aware(new, event(0, 0), event(2, -1), numbers(0.75), 0.5)
    assert loss.item() == pytest.approx(0.75 * 4.25 / 2 + 0.25 * 3.25 / 1.5)
    assert found["change_from_old"].item() == pytest.approx(5)
    (slope,) = torch.autograd.grad(loss.sum(), new)
    expected = [
        0.75 * 0.5 * plus / 2 - 0.25 * 0.5 * minus / 1.5
        for plus, minus in ((-1.5, -2.5), (2.5, -0.5))
    ]
    assert slope[0].tolist() == pytest.approx(expected)


@pytest.mark.parametrize("r", [0.0, 0.25, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("strength", [0.1, 1.0])
def test_where_nothing_has_changed_the_pull_is_2r_minus_1_towards_the_sample(r, strength):
    """Both terms' errors are old - x0, so the gradient is 2 b (2r - 1) (old - x0) / (size |old - x0|)."""
    old, x0 = event(1, -2, 0.5), event(0, 1, 1)
    new = old.clone().requires_grad_()
    loss, _ = negative_aware(new, old, x0, numbers(r), strength)
    (slope,) = torch.autograd.grad(loss.sum(), new)
    away = old - x0
    expected = 2 * strength * (2 * r - 1) / 3 * away / away.abs().mean()
    torch.testing.assert_close(slope, expected, rtol=1e-5, atol=1e-7)
    if r == 0.5:
        assert slope.abs().max() < 1e-7


def test_only_the_new_estimate_carries_a_gradient():
    new, old, x0 = (event(*values).requires_grad_() for values in ((1, 2), (0, 1), (2, 2)))
    r = numbers(0.3).requires_grad_()
    loss, found = negative_aware(new, old, x0.detach(), r, 1.0)
    loss.sum().backward()
    assert new.grad is not None
    assert old.grad is None
    assert r.grad is None
    assert not found["change_from_old"].requires_grad


def test_a_perfect_estimate_has_no_loss_and_a_finite_gradient():
    new = event(1, 2).requires_grad_()
    loss, _ = negative_aware(new, event(1, 2), event(1, 2), numbers(1.0), 1.0)
    (slope,) = torch.autograd.grad(loss.sum(), new)
    assert loss.item() == 0
    assert slope.isfinite().all()


def test_the_gradient_of_nft_at_the_old_policy_by_hand():
    algorithm = NFT(strength=0.3, advantage_clip=1.2, baseline=WholeBatch(), draws=3)
    policy, found = collected(algorithm)
    rewards = found.rewards.double()
    advantage = ((rewards - rewards.mean()) / rewards.std(correction=0)).repeat_interleave(3)
    r = (0.5 + 0.5 * advantage / 1.2).clamp(0, 1)
    assert (r == 0).any()  # the worst is pushed from with all force, and not left out
    exact = by_hand(policy.denoiser, found.rows, found.samples.media.flatten(1))
    away = exact.clean - exact.x0
    pull = 2 * 0.3 * (2 * r - 1)[:, None] / SIZE * away / away.abs().mean(1, keepdim=True)
    assert_equal(gradient(algorithm, policy, found.rows), exact.of_clean_estimate(pull))


# --- advantage-weighted matching ---------------------------------------------------------------------


def test_the_first_ratio_of_awm_is_1_and_its_gradient_the_advantage_times_that_of_the_error():
    algorithm = AWM(advantage_clip=1.2, baseline=WholeBatch(), draws=3)
    policy, found = collected(algorithm)
    loss, diagnostics = algorithm.loss(policy, found.rows)
    assert torch.equal(diagnostics["log_ratio"].detach(), torch.zeros(24))
    rewards = found.rewards.double()
    advantage = (rewards - rewards.mean()) / rewards.std(correction=0)
    clipped = advantage.clamp(-1.2, 1.2).repeat_interleave(3)
    assert (clipped.abs() == 1.2).any()
    assert loss.tolist() == pytest.approx((-clipped).tolist(), rel=1e-5)
    exact = by_hand(policy.denoiser, found.rows, found.samples.media.flatten(1))
    assert_equal(gradient(algorithm, policy, found.rows), exact.of_error(clipped))


def test_the_ratio_of_awm_is_that_of_the_errors():
    """exp(old error - new error), each a mean over dimensions: unclipped where it costs."""
    algorithm = AWM(clip=0.001, baseline=WholeBatch(), draws=2)
    policy, found = collected(algorithm)
    exact = by_hand(policy.denoiser, found.rows, found.samples.media.flatten(1))
    with torch.no_grad():
        policy.denoiser.mean += 0.3
    moved = by_hand(policy.denoiser, found.rows, found.samples.media.flatten(1))
    old, new = ((each.output - each.e).square().mean(1) for each in (exact, moved))
    ratio, advantage = (old - new).exp(), found.rows.weight[found.rows.sample].double()
    expected = torch.maximum(-advantage * ratio, -advantage * ratio.clamp(0.999, 1.001))
    loss, _ = algorithm.loss(policy, found.rows)
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=1e-6)
    assert (ratio - 1).abs().max() > 0.01


# --- signs -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "algorithm",
    [
        RWR(over="collection"),
        RWR(over="prompt"),
        RWRSparse(top=0.3, over="collection", draws=5),
        BestOf(group_size=4, draws=5),
        NFT(baseline=WholeBatch()),
        NFT(baseline=WholeBatch(), strength=0.1),
        AWM(baseline=WholeBatch()),
    ],
    ids=lambda algorithm: type(algorithm).__name__,
)
def test_one_update_makes_good_samples_likelier_and_bad_ones_less(algorithm):
    """By minus their denoising error on noise of its own; good is what lies right of the middle."""
    model = linear((0.0, 0.0))
    asked = prompts(*["a cat", "a dog"] * 16)
    policy, found = collected(algorithm, model, asked=asked)
    judged = rows.endpoints(
        found.samples.media,
        model.encode([prompt.text for prompt in asked]),
        torch.ones(32),
        draws=20,
        randomness=Randomness(1),
    )
    good = (found.rewards > found.rewards.median())[judged.sample]

    def error() -> Tensor:
        at = rows.noised(policy, judged)
        return rows.squared_error(rows.predict(policy, at), at.target).detach()

    before = error()
    step = gradient(algorithm, policy, found.rows).float()
    with torch.no_grad():
        model.mean -= 1e-2 * (step[:2] / step.norm()).reshape(2, 1, 1)
        model.log_std -= 1e-2 * step[2] / step.norm()
    change = error() - before
    assert change[good].mean() < 0
    assert change[~good].mean() > 0
