"""Rewards by the image's likeness to its own mirror image or rotation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

if TYPE_CHECKING:
    from torch import Tensor

    from burnish.rollout import Samples


@dataclass(frozen=True, slots=True, kw_only=True)
class MirrorSymmetry:
    """Minus the mean absolute difference of the image and its mirror image, over pixels and channels.

    In [-1, 0]; 0 is a symmetric image. Differentiable; two pixels that are the same have no say.
    """

    differentiable: ClassVar[bool] = True
    version: ClassVar[int] = 1

    exchanged: Literal["left-right", "top-bottom"] = "left-right"
    """The sides that the mirror exchanges: `left-right` is a face's symmetry, `top-bottom` that of a lake."""

    def __call__(self, samples: Samples) -> Tensor:
        mirrored = samples.media.flip(3 if self.exchanged == "left-right" else 2)
        return _likeness(samples.media, mirrored)


@dataclass(frozen=True, slots=True, kw_only=True)
class RotationSymmetry:
    """Minus the mean absolute difference of the image and itself rotated, over pixels and channels.

    In [-1, 0]; 0 is a symmetric image. Differentiable; two pixels that are the same have no say.
    """

    differentiable: ClassVar[bool] = True
    version: ClassVar[int] = 1

    degrees: Literal[90, 180] = 180
    """Of the rotation about the image's centre; 90 asks for square images."""

    def __call__(self, samples: Samples) -> Tensor:
        height, width = samples.media.shape[2:]
        if self.degrees == 90 and height != width:
            raise ValueError(
                f"degrees = 90, but the images have {height} x {width} pixels: expected square ones; "
                "take degrees = 180"
            )
        return _likeness(samples.media, samples.media.rot90(self.degrees // 90, dims=(2, 3)))


def _likeness(media: Tensor, moved: Tensor) -> Tensor:
    return -(media - moved).abs().mean(dim=(1, 2, 3))
