"""Between float tensors and 8-bit images."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

if TYPE_CHECKING:
    from torch import Tensor


def to_pil(image: Tensor) -> Image.Image:
    """An image (3, height, width), float in [0, 1], rounded to 8 bits. Values outside are clipped."""
    pixels = image.detach().clamp(0, 1).mul(255).round().byte().permute(1, 2, 0)
    return Image.fromarray(pixels.contiguous().cpu().numpy(), "RGB")


def read(path: Path) -> Tensor:
    """The image of a file, (3, height, width), float32 in [0, 1]; transparency is dropped.

    Raises OSError for a file that is missing, damaged or no image.
    """
    import numpy as np
    import torch

    with Image.open(path) as image:
        pixels = np.asarray(image.convert("RGB"), dtype=np.float32)
    return torch.from_numpy(pixels / 255).permute(2, 0, 1)
