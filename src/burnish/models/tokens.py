"""Prompts as token numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jaxtyping import Int
from torch import Tensor


def tokens(tokenizer: Any, prompts: Sequence[str], length: int) -> Int[Tensor, "batch length"]:
    """Cut or padded to `length`, as diffusers' pipelines do."""
    found = tokenizer(
        list(prompts),
        padding="max_length",
        max_length=length,
        truncation=True,
        return_tensors="pt",
    )
    return found.input_ids
