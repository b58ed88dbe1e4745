"""Trains the text encoder and the denoiser of `portraits`, and writes the pipeline folder.

The text encoder first learns, for a minute or two, to say which attributes a caption mentions; then
both learn to denoise together. Early versions of the folder are written while that goes on.
"""

from __future__ import annotations

import argparse
import random

import torch
from denoising import train_denoiser, write_pipeline
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from jaxtyping import Float, Int64
from texts import text_config, tokenize, train_text
from tokenizer import build_tokenizer
from torch import Tensor
from training import BUILD, PACKAGE, in_parallel, load_portraits
from transformers import CLIPTextModel, CLIPTokenizer

TEXT_WIDTH = 96

LARGEST_WEIGHT = 5.0
"""Bound of a noise level's loss weight; see `weighted_error`."""


def main() -> None:
    arguments = parse()
    build_tokenizer(BUILD / "tokenizer")
    in_parallel(work, arguments)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--num-text-steps", type=int, default=400)
    parser.add_argument("--text-batch", type=int, default=64, help="per process")
    parser.add_argument("--num-steps", type=int, default=3000, help="of the cosine schedule")
    parser.add_argument("--stop-after", type=int, default=1500, help="steps of it that are run")
    parser.add_argument("--batch", type=int, default=32, help="per process")
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--num-steps-between-saves", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def work(rank: int, arguments: argparse.Namespace) -> None:
    """One of the processes; the first one also reports and saves."""
    tokenizer = CLIPTokenizer.from_pretrained(BUILD / "tokenizer")
    text_encoder = CLIPTextModel(text_config(tokenizer, width=TEXT_WIDTH, num_layers=2))
    unet = small_unet()
    torch.manual_seed(arguments.seed + rank)
    rng = random.Random(arguments.seed + rank)

    def read(ids: Int64[Tensor, "batch length"]) -> tuple[Tensor, Tensor]:
        output = text_encoder(ids)
        return output.pooler_output, output.last_hidden_state[:, -1]

    train_text(text_encoder, read, tokenizer, rng, arguments, width=TEXT_WIDTH, report=rank == 0)
    vae = AutoencoderKL.from_pretrained(BUILD / "vae")
    vae.register_to_config(_name_or_path="")  # else the published configuration names this folder
    pipeline = assemble(vae, text_encoder, tokenizer, unet)
    train_denoiser(
        (unet, text_encoder),
        vae,
        load_portraits("train"),
        lambda x0, texts: weighted_error(pipeline, x0, tokenize(tokenizer, texts)),
        lambda averaged: write_pipeline(
            assemble(vae, averaged[1], tokenizer, averaged[0]), PACKAGE / "pipeline"
        ),
        rng,
        arguments,
        report=rank == 0,
    )


def small_unet() -> UNet2DConditionModel:
    """Attends to the text at 4x4 only: half the cost of attending at 8x8 too."""
    unet = UNet2DConditionModel(
        sample_size=8,
        in_channels=12,
        out_channels=12,
        layers_per_block=1,
        block_out_channels=(64, 128),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=TEXT_WIDTH,
        attention_head_dim=4,
        norm_num_groups=16,
    )
    return unet.to(memory_format=torch.channels_last)


def assemble(
    vae: AutoencoderKL,
    text_encoder: CLIPTextModel,
    tokenizer: CLIPTokenizer,
    unet: UNet2DConditionModel,
) -> StableDiffusionPipeline:
    """Stable Diffusion's own classes, with its own noise schedule."""
    scheduler = DDIMScheduler(
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )
    return StableDiffusionPipeline(
        vae, text_encoder, tokenizer, unet, scheduler, None, None, requires_safety_checker=False
    )


def weighted_error(
    pipeline: StableDiffusionPipeline,
    x0: Float[Tensor, "batch 12 8 8"],
    ids: Int64[Tensor, "batch length"],
) -> Tensor:
    """Squared error of the predicted noise, times 1 / alpha_bar but at most `LARGEST_WEIGHT`.

    1 / alpha_bar makes it the squared error of v (Salimans and Ho 2022, appendix D). The plain
    error hardly counts at high noise, where a picture's colours and layout are decided.
    """
    num_levels = pipeline.scheduler.config.num_train_timesteps
    stratified = (torch.arange(len(x0)) + torch.rand(len(x0))) / len(x0)
    time = (stratified * num_levels).long()
    noise = torch.randn_like(x0)
    noised = pipeline.scheduler.add_noise(x0, noise, time)
    noised = noised.contiguous(memory_format=torch.channels_last)
    states = pipeline.text_encoder(ids).last_hidden_state
    predicted = pipeline.unet(noised, time, states).sample
    weight = (1 / pipeline.scheduler.alphas_cumprod[time]).clamp(max=LARGEST_WEIGHT)
    return (weight * (predicted - noise).square().mean((1, 2, 3))).mean()


if __name__ == "__main__":
    main()
