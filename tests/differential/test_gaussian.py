"""`Gaussian` against torch.distributions."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.distributions import Independent, Normal, kl_divergence

from burnish.transitions import Gaussian

SHAPES = st.sampled_from([(1,), (5,), (2, 3), (3, 2, 2)])
BATCHES = st.integers(1, 4)
SEEDS = st.integers(0, 2**31)


def drawn(seed: int, batch: int, shape: tuple[int, ...]) -> Gaussian:
    generator = torch.Generator().manual_seed(seed)
    mean = torch.randn(batch, *shape, generator=generator)
    std = (torch.randn(batch, generator=generator) - 1).exp()
    return Gaussian(mean, std)


def reference(gaussian: Gaussian) -> Independent:
    mean = gaussian.mean.double()
    std = gaussian.std.double().reshape(-1, *[1] * (mean.ndim - 1)).expand_as(mean)
    return Independent(Normal(mean, std), mean.ndim - 1)


@given(SEEDS, BATCHES, SHAPES)
def test_log_prob_is_the_sum_over_the_event(seed, batch, shape):
    gaussian = drawn(seed, batch, shape)
    x = gaussian.sample(torch.randn(batch, *shape))
    expected = reference(gaussian).log_prob(x.double())
    # float32 standardises x with a relative error of 1e-7 * |mean| / std
    torch.testing.assert_close(gaussian.log_prob(x).double(), expected, rtol=1e-4, atol=1e-4)


@given(SEEDS, SEEDS, BATCHES, SHAPES)
def test_kl_is_exact_for_unequal_means_and_stds(seed, other_seed, batch, shape):
    p, q = drawn(seed, batch, shape), drawn(other_seed, batch, shape)
    expected = kl_divergence(reference(p), reference(q))
    torch.testing.assert_close(p.kl(q).double(), expected, rtol=1e-4, atol=1e-4)


def test_gradients_of_log_prob_and_kl_are_those_of_the_reference():
    p, q = drawn(1, 3, (2, 2)), drawn(2, 3, (2, 2))
    x = torch.randn(3, 2, 2, generator=torch.Generator().manual_seed(3))
    for gaussian in (p, q):
        gaussian.mean.requires_grad_()
        gaussian.std.requires_grad_()
    leaves = (p.mean, p.std, q.mean, q.std)
    ours = torch.autograd.grad((p.log_prob(x) + q.log_prob(x) + p.kl(q)).sum(), leaves)
    theirs = reference(p).log_prob(x.double()) + reference(q).log_prob(x.double())
    theirs = theirs + kl_divergence(reference(p), reference(q))
    for own, other in zip(ours, torch.autograd.grad(theirs.sum(), leaves), strict=True):
        torch.testing.assert_close(own, other, rtol=1e-4, atol=1e-4)


def test_kl_to_itself_is_zero_and_otherwise_positive():
    p, q = drawn(1, 4, (3,)), drawn(2, 4, (3,))
    assert torch.equal(p.kl(p), torch.zeros(4))
    assert (p.kl(q) > 0).all()


def test_samples_have_the_mean_and_the_std_of_their_row():
    count = 20_000
    gaussian = Gaussian(
        torch.tensor([[1.0, -2.0], [0.0, 3.0]]).repeat_interleave(count, 0),
        torch.tensor([0.3, 4.0]).repeat_interleave(count),
    )
    noise = torch.randn(2 * count, 2, generator=torch.Generator().manual_seed(0))
    x = gaussian.sample(noise).reshape(2, count, 2).double()
    for row, (mean, std) in enumerate([((1.0, -2.0), 0.3), ((0.0, 3.0), 4.0)]):
        error = (x[row].mean(0) - torch.tensor(mean)).abs()
        assert (error < 5 * std / count**0.5).all()
        error = (x[row].std(0) - std).abs()
        assert (error < 5 * std / (2 * count) ** 0.5).all()


def test_a_sample_without_noise_is_the_mean():
    gaussian = drawn(0, 3, (2, 2))
    assert torch.equal(gaussian.sample(torch.zeros(3, 2, 2)), gaussian.mean)


def test_the_mean_log_prob_of_samples_is_minus_the_entropy():
    count, size = 20_000, 3
    gaussian = Gaussian(torch.zeros(count, size), torch.full((count,), 0.2))
    noise = torch.randn(count, size, generator=torch.Generator().manual_seed(0))
    log_prob = gaussian.log_prob(gaussian.sample(noise)).double()
    entropy = reference(gaussian).entropy()[0]
    # the variance of -|z|^2 / 2 is size / 2
    assert abs(log_prob.mean() + entropy) < 5 * (size / 2 / count) ** 0.5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_stored_state_is_scored_in_float32(dtype):
    gaussian = drawn(0, 3, (4,))
    stored = gaussian.sample(torch.ones(3, 4)).to(dtype)
    assert gaussian.log_prob(stored).dtype == torch.float32
    assert torch.equal(gaussian.log_prob(stored), gaussian.log_prob(stored.float()))
