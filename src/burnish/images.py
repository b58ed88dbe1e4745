"""Between float tensors and 8-bit images."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageOps

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor


def to_pil(image: Tensor) -> Image.Image:
    """An image (3, height, width), float in [0, 1], rounded to 8 bits. Values outside are clipped."""
    pixels = image.detach().clamp(0, 1).mul(255).round().byte().permute(1, 2, 0)
    return Image.fromarray(pixels.contiguous().cpu().numpy(), "RGB")


def from_pil(image: Image.Image) -> Tensor:
    """The image as (3, height, width), float32 in [0, 1]; one that is not RGB is turned into it."""
    import torch  # here, since recipes name rewards that import this module, and load no torch

    pixels = torch.from_numpy(np.array(image.convert("RGB")))
    return pixels.permute(2, 0, 1).float() / 255


def open_image(path: Path) -> Tensor:
    """An image file as `from_pil` gives it, in its own size.

    Raises ValueError that names the file if it holds no image.
    """
    try:
        with Image.open(path) as image:
            return from_pil(image)
    except OSError as error:
        raise ValueError(f"{path} is not an image that can be read: {error}") from error


def read_image(path: Path, height: int, width: int) -> Tensor:
    """An image file as `from_pil` gives it. One of another size is resized to cover (height, width), and
    cropped at its centre.

    Raises ValueError that names the file if it holds no image.
    """
    try:
        with Image.open(path) as image:
            return from_pil(ImageOps.fit(image.convert("RGB"), (width, height)))
    except OSError as error:
        raise ValueError(f"{path} is not an image that can be read: {error}") from error
