"""Between float tensors and 8-bit images."""

from __future__ import annotations

from typing import TYPE_CHECKING

from PIL import Image

if TYPE_CHECKING:
    from torch import Tensor


def to_pil(image: Tensor) -> Image.Image:
    """An image (3, height, width), float in [0, 1], rounded to 8 bits. Values outside are clipped."""
    pixels = image.detach().clamp(0, 1).mul(255).round().byte().permute(1, 2, 0)
    return Image.fromarray(pixels.contiguous().cpu().numpy(), "RGB")
