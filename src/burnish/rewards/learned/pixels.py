"""Images as CLIP and its kin see them: resized, centred, normalised; differentiable.

The processors of transformers work on 8-bit images by Pillow. Here everything is float: the same filter
(bicubic with a = -0.5, widened where the image shrinks), without Pillow's rounding to 8 bits before, between
and after its two passes. Of 8-bit images the results differ by less than 1.2 of 255 levels
(tests/exact/test_learned_rewards.py).
"""

from __future__ import annotations

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

Images = Float[Tensor, "batch 3 height width"]
Seen = Float[Tensor, "batch 3 size size"]

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
"""Of each channel, as CLIP was trained (Radford et al. 2021); open_clip's models and BLIP have the same."""


def cropped(media: Images, size: int) -> Seen:
    """The middle of the image: its shorter side scaled to `size`, the ends of the longer cut off; normalised.

    What CLIP's processor does. What the filter overshoots beyond [0, 1] is clipped after each of its passes,
    the width's before the height's, as Pillow has them.
    """
    height, width = media.shape[-2:]
    scaled = [size * side // min(height, width) for side in (height, width)]
    top, left = ((side - size) // 2 for side in scaled)
    narrow = _resized(media, [height, scaled[1]]).clamp(0, 1)
    whole = _resized(narrow, scaled).clamp(0, 1)
    return _normalised(whole[..., top : top + size, left : left + size])


def letterboxed(media: Images, size: int) -> Seen:
    """The whole image: its longer side scaled to `size`, black bars beside the shorter; normalised.

    What HPSv2's code does, which resizes floats and clips nothing.
    """
    height, width = media.shape[-2:]
    scaled = [round(size * side / max(height, width)) for side in (height, width)]
    top, left = ((size - side) // 2 for side in scaled)
    bars = (left, size - scaled[1] - left, top, size - scaled[0] - top)
    return _normalised(F.pad(_resized(media, scaled), bars))


def _resized(media: Images, shape: list[int]) -> Tensor:
    return F.interpolate(media, shape, mode="bicubic", align_corners=False, antialias=True)


def _normalised(media: Tensor) -> Tensor:
    mean, std = (media.new_tensor(each).reshape(3, 1, 1) for each in (MEAN, STD))
    return (media - mean) / std
