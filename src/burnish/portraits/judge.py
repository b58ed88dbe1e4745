"""The judge: a small network that reads the attributes off a portrait.

It was trained in this project, on the same rendered portraits as the model that it judges
(scripts/portraits). It is a measuring instrument for this embedded model only, and like every learned
reward it can be fooled by a policy that is optimised against it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from safetensors.torch import load_file
from torch import Tensor, nn

from burnish.portraits.attributes import SCHEMA, encode

WEIGHTS = Path(__file__).parent / "judge.safetensors"
UNMENTIONED = -1


class Judge(nn.Module):
    """A convolutional network with one linear head for each attribute.

    Its first layer looks at squares of 4 by 4 pixels, one square of the pixel art each.
    """

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(
            nn.Conv2d(3, 48, 4, stride=4),
            nn.GroupNorm(8, 48),
            nn.SiLU(),
            _convolution(48, 64, stride=1),
            _convolution(64, 96, stride=2),
            _convolution(96, 96, stride=1),
            _convolution(96, 128, stride=2),
            nn.Flatten(),
            nn.Linear(128 * 4 * 4, 256),
            nn.SiLU(),
        )
        self.heads = nn.ModuleList(nn.Linear(256, len(a.values)) for a in SCHEMA)

    def forward(self, images: Float[Tensor, "batch 3 64 64"]) -> list[Float[Tensor, "batch _"]]:
        """Logits of each attribute's values, in schema order; images in [0, 1]."""
        features = self.trunk(images * 2 - 1)
        return [head(features) for head in self.heads]

    @torch.no_grad()
    def accuracy(
        self, images: Float[Tensor, "batch 3 64 64"], attributes: Sequence[Mapping[str, str]]
    ) -> Float[Tensor, " batch"]:
        """Fraction in [0, 1] of the mentioned attributes that the image shows.

        images: in [0, 1]
        attributes: for each image what its caption mentions, at least one attribute
        """
        wanted = wanted_codes(attributes, images)
        found = torch.stack([logits.argmax(-1) for logits in self(images)], -1)
        return _mean_over_mentioned((found == wanted).float(), wanted)

    def log_likelihood(
        self, images: Float[Tensor, "batch 3 64 64"], attributes: Sequence[Mapping[str, str]]
    ) -> Float[Tensor, " batch"]:
        """Mean log-probability of the mentioned attributes, in nats, at most 0.

        images: in [0, 1]; gradients flow to them
        """
        wanted = wanted_codes(attributes, images)
        return _mean_over_mentioned(attribute_log_probs(self(images), wanted), wanted)


def load_judge(weights: Path = WEIGHTS) -> Judge:
    """The trained judge, frozen and in evaluation mode."""
    judge = Judge()
    judge.load_state_dict(load_file(weights))
    return judge.requires_grad_(False).eval()


def wanted_codes(
    attributes: Sequence[Mapping[str, str]], images: Float[Tensor, "batch 3 64 64"]
) -> Int64[Tensor, "batch attributes"]:
    """Indices of the mentioned values, -1 for the unmentioned; ValueError unless each image has some."""
    if len(attributes) != len(images):
        raise ValueError(
            f"got {len(attributes)} descriptions for {len(images)} images; "
            "expected one mapping for each image"
        )
    if not all(attributes):
        raise ValueError("a description mentions no attribute; expected at least one to judge")
    return torch.tensor([encode(a) for a in attributes], device=images.device)


def attribute_log_probs(
    logits: Sequence[Float[Tensor, "batch _"]], wanted: Int64[Tensor, "batch attributes"]
) -> Float[Tensor, "batch attributes"]:
    """Log-probability in nats of each wanted value; 0 where nothing is wanted."""
    losses = [
        F.cross_entropy(head, codes, ignore_index=UNMENTIONED, reduction="none")
        for head, codes in zip(logits, wanted.unbind(-1), strict=True)
    ]
    return -torch.stack(losses, -1)


def _mean_over_mentioned(
    values: Float[Tensor, "batch attributes"], wanted: Int64[Tensor, "batch attributes"]
) -> Float[Tensor, " batch"]:
    mentioned = wanted != UNMENTIONED
    return (values * mentioned).sum(-1) / mentioned.sum(-1)


def _convolution(num_in: int, num_out: int, *, stride: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(num_in, num_out, 3, stride=stride, padding=1), nn.GroupNorm(8, num_out), nn.SiLU()
    )
