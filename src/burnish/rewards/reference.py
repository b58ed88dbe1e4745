"""Rewards by the likeness to one given image."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from PIL import Image

from burnish.content import digest
from burnish.images import read_image
from burnish.rewards.statistics import luma

if TYPE_CHECKING:
    from torch import Tensor

    from burnish.rollout import Samples


SIGMA = 1.5
SIDE = 11
"""The window of the structural similarity: a Gaussian of this standard deviation, SIDE x SIDE pixels."""
C1, C2 = 0.01**2, 0.03**2
"""Its constants, (K1 L)^2 and (K2 L)^2, for values in [0, 1]: L = 1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Similarity:
    """Minus the mean squared difference to the reference image, over pixels and channels; differentiable.

    In [-1, 0]; 0 is the reference itself.
    """

    differentiable: ClassVar[bool] = True

    path: str
    """The reference image. One of another size is resized to cover the samples, and cropped at its centre."""

    def __post_init__(self) -> None:
        _check(self.path)

    @property
    def version(self) -> str:
        return f"1 {_digest(self.path)}"

    def __call__(self, samples: Samples) -> Tensor:
        reference = _like(samples.media, self.path)
        return -(samples.media - reference).square().mean(dim=(1, 2, 3))


@dataclass(frozen=True, slots=True, kw_only=True)
class StructuralSimilarity:
    """Mean structural similarity (SSIM) of luma with the reference image, in [-1, 1]; differentiable.

    Wang et al. 2004, *Image quality assessment: from error visibility to structural similarity*, eq. 13 and
    17: the mean, over the places where the window fits, of

        (2 mx my + C1) (2 sxy + C2) / ((mx^2 + my^2 + C1) (sx^2 + sy^2 + C2))

    with the window's means m, variances s^2 and covariance sxy. The images are not made smaller first.
    1 is the reference itself.
    """

    differentiable: ClassVar[bool] = True

    path: str
    """The reference image. One of another size is resized to cover the samples, and cropped at its centre."""

    def __post_init__(self) -> None:
        _check(self.path)

    @property
    def version(self) -> str:
        return f"1 {_digest(self.path)}"

    def __call__(self, samples: Samples) -> Tensor:
        height, width = samples.media.shape[2:]
        if min(height, width) < SIDE:
            raise ValueError(
                f"images of {height} x {width} pixels, expected at least {SIDE} x {SIDE}"
            )
        media = (
            samples.media.double()
        )  # a variance is a difference of squares: float32 loses 4 digits
        return ssim(luma(media), luma(_like(media, self.path)))


def ssim(x: Tensor, y: Tensor) -> Tensor:
    """Mean structural similarity of each of x, (batch, height, width), with y, (1, height, width)."""
    mx, my = _blurred(x), _blurred(y)
    variances = _blurred(x * x) - mx**2 + _blurred(y * y) - my**2
    covariance = _blurred(x * y) - mx * my
    level = (2 * mx * my + C1) / (mx**2 + my**2 + C1)
    structure = (2 * covariance + C2) / (variances + C2)
    return (level * structure).mean(dim=(1, 2))


def _blurred(x: Tensor) -> Tensor:
    """Means of x under the window, where it fits whole."""
    import torch

    at = torch.arange(SIDE, dtype=x.dtype, device=x.device) - SIDE // 2
    weight = torch.exp(-(at**2) / (2 * SIGMA**2))
    weight = weight / weight.sum()
    rows = torch.nn.functional.conv2d(x[:, None], weight.reshape(1, 1, SIDE, 1))
    return torch.nn.functional.conv2d(rows, weight.reshape(1, 1, 1, SIDE))[:, 0]


def _like(media: Tensor, path: str) -> Tensor:
    """The reference, (1, 3, height, width), in the size, type and place of the samples."""
    height, width = media.shape[2:]
    return _reference(path, height, width)[None].to(media)


@cache
def _reference(path: str, height: int, width: int) -> Tensor:
    return read_image(Path(path), height, width)


_digest = cache(digest)


def _check(path: str) -> None:
    if not Path(path).is_file():
        raise ValueError(f"path = {path!r}: there is no such file")
    try:
        with Image.open(path):
            return
    except OSError as error:
        raise ValueError(f"path = {path!r} is not an image that can be read: {error}") from error
