"""Advantages at hand-computed values."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from burnish.advantages import per_prompt, standardise, whole_batch


def numbers(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float32)


def test_the_whole_batch_by_hand():
    """Mean 5 and population standard deviation 2 (Pearson's example)."""
    rewards = numbers(2, 4, 4, 4, 5, 5, 7, 9)
    expected = [-1.5, -0.5, -0.5, -0.5, 0, 0, 1, 2]
    assert whole_batch(rewards).tolist() == pytest.approx(expected)


def test_the_reference_gives_mean_and_std():
    assert standardise(numbers(10, 0), numbers(1, 3)).tolist() == pytest.approx([8, -2])


@pytest.mark.parametrize("value", [0.0, 1.0, -123.4, 1e-20, 3e7])
def test_rewards_without_spread_have_no_advantage(value):
    assert whole_batch(numbers(*[value] * 5)).tolist() == [0.0] * 5
    assert whole_batch(numbers(value)).tolist() == [0.0]


def test_a_rounding_error_is_no_spread():
    """Two neighbours in float32 are not a better and a worse sample."""
    assert whole_batch(torch.nextafter(numbers(0.1, 0.1), numbers(1.0, 0.0))).tolist() == [0.0, 0.0]


def test_a_small_spread_on_a_small_scale_counts():
    assert whole_batch(numbers(1e-6, 3e-6)).tolist() == pytest.approx([-1, 1])


@given(
    st.lists(st.integers(-100, 100), min_size=2, max_size=20), st.floats(0.1, 10), st.floats(-9, 9)
)
def test_advantages_have_mean_0_and_std_1_and_ignore_scale_and_shift(values, scale, shift):
    advantage = whole_batch(numbers(*values))
    has_spread = float(len(set(values)) > 1)
    assert abs(advantage.mean()) < 1e-5
    assert abs(advantage.std(correction=0) - has_spread) < 1e-5
    if has_spread:  # a spread of at least 0.2 on numbers up to 1009, which float32 holds to 6e-5
        moved = whole_batch(numbers(*values) * scale + shift)
        torch.testing.assert_close(moved, advantage, rtol=0, atol=5e-3)


def test_a_full_buffer_gives_its_own_statistics_by_hand():
    """cat: {0, 4} then 2, 6: mean 3, variance 5. dog: {10, 10} then 14: mean 34/3, variance 32/9."""
    advantage, buffers = per_prompt(
        numbers(2, 14, 6),
        ["cat", "dog", "cat"],
        {"cat": [0.0, 4.0], "dog": [10.0, 10.0]},
        size=8,
        min_count=3,
    )
    dog = (14 - 34 / 3) / (32 / 9) ** 0.5
    assert advantage.tolist() == pytest.approx([-1 / 5**0.5, dog, 3 / 5**0.5])
    assert buffers == {"cat": [0.0, 4.0, 2.0, 6.0], "dog": [10.0, 10.0, 14.0]}


def test_below_min_count_the_whole_batch_serves():
    """dog has 3 rewards and its own statistics: mean 2, variance 2/3. cat has 2: those of all five."""
    rewards = numbers(5, 9, 1, 2, 3)
    prompts = ["cat", "cat", "dog", "dog", "dog"]
    advantage, _ = per_prompt(rewards, prompts, {}, size=8, min_count=3)
    own = (3 / 2) ** 0.5
    assert advantage[2:].tolist() == pytest.approx([-own, 0, own])
    mean, std = 4.0, 8**0.5  # of 5, 9, 1, 2, 3
    assert advantage[:2].tolist() == pytest.approx([(5 - mean) / std, (9 - mean) / std])


def test_min_count_itself_is_enough_and_new_rewards_count():
    """One remembered and one new make two: mean 2, standard deviation 1."""
    rewards, prompts, known = numbers(3, 100), ["cat", "dog"], {"cat": [1.0]}
    advantage, _ = per_prompt(rewards, prompts, known, size=8, min_count=2)
    assert advantage[0].item() == pytest.approx(1.0)
    assert advantage[1].item() == pytest.approx(1.0)  # dog has one: mean and std of {3, 100}


def test_a_buffer_keeps_the_latest_rewards():
    """Of 0, 0, 0, 1, 3 with size 2: mean 2, standard deviation 1."""
    advantage, buffers = per_prompt(
        numbers(1, 3), ["cat", "cat"], {"cat": [0.0, 0.0, 0.0]}, size=2, min_count=2
    )
    assert buffers == {"cat": [1.0, 3.0]}
    assert advantage.tolist() == pytest.approx([-1, 1])


def test_other_prompts_do_not_leak():
    def cat(dogs: float) -> torch.Tensor:
        rewards = numbers(1, dogs, 2, -dogs, 6)
        prompts = ["cat", "dog", "cat", "dog", "cat"]
        advantage, buffers = per_prompt(rewards, prompts, {"dog": [dogs]}, size=8, min_count=2)
        assert buffers["cat"] == [1.0, 2.0, 6.0]
        return advantage[[0, 2, 4]]

    assert torch.equal(cat(dogs=3.0), cat(dogs=1000.0))


def test_the_buffers_that_were_given_are_not_changed():
    known = {"cat": [1.0]}
    _, updated = per_prompt(numbers(2, 3), ["cat", "dog"], known, size=8, min_count=2)
    assert known == {"cat": [1.0]}
    assert updated["cat"] is not known["cat"]


def test_a_prompt_that_is_absent_keeps_its_buffer():
    _, updated = per_prompt(numbers(2), ["cat"], {"dog": [5.0, 6.0]}, size=8, min_count=2)
    assert updated == {"dog": [5.0, 6.0], "cat": [2.0]}


def test_a_prompt_without_spread_has_no_advantage_while_others_have():
    rewards, prompts = numbers(7, 7, 1, 3), ["cat", "cat", "dog", "dog"]
    advantage, _ = per_prompt(rewards, prompts, {}, size=8, min_count=2)
    assert advantage.tolist() == pytest.approx([0, 0, -1, 1])
