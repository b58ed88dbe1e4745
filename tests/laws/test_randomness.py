"""A draw is a function of its address."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from burnish.randomness import Randomness

ADDRESSES = st.lists(st.sampled_from(["a", "b", "ab", "1", 1, 0, -1]), max_size=3).map(tuple)


@given(st.integers(0, 1), ADDRESSES, st.integers(0, 1), ADDRESSES)
def test_two_addresses_agree_only_if_they_are_the_same(seed, path, other_seed, other_path):
    one, other = Randomness(seed).at(*path), Randomness(other_seed).at(*other_path)
    same = (seed, path) == (other_seed, other_path)
    assert (one.integer() == other.integer()) == same


def test_steps_of_the_walk_do_not_run_together():
    root = Randomness(0)
    assert root.at("a", "b").integer() == root.at("a").at("b").integer()
    several = [root.at("ab"), root.at("a", "b"), root.at("b", "a"), root.at(1), root.at("1")]
    assert len({node.integer() for node in several}) == 5


def test_addresses_are_the_same_in_every_version_and_process():
    """A change here would change every run that is resumed."""
    assert Randomness(0).at("iteration", 3, "rollout", 7).integer() == 3870718386110031737


@given(st.permutations(range(6)), st.integers(1, 6))
def test_a_row_of_noise_depends_on_its_index_only(order, count):
    randomness = Randomness(3).at("rollout")
    everything = randomness.normal(range(6), (2, 3))
    some = randomness.normal(order[:count], (2, 3))
    assert torch.equal(some, everything[torch.tensor(order[:count])])


def test_noise_is_standard_normal_and_independent_between_rows():
    count = 4000
    noise = Randomness(0).normal(range(count), (3,)).double()
    assert noise.mean(0).abs().max() < 5 / count**0.5
    assert (noise.var(0) - 1).abs().max() < 5 * (2 / count) ** 0.5
    neighbours = (noise[1:] * noise[:-1]).mean(0)
    assert neighbours.abs().max() < 5 / count**0.5
    assert len(noise.unique()) > 0.99 * noise.numel()


def test_no_rows_is_an_empty_batch():
    assert Randomness(0).normal([], (2, 3)).shape == (0, 2, 3)


def test_a_permutation_holds_each_index_once_and_depends_on_its_address():
    root = Randomness(0)
    orders = [root.at("shuffle", epoch).permutation(50) for epoch in (0, 1, 0)]
    assert all(torch.equal(order.sort().values, torch.arange(50)) for order in orders)
    assert torch.equal(orders[0], orders[2])
    assert not torch.equal(orders[0], orders[1])
