"""Tiny pipelines with random weights, from the real classes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5TokenizerFast,
)

WORDS = ("a", "portrait", "of", "person", "with", "red", "blue", "hair")
MERGES = [
    (word[:i], word[i] + "</w>" * (i == len(word) - 1))
    for word in WORDS
    for i in range(1, len(word))
]
"""A word is put together from its first letter on."""
PARTS = [part for left, right in MERGES for part in (left, right, left + right)]
TOKENS = tuple(dict.fromkeys(("<|startoftext|>", "<|endoftext|>", "!", "a</w>", *PARTS)))


def stable_diffusion(folder: Path, **scheduler: object) -> Path:
    """A Stable Diffusion of 16x16 images and 4x4 latents; some 100 thousand weights."""
    torch.manual_seed(0)
    pipeline = StableDiffusionPipeline(
        vae=autoencoder(),
        text_encoder=CLIPTextModel(clip_config(width=16, num_layers=1)),
        tokenizer=tokenizer(folder / "words"),
        unet=UNet2DConditionModel(
            sample_size=4,
            in_channels=4,
            out_channels=4,
            block_out_channels=(16, 32),
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            layers_per_block=1,
            cross_attention_dim=16,
            attention_head_dim=8,
            norm_num_groups=4,
        ),
        scheduler=DDIMScheduler(
            **{
                "beta_schedule": "scaled_linear",
                "beta_start": 0.00085,
                "beta_end": 0.012,
                "clip_sample": False,
                "set_alpha_to_one": False,
                "steps_offset": 1,
                **scheduler,
            }
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(folder)
    return folder


MEDIUM_3_5: Mapping[str, Any] = {"qk_norm": "rms_norm", "dual_attention_layers": (0,)}
"""What the transformer of Stable Diffusion 3.5 has besides."""


def stable_diffusion_3(
    folder: Path, *, t5: bool, transformer: Mapping[str, Any] | None = None, **scheduler: object
) -> Path:
    """A Stable Diffusion 3 of 16x16 images and 4x4 latents, in 2x2 patches; some 60 thousand weights.

    What is twice there is different each time: the CLIPs' widths and lengths, the tokenizers' padding.
    """
    torch.manual_seed(0)
    pipeline = StableDiffusion3Pipeline(
        vae=autoencoder(scaling_factor=1.5, shift_factor=0.3, use_quant_conv=False),
        text_encoder=CLIPTextModelWithProjection(
            clip_config(width=16, num_layers=2, projection_dim=12)
        ),
        tokenizer=tokenizer(folder / "words"),
        text_encoder_2=CLIPTextModelWithProjection(
            clip_config(width=8, num_layers=2, projection_dim=8, max_position_embeddings=20)
        ),
        tokenizer_2=tokenizer(folder / "words_2", pad_token="!", model_max_length=20),
        text_encoder_3=T5EncoderModel(t5_config()) if t5 else None,
        tokenizer_3=t5_tokenizer() if t5 else None,
        transformer=SD3Transformer2DModel(
            sample_size=4,
            patch_size=2,
            in_channels=4,
            out_channels=4,
            num_layers=2,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=32,
            caption_projection_dim=16,
            pooled_projection_dim=12 + 8,
            pos_embed_max_size=4,
            **(transformer or {}),
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(**{"shift": 3.0, **scheduler}),
    )
    pipeline.save_pretrained(folder)
    return folder


def autoencoder(**config: object) -> AutoencoderKL:
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(8, 8, 8),
        latent_channels=4,
        norm_num_groups=4,
        sample_size=16,
        **config,
    )


def clip_config(*, width: int, num_layers: int, **config: object) -> CLIPTextConfig:
    return CLIPTextConfig(
        **{
            "vocab_size": len(TOKENS),
            "hidden_size": width,
            "intermediate_size": 2 * width,
            "num_hidden_layers": num_layers,
            "num_attention_heads": 2,
            "max_position_embeddings": 16,
            "bos_token_id": 0,
            "eos_token_id": 1,
            **config,
        }
    )


def tokenizer(
    folder: Path, *, pad_token: str = "<|endoftext|>", model_max_length: int = 16
) -> CLIPTokenizer:
    """One token a word of `WORDS`; all else is unknown."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(TOKENS)}))
    merges = ["#version: 0.2", *(f"{left} {right}" for left, right in MERGES)]
    (folder / "merges.txt").write_text("\n".join(merges))
    return CLIPTokenizer(
        str(folder / "vocab.json"),
        str(folder / "merges.txt"),
        pad_token=pad_token,
        model_max_length=model_max_length,
    )


def t5_config() -> T5Config:
    return T5Config(
        vocab_size=len(WORDS) + 3, d_model=32, d_kv=8, d_ff=32, num_layers=1, num_heads=2
    )


def t5_tokenizer() -> T5TokenizerFast:
    """One token a word of `WORDS`, and one at the end."""
    special = ("<pad>", "</s>", "<unk>")
    vocabulary = [*((token, 0.0) for token in special), *((f"▁{word}", -1.0) for word in WORDS)]
    return T5TokenizerFast(vocab=vocabulary, extra_ids=0)
