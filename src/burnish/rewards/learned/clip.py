"""CLIP's two towers, by transformers: what its kin (PickScore, HPSv2) and heads upon it are computed with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from burnish.models.placed import device_named, placed
from burnish.rewards.learned import fetch
from burnish.rewards.learned.pixels import cropped
from burnish.rollout import Samples

Embeddings = Float[Tensor, "batch dim"]
"""Of length 1, float32."""


@dataclass(frozen=True, slots=True)
class Towers:
    """A frozen CLIPModel with its tokenizer.

    scale: exp of the model's logit scale, from its float32 value whatever the towers run in
    """

    network: Any
    tokenizer: Any
    scale: float

    def cosine(
        self, samples: Samples, batch: int, seen: Callable[[Tensor, int], Tensor] = cropped
    ) -> Float[Tensor, " samples"]:
        """Of the angle between each image and its prompt, in [-1, 1]; differentiable in the images.

        batch: images, or texts, a forward; a prompt that several samples have is read once
        """
        texts = list(dict.fromkeys(samples.prompts))
        place = {text: i for i, text in enumerate(texts)}
        chunks = (texts[i : i + batch] for i in range(0, len(texts), batch))
        read = torch.cat([self._embedded(chunk) for chunk in chunks])
        shown = torch.cat([embedded(self.network, x, seen) for x in samples.media.split(batch)])
        return (shown * read[[place[text] for text in samples.prompts]]).sum(-1)

    def _embedded(self, texts: Sequence[str]) -> Embeddings:
        """Without an attention mask: what is read is the text's end, which sees nothing after itself."""
        length = self.network.config.text_config.max_position_embeddings
        tokens = self.tokenizer(
            texts, padding=True, truncation=True, max_length=length, return_tensors="pt"
        )
        ids = tokens.input_ids.to(self.network.device)
        pooled = self.network.text_model(input_ids=ids).pooler_output
        return F.normalize(self.network.text_projection(pooled).float(), dim=-1)


def embedded(
    network: Any, media: Tensor, seen: Callable[[Tensor, int], Tensor] = cropped
) -> Embeddings:
    """Of images (batch, 3, height, width), float in [0, 1], wherever they are; differentiable in them."""
    pixels = seen(media.to(network.device).float(), network.config.vision_config.image_size)
    pooled = network.vision_model(pixel_values=pixels.to(network.dtype)).pooler_output
    return F.normalize(network.visual_projection(pooled).float(), dim=-1)


@cache
def image_tower(*, model: str, revision: str, dtype: str, device: str) -> Any:
    """A CLIPModel without what reads texts, for `embedded`. Raises ValueError."""
    from transformers import CLIPModel

    network = fetch.pretrained(CLIPModel, model, revision)
    del network.text_model, network.text_projection
    return placed(network.to(getattr(torch, dtype)), device_named(device))


@cache
def towers(
    *, model: str, revision: str, texts: str, texts_revision: str, dtype: str, device: str
) -> Towers:
    """A CLIPModel with the tokenizer `texts`. Raises ValueError."""
    from transformers import CLIPModel

    network = fetch.pretrained(CLIPModel, model, revision)
    return raised(network, texts, texts_revision, dtype, device)


def raised(network: Any, texts: str, texts_revision: str, dtype: str, device: str) -> Towers:
    """The towers of a float32 network, cast and placed. Raises ValueError."""
    words = network.config.text_config.vocab_size
    tokenizer = fetch.tokenizer(texts, texts_revision, words=words)
    scale = network.logit_scale.exp().item()
    network = placed(network.to(getattr(torch, dtype)), device_named(device))
    return Towers(network, tokenizer, scale)
