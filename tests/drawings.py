"""Pictures that tests draw: text, and scenes with the statistics of natural images."""

from __future__ import annotations

import random

import torch
from PIL import Image, ImageDraw, ImageFont

from burnish.images import from_pil
from burnish.rollout import Samples


def text(*lines: tuple[int, int, str], size: int = 28, width: int = 160, height: int = 96):
    """Black lines on white, each at (x, y); a float tensor (3, height, width)."""
    image = Image.new("RGB", (width, height), "white")
    for x, y, line in lines:
        ImageDraw.Draw(image).text((x, y), line, fill="black", font=ImageFont.load_default(size))
    return from_pil(image)


def leaves(seed: int, side: int = 128) -> Image.Image:
    """Discs that cover each other, many small and few large: the dead leaves model (Lee, Mumford and Huang
    2001), whose statistics are near to those of photographs."""
    chance, image = random.Random(seed), Image.new("RGB", (side, side))
    for _ in range(1500):
        radius = 2 / (chance.random() ** 0.5 + 0.05)
        x, y = (chance.uniform(-8, side + 8) for _ in range(2))
        colour = tuple(chance.randrange(256) for _ in range(3))
        box = (x - radius, y - radius, x + radius, y + radius)
        ImageDraw.Draw(image).ellipse(box, fill=colour)
    return image


def samples(images, prompts=None, metadata=None) -> Samples:
    media = torch.stack(list(images))
    prompts = ("",) * len(media) if prompts is None else tuple(prompts)
    return Samples(media, prompts, ({},) * len(media) if metadata is None else tuple(metadata))
