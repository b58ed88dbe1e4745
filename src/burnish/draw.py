"""Draw from a finished run: the same prompts and noise before and after training, side by side."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from burnish.experiment import open_run
from burnish.images import to_pil
from burnish.rollout import sample

GAP = 4
"""White pixels between two images."""


def draw(
    run: Path, prompts: Sequence[str], count: int, seed: int, out: Path | None
) -> Iterator[Path]:
    """Write `count` images a prompt, each with the base model's on the left; yields their paths."""
    if count < 1:
        raise ValueError(f"count = {count}, expected at least 1")
    experiment, folder = open_run(run)
    asked = [prompt for prompt in prompts for _ in range(count)]
    before = sample(experiment.shown, asked, seed=seed)
    experiment.denoiser.load(folder.weights)
    after = sample(experiment.shown, asked, seed=seed)
    target = out or run / "drawn"
    target.mkdir(parents=True, exist_ok=True)
    for i, pair in enumerate(zip(before.media, after.media, strict=True)):
        path = target / f"{i:04d}.png"
        side_by_side(pair).save(path)
        yield path


def side_by_side(images: Sequence[Tensor]) -> Image.Image:
    """Images (3, height, width) in [0, 1], from left to right, with a white gap between them."""
    gap = torch.ones(3, images[0].shape[1], GAP)
    parts = [part for image in images for part in (image, gap)][:-1]
    return to_pil(torch.cat(parts, dim=2))
