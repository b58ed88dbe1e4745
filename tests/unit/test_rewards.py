"""The built-in differentiable rewards at known values, and that their gradients are right."""

from __future__ import annotations

from dataclasses import fields
from typing import get_args

import pytest
import torch

from burnish.images import to_pil
from burnish.portraits.judge import load_judge
from burnish.recipe import Plugin, Single
from burnish.reward import Prepares, RewardError, check_differentiable, differentiable, score
from burnish.rewards.diversity import Diversity
from burnish.rewards.portraits import PortraitAlignment, PortraitLikelihood
from burnish.rewards.remote import Remote
from burnish.rewards.statistics import Brightness
from burnish.rollout import Samples

COLOURS = {
    "black": ((0.0, 0.0, 0.0), 0.0),
    "white": ((1.0, 1.0, 1.0), 1.0),
    "red": ((1.0, 0.0, 0.0), 0.2126),
    "green": ((0.0, 1.0, 0.0), 0.7152),
    "blue": ((0.0, 0.0, 1.0), 0.0722),
    "grey": ((0.5, 0.5, 0.5), 0.5),
}


def plain(colours: list[tuple[float, float, float]], side: int = 4) -> Samples:
    media = torch.tensor(colours).reshape(-1, 3, 1, 1).expand(-1, 3, side, side).clone()
    return Samples(media, ("",) * len(colours), ({},) * len(colours))


def test_brightness_is_the_luma_of_the_standard():
    samples = plain([colour for colour, _ in COLOURS.values()])
    assert score(Brightness(), samples).tolist() == pytest.approx(
        [luma for _, luma in COLOURS.values()], abs=1e-6
    )


def test_brightness_is_a_mean_over_pixels_with_the_luma_weights_as_gradient():
    samples = plain([(0.2, 0.4, 0.6), (0.0, 0.0, 0.0)])
    samples.media[1, :, 0, 0] = 1.0  # one of 16 pixels is white
    media = samples.media.requires_grad_()
    rewards = differentiable(Brightness(), samples)
    assert rewards[1].item() == pytest.approx(1 / 16)
    (slope,) = torch.autograd.grad(rewards.sum(), media)
    expected = torch.tensor([0.2126, 0.7152, 0.0722]).reshape(1, 3, 1, 1) / 16
    torch.testing.assert_close(slope, expected.expand(2, 3, 4, 4))


@pytest.fixture
def portraits() -> Samples:
    media = torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    asked = ({"hair_color": "red"}, {"hat": "none", "mouth": "smiling"}, {"hair_color": "black"})
    return Samples(media, ("",) * 3, asked)


def test_portrait_likelihood_is_the_judges_in_nats_and_differentiable(portraits):
    rewards = score(PortraitLikelihood(), portraits)
    expected = load_judge().log_likelihood(portraits.media, list(portraits.metadata))
    assert torch.equal(rewards, expected)
    assert (rewards <= 0).all()
    check_differentiable(PortraitLikelihood(), portraits)


def test_a_step_along_its_gradient_makes_a_portrait_likelier(portraits):
    media = portraits.media.requires_grad_()
    rewards = differentiable(PortraitLikelihood(), portraits)
    (slope,) = torch.autograd.grad(rewards.sum(), media)
    with torch.no_grad():
        step = 1e-3 * slope / slope.flatten(1).norm(dim=1).reshape(-1, 1, 1, 1)
        moved = Samples(media + step, portraits.prompts, portraits.metadata)
        # to first order a step of length h raises each reward by h times its slope's length
        risen = (score(PortraitLikelihood(), moved) - rewards) / 1e-3
    torch.testing.assert_close(risen, slope.flatten(1).norm(dim=1), rtol=0.1, atol=0)


BUILT_IN = [
    each
    for each in get_args(Single)
    if not issubclass(each, Plugin | Prepares | Remote | Diversity)
]
"""Those that need nothing; the others are in exact/test_learned_rewards.py, unit/test_remote.py and
exact/test_combine.py."""


@pytest.fixture(params=BUILT_IN)
def built_in(request, tmp_path):
    """Each built-in reward; those that ask for an image file have one."""
    if not any(each.name == "path" for each in fields(request.param)):
        return request.param()
    path = tmp_path / "reference.png"
    to_pil(torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(1))).save(path)
    return request.param(path=str(path))


def test_a_reward_says_truly_whether_its_gradient_reaches_the_image(built_in, portraits):
    if built_in.differentiable:
        check_differentiable(built_in, portraits)
    else:
        with pytest.raises(RewardError):
            check_differentiable(built_in, portraits)


def test_the_judge_is_read_from_disk_once(portraits):
    from burnish.rewards.portraits import _judge

    score(PortraitAlignment(), portraits)
    assert _judge() is _judge()
    assert not any(parameter.requires_grad for parameter in _judge().parameters())
