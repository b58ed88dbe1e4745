"""What the trainings of the two denoisers share: latents, the loop, averaged weights, and the folder."""

from __future__ import annotations

import argparse
import copy
import random
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DiffusionPipeline
from jaxtyping import Float
from safetensors.torch import load_file, save_file
from texts import captions
from torch import Tensor, nn
from training import BUILD, Clock, Portraits, average_gradients, pixels, warmup_cosine

LARGEST_DECAY = 0.998
"""Of the moving average of the weights, per step."""

Networks = tuple[nn.Module, ...]


def train_denoiser(
    networks: Networks,
    vae: AutoencoderKL,
    portraits: Portraits,
    loss_of: Callable[[Float[Tensor, "batch 12 8 8"], list[str]], Tensor],
    save: Callable[[Networks], None],
    rng: random.Random,
    arguments: argparse.Namespace,
    *,
    report: bool,
) -> None:
    """Denoising of captioned latents; the first process averages the weights and saves them."""
    clock = Clock()
    latents = encode_latents(vae, portraits)
    parameters = [p for network in networks for p in network.parameters()]
    optimiser = torch.optim.AdamW(parameters, betas=(0.9, 0.99), fused=True)
    average = Average(networks) if report else None
    for step in range(arguments.stop_after):
        factor = warmup_cosine(step, num_steps=arguments.num_steps, num_warmup=100)
        optimiser.param_groups[0]["lr"] = arguments.learning_rate * factor
        rows = torch.randint(len(latents), (arguments.batch,))
        loss = loss_of(latents[rows], captions(portraits.codes[rows].tolist(), rng))
        optimiser.zero_grad()
        loss.backward()
        average_gradients(parameters)
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        if average is None:
            continue
        average.update(networks, step)
        last = step == arguments.stop_after - 1
        if step % 50 == 0 or last:
            print(f"step {step} loss {loss.item():.4f} ({clock})", flush=True)
        if last or (step + 1) % arguments.num_steps_between_saves == 0:
            save(average.networks)


@torch.no_grad()
def encode_latents(vae: AutoencoderKL, portraits: Portraits) -> Float[Tensor, "num 12 8 8"]:
    """The scaled latents of all portraits, computed once."""
    vae = vae.to(memory_format=torch.channels_last)
    batches = portraits.grid.split(100)
    means = torch.cat([vae.encode(pixels(b) * 2 - 1).latent_dist.mean for b in batches])
    return means * vae.config.scaling_factor


class Average:
    """Exponential moving average of the weights of some networks."""

    def __init__(self, networks: Networks) -> None:
        self.networks = copy.deepcopy(networks)

    @torch.no_grad()
    def update(self, networks: Networks, step: int) -> None:
        decay = min(LARGEST_DECAY, (1 + step) / (10 + step))
        for mine, theirs in zip(self.networks, networks, strict=True):
            torch._foreach_lerp_(list(mine.parameters()), list(theirs.parameters()), 1 - decay)


def write_pipeline(
    pipeline: DiffusionPipeline, final: Path, suffixes: Sequence[str] = ("",)
) -> None:
    """Replaces the pipeline folder at once, so that a reader never meets half of it.

    suffixes: of the names of its text encoders and tokenizers
    """
    fresh, old = BUILD / f"{final.name}-new", BUILD / f"{final.name}-old"
    shutil.rmtree(fresh, ignore_errors=True)
    shutil.rmtree(old, ignore_errors=True)
    pipeline.save_pretrained(fresh)
    for suffix in suffixes:
        restore_text_prefix(fresh / f"text_encoder{suffix}" / "model.safetensors")
        for name in ("vocab.json", "merges.txt", "tokenizer_config.json"):
            shutil.copy(BUILD / "tokenizer" / name, fresh / f"tokenizer{suffix}" / name)
    for weights in fresh.rglob("*.safetensors"):
        weights.chmod(0o644)
    if final.exists():
        final.rename(old)
    fresh.rename(final)


def restore_text_prefix(weights: Path) -> None:
    """Puts "text_model." back before the names of the text encoder's tensors.

    Transformers 5 saves without it and reads both; transformers 4 would, with no more than a warning,
    start from random weights.
    """
    named = {_prefixed(name): tensor for name, tensor in load_file(weights).items()}
    save_file(named, weights, metadata={"format": "pt"})


def _prefixed(name: str) -> str:
    kept = name.startswith(("text_model.", "text_projection."))
    return name if kept else f"text_model.{name}"
