"""Whatever a reward does wrong stops the run, naming the reward, the sample and its prompt."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import worlds

import burnish
from burnish.policy import Policy
from burnish.reward import RewardError, check_differentiable, differentiable, prepare, score
from burnish.rollout import Samples

SAMPLES = Samples(
    torch.arange(4.0).reshape(4, 1, 1, 1).expand(4, 3, 2, 2),
    ("a cat", "a dog", "a bird", "a fox"),
    ({}, {}, {}, {}),
)


def place(samples: Samples) -> torch.Tensor:
    """0, 1, 2, 3 for the four samples."""
    return samples.media[:, 0, 0, 0]


def test_rewards_come_back_as_float32_in_order_without_gradient():
    weight = torch.ones((), dtype=torch.float64, requires_grad=True)
    rewards = score(lambda samples: place(samples) * weight, SAMPLES)
    assert rewards.tolist() == [0, 1, 2, 3]
    assert rewards.dtype == torch.float32
    assert not rewards.requires_grad


@pytest.mark.parametrize("convert", [list, tuple, np.asarray, torch.Tensor.int])
def test_any_row_of_numbers_will_do(convert):
    assert score(lambda samples: convert(place(samples)), SAMPLES).tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_a_number_that_is_not_finite_is_blamed_on_its_sample(bad):
    def fragile(samples):
        return torch.where(place(samples) >= 2, bad, place(samples))

    with pytest.raises(RewardError) as caught:
        score(fragile, SAMPLES)
    message = str(caught.value)
    for part in ("'fragile'", f"returned {float(bad)}", "sample 2", "'a bird'", "2 of 4"):
        assert part in message


@pytest.mark.parametrize(
    ("values", "shape"),
    [
        (torch.zeros(3), "(3,)"),
        (torch.zeros(4, 1), "(4, 1)"),
        (torch.zeros(4, 2, 2), "(4, 2, 2)"),
        (1.0, "()"),
    ],
)
def test_a_wrong_shape_is_told_with_the_right_one(values, shape):
    def shapeless(_):
        return values

    with pytest.raises(RewardError) as caught:
        score(shapeless, SAMPLES)
    for part in ("'shapeless'", f"shape {shape}", "expected (4,)"):
        assert part in str(caught.value)


@pytest.mark.parametrize("values", [None, "good", {"cat": 1.0}, ["a", "b", "c", "d"]])
def test_what_is_not_numbers_is_refused_by_type(values):
    def wordy(_):
        return values

    with pytest.raises(RewardError) as caught:
        score(wordy, SAMPLES)
    for part in ("'wordy'", type(values).__name__, "4 numbers"):
        assert part in str(caught.value)


def test_an_exception_is_blamed_on_the_sample_that_raises_it():
    def picky(samples):
        if "a dog" in samples.prompts:
            raise KeyError("no dogs")
        return place(samples)

    with pytest.raises(RewardError) as caught:
        score(picky, SAMPLES)
    for part in ("'picky'", "KeyError", "no dogs", "sample 1", "'a dog'"):
        assert part in str(caught.value)
    assert isinstance(caught.value.__cause__, KeyError)


def test_an_exception_that_only_the_whole_batch_raises_names_the_batch():
    def small(samples):
        if len(samples) > 1:
            raise MemoryError("too many")
        return place(samples)

    with pytest.raises(RewardError) as caught:
        score(small, SAMPLES)
    for part in ("'small'", "MemoryError", "too many", "batch of 4", "'a cat'"):
        assert part in str(caught.value)


def test_a_reward_object_is_named_by_its_class():
    class Sharpness:
        def __call__(self, _):
            return None

    with pytest.raises(RewardError, match="'Sharpness'"):
        score(Sharpness(), SAMPLES)


def movable() -> Samples:
    return Samples(
        torch.rand(2, 3, 2, 2, requires_grad=True), SAMPLES.prompts[:2], SAMPLES.metadata[:2]
    )


def test_a_differentiable_reward_is_the_score_with_its_gradient():
    def squares(samples):
        return samples.media.double().square().sum((1, 2, 3))

    samples = movable()
    rewards = differentiable(squares, samples)
    assert torch.equal(rewards.detach(), score(squares, samples))
    assert rewards.dtype == torch.float32
    (gradient,) = torch.autograd.grad(rewards.sum(), samples.media)
    torch.testing.assert_close(gradient, 2 * samples.media.detach())


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (lambda samples: samples.media.sum((2, 3)), "shape (2, 3), expected (2,)"),
        (lambda samples: samples.media.sum((1, 2, 3)) / 0, "returned inf for sample 0"),
        (lambda samples: samples.nothing, "raised AttributeError"),
        (lambda samples: samples.media.detach().sum((1, 2, 3)), "no gradient"),
        (lambda samples: samples.media.sum((1, 2, 3)).tolist(), "no gradient"),
    ],
)
def test_a_differentiable_reward_is_checked_as_any_other(bad, message):
    bad.__name__ = "bad"
    for check in (differentiable, check_differentiable):
        with pytest.raises(RewardError) as caught:
            check(bad, movable())
        assert message in str(caught.value)
        assert "'bad'" in str(caught.value)


def test_a_gradient_that_does_not_come_from_the_image_is_none():
    weight = torch.ones((), requires_grad=True)
    with pytest.raises(RewardError, match="no gradient with respect to the image"):
        check_differentiable(lambda samples: weight * samples.media.detach()[:, 0, 0, 0], movable())


def test_asking_for_a_gradient_leaves_the_samples_as_they_were():
    check_differentiable(lambda samples: samples.media[:, 0, 0, 0], SAMPLES)
    assert not SAMPLES.media.requires_grad


class Lazy:
    """Has what it needs only after `prepare`."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error, self.ready = error, False

    def prepare(self):
        if self.error is not None:
            raise self.error
        self.ready = True

    def __call__(self, samples):
        assert self.ready
        return place(samples)


def test_a_reward_that_prepares_is_made_ready_and_one_that_does_not_is_left():
    lazy = Lazy()
    prepare(lazy)
    assert score(lazy, SAMPLES).tolist() == [0, 1, 2, 3]
    prepare(place)


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (ValueError("get them there"), "get them there"),
        (KeyError("weights"), "KeyError: 'weights'"),
    ],
)
def test_one_that_cannot_be_made_ready_is_named_with_its_reason(error, told):
    with pytest.raises(RewardError) as caught:
        prepare(Lazy(error))
    assert str(caught.value) == f"reward 'Lazy' cannot be made ready: {told}"
    assert caught.value.__cause__ is error


def test_training_makes_the_reward_ready_before_it_draws():
    lazy = Lazy(KeyError("weights"))
    policy = Policy(worlds.linear(), burnish.DDIM(num_steps=2, eta=1.0))
    with pytest.raises(RewardError, match="'Lazy' cannot be made ready"):
        next(burnish.train(policy, burnish.DDPOIS(), NeverDrawn(), lazy))


class NeverDrawn:
    def draw(self, *_):
        raise AssertionError("a prompt was drawn")

    held_out = draw
