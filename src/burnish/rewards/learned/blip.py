"""ImageReward's network: BLIP's encoders by transformers, its text reading the image, and a head.

Its checkpoint has the names of BLIP's own code (Li et al. 2022). The text encoder's are transformers' too;
the vision transformer's differ.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from burnish.models.placed import device_named, placed
from burnish.rewards.learned import fetch
from burnish.rewards.learned.head import Head, head_of
from burnish.rewards.learned.pixels import cropped

TOKENS = 35
"""Of a prompt that are read, with the two at its ends."""
MEAN, STD = 0.16717362830052426, 1.0333394966054072
"""Of the head's output, as ImageReward's code has them."""
HEAD_CHANNELS = 64
"""Of one attention head in BLIP's vision transformers, base and large; a checkpoint does not say it."""

VISION: Mapping[str, str] = {
    r"cls_token": "embeddings.class_embedding",
    r"pos_embed": "embeddings.position_embedding",
    r"patch_embed\.proj\.(.*)": r"embeddings.patch_embedding.\1",
    r"blocks\.(\d+)\.norm([12]\..*)": r"encoder.layers.\1.layer_norm\2",
    r"blocks\.(\d+)\.attn\.(qkv\..*)": r"encoder.layers.\1.self_attn.\2",
    r"blocks\.(\d+)\.attn\.proj\.(.*)": r"encoder.layers.\1.self_attn.projection.\2",
    r"blocks\.(\d+)\.(mlp\..*)": r"encoder.layers.\1.\2",
    r"norm\.(.*)": r"post_layernorm.\1",
}
"""The vision transformer's names, whole, in BLIP's code to those in transformers."""

TEXT = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "max_position_embeddings",
    "vocab_size",
    "layer_norm_eps",
    "hidden_act",
    "pad_token_id",
)
"""What transformers is told of med_config.json."""


@dataclass(frozen=True, slots=True)
class Scorer:
    """Frozen; the encoders in one dtype, the head in float32."""

    vision: Any
    text: Any
    head: Head
    tokenizer: Any

    def __call__(
        self, media: Float[Tensor, "batch 3 height width"], prompts: Sequence[str]
    ) -> Float[Tensor, " batch"]:
        """Standardised scores, float32; differentiable in the images, in [0, 1], wherever they are."""
        device = self.vision.device
        pixels = cropped(media.to(device).float(), self.vision.config.image_size)
        seen = self.vision(pixel_values=pixels.to(self.vision.dtype)).last_hidden_state
        tokens = self.tokenizer(
            list(prompts), padding=True, truncation=True, max_length=TOKENS, return_tensors="pt"
        ).to(device)
        read = self.text(
            input_ids=tokens.input_ids,
            attention_mask=tokens.attention_mask,
            encoder_hidden_states=seen,
        ).last_hidden_state
        return (self.head(read[:, 0].float()) - MEAN) / STD


@cache
def scorer(
    *,
    weights: str,
    file: str,
    revision: str,
    texts: str,
    texts_revision: str,
    dtype: str,
    device: str,
) -> Scorer:
    """ImageReward of a folder or hub repository with `file` and med_config.json. Raises ValueError."""
    path = fetch.file(weights, file, revision)
    medium = fetch.file(weights, "med_config.json", revision)
    found = fetch.state_dict(path)
    with fetch.having(f"ImageReward from {str(path)!r} and {str(medium)!r}"):
        vision, text, head = networks(found, medium)
    words = text.config.vocab_size
    tokenizer = fetch.tokenizer(texts, texts_revision, added=("[DEC]", "[ENC]"), words=words)
    place, kind = device_named(device), getattr(torch, dtype)
    return Scorer(
        placed(vision.to(kind), place), placed(text.to(kind), place), placed(head, place), tokenizer
    )


def networks(weights: Mapping[str, Tensor], medium: Path) -> tuple[Any, Any, Head]:
    """Vision and text encoders and head, in float32, of ImageReward's state dict and med_config.json."""
    from transformers import BlipTextConfig, BlipVisionModel
    from transformers.models.blip.modeling_blip_text import BlipTextModel

    vision = {
        _renamed(name): value for name, value in _below("blip.visual_encoder.", weights).items()
    }
    text = _below("blip.text_encoder.", weights)
    text.pop("embeddings.position_ids", None)  # 0, 1, 2 ...: transformers makes them itself
    told = json.loads(medium.read_text(encoding="utf-8"))
    config = BlipTextConfig(
        **{key: told[key] for key in TEXT},
        encoder_hidden_size=vision["embeddings.class_embedding"].shape[-1],
        is_decoder=True,  # transformers builds the attention to the image under this condition only
        bos_token_id=None,
        sep_token_id=None,
    )
    return (
        fetch.assembled(BlipVisionModel, _vision_config(vision), vision),
        fetch.assembled(BlipTextModel, config, text, add_pooling_layer=False),
        head_of(_below("mlp.", weights)),
    )


def _below(prefix: str, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {
        name.removeprefix(prefix): value
        for name, value in weights.items()
        if name.startswith(prefix)
    }


def _vision_config(weights: Mapping[str, Tensor]) -> Any:
    """Read off the weights' shapes, under transformers' names; LayerNorm's epsilon is that of BLIP's code."""
    from transformers import BlipVisionConfig

    width, patch = (weights["embeddings.patch_embedding.weight"].shape[i] for i in (0, 3))
    patches = weights["embeddings.position_embedding"].shape[1] - 1
    return BlipVisionConfig(
        hidden_size=width,
        intermediate_size=weights["encoder.layers.0.mlp.fc1.weight"].shape[0],
        num_hidden_layers=sum(name.endswith("mlp.fc1.weight") for name in weights),
        num_attention_heads=width // HEAD_CHANNELS,
        image_size=math.isqrt(patches) * patch,
        patch_size=patch,
        layer_norm_eps=1e-6,
        hidden_act="gelu",
    )


def _renamed(name: str) -> str:
    for old, new in VISION.items():
        if match := re.fullmatch(old, name):
            return match.expand(new)
    raise ValueError(f"{name!r} is no weight of BLIP's vision transformer")
