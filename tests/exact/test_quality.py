"""NIQE's arithmetic at values known in closed form, and that what spoils a picture lowers the reward."""

from __future__ import annotations

import io
import math
from dataclasses import replace
from itertools import pairwise

import drawings
import pytest
import torch
from PIL import Image, ImageFilter

from burnish.config import load_recipe
from burnish.images import from_pil, to_pil
from burnish.reward import RewardError, check_differentiable, prepare, score
from burnish.reward_cache import Cached
from burnish.reward_key import keys
from burnish.rewards import Quality, quality
from burnish.rewards.natural_scenes import (
    FEATURES,
    Normal,
    asymmetric,
    asymmetric_mean,
    distance,
    features,
    fitted,
    normalised,
    shape_of,
)
from burnish.tables import ConfigError

PATCH = 32


def numbers(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


# --- generalised Gaussians


@pytest.mark.parametrize(
    ("shape", "ratio"),
    [
        (2, 2 / math.pi),  # Gaussian
        (1, 1 / 2),  # Laplace: Gamma(2)^2 / (Gamma(1) Gamma(3))
        (0.5, 36 / 120),  # Gamma(4)^2 / (Gamma(2) Gamma(6))
        (0.25, 5040**2 / (6 * 39916800)),  # Gamma(8)^2 / (Gamma(4) Gamma(12))
        (0.2, 0.01),  # below the table
        (10, 0.7499),  # above it: no shape reaches the 3/4 of a uniform distribution
    ],
)
def test_the_shape_is_that_of_the_ratio_of_moments(shape, ratio):
    # linear between entries of a step h = 0.001: h^2 / 8 times the curvature over the slope
    assert shape_of(numbers(ratio)).item() == pytest.approx(shape, abs=1e-5)


def laplace(left: float, right: float, count: int = 100_000) -> torch.Tensor:
    """Quantiles, evenly spread, of the density that goes as exp(x / left) below 0, exp(-x / right) above."""
    share = left / (left + right)
    u = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    return torch.where(u < share, left * (u / share).log(), -right * ((1 - u) / (1 - share)).log())


@pytest.mark.parametrize(("left", "right"), [(1.0, 1.0), (0.3, 0.3), (0.5, 2.0), (3.0, 1.0)])
def test_a_fit_recovers_the_parameters_of_a_laplace_distribution(left, right):
    shape, *scales = asymmetric(laplace(left, right)[None])
    # the outermost of 1e5 quantiles stand for tails that hold about 1e-5 log(1e5)^2 of a second moment
    assert shape.item() == pytest.approx(1, abs=3e-3)
    assert [each.item() for each in scales] == pytest.approx([left, right], rel=3e-3)
    mean = asymmetric_mean(shape, *scales).item()
    assert mean == pytest.approx(right - left, abs=3e-3 * (left + right))
    assert laplace(left, right).mean().item() == pytest.approx(right - left, abs=1e-3)


def test_a_fit_recovers_a_gaussian_and_a_chance_one_within_its_errors():
    count = 100_000
    u = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    exact = 0.7 * math.sqrt(2) * torch.erfinv(2 * u - 1)
    shape, left, right = asymmetric(exact[None])
    assert shape.item() == pytest.approx(2, abs=3e-3)
    # the density goes as exp(-(x / b)^2) = exp(-x^2 / (2 std^2)): b = sqrt(2) std
    assert left.item() == pytest.approx(0.7 * math.sqrt(2), rel=1e-3)
    assert right.item() == pytest.approx(left.item())
    drawn = 0.7 * torch.randn(1, count, generator=torch.Generator().manual_seed(0)).double()
    # ratio r = m1^2 / m2 of |x|, of std 1: var(log r) = var(2 |x| / m1 - x^2) / n = (2 pi - 6) / n
    error = (2 / math.pi) * math.sqrt((2 * math.pi - 6) / count)
    slope = (shape_of(numbers(2 / math.pi + 1e-3)) - shape_of(numbers(2 / math.pi - 1e-3))) / 2e-3
    # beside it the two sides' scales differ by chance, of second order in 1 / sqrt(n)
    assert asymmetric(drawn)[0].item() == pytest.approx(2, abs=5 * error * slope.item())


def test_numbers_without_spread_or_without_one_sign_have_finite_parameters():
    shape, left, right = asymmetric(torch.zeros(1, 9, dtype=torch.float64))
    assert (shape.item(), left.item(), right.item()) == (pytest.approx(2, abs=1e-5), 0, 0)
    _, left, right = asymmetric(numbers(1, 2, 3, 0)[None])
    assert left.item() == 0
    _, turned, other = asymmetric(numbers(-1, -2, -3, 0)[None])
    assert (turned, other) == (right, left)


def test_each_row_is_fitted_alone_and_a_factor_is_one_of_the_scales():
    rows = torch.stack([laplace(1, 2, 1000), laplace(2, 2, 1000)])
    whole = torch.stack(asymmetric(rows))
    for i in range(2):
        torch.testing.assert_close(whole[:, i], torch.cat(asymmetric(rows[i : i + 1])))
    tripled = torch.stack(asymmetric(3 * rows))
    torch.testing.assert_close(tripled, torch.stack([whole[0], 3 * whole[1], 3 * whole[2]]))


# --- local normalisation and features


def by_window(levels: torch.Tensor, top: int, left: int) -> tuple[float, float]:
    """The normalised coefficient and the deviation at a pixel, by their definition."""
    weight = {
        (k, m): math.exp(-(k * k + m * m) / (2 * (7 / 6) ** 2))
        for k in range(-3, 4)
        for m in range(-3, 4)
    }
    total = sum(weight.values())
    height, width = levels.shape

    def value(k, m):
        return levels[min(max(top + k, 0), height - 1), min(max(left + m, 0), width - 1)].item()

    mean = sum(w * value(*at) for at, w in weight.items()) / total
    deviation = math.sqrt(sum(w * (value(*at) - mean) ** 2 for at, w in weight.items()) / total)
    return (levels[top, left].item() - mean) / (deviation + 1), deviation


def test_coefficients_are_those_of_the_paper():
    levels = 255 * torch.rand(9, 12, generator=torch.Generator().manual_seed(0)).double()
    coefficients, deviation = normalised(levels)
    for top, left in ((4, 5), (0, 0), (8, 11), (2, 10)):
        expected = by_window(levels, top, left)
        found = coefficients[top, left].item(), deviation[top, left].item()
        assert found == pytest.approx(expected, rel=1e-9)


def test_features_are_those_of_each_patch_and_its_neighbours_by_hand():
    grey = torch.rand(70, 40, generator=torch.Generator().manual_seed(1)).double()
    found, sharp = features(grey, 16)
    assert found.shape == (4 * 2, FEATURES)
    coefficients, deviation = normalised(255 * grey[:64, :32])
    square = coefficients[16:32, 16:32]  # the second of the second row
    assert sharp[3].item() == pytest.approx(deviation[16:32, 16:32].mean().item())
    shape, left, right = asymmetric(square.reshape(1, -1))
    expected = [shape, (left + right) / 2]
    for down, across in ((0, 1), (1, 0), (1, 1), (1, -1)):
        products = [
            square[i, j] * square[i + down, j + across]
            for i in range(16 - down)
            for j in range(16)
            if 0 <= j + across < 16
        ]
        shape, left, right = asymmetric(torch.stack(products)[None])
        expected += [shape, asymmetric_mean(shape, left, right), left, right]
    torch.testing.assert_close(found[3, :18], torch.cat(expected))


def test_the_second_scale_is_the_first_of_the_image_at_half_its_size():
    grey = torch.rand(32, 32, generator=torch.Generator().manual_seed(2)).double()
    halved = torch.nn.functional.interpolate(
        grey[None, None], (16, 16), mode="bicubic", antialias=True, align_corners=False
    )[0, 0]
    whole, half = features(grey, 16)[0], features(halved, 8)[0]
    torch.testing.assert_close(whole[:, 18:], half[:, :18])


# --- the distance


def test_the_distance_is_that_of_the_paper():
    one = Normal(numbers(1, 2), torch.diag(numbers(1, 3)))
    other = Normal(numbers(4, 2), torch.diag(numbers(5, 1)))
    assert distance(one, other) == pytest.approx(3 / math.sqrt(3))  # (1 + 5) / 2 = 3
    assert distance(other, one) == distance(one, other)
    assert distance(one, one) == 0
    # [[2, 1], [1, 2]]^-1 = [[2, -1], [-1, 2]] / 3, of the difference (1, -1): 6 / 3
    tied = torch.tensor([[2.0, 1.0], [1.0, 2.0]], dtype=torch.float64)
    assert distance(Normal(numbers(1, -1), tied), Normal(numbers(0, 0), tied)) == pytest.approx(
        math.sqrt(2)
    )


def test_a_fit_is_the_maximum_of_the_likelihood():
    found = fitted(torch.stack([numbers(0, 1), numbers(2, 1), numbers(4, 4)]))
    assert found.mean.tolist() == [2, 2]
    torch.testing.assert_close(found.covariance, torch.stack([numbers(8, 6), numbers(6, 6)]) / 3)


def test_the_distance_does_not_depend_on_the_units_of_the_features():
    both = torch.randn(2, 50, 4, generator=torch.Generator().manual_seed(3)).double()
    mixed = both @ torch.randn(4, 4, generator=torch.Generator().manual_seed(4)).double()
    plain, turned = (distance(fitted(x[0]), fitted(x[1])) for x in (both, mixed))
    assert plain == pytest.approx(turned, rel=1e-8)


# --- the reward


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("pictures")
    (folder / "more").mkdir()
    for seed in range(12):
        drawings.leaves(seed).save(folder / ("more" if seed % 2 else "") / f"{seed}.png")
    (folder / "notes.txt").write_text("no picture")
    return str(folder)


def rewards(pictures: str, *images: Image.Image) -> list[float]:
    reward = Quality(reference=pictures, patch=PATCH)
    return score(reward, drawings.samples([from_pil(image) for image in images])).tolist()


def blurred(image: Image.Image) -> list[Image.Image]:
    return [image.filter(ImageFilter.GaussianBlur(radius)) for radius in (0.5, 1, 2)]


def noisy(image: Image.Image) -> list[Image.Image]:
    noise = torch.randn(3, 128, 128, generator=torch.Generator().manual_seed(0))
    return [to_pil(from_pil(image) + size * noise) for size in (0.03, 0.1, 0.2)]


def blocky(image: Image.Image) -> list[Image.Image]:
    found = []
    for level in (75, 30, 10):
        file = io.BytesIO()
        image.save(file, "JPEG", quality=level)
        found.append(Image.open(file).convert("RGB"))
    return found


@pytest.mark.parametrize("spoiled", [blurred, noisy, blocky])
@pytest.mark.parametrize("seed", [100, 101, 102])
def test_the_more_an_image_is_spoiled_the_lower_is_the_reward(spoiled, seed, pictures):
    image = drawings.leaves(seed)
    found = rewards(pictures, image, *spoiled(image))
    assert all(better > worse for better, worse in pairwise(found))
    # the mean of 16 patches like the pictures' has D^2 = tr((S1 / 16) (S1 / 2)^-1) = 4.5 at most, expected
    assert found[0] > -4


def test_a_plain_image_is_finite_and_very_far(pictures):
    plain, other = rewards(pictures, Image.new("RGB", (128, 128), (90, 90, 90)), drawings.leaves(7))
    assert plain < 10 * other < 0


def test_it_is_the_distance_of_the_sharp_patches_statistics(pictures):
    reward = Quality(reference=pictures, patch=PATCH)
    weight = torch.tensor([0.2126, 0.7152, 0.0722], dtype=torch.float64)
    chosen = []
    for seed in range(12):
        grey = (from_pil(drawings.leaves(seed)).double() * weight[:, None, None]).sum(0)
        found, sharp = features(grey, PATCH)
        chosen += [found[i] for i in range(16) if sharp[i] > 0.75 * sharp.max()]
    assert 36 < len(chosen) < 12 * 16
    image = from_pil(drawings.leaves(50))
    seen = fitted(features((image.double() * weight[:, None, None]).sum(0), PATCH)[0])
    expected = -distance(fitted(torch.stack(chosen)), seen)
    assert score(reward, drawings.samples([image])).item() == pytest.approx(expected, rel=1e-5)
    all_taken = replace(reward, sharpness=0.0)
    assert score(all_taken, drawings.samples([image])).item() != pytest.approx(expected, rel=1e-5)


# --- what goes wrong, and the cache


def test_too_few_pictures_are_told_before_anything_is_drawn(tmp_path):
    drawings.leaves(0).save(tmp_path / "only.png")
    with pytest.raises(RewardError, match=r"16 sharp patches, which vary in 15 of 36 directions"):
        prepare(Quality(reference=str(tmp_path), patch=PATCH, sharpness=0.0))


def test_images_and_pictures_smaller_than_a_patch_are_told(pictures, tmp_path):
    with pytest.raises(RewardError, match="16 x 40 pixels, expected at least 32 x 32"):
        score(Quality(reference=pictures, patch=PATCH), drawings.samples([torch.zeros(3, 16, 40)]))
    Image.new("RGB", (20, 50)).save(tmp_path / "small.png")
    with pytest.raises(RewardError, match=r"small\.png has 50 x 20 pixels, expected at least 32 x"):
        prepare(Quality(reference=str(tmp_path), patch=PATCH))


def test_a_file_that_is_no_picture_is_named(tmp_path):
    (tmp_path / "words.png").write_text("no image")
    with pytest.raises(RewardError, match=r"words\.png is not an image"):
        prepare(Quality(reference=str(tmp_path), patch=PATCH))


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"reference": "nowhere"}, r"reward\.reference = 'nowhere': there is no such folder"),
        ({"reference": "EMPTY"}, "has no pictures in it"),
        ({"patch": "33"}, r"reward\.patch = 33, expected an even number"),
        ({"sharpness": "1.0"}, r"reward\.sharpness = 1\.0, expected 0 to less than 1"),
    ],
)
def test_settings_that_cannot_be_are_refused_when_the_recipe_is_read(
    settings, told, pictures, tmp_path
):
    (tmp_path / "notes.txt").touch()
    table = {"name": "quality", "reference": pictures, **settings}
    if table["reference"] == "EMPTY":
        table["reference"] = str(tmp_path)
    with pytest.raises(ConfigError, match=told):
        load_recipe("compressibility", [f"--reward.{key}={value}" for key, value in table.items()])


def test_other_pictures_are_another_key_and_a_cache_answers_what_the_reward_does(
    pictures, tmp_path
):
    reward = Quality(reference=pictures, patch=PATCH)
    image = drawings.samples([from_pil(drawings.leaves(60))])
    cached = Cached(reward=reward, folder=str(tmp_path / "kept"))
    assert torch.equal(score(cached, image), score(reward, image))
    drawings.leaves(0).save(tmp_path / "0.png")
    before = keys(Quality(reference=str(tmp_path), patch=PATCH), image)
    drawings.leaves(1).save(tmp_path / "0.png")
    quality._digest.cache_clear()
    assert keys(Quality(reference=str(tmp_path), patch=PATCH), image) != before


def test_it_has_no_gradient_and_says_so(pictures):
    assert not Quality.differentiable
    with pytest.raises(RewardError, match="no gradient"):
        check_differentiable(
            Quality(reference=pictures, patch=PATCH), drawings.samples([torch.rand(3, 64, 64)])
        )
