"""Rewards of the image alone at values computed by hand, their laws, and their gradients."""

from __future__ import annotations

import io
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from burnish.config import load_recipe
from burnish.images import to_pil
from burnish.reward import RewardError, score
from burnish.rewards import (
    Colourfulness,
    Compressibility,
    Contrast,
    Entropy,
    Incompressibility,
    MirrorSymmetry,
    RotationSymmetry,
    Sharpness,
    Similarity,
    StructuralSimilarity,
    WebPCompressibility,
    WebPIncompressibility,
)
from burnish.rollout import Samples
from burnish.tables import ConfigError

RED, GREEN, CYAN = (1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 1.0, 1.0)
BLACK, WHITE = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)


def samples(media: torch.Tensor) -> Samples:
    return Samples(media, ("",) * len(media), ({},) * len(media))


def grey(rows: list[list[float]]) -> Samples:
    """One image of these grey values."""
    return samples(torch.tensor(rows).expand(1, 3, -1, -1).clone())


def coloured(*colours: tuple[float, float, float]) -> Samples:
    """One image, a pixel high, of these pixels."""
    return samples(torch.tensor(colours).T[None, :, None])


def noise(*size: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(*size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def only(reward, image: Samples) -> float:
    """The reward of a single image. float32 has 7 digits: what is compared with it takes rel=1e-5."""
    (value,) = score(reward, image).tolist()
    return value


# --- statistics


@pytest.mark.parametrize(
    ("image", "contrast"),
    [
        (grey([[0.0, 1.0], [1.0, 0.0]]), 0.5),
        (grey([[0.2, 0.4], [0.6, 0.8]]), math.sqrt(0.05)),  # deviations -.3, -.1, .1, .3
        (grey([[0.3, 0.3], [0.3, 0.3]]), 0),
        (coloured(RED, BLACK), 0.2126 / 2),
        (coloured(RED, GREEN), (0.7152 - 0.2126) / 2),
    ],
)
def test_contrast_is_the_population_deviation_of_luma(image, contrast):
    assert only(Contrast(), image) == pytest.approx(contrast, rel=1e-5, abs=1e-7)


@pytest.mark.parametrize(
    ("image", "colourfulness"),
    [
        # rg = 255 and yb = 127.5 everywhere: no spread
        (coloured(RED, RED), 0.3 * math.hypot(255, 127.5)),
        # rg = +-255 and yb = 127.5
        (coloured(RED, GREEN), 255 + 0.3 * 127.5),
        # rg = +-255 and yb = +-127.5: no mean
        (coloured(RED, CYAN), math.hypot(255, 127.5)),
        # rg = 255, 0 and yb = 127.5, 0
        (coloured(RED, BLACK), 1.3 * math.hypot(127.5, 63.75)),
        (grey([[0.1, 0.9], [0.4, 0.4]]), 0),
    ],
)
def test_colourfulness_is_that_of_the_paper_in_its_unit(image, colourfulness):
    assert only(Colourfulness(), image) == pytest.approx(colourfulness, rel=1e-5, abs=1e-4)


def test_colourfulness_has_the_range_that_is_told():
    # spread^2 + mean^2 = E[rg^2 + yb^2] <= 1.25 * 255^2, so spread + 0.3 mean <= sqrt(1.25 * 1.09) * 255
    most = math.sqrt(1.25 * 1.09) * 255
    share = 0.5 + 0.15 / math.sqrt(1.09)  # of red beside cyan: where the bound is reached
    many = 87
    best = coloured(*[RED] * round(share * many), *[CYAN] * (many - round(share * many)))
    assert only(Colourfulness(), best) == pytest.approx(most, rel=1e-4)  # share is rounded to 1/87
    assert 297 < most < 298
    corners = noise(200, 3, 1, 3).round().float()
    assert score(Colourfulness(), samples(corners)).max() <= most


def test_sharpness_is_the_variance_of_the_laplacian_where_it_is_whole():
    spot = torch.zeros(4, 4)
    spot[1, 1] = 1.0  # the Laplacian at the four inner pixels: -4, 1, 1, 0
    assert only(Sharpness(), grey(spot.tolist())) == pytest.approx(4.5 - 0.25)


def test_sharpness_has_the_range_that_is_told_and_sees_no_smooth_ramp():
    board = (torch.arange(6)[:, None] + torch.arange(6)) % 2
    assert only(Sharpness(), grey(board.float().tolist())) == pytest.approx(16)
    along = torch.linspace(0, 1, 9)
    for ramp in (along.expand(9, 9), along.expand(9, 9).T, (along**2).expand(9, 9)):
        # second differences that are the same everywhere; float32 leaves squares of 1e-7
        assert only(Sharpness(), grey(ramp.tolist())) == pytest.approx(0, abs=1e-12)


def test_an_image_too_small_for_a_laplacian_is_told_so():
    with pytest.raises(RewardError, match="2 x 5 pixels, expected at least 3 x 3"):
        score(Sharpness(), grey([[0.0] * 5] * 2))


@pytest.mark.parametrize(
    ("image", "bits"),
    [
        (grey([[0.7, 0.7], [0.7, 0.7]]), 0),
        (grey([[0.0, 0.0], [1.0, 1.0]]), 1),
        (grey([[0.0, 0.0], [0.0, 1.0]]), 2 - 0.75 * math.log2(3)),
        (grey([[0.0, 0.3], [0.6, 1.0]]), 2),
        (grey((torch.arange(256.0).reshape(16, 16) / 255).tolist()), 8),
        # levels 0 and 1 meet at 0.5 / 255
        (grey([[0.0, 0.49 / 255], [0.51 / 255, 1 / 255]]), 1),
        # red's luma is 54.2 of 255
        (coloured(RED, (54 / 255,) * 3), 0),
        (coloured(RED, (55 / 255,) * 3), 1),
        # outside of [0, 1] counts as its edge
        (grey([[-0.5, 0.0], [1.0, 1.5]]), 1),
    ],
)
def test_entropy_is_that_of_the_grey_histogram_in_bits(image, bits):
    assert only(Entropy(), image) == pytest.approx(bits, rel=1e-6, abs=1e-6)


def test_entropy_of_noise_falls_short_of_8_bits_by_what_chance_takes():
    # 2 n ln 2 times the shortfall is chi-squared with 255 degrees of freedom, whose variance is 510
    pixels = 128 * 128
    levels = torch.randint(256, (1, 1, 128, 128), generator=torch.Generator().manual_seed(0))
    shortfall = 8 - only(Entropy(), samples(levels.expand(1, 3, -1, -1) / 255))
    unit = 2 * pixels * math.log(2)
    assert shortfall == pytest.approx(255 / unit, abs=5 * math.sqrt(510) / unit)


def test_entropy_counts_each_image_alone_and_not_where_pixels_lie():
    media = noise(3, 3, 8, 8).float()
    alone = [only(Entropy(), samples(image[None])) for image in media]
    assert score(Entropy(), samples(media)).tolist() == alone
    order = torch.randperm(64, generator=torch.Generator().manual_seed(1))
    moved = media.flatten(2)[:, :, order].reshape(media.shape)
    assert score(Entropy(), samples(moved)).tolist() == alone


# --- symmetry

ONE = [[0.0, 0.1], [0.4, 1.0]]


@pytest.mark.parametrize(
    ("reward", "difference"),
    [
        (MirrorSymmetry(), (0.1 + 0.6) / 2),
        (MirrorSymmetry(exchanged="top-bottom"), (0.4 + 0.9) / 2),
        (RotationSymmetry(), (1.0 + 0.3) / 2),
        (RotationSymmetry(degrees=90), (0.1 + 0.9 + 0.4 + 0.6) / 4),
    ],
)
def test_symmetry_is_minus_the_mean_difference_over_pixels_and_channels(reward, difference):
    assert only(reward, grey(ONE)) == pytest.approx(-difference)
    red = grey(ONE)
    red.media[:, 1:] = 0
    assert only(reward, red) == pytest.approx(-difference / 3)


MOVES = {
    MirrorSymmetry(): lambda x: x.flip(3),
    MirrorSymmetry(exchanged="top-bottom"): lambda x: x.flip(2),
    RotationSymmetry(): lambda x: x.rot90(2, (2, 3)),
    RotationSymmetry(degrees=90): lambda x: x.rot90(1, (2, 3)),
}


@pytest.mark.parametrize("reward", MOVES)
@given(st.integers(0, 1000))
def test_a_symmetrised_image_is_symmetric_and_moving_an_image_changes_nothing(reward, seed):
    move, image = MOVES[reward], noise(1, 3, 5, 5, seed=seed).float()
    orbit = [image, move(image), move(move(image)), move(move(move(image)))]
    # a sum of four in another order: a rounding or two of 1
    assert only(reward, samples(sum(orbit) / 4)) == pytest.approx(0, abs=2e-7)
    assert only(reward, samples(move(image))) == pytest.approx(only(reward, samples(image)))
    assert -1 <= only(reward, samples(image)) < 0


@given(st.integers(0, 1000))
def test_half_a_turn_differs_by_no_more_than_two_quarters(seed):
    image = samples(noise(1, 3, 5, 5, seed=seed).float())
    quarter = only(RotationSymmetry(degrees=90), image)
    assert only(RotationSymmetry(degrees=180), image) >= 2 * quarter


def test_a_quarter_turn_asks_for_square_images():
    with pytest.raises(RewardError, match="2 x 3 pixels: expected square ones"):
        score(RotationSymmetry(degrees=90), grey([[0.0] * 3] * 2))
    assert only(RotationSymmetry(), grey([[0.0, 0.5, 1.0], [1.0, 0.5, 0.0]])) == 0


# --- likeness to a reference


@pytest.fixture
def reference(tmp_path):
    """Writes a reference image, 8 bits a value; gives its path."""

    def write(media: torch.Tensor) -> str:
        path = tmp_path / f"{len(list(tmp_path.iterdir()))}.png"
        to_pil(media).save(path)
        return str(path)

    return write


def test_similarity_is_minus_the_mean_squared_difference(reference):
    media = torch.tensor([[0.0, 1.0], [1.0, 0.2]]).expand(3, 2, 2).clone()
    reward = Similarity(path=reference(media))
    assert only(reward, samples(media[None])) == pytest.approx(0, abs=1e-12)
    moved = media.clone()
    moved[1, 0, 1] -= 0.5  # one of 12 values
    moved[2, 1, 0] -= 0.1  # and another
    both = score(reward, samples(torch.stack([media, moved])))
    assert both.tolist() == pytest.approx([0, -0.26 / 12], abs=1e-9)
    assert only(Similarity(path=reference(torch.zeros(3, 2, 2))), coloured(WHITE, WHITE)) == -1


def test_a_reference_of_another_size_covers_the_samples(reference):
    wide = torch.zeros(3, 8, 16)
    wide[:, :, 4:12] = 1.0  # the middle square is white
    assert only(Similarity(path=reference(wide)), grey([[1.0] * 8] * 8)) == 0
    assert only(Similarity(path=reference(torch.full((3, 9, 9), 0.6))), grey([[0.6] * 4] * 4)) == (
        pytest.approx(0, abs=1e-12)
    )


def by_windows(x: np.ndarray, y: np.ndarray) -> float:
    """SSIM by its definition, place by place, with the variances as means of squared deviations."""
    at = np.arange(11) - 5
    window = np.exp(-(at[:, None] ** 2 + at[None] ** 2) / (2 * 1.5**2))
    window /= window.sum()
    found = []
    for top in range(x.shape[0] - 10):
        for left in range(x.shape[1] - 10):
            a, b = (each[top : top + 11, left : left + 11] for each in (x, y))
            ma, mb = (window * a).sum(), (window * b).sum()
            va, vb = (window * (a - ma) ** 2).sum(), (window * (b - mb) ** 2).sum()
            cov = (window * (a - ma) * (b - mb)).sum()
            level = (2 * ma * mb + 0.01**2) / (ma**2 + mb**2 + 0.01**2)
            found.append(level * (2 * cov + 0.03**2) / (va + vb + 0.03**2))
    return float(np.mean(found))


LUMA = np.array([0.2126, 0.7152, 0.0722])


def test_structural_similarity_agrees_with_its_definition(reference):
    path = reference(noise(3, 12, 14, seed=5))
    stored = np.asarray(Image.open(path)) / 255
    media = noise(2, 3, 12, 14).float()
    media[1] = 0.7 * torch.tensor(stored).permute(2, 0, 1) + 0.3 * media[1]
    images = media.double().permute(0, 2, 3, 1).numpy()
    expected = [by_windows(image @ LUMA, stored @ LUMA) for image in images]
    found = score(StructuralSimilarity(path=path), samples(media))
    assert found.tolist() == pytest.approx(expected, rel=1e-5)  # float32
    assert expected[1] > 0.8 > 0.2 > abs(expected[0])


def test_structural_similarity_of_plain_images_is_that_of_their_levels(reference):
    path = reference(torch.full((3, 11, 11), 0.2))
    expected = (2 * 0.2 * 0.6 + 1e-4) / (0.2**2 + 0.6**2 + 1e-4)
    assert only(StructuralSimilarity(path=path), grey([[0.6] * 11] * 11)) == pytest.approx(expected)


def test_structural_similarity_is_1_for_the_reference_and_falls_below_0_for_its_negative(reference):
    image = noise(3, 16, 16, seed=3).mul(255).round().div(255).float()
    reward = StructuralSimilarity(path=reference(image))
    assert only(reward, samples(image[None])) == pytest.approx(1)
    assert -1 <= only(reward, samples(1 - image[None])) < -0.5


def test_structural_similarity_needs_room_for_its_window(reference):
    reward = StructuralSimilarity(path=reference(torch.zeros(3, 4, 4)))
    with pytest.raises(RewardError, match="10 x 12 pixels, expected at least 11 x 11"):
        score(reward, samples(torch.zeros(1, 3, 10, 12)))


@pytest.mark.parametrize("name", ["similarity", "structural-similarity"])
def test_a_reference_is_looked_at_when_the_recipe_is_read(name, tmp_path):
    def load(path):
        return load_recipe("compressibility", [f"--reward.name={name}", f"--reward.path={path}"])

    with pytest.raises(ConfigError, match=r"reward\.path = .*there is no such file"):
        load(tmp_path / "none.png")
    words = tmp_path / "words.png"
    words.write_text("no image")
    with pytest.raises(ConfigError, match=r"reward\.path = .*is not an image"):
        load(words)
    with pytest.raises(ConfigError, match=r"reward\.path is missing"):
        load_recipe("compressibility", [f"--reward.name={name}"])


# --- sizes of files


@pytest.mark.parametrize(
    ("compressible", "incompressible", "form", "quality"),
    [
        (Compressibility(), Incompressibility(), "JPEG", 95),
        (Compressibility(quality=30), Incompressibility(quality=30), "JPEG", 30),
        (WebPCompressibility(), WebPIncompressibility(), "WEBP", 80),
        (WebPCompressibility(quality=0), WebPIncompressibility(quality=0), "WEBP", 0),
    ],
)
def test_a_size_is_that_of_the_file_in_thousands_of_bytes(
    compressible, incompressible, form, quality
):
    media = noise(2, 3, 32, 32).float()
    media[1] = 0.5
    sizes = []
    for image in media:
        file = io.BytesIO()
        to_pil(image).save(file, format=form, quality=quality)
        sizes.append(len(file.getvalue()) / 1000)
    assert sizes[0] > sizes[1]
    assert score(incompressible, samples(media)).tolist() == pytest.approx(sizes)
    assert score(compressible, samples(media)).tolist() == pytest.approx([-size for size in sizes])


@pytest.mark.parametrize(
    ("kind", "quality"),
    [(Compressibility, 0), (Incompressibility, 101), (WebPCompressibility, -1)],
)
def test_a_quality_that_there_is_not_is_refused(kind, quality):
    with pytest.raises(ValueError, match=f"quality = {quality}, expected"):
        kind(quality=quality)


# --- gradients


@pytest.mark.parametrize(
    "reward",
    [Contrast(), Colourfulness(), Sharpness(), *MOVES],
    ids=repr,
)
def test_the_gradient_is_that_of_finite_differences(reward):
    media = noise(2, 3, 4, 4).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: reward(samples(x)), media)


@pytest.mark.parametrize("kind", [Similarity, StructuralSimilarity])
def test_the_gradient_of_a_likeness_is_that_of_finite_differences(kind, reference):
    reward = kind(path=reference(noise(3, 11, 12, seed=1)))
    media = noise(2, 3, 11, 12).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: reward(samples(x)), media, fast_mode=True)


@pytest.mark.parametrize("reward", [Contrast(), Colourfulness()])
def test_a_plain_image_has_no_gradient_and_not_an_infinite_one(reward):
    media = torch.full((1, 3, 4, 4), 0.5, requires_grad=True)
    (slope,) = torch.autograd.grad(reward(samples(media)).sum(), media)
    assert (slope == 0).all()
