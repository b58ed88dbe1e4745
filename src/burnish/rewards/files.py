"""Rewards by the size of the image's file."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from PIL import features

from burnish.images import to_pil

if TYPE_CHECKING:
    from collections.abc import Callable

    from PIL.Image import Image
    from torch import Tensor

    from burnish.rollout import Samples


@dataclass(frozen=True, slots=True, kw_only=True)
class Compressibility:
    """Minus the size of the image as a JPEG, in kB of 1000 bytes (Black et al. 2023, sec. 5.1)."""

    differentiable: ClassVar[bool] = False

    quality: int = 95
    """JPEG quality, 1 to 100; 95 in the paper."""

    def __post_init__(self) -> None:
        _check_quality(self.quality, 1)

    @property
    def version(self) -> str:
        return _encoder("jpg")

    def __call__(self, samples: Samples) -> Tensor:
        return -_sizes(samples, jpeg_bytes, self.quality)


@dataclass(frozen=True, slots=True, kw_only=True)
class Incompressibility:
    """The size of the image as a JPEG, in kB of 1000 bytes (Black et al. 2023, sec. 5.1)."""

    differentiable: ClassVar[bool] = False

    quality: int = 95
    """JPEG quality, 1 to 100; 95 in the paper."""

    def __post_init__(self) -> None:
        _check_quality(self.quality, 1)

    @property
    def version(self) -> str:
        return _encoder("jpg")

    def __call__(self, samples: Samples) -> Tensor:
        return _sizes(samples, jpeg_bytes, self.quality)


@dataclass(frozen=True, slots=True, kw_only=True)
class WebPCompressibility:
    """Minus the size of the image as a lossy WebP, in kB of 1000 bytes (RFC 9649)."""

    differentiable: ClassVar[bool] = False

    quality: int = 80
    """WebP quality, 0 to 100; 80 is what Pillow takes by itself."""

    def __post_init__(self) -> None:
        _check_quality(self.quality, 0)

    @property
    def version(self) -> str:
        return _encoder("webp")

    def __call__(self, samples: Samples) -> Tensor:
        return -_sizes(samples, webp_bytes, self.quality)


@dataclass(frozen=True, slots=True, kw_only=True)
class WebPIncompressibility:
    """The size of the image as a lossy WebP, in kB of 1000 bytes (RFC 9649)."""

    differentiable: ClassVar[bool] = False

    quality: int = 80
    """WebP quality, 0 to 100; 80 is what Pillow takes by itself."""

    def __post_init__(self) -> None:
        _check_quality(self.quality, 0)

    @property
    def version(self) -> str:
        return _encoder("webp")

    def __call__(self, samples: Samples) -> Tensor:
        return _sizes(samples, webp_bytes, self.quality)


def jpeg_bytes(image: Image, quality: int) -> int:
    """Size of a JPEG file of the image, in bytes."""
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", quality=quality)
    return buffer.getbuffer().nbytes


def webp_bytes(image: Image, quality: int) -> int:
    """Size of a lossy WebP file of the image, in bytes."""
    buffer = io.BytesIO()
    image.save(buffer, format="WEBP", quality=quality)
    return buffer.getbuffer().nbytes


def _sizes(samples: Samples, size: Callable[[Image, int], int], quality: int) -> Tensor:
    sizes = [size(to_pil(image), quality) / 1000 for image in samples.media]
    return samples.media.new_tensor(sizes)


def _encoder(codec: str) -> str:
    """The library that writes the files, with its version: another one may write other sizes."""
    return f"{codec} {features.version(codec)}"


def _check_quality(quality: int, least: int) -> None:
    if not least <= quality <= 100:
        raise ValueError(f"quality = {quality}, expected {least} to 100")
