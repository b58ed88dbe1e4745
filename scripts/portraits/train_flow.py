"""Trains `portraits-flow`, a miniature Stable Diffusion 3, on the portraits and the VAE of `portraits`.

The two text encoders learn, for a minute or two each, to say which attributes a caption mentions, and are
then frozen, as in Stable Diffusion 3. The transformer learns to predict the velocity of the flow.
"""

from __future__ import annotations

import argparse
import random

import torch
from denoising import train_denoiser, write_pipeline
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)
from jaxtyping import Float, Int64
from texts import text_config, train_text
from tokenizer import build_tokenizer
from torch import Tensor, nn
from training import BUILD, PACKAGE, in_parallel, load_portraits
from transformers import CLIPTextModelWithProjection, CLIPTokenizer

from burnish.models.joint_attention import JointAttention
from burnish.models.stable_diffusion_3 import Texts

TEXT_WIDTHS = (96, 64)
"""Of the two text encoders."""

WIDTH = 128
"""Of the transformer."""


def main() -> None:
    arguments = parse()
    build_tokenizer(BUILD / "tokenizer")
    in_parallel(work, arguments)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--num-text-steps", type=int, default=600)
    parser.add_argument("--text-batch", type=int, default=64, help="per process")
    parser.add_argument("--num-steps", type=int, default=6000, help="of the cosine schedule")
    parser.add_argument("--stop-after", type=int, default=2500, help="steps of it that are run")
    parser.add_argument("--batch", type=int, default=32, help="per process")
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--num-steps-between-saves", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def work(rank: int, arguments: argparse.Namespace) -> None:
    """One of the processes; the first one also reports and saves."""
    tokenizer = CLIPTokenizer.from_pretrained(BUILD / "tokenizer")
    encoders = [small_text_encoder(tokenizer, width) for width in TEXT_WIDTHS]
    transformer = small_transformer()
    torch.manual_seed(arguments.seed + rank)
    rng = random.Random(arguments.seed + rank)
    for encoder, width in zip(encoders, TEXT_WIDTHS, strict=True):
        teach(encoder, tokenizer, rng, arguments, width=width, report=rank == 0)
    vae = AutoencoderKL.from_pretrained(PACKAGE / "pipeline" / "vae")
    vae.register_to_config(_name_or_path="", shift_factor=0.0)
    texts = Texts(tuple((tokenizer, encoder) for encoder in encoders), None, sum(TEXT_WIDTHS))
    transformer.set_attn_processor(JointAttention())
    train_denoiser(
        (transformer,),
        vae,
        load_portraits("train"),
        lambda x0, captions: velocity_error(transformer, texts, x0, captions),
        lambda averaged: write_pipeline(
            assemble(vae, encoders, tokenizer, averaged[0]), PACKAGE / "flow-pipeline", ("", "_2")
        ),
        rng,
        arguments,
        report=rank == 0,
    )


def small_text_encoder(tokenizer: CLIPTokenizer, width: int) -> CLIPTextModelWithProjection:
    """Its tokens are read before the last of the three layers, as Stable Diffusion 3 does."""
    return CLIPTextModelWithProjection(text_config(tokenizer, width=width, num_layers=3))


def teach(
    encoder: CLIPTextModelWithProjection,
    tokenizer: CLIPTokenizer,
    rng: random.Random,
    arguments: argparse.Namespace,
    *,
    width: int,
    report: bool,
) -> None:
    def read(ids: Int64[Tensor, "batch length"]) -> tuple[Tensor, Tensor]:
        output = encoder(ids, output_hidden_states=True)
        return output.text_embeds, output.hidden_states[-2][:, -1]

    train_text(encoder, read, tokenizer, rng, arguments, width=width, report=report)
    encoder.requires_grad_(False)


def small_transformer() -> SD3Transformer2DModel:
    """Every block starts as the identity and the output as 0 (Peebles & Xie 2022, section 3.2)."""
    transformer = SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=12,
        out_channels=12,
        num_layers=4,
        num_attention_heads=4,
        attention_head_dim=WIDTH // 4,
        joint_attention_dim=sum(TEXT_WIDTHS),
        pooled_projection_dim=sum(TEXT_WIDTHS),
        caption_projection_dim=WIDTH,
        pos_embed_max_size=4,
    )
    gates = [m.linear for m in transformer.modules() if type(m).__name__.startswith("AdaLayer")]
    for layer in (*gates, transformer.proj_out):
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)
    return transformer


def assemble(
    vae: AutoencoderKL,
    encoders: list[CLIPTextModelWithProjection],
    tokenizer: CLIPTokenizer,
    transformer: nn.Module,
) -> StableDiffusion3Pipeline:
    """Stable Diffusion 3's own classes, without T5, and without its shift of times: images are small."""
    return StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=1.0),
        vae=vae,
        text_encoder=encoders[0],
        tokenizer=tokenizer,
        text_encoder_2=encoders[1],
        tokenizer_2=tokenizer,
        text_encoder_3=None,
        tokenizer_3=None,
    )


def velocity_error(
    transformer: SD3Transformer2DModel,
    texts: Texts,
    x0: Float[Tensor, "batch 12 8 8"],
    captions: list[str],
) -> Tensor:
    """Squared error of the velocity e - x0; times are logit-normal (Esser et al. 2024, section 3.1)."""
    time = torch.randn(len(x0)).sigmoid()
    at = time[:, None, None, None]
    noise = torch.randn_like(x0)
    cond = texts.encode(captions)
    predicted = transformer(
        (1 - at) * x0 + at * noise,
        cond["embedding"],
        cond["pooled"],
        1000 * time,
        joint_attention_kwargs={"repeats": texts.repeats},
    ).sample
    return (predicted - (noise - x0)).square().mean()


if __name__ == "__main__":
    main()
