"""Trains the judge on lightly spoilt renderings, so that it stays right on generated images."""

from __future__ import annotations

import argparse

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from jaxtyping import Float, UInt8
from safetensors.torch import save_file
from torch import Tensor
from training import (
    BUILD,
    Clock,
    Portraits,
    average_gradients,
    in_parallel,
    load_portraits,
    pixels,
    warmup_cosine,
)

from burnish.portraits.attributes import SCHEMA
from burnish.portraits.judge import WEIGHTS, Judge, attribute_log_probs

NUM_RECONSTRUCTED = 1_000
"""Training portraits that each process also shows as the autoencoder decodes them."""

RECONSTRUCTED_SHARE = 0.25
NOISE = 0.06
"""Largest standard deviation of the pixel noise, for pixels in [0, 1]."""

JITTER = 0.06
"""Largest shift of a colour channel, for pixels in [0, 1]."""


def main() -> None:
    in_parallel(work, parse())


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--num-steps", type=int, default=500)
    parser.add_argument("--batch", type=int, default=64, help="per process")
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def work(rank: int, arguments: argparse.Namespace) -> None:
    """One of the processes; the first one also reports and saves."""
    clock = Clock()
    judge = Judge().to(memory_format=torch.channels_last)
    torch.manual_seed(arguments.seed + rank)
    portraits = load_portraits("train")
    train(judge, portraits, arguments, report=rank == 0)
    if rank == 0:
        save_file({k: v.contiguous() for k, v in judge.state_dict().items()}, WEIGHTS)
        WEIGHTS.chmod(0o644)
        accuracies = accuracy_by_attribute(judge, load_portraits("held-out"))
        lines = [f"  {a.name:14} {accuracies[i]:.4f}" for i, a in enumerate(SCHEMA)]
        print("\n".join(lines), f"\nmean {sum(accuracies) / len(SCHEMA):.4f} ({clock})")


def train(
    judge: Judge, portraits: Portraits, arguments: argparse.Namespace, *, report: bool
) -> None:
    clock = Clock()
    chosen = torch.randperm(len(portraits.grid))[:NUM_RECONSTRUCTED]
    decoded = reconstructions(portraits.grid[chosen])
    optimiser = torch.optim.AdamW(judge.parameters(), lr=arguments.learning_rate)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda s: warmup_cosine(s, num_steps=arguments.num_steps, num_warmup=30)
    )
    num_decoded = int(arguments.batch * RECONSTRUCTED_SHARE)
    for step in range(arguments.num_steps):
        fresh = torch.randint(len(portraits.grid), (arguments.batch - num_decoded,))
        again = torch.randint(len(chosen), (num_decoded,))
        images = torch.cat([pixels(portraits.grid[fresh]), decoded[again].float() / 255])
        codes = torch.cat([portraits.codes[fresh], portraits.codes[chosen[again]]]).long()
        loss = -attribute_log_probs(judge(spoil(images)), codes).sum(-1).mean()
        optimiser.zero_grad()
        loss.backward()
        average_gradients(judge.parameters())
        optimiser.step()
        schedule.step()
        if report and step % 50 == 0:
            print(f"step {step} loss {loss.item():.4f} ({clock})", flush=True)


@torch.no_grad()
def reconstructions(grid: UInt8[Tensor, "num 3 16 16"]) -> UInt8[Tensor, "num 3 64 64"]:
    """The portraits after a trip through the autoencoder, with noise on the latents of some."""
    vae = AutoencoderKL.from_pretrained(BUILD / "vae").to(memory_format=torch.channels_last)
    decoded = []
    for batch in grid.split(50):
        latents = vae.encode(pixels(batch) * 2 - 1).latent_dist.mean
        spread = 0.2 * torch.rand(len(batch), 1, 1, 1)
        images = vae.decode(latents + spread * torch.randn_like(latents)).sample
        decoded.append(((images / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8))
    return torch.cat(decoded)


def spoil(images: Float[Tensor, "batch 3 64 64"]) -> Float[Tensor, "batch 3 64 64"]:
    """Random blur, colour shift and noise, each image its own amount."""
    blur, shift, noise = torch.rand(3, len(images), 1, 1, 1)
    blurred = F.avg_pool2d(F.pad(images, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    mixed = torch.lerp(images, blurred, blur)
    shifted = mixed + JITTER * shift * torch.randn(len(images), 3, 1, 1).clamp(-1, 1)
    return shifted + NOISE * noise * torch.randn_like(images)


@torch.no_grad()
def accuracy_by_attribute(judge: Judge, portraits: Portraits) -> list[float]:
    """Share of clean renderings whose attribute is read rightly, among those that have it."""
    found = [
        torch.stack([head.argmax(-1) for head in judge(pixels(batch))], -1)
        for batch in portraits.grid.split(200)
    ]
    right, present = torch.cat(found) == portraits.codes, portraits.codes >= 0
    return ((right & present).sum(0) / present.sum(0)).tolist()


if __name__ == "__main__":
    main()
