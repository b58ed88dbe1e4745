"""What the settings of all learned rewards share."""

from __future__ import annotations

from typing import Literal

Precision = Literal["float32", "bfloat16", "float16"]

CLIP_L = "openai/clip-vit-large-patch14"
CLIP_L_REVISION = "32bd64288804d66eefd0ccbe215aa642df71cc41"
CLIP_B = "openai/clip-vit-base-patch32"
CLIP_B_REVISION = "3d74acf9a28c67741b2f4f2ea7635f0aaf6f0268"
CLIP_H = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"
CLIP_H_REVISION = "1c2b8495b28150b8a4922ee1c8edee224c284c0c"
BERT = "google-bert/bert-base-uncased"
BERT_REVISION = "86b5e0934494bd15c9632b12f734a8a67f723594"
DEBERTA = "microsoft/deberta-xlarge-mnli"


def check_batch(batch: int) -> None:
    if batch < 1:
        raise ValueError(f"batch = {batch}, expected at least 1")
