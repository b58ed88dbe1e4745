"""What a reward model sees of images."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from burnish.preference.settings import CLIPFeatures, Features, Pixels, Statistics
from burnish.rewards.statistics import Brightness, Colourfulness, Contrast, Sharpness
from burnish.rollout import Samples

FAINT = 1e-6
"""Added to sharpness before its logarithm: less than what rounding to 8 bits leaves in a plain image."""


def prepare(settings: Features) -> None:
    """Load what they need. Raises ValueError."""
    if isinstance(settings, CLIPFeatures):
        _network(settings)


def content(settings: Features) -> str:
    """Of the weights that they need; '' for none. Raises ValueError."""
    if not isinstance(settings, CLIPFeatures):
        return ""
    from burnish.rewards.learned import fetch

    return fetch.content(settings.model, fetch.CONFIG, settings.revision)


def features(
    settings: Features, media: Float[Tensor, "batch 3 height width"]
) -> Float[Tensor, "batch features"]:
    """float32; differentiable in the images, which are in [0, 1]."""
    match settings:
        case Pixels(side=side):
            return F.adaptive_avg_pool2d(media.float(), side).flatten(1)
        case Statistics():
            return _statistics(media.float())
        case CLIPFeatures(batch=batch):
            from burnish.rewards.learned.clip import embedded

            network = _network(settings)
            return torch.cat([embedded(network, each) for each in media.split(batch)])


def _statistics(media: Tensor) -> Tensor:
    samples = Samples(media, ("",) * len(media), ({},) * len(media))
    seen = [reward(samples) for reward in (Brightness(), Contrast(), Colourfulness())]
    return torch.stack([*seen, (Sharpness()(samples) + FAINT).log()], dim=1)


def _network(settings: CLIPFeatures) -> Any:
    from burnish.rewards.learned import clip

    return clip.image_tower(
        model=settings.model,
        revision=settings.revision,
        dtype=settings.dtype,
        device=settings.device,
    )
