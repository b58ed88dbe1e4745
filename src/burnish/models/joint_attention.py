"""Attention of image and text together, as in Stable Diffusion 3, for texts that end in equal tokens.

Without its T5 encoder, Stable Diffusion 3 takes 256 zero vectors for T5's tokens. The text has no
positions, so these tokens are equal to each other in every layer. One of them with log(256) added to its
attention logits stands for all, exactly, and for a fifth of the work on a small image. (Half precision rounds
the logarithm: in bfloat16 the token counts 252 times, an error below that of bfloat16 elsewhere.)
"""

from __future__ import annotations

import math
from typing import cast

import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import Attention
from jaxtyping import Float
from torch import Tensor, nn

from burnish.models.attention import linear


class JointAttention:
    """An attention processor of diffusers for `JointTransformerBlock`. With `repeats` (a joint-attention
    argument of the transformer's call), the last token of each text stands for so many equal ones.

    It keeps no state, so threads may share it.
    """

    def __call__(
        self,
        attention: Attention,
        hidden_states: Float[Tensor, "batch positions width"],
        encoder_hidden_states: Float[Tensor, "batch length width"] | None = None,
        attention_mask: None = None,
        repeats: int = 1,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """The image's new hidden states, and the text's if there is a text: without one, the image
        attends to itself (the second attention of Stable Diffusion 3.5)."""
        del attention_mask
        parts = [_heads(attention, hidden_states, "to_q", "to_k", "to_v", "norm_q", "norm_k")]
        if encoder_hidden_states is not None:
            names = ("add_q_proj", "add_k_proj", "add_v_proj", "norm_added_q", "norm_added_k")
            parts.append(_heads(attention, encoder_hidden_states, *names))
        query, key, value = (torch.cat(each, dim=2) for each in zip(*parts, strict=True))
        bias = None if encoder_hidden_states is None or repeats == 1 else _bias(key, repeats)
        attended = F.scaled_dot_product_attention(query, key, value, attn_mask=bias)
        attended = attended.transpose(1, 2).flatten(2)
        positions = hidden_states.shape[1]
        project, dropout = cast(nn.ModuleList, attention.to_out)
        image = dropout(linear(project, attended[:, :positions]))
        if encoder_hidden_states is None:
            return image
        text = attended[:, positions:]
        return image, text if attention.context_pre_only else linear(attention.to_add_out, text)  # type: ignore[arg-type]


def _heads(
    attention: Attention, x: Tensor, q: str, k: str, v: str, norm_q: str, norm_k: str
) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values, each (batch, heads, positions, width of a head)."""
    query, key, value = (
        linear(getattr(attention, name), x).unflatten(-1, (attention.heads, -1)).transpose(1, 2)
        for name in (q, k, v)
    )
    norms = (getattr(attention, norm_q), getattr(attention, norm_k))
    query, key = (
        each if norm is None else norm(each) for norm, each in zip(norms, (query, key), strict=True)
    )
    return query, key, value


def _bias(key: Float[Tensor, "batch heads positions width"], repeats: int) -> Tensor:
    """Added to the logits of every query: that the last key is there `repeats` times."""
    bias = key.new_zeros(1, 1, 1, key.shape[2])
    bias[..., -1] = math.log(repeats)
    return bias
