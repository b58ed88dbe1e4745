"""Trains the text encoder and the denoiser, and writes the pipeline folder.

The text encoder first learns, for a minute or two, to say which attributes a caption mentions; then
both learn to denoise together. Early versions of the folder are written while that goes on.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import random
import shutil
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from jaxtyping import Float, Int64
from safetensors.torch import load_file, save_file
from tokenizer import MAX_LENGTH, build_tokenizer
from torch import Tensor, nn
from training import (
    BUILD,
    PACKAGE,
    Clock,
    Portraits,
    average_gradients,
    in_parallel,
    load_portraits,
    pixels,
    warmup_cosine,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from burnish.portraits.attributes import SCHEMA, decode, encode
from burnish.portraits.captions import caption, portrait_prompts

TEXT_WIDTH = 96
EMPTY_CAPTIONS = 0.1
"""Share of training captions replaced by "", which classifier-free guidance needs."""

LARGEST_WEIGHT = 5.0
"""Bound of a noise level's loss weight; see `weighted_error`."""

LARGEST_DECAY = 0.998
"""Of the moving average of the weights, per step."""


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
    text_encoder, unet = small_text_encoder(tokenizer), small_unet()
    torch.manual_seed(arguments.seed + rank)
    rng = random.Random(arguments.seed + rank)
    train_text(text_encoder, tokenizer, rng, arguments, report=rank == 0)
    vae = AutoencoderKL.from_pretrained(BUILD / "vae")
    vae.register_to_config(_name_or_path="")  # else the published configuration names this folder
    pipeline = assemble(vae, text_encoder, tokenizer, unet)
    train_denoiser(pipeline, load_portraits("train"), rng, arguments, report=rank == 0)


def small_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=TEXT_WIDTH,
        intermediate_size=4 * TEXT_WIDTH,
        projection_dim=TEXT_WIDTH,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=MAX_LENGTH,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return CLIPTextModel(config)


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


def train_text(
    text_encoder: CLIPTextModel,
    tokenizer: CLIPTokenizer,
    rng: random.Random,
    arguments: argparse.Namespace,
    *,
    report: bool,
) -> None:
    """Teaches the tokens that end and pad a caption to hold every attribute it mentions."""
    clock = Clock()
    torch_rng = torch.Generator().manual_seed(arguments.seed)
    heads = readout(torch_rng)
    parameters = [*text_encoder.parameters(), *heads.parameters()]
    optimiser = torch.optim.AdamW(parameters, lr=2e-3)
    prompts = portrait_prompts("train", rng.randrange(2**32))
    for step in range(arguments.num_text_steps):
        factor = warmup_cosine(step, num_steps=arguments.num_text_steps, num_warmup=30)
        optimiser.param_groups[0]["lr"] = 2e-3 * factor
        batch = list(itertools.islice(prompts, arguments.text_batch))
        loss = readout_loss(text_encoder, heads, tokenize(tokenizer, [t for t, _ in batch]),
                            torch.tensor([encode(m) for _, m in batch]))  # fmt: skip
        optimiser.zero_grad()
        loss.backward()
        average_gradients(parameters)
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        if report and step % 50 == 0:
            print(f"text step {step} loss {loss.item():.4f} ({clock})", flush=True)


def readout(generator: torch.Generator) -> nn.ModuleList:
    """A linear head for each attribute, with one class more than it has values: not mentioned."""
    heads = nn.ModuleList(nn.Linear(TEXT_WIDTH, len(a.values) + 1) for a in SCHEMA)
    for head in heads:
        nn.init.normal_(head.weight, std=0.1, generator=generator)
        nn.init.zeros_(head.bias)
    return heads


def readout_loss(
    text_encoder: CLIPTextModel,
    heads: nn.ModuleList,
    ids: Int64[Tensor, "batch length"],
    codes: Int64[Tensor, "batch attributes"],
) -> Tensor:
    """Cross-entropy in nats, summed over attributes, read from the last token and from the caption's end."""
    output = text_encoder(ids)
    states = torch.cat([output.pooler_output, output.last_hidden_state[:, -1]])
    wanted = torch.cat([codes, codes]) + 1
    losses = [F.cross_entropy(head(states), w) for head, w in zip(heads, wanted.T, strict=True)]
    return torch.stack(losses).sum()


def tokenize(tokenizer: CLIPTokenizer, texts: list[str]) -> Int64[Tensor, "batch length"]:
    return tokenizer(
        texts, padding="max_length", max_length=MAX_LENGTH, truncation=True, return_tensors="pt"
    ).input_ids


def train_denoiser(
    pipeline: StableDiffusionPipeline,
    portraits: Portraits,
    rng: random.Random,
    arguments: argparse.Namespace,
    *,
    report: bool,
) -> None:
    """Denoising of captioned latents; the first process averages the weights and saves them."""
    clock = Clock()
    latents = encode_latents(pipeline.vae, portraits)
    networks = (pipeline.unet, pipeline.text_encoder)
    parameters = [p for network in networks for p in network.parameters()]
    optimiser = torch.optim.AdamW(parameters, betas=(0.9, 0.99), fused=True)
    average = Average(networks) if report else None
    for step in range(arguments.stop_after):
        factor = warmup_cosine(step, num_steps=arguments.num_steps, num_warmup=100)
        optimiser.param_groups[0]["lr"] = arguments.learning_rate * factor
        rows = torch.randint(len(latents), (arguments.batch,))
        ids = tokenize(pipeline.tokenizer, captions(portraits.codes[rows].tolist(), rng))
        loss = weighted_error(pipeline, latents[rows], ids)
        optimiser.zero_grad()
        loss.backward()
        average_gradients(parameters)
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        if average is not None:
            average.update(networks, step)
            log_and_save(pipeline, average, step, loss.item(), clock, arguments)


def log_and_save(
    pipeline: StableDiffusionPipeline,
    average: Average,
    step: int,
    loss: float,
    clock: Clock,
    arguments: argparse.Namespace,
) -> None:
    last = step == arguments.stop_after - 1
    if step % 50 == 0 or last:
        print(f"step {step} loss {loss:.4f} ({clock})", flush=True)
    if last or (step + 1) % arguments.num_steps_between_saves == 0:
        save(pipeline, average)


@torch.no_grad()
def encode_latents(vae: AutoencoderKL, portraits: Portraits) -> Float[Tensor, "num 12 8 8"]:
    """The scaled latents of all portraits, computed once."""
    vae = vae.to(memory_format=torch.channels_last)
    batches = portraits.grid.split(100)
    means = torch.cat([vae.encode(pixels(b) * 2 - 1).latent_dist.mean for b in batches])
    return means * vae.config.scaling_factor


def captions(codes: list[list[int]], rng: random.Random) -> list[str]:
    """A fresh caption of each portrait, some of them empty."""
    return ["" if rng.random() < EMPTY_CAPTIONS else caption(decode(row), rng)[0] for row in codes]


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


class Average:
    """Exponential moving average of the weights of some networks."""

    def __init__(self, networks: tuple[nn.Module, ...]) -> None:
        self.networks = copy.deepcopy(networks)

    @torch.no_grad()
    def update(self, networks: tuple[nn.Module, ...], step: int) -> None:
        decay = min(LARGEST_DECAY, (1 + step) / (10 + step))
        for mine, theirs in zip(self.networks, networks, strict=True):
            torch._foreach_lerp_(list(mine.parameters()), list(theirs.parameters()), 1 - decay)


def save(pipeline: StableDiffusionPipeline, average: Average) -> None:
    """Replaces the pipeline folder at once, so that a reader never meets half of it."""
    unet, text_encoder = average.networks
    averaged = assemble(pipeline.vae, text_encoder, pipeline.tokenizer, unet)
    fresh, old, final = BUILD / "pipeline-new", BUILD / "pipeline-old", PACKAGE / "pipeline"
    shutil.rmtree(fresh, ignore_errors=True)
    shutil.rmtree(old, ignore_errors=True)
    averaged.save_pretrained(fresh)
    restore_text_prefix(fresh / "text_encoder" / "model.safetensors")
    for weights in fresh.rglob("*.safetensors"):
        weights.chmod(0o644)
    for name in ("vocab.json", "merges.txt", "tokenizer_config.json"):
        shutil.copy(BUILD / "tokenizer" / name, fresh / "tokenizer" / name)
    if final.exists():
        final.rename(old)
    fresh.rename(final)


def restore_text_prefix(weights: Path) -> None:
    """Puts "text_model." back before the names of the text encoder's tensors.

    Transformers 5 saves without it and reads both; transformers 4 would, with no more than a warning,
    start from random weights.
    """
    tensors = load_file(weights)
    named = {f"text_model.{name.removeprefix('text_model.')}": t for name, t in tensors.items()}
    save_file(named, weights, metadata={"format": "pt"})


if __name__ == "__main__":
    main()
