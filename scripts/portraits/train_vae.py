"""Trains the autoencoder: 64x64x3 pixels <-> 8x8x12 latents, mean 0 and variance 1 a channel."""

from __future__ import annotations

import argparse

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from jaxtyping import Float, UInt8
from torch import Tensor
from training import (
    BUILD,
    Clock,
    average_gradients,
    in_parallel,
    load_portraits,
    pixels,
    warmup_cosine,
)

LATENT_CHANNELS = 12
"""An 8x8 latent covers 2x2 art pixels of 3 colours: 12 numbers hold them all."""

KL_WEIGHT = 3e-6
"""Relative to the mean absolute error of a pixel; only keeps the latents from drifting apart."""


def main() -> None:
    in_parallel(work, parse())


def work(rank: int, arguments: argparse.Namespace) -> None:
    """One of the processes; the first one also reports and saves."""
    vae = autoencoder().to(memory_format=torch.channels_last)
    torch.manual_seed(arguments.seed + rank)
    grid = load_portraits("train").grid
    train(vae, grid, arguments, report=rank == 0)
    if rank == 0:
        standardise_latents(vae, grid[:4000])
        error = reconstruction_error(vae, load_portraits("held-out").grid[:500])
        print(f"held-out mean absolute error {error:.4f}")
        vae.save_pretrained(BUILD / "vae")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--num-steps", type=int, default=2000)
    parser.add_argument("--batch", type=int, default=8, help="per process")
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def autoencoder() -> AutoencoderKL:
    """Narrow at full resolution, where the time goes: a decoding costs about 2 ms on two cores."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(8, 16, 32, 64),
        layers_per_block=1,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=1,
        sample_size=64,
        mid_block_add_attention=False,
        scaling_factor=1.0,
    )


def train(
    vae: AutoencoderKL,
    grid: UInt8[Tensor, "num 3 16 16"],
    arguments: argparse.Namespace,
    *,
    report: bool,
) -> None:
    clock = Clock()
    optimiser = torch.optim.AdamW(vae.parameters(), lr=arguments.learning_rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda s: warmup_cosine(s, num_steps=arguments.num_steps, num_warmup=50)
    )
    for step in range(arguments.num_steps):
        rows = torch.randint(len(grid), (arguments.batch,))
        error, loss = objective(vae, pixels(grid[rows]) * 2 - 1)
        optimiser.zero_grad()
        loss.backward()
        average_gradients(vae.parameters())
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        if report and (step % 50 == 0 or step == arguments.num_steps - 1):
            print(f"step {step} absolute error {error.item():.4f} ({clock})", flush=True)


def objective(vae: AutoencoderKL, x: Float[Tensor, "batch 3 64 64"]) -> tuple[Tensor, Tensor]:
    """Mean absolute error of a pixel in [-1, 1]; and the loss, with squared error and a small KL."""
    posterior = vae.encode(x).latent_dist
    decoded = vae.decode(posterior.sample()).sample
    error = F.l1_loss(decoded, x)
    return error.detach(), error + F.mse_loss(decoded, x) + KL_WEIGHT * posterior.kl().mean()


@torch.no_grad()
def standardise_latents(vae: AutoencoderKL, grid: UInt8[Tensor, "num 3 16 16"]) -> None:
    """Folds mean 0, variance 1 of every channel into the 1x1 convolutions on both sides, in place.

    Stable Diffusion's format has one scaling factor for all channels and no shift; after this it
    is exactly 1.
    """
    latents = encode(vae, grid)
    mean, std = latents.mean((0, 2, 3)), latents.std((0, 2, 3))
    into, out_of = vae.quant_conv, vae.post_quant_conv
    out_of.bias += out_of.weight[:, :, 0, 0] @ mean
    out_of.weight *= std[None, :, None, None]
    into.bias[:LATENT_CHANNELS] = (into.bias[:LATENT_CHANNELS] - mean) / std
    into.weight[:LATENT_CHANNELS] /= std[:, None, None, None]
    into.bias[LATENT_CHANNELS:] -= 2 * std.log()
    print(f"latent channels had mean {mean.tolist()} and std {std.tolist()}")


@torch.no_grad()
def encode(vae: AutoencoderKL, grid: UInt8[Tensor, "num 3 16 16"]) -> Float[Tensor, "num 12 8 8"]:
    """The posterior's mean for each portrait."""
    batches = grid.split(100)
    return torch.cat([vae.encode(pixels(b) * 2 - 1).latent_dist.mean for b in batches])


@torch.no_grad()
def reconstruction_error(vae: AutoencoderKL, grid: UInt8[Tensor, "num 3 16 16"]) -> float:
    """Mean absolute error of a pixel in [-1, 1]."""
    errors = [
        F.l1_loss(vae.decode(encode(vae, b)).sample, pixels(b) * 2 - 1) for b in grid.split(100)
    ]
    return torch.stack(errors).mean().item()


if __name__ == "__main__":
    main()
