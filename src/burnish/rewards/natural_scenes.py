"""Statistics of natural images, and how far an image's are from those of others: the mathematics of NIQE.

Mittal, Soundararajan and Bovik 2013, *Making a "completely blind" image quality analyzer*, IEEE Signal
Processing Letters 20(3); the features are those of Mittal, Moorthy and Bovik 2012 (BRISQUE), without its
regression. Where a sentence says "the paper", it is the former.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

HALF = 3
SIGMA = 7 / 6
"""The window of the local mean and deviation: a Gaussian of SIGMA over (2 HALF + 1)^2 pixels."""
LEVELS = 255.0
"""Grey is measured in such levels; 1 level is added to the local deviation (the paper's C)."""
FEATURES = 36
"""Of a patch: 18 at each of two scales."""
SHAPES = (0.2, 10.0, 9801)
"""Of the generalised Gaussians that are told apart: least, most, how many (a step of 0.001)."""

Grey = Float[Tensor, "height width"]
Features = Float[Tensor, "patches 36"]
Rows = Float[Tensor, " rows"]


@dataclass(frozen=True, slots=True)
class Normal:
    """A multivariate normal distribution.

    mean: (dims,)
    covariance: (dims, dims)
    """

    mean: Tensor
    covariance: Tensor


def fitted(features: Float[Tensor, "patches dims"]) -> Normal:
    """By maximum likelihood: the covariance is a mean, over the number of patches and not one less."""
    mean = features.mean(0)
    away = features - mean
    return Normal(mean, away.T @ away / len(features))


def distance(one: Normal, other: Normal) -> float:
    """sqrt((m1 - m2)^T ((S1 + S2) / 2)^-1 (m1 - m2)); at least one covariance has full rank."""
    away = one.mean - other.mean
    solved = torch.linalg.solve((one.covariance + other.covariance) / 2, away)
    return (away @ solved).clamp(min=0).sqrt().item()


def features(grey: Grey, patch: int) -> tuple[Features, Float[Tensor, " patches"]]:
    """Of each whole patch x patch square of an image, from its top left corner; and each one's sharpness.

    grey: in [0, 1]; float64 on the CPU, since a variance is a difference of squares
    patch: pixels, an even number; at half size a patch is half as wide

    Sharpness is the mean local deviation in levels; the paper has the sum.
    """
    down, across = (side // patch * patch for side in grey.shape)
    levels = LEVELS * grey[:down, :across]
    halved = F.interpolate(
        levels[None, None], scale_factor=0.5, mode="bicubic", antialias=True, align_corners=False
    )[0, 0]
    found, deviations = [], []
    for image, side in ((levels, patch), (halved, patch // 2)):
        coefficients, deviation = normalised(image)
        found.append(_statistics(_squares(coefficients, side)))
        deviations.append(_squares(deviation, side).mean((1, 2)))
    return torch.cat(found, dim=1), deviations[0]


def normalised(levels: Grey) -> tuple[Grey, Grey]:
    """(I - mean) / (deviation + 1) with local mean and deviation, and the deviation.

    Beyond the edge an image goes on as it ends.
    """
    mean = _blurred(levels)
    variance = _blurred(levels * levels) - mean * mean
    deviation = variance.clamp(min=0).sqrt()
    return (levels - mean) / (deviation + 1), deviation


def _blurred(levels: Grey) -> Grey:
    at = torch.arange(-HALF, HALF + 1, dtype=levels.dtype, device=levels.device)
    weight = torch.exp(-(at**2) / (2 * SIGMA**2))
    weight = weight / weight.sum()
    padded = F.pad(levels[None, None], (HALF,) * 4, mode="replicate")
    return F.conv2d(F.conv2d(padded, weight.reshape(1, 1, -1, 1)), weight.reshape(1, 1, 1, -1))[
        0, 0
    ]


def _squares(image: Grey, side: int) -> Float[Tensor, "patches side side"]:
    return image.unfold(0, side, side).unfold(1, side, side).reshape(-1, side, side)


def _statistics(squares: Float[Tensor, "patches side side"]) -> Float[Tensor, "patches 18"]:
    """Shape and scale of the coefficients; then, of the products of neighbours (right, below, below right,
    below left), each time shape, mean, left and right scale."""
    shape, left, right = asymmetric(squares.flatten(1))
    found = [shape, (left + right) / 2]
    pairs = (
        (squares[:, :, :-1], squares[:, :, 1:]),
        (squares[:, :-1], squares[:, 1:]),
        (squares[:, :-1, :-1], squares[:, 1:, 1:]),
        (squares[:, :-1, 1:], squares[:, 1:, :-1]),
    )
    for one, other in pairs:
        shape, left, right = asymmetric((one * other).flatten(1))
        found += [shape, asymmetric_mean(shape, left, right), left, right]
    return torch.stack(found, dim=1)


def asymmetric(x: Float[Tensor, "rows numbers"]) -> tuple[Rows, Rows, Rows]:
    """Shape g and scales bl, br of the asymmetric generalised Gaussian with the moments of each row, whose
    density goes as exp(-(-x/bl)^g) below 0 and as exp(-(x/br)^g) above (Lasmar et al. 2009, their method).

    Numbers that are all 0 have the scales 0, and by convention a Gaussian's shape.
    """
    square = x * x
    left, right = (_deviation(square, side) for side in (x < 0, x > 0))
    # (g^3 + 1)(g + 1) / (g^2 + 1)^2 for g = left / right, without a division by either
    skew = (left**3 + right**3) * (left + right) / (left**2 + right**2) ** 2
    ratio = x.abs().mean(1) ** 2 / square.mean(1) * skew
    shape = shape_of(torch.where(square.sum(1) == 0, 2 / math.pi, ratio))
    unit = torch.exp((torch.lgamma(1 / shape) - torch.lgamma(3 / shape)) / 2)
    return shape, left * unit, right * unit


def _deviation(square: Tensor, chosen: Tensor) -> Rows:
    """Root mean square of the chosen numbers of each row; 0 if there are none."""
    return ((square * chosen).sum(1) / chosen.sum(1).clamp(min=1)).sqrt()


def asymmetric_mean(shape: Rows, left: Rows, right: Rows) -> Rows:
    """(br - bl) Gamma(2/g) / Gamma(1/g)."""
    return (right - left) * torch.exp(torch.lgamma(2 / shape) - torch.lgamma(1 / shape))


def shape_of(ratio: Rows) -> Rows:
    """The shape a of the generalised Gaussian, exp(-|x/b|^a), with E[|x|]^2 / E[x^2] = `ratio`:

        Gamma(2/a)^2 / (Gamma(1/a) Gamma(3/a)) = ratio

    looked up in a table, linear between its entries; 0.2 or 10 where it has none.
    """
    shapes, ratios = _table()
    place = torch.searchsorted(ratios, ratio).clamp(1, len(ratios) - 1)
    share = (ratio - ratios[place - 1]) / (ratios[place] - ratios[place - 1])
    return torch.lerp(shapes[place - 1], shapes[place], share.clamp(0, 1))


@cache
def _table() -> tuple[Tensor, Tensor]:
    """Shapes and their ratios, both rising, float64."""
    least, most, count = SHAPES
    shapes = torch.linspace(least, most, count, dtype=torch.float64)
    one, two, three = (torch.lgamma(k / shapes) for k in (1, 2, 3))
    return shapes, torch.exp(2 * two - one - three)
