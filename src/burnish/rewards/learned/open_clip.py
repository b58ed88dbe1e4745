"""open_clip's checkpoints as transformers' CLIPModel.

Both are the same network. They differ in the names, in the projections, which open_clip multiplies from the
right, and in the attention, whose query, key and value open_clip keeps in one matrix, one above the other.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import cache

from torch import Tensor

from burnish.rewards.learned import fetch
from burnish.rewards.learned.clip import Towers, raised

NAMES: Mapping[str, str] = {
    r"logit_scale": "logit_scale",
    r"token_embedding\.weight": "text_model.embeddings.token_embedding.weight",
    r"positional_embedding": "text_model.embeddings.position_embedding.weight",
    r"transformer\.resblocks\.(.*)": r"text_model.encoder.layers.\1",
    r"ln_final\.(.*)": r"text_model.final_layer_norm.\1",
    r"text_projection": "text_projection.weight",
    r"visual\.class_embedding": "vision_model.embeddings.class_embedding",
    r"visual\.conv1\.weight": "vision_model.embeddings.patch_embedding.weight",
    r"visual\.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    r"visual\.ln_pre\.(.*)": r"vision_model.pre_layrnorm.\1",
    r"visual\.transformer\.resblocks\.(.*)": r"vision_model.encoder.layers.\1",
    r"visual\.ln_post\.(.*)": r"vision_model.post_layernorm.\1",
    r"visual\.proj": "visual_projection.weight",
}
"""open_clip's names, whole, to transformers'."""

INSIDE: Mapping[str, str] = {
    ".ln_1.": ".layer_norm1.",
    ".ln_2.": ".layer_norm2.",
    ".attn.": ".self_attn.",
    ".mlp.c_fc.": ".mlp.fc1.",
    ".mlp.c_proj.": ".mlp.fc2.",
}
"""Within a layer."""


def converted(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """open_clip's state dict as CLIPModel's. Raises ValueError for a name that neither has."""
    return {new: value for name in weights for new, value in _pieces(name, weights[name])}


def _pieces(name: str, value: Tensor) -> Iterator[tuple[str, Tensor]]:
    new = _renamed(name)
    if "in_proj_" in new:
        for part, share in zip("qkv", value.chunk(3), strict=True):
            yield new.replace("in_proj_", f"{part}_proj."), share.clone()
    elif name in ("text_projection", "visual.proj"):
        yield new, value.T.contiguous()
    else:
        yield new, value


def _renamed(name: str) -> str:
    for old, new in NAMES.items():
        if match := re.fullmatch(old, name):
            whole = match.expand(new)
            for part, other in INSIDE.items():
                whole = whole.replace(part, other)
            return whole
    raise ValueError(f"{name!r} is no weight of an open_clip model with a vision transformer")


@cache
def towers(
    *,
    weights: str,
    file: str,
    revision: str,
    architecture: str,
    architecture_revision: str,
    dtype: str,
    device: str,
) -> Towers:
    """The weights of an open_clip checkpoint in the CLIPModel that `architecture` describes.

    architecture: a folder or a repository with its config.json and tokenizer. Raises ValueError
    """
    from transformers import CLIPConfig, CLIPModel

    with fetch.having(f"the configuration {architecture!r} (revision {architecture_revision!r})"):
        config = CLIPConfig.from_pretrained(architecture, revision=architecture_revision)
    path = fetch.file(weights, file, revision)
    found = fetch.state_dict(path)
    with fetch.having(f"an open_clip model of the shape of {architecture!r} from {str(path)!r}"):
        network = fetch.assembled(CLIPModel, config, converted(found))
    return raised(network, architecture, architecture_revision, dtype, device)
