"""Attention to text for batches whose rows share texts, as the batches of policy gradients do.

A minibatch holds many denoising steps of few prompts, and half of a guided batch is the same empty
prompt. Keys and values depend on the text only, so they are computed once a text and not once a row. A
LoRA is folded into its weight, which at low rank is less work than two thin products on every row.
"""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import Attention
from jaxtyping import Float, Int
from peft.tuners.lora import Linear as LoRALinear
from torch import Tensor, nn


def distinct(
    tokens: Int[Tensor, "batch length"], embedding: Float[Tensor, "batch length width"]
) -> tuple[Float[Tensor, "texts length width"], Int[Tensor, " batch"]]:
    """The embedding of each different row of `tokens`, and which of them each row of the batch has."""
    texts, rows = tokens.unique(dim=0, return_inverse=True)
    batch = torch.arange(len(rows), device=rows.device)
    first = batch.new_full((len(texts),), len(rows)).scatter_reduce(0, rows, batch, "amin")
    return embedding[first], rows


class SharedTextAttention:
    """An attention processor of diffusers. With `rows` (a cross-attention argument of the UNet's call), row
    i attends to text `rows[i]`. It keeps no state, so threads may share it.

    It serves the transformer blocks of Stable Diffusion's UNet, whose attention has no norm, mask or
    residual of its own.
    """

    def __call__(
        self,
        attention: Attention,
        hidden_states: Float[Tensor, "batch positions width"],
        encoder_hidden_states: Float[Tensor, "texts length text_width"] | None = None,
        attention_mask: None = None,
        temb: None = None,
        rows: Int[Tensor, " batch"] | None = None,
    ) -> Float[Tensor, "batch positions width"]:
        del attention_mask, temb
        text = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        query = linear(attention.to_q, hidden_states)
        key = linear(cast(nn.Module, attention.to_k), text)
        value = linear(cast(nn.Module, attention.to_v), text)
        if encoder_hidden_states is not None and rows is not None:
            key, value = key[rows], value[rows]
        query, key, value = (
            each.unflatten(-1, (attention.heads, -1)).transpose(1, 2)
            for each in (query, key, value)
        )
        attended = F.scaled_dot_product_attention(query, key, value, scale=attention.scale)
        project, dropout = cast(nn.ModuleList, attention.to_out)
        return dropout(linear(project, attended.transpose(1, 2).flatten(2)))


def linear(layer: nn.Module, x: Float[Tensor, "... width"]) -> Float[Tensor, "... out"]:
    """The layer's output; that of a float32 LoRA in one product with `weight + scale B A`.

    In half precision the adapter keeps its own products: added to a half-precision weight, a small
    update would be rounded away.
    """
    if not isinstance(layer, LoRALinear) or not _foldable(layer):
        return layer(x)
    base: Any = layer.base_layer
    return F.linear(x, base.weight + layer.get_delta_weight(layer.active_adapters[0]), base.bias)


def _foldable(layer: LoRALinear) -> bool:
    """One plain adapter, in use, on a float32 weight."""
    plain = len(layer.active_adapters) == 1 and not layer.lora_variant
    used = not layer.disable_adapters and not layer.merged
    return plain and used and layer.base_layer.weight.dtype == torch.float32
