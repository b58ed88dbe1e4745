"""Rewards that need nothing but the image."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from burnish.images import to_pil

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

    from burnish.rollout import Samples


LUMA = (0.2126, 0.7152, 0.0722)
"""Weights of red, green and blue; they sum to 1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Compressibility:
    """Minus the size of the image as a JPEG, in kB of 1000 bytes (Black et al. 2023, sec. 5.1)."""

    differentiable: ClassVar[bool] = False

    quality: int = 95
    """JPEG quality, 1 to 100; 95 in the paper."""

    def __post_init__(self) -> None:
        _check_quality(self.quality)

    def __call__(self, samples: Samples) -> Tensor:
        return -_jpeg_sizes(samples, self.quality)


@dataclass(frozen=True, slots=True, kw_only=True)
class Incompressibility:
    """The size of the image as a JPEG, in kB of 1000 bytes (Black et al. 2023, sec. 5.1)."""

    differentiable: ClassVar[bool] = False

    quality: int = 95
    """JPEG quality, 1 to 100; 95 in the paper."""

    def __post_init__(self) -> None:
        _check_quality(self.quality)

    def __call__(self, samples: Samples) -> Tensor:
        return _jpeg_sizes(samples, self.quality)


@dataclass(frozen=True, slots=True, kw_only=True)
class Brightness:
    """Mean luma of the image, in [0, 1]; differentiable.

    Luma is 0.2126 R' + 0.7152 G' + 0.0722 B' of the gamma-encoded values that images hold (ITU-R BT.709,
    item 3.2, whose primaries are sRGB's).
    """

    differentiable: ClassVar[bool] = True

    def __call__(self, samples: Samples) -> Tensor:
        weight = samples.media.new_tensor(LUMA)
        return samples.media.mean(dim=(2, 3)) @ weight


def jpeg_bytes(image: Image, quality: int) -> int:
    """Size of a JPEG file of the image, in bytes."""
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", quality=quality)
    return buffer.getbuffer().nbytes


def _jpeg_sizes(samples: Samples, quality: int) -> Tensor:
    sizes = [jpeg_bytes(to_pil(image), quality) / 1000 for image in samples.media]
    return samples.media.new_tensor(sizes)


def _check_quality(quality: int) -> None:
    if not 1 <= quality <= 100:
        raise ValueError(f"quality = {quality}, expected 1 to 100")
