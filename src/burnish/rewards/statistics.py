"""Rewards by a statistic of the image's pixels."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from torch import Tensor

    from burnish.rollout import Samples


LUMA = (0.2126, 0.7152, 0.0722)
"""Weights of red, green and blue; they sum to 1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Brightness:
    """Mean luma of the image, in [0, 1]; differentiable.

    Luma is 0.2126 R' + 0.7152 G' + 0.0722 B' of the gamma-encoded values that images hold (ITU-R BT.709,
    item 3.2, whose primaries are sRGB's).
    """

    differentiable: ClassVar[bool] = True
    version: ClassVar[int] = 1

    def __call__(self, samples: Samples) -> Tensor:
        weight = samples.media.new_tensor(LUMA)
        return samples.media.mean(dim=(2, 3)) @ weight


@dataclass(frozen=True, slots=True, kw_only=True)
class Contrast:
    """Root mean square contrast: the standard deviation of luma over pixels, in [0, 0.5]; differentiable.

    Peli 1990, *Contrast in complex images*, of luma instead of luminance. 0.5 is half black and half white.
    A plain image has the gradient 0.
    """

    differentiable: ClassVar[bool] = True
    version: ClassVar[int] = 1

    def __call__(self, samples: Samples) -> Tensor:
        return luma(samples.media).std(dim=(1, 2), correction=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Colourfulness:
    """`M3` of Hasler and Suesstrunk 2003, *Measuring colourfulness in natural images*; differentiable.

    With the opponents rg = R' - G' and yb = (R' + G') / 2 - B' of values in [0, 255],

        sqrt(var rg + var yb) + 0.3 sqrt(mean(rg)^2 + mean(yb)^2).

    In [0, 298]: 0 is grey; the paper's observers say "moderately" at 33, "quite" at 59, "extremely" at 109.
    A grey image has the gradient 0.
    """

    differentiable: ClassVar[bool] = True
    version: ClassVar[int] = 1

    def __call__(self, samples: Samples) -> Tensor:
        import torch

        red, green, blue = (255 * samples.media).flatten(2).unbind(1)
        opponents = torch.stack([red - green, (red + green) / 2 - blue], dim=1)
        mean = opponents.mean(dim=2)
        # vector_norm, since its gradient at 0 is 0 where that of a square root is infinite
        away = torch.linalg.vector_norm(opponents - mean[:, :, None], dim=(1, 2))
        spread = away / math.sqrt(opponents.shape[2])
        return spread + 0.3 * torch.linalg.vector_norm(mean, dim=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sharpness:
    """Variance over pixels of the Laplacian of luma, in [0, 16]; differentiable.

    The Laplacian is the sum of the four neighbours minus four times the pixel, where a pixel has all four
    (`LAPV` of Pertuz et al. 2013, *Analysis of focus measure operators for shape-from-focus*, after
    Pech-Pacheco et al. 2000). Noise is sharp.
    """

    differentiable: ClassVar[bool] = True
    version: ClassVar[int] = 1

    def __call__(self, samples: Samples) -> Tensor:
        grey = luma(samples.media)
        _, height, width = grey.shape
        if min(height, width) < 3:
            raise ValueError(f"images of {height} x {width} pixels, expected at least 3 x 3")
        across = grey[:, 1:-1, :-2] + grey[:, 1:-1, 2:]
        down = grey[:, :-2, 1:-1] + grey[:, 2:, 1:-1]
        laplacian = across + down - 4 * grey[:, 1:-1, 1:-1]
        return laplacian.var(dim=(1, 2), correction=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Entropy:
    """Entropy of the grey histogram, in bits, in [0, 8] (Shannon 1948).

    Grey is luma, rounded to one of 256 levels. Where pixels lie does not matter; an image of n pixels has
    at most log2(n).
    """

    differentiable: ClassVar[bool] = False
    version: ClassVar[int] = 1

    def __call__(self, samples: Samples) -> Tensor:
        import torch

        grey = luma(samples.media).detach().clamp(0, 1).mul(255).round().long().flatten(1)
        counts = torch.zeros(len(grey), 256, dtype=torch.float64, device=grey.device)
        counts.scatter_add_(1, grey, torch.ones_like(grey, dtype=counts.dtype))
        return torch.special.entr(counts / grey.shape[1]).sum(dim=1) / math.log(2)


def luma(media: Tensor) -> Tensor:
    """Luma (see `Brightness`) of each pixel, (batch, height, width), of images (batch, 3, height, width)."""
    red, green, blue = media.unbind(1)
    return LUMA[0] * red + LUMA[1] * green + LUMA[2] * blue
