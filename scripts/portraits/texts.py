"""What the trainings of the two pipelines share about text: captions, tokens, the text encoders' own task.

A text encoder first learns, for a minute or two, to say which attributes a caption mentions.
"""

from __future__ import annotations

import argparse
import itertools
import random
from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from tokenizer import MAX_LENGTH
from torch import Tensor, nn
from training import Clock, average_gradients, warmup_cosine
from transformers import CLIPTextConfig, CLIPTokenizer

from burnish.portraits.attributes import SCHEMA, decode, encode
from burnish.portraits.captions import caption, portrait_prompts

EMPTY_CAPTIONS = 0.1
"""Share of training captions replaced by "", which classifier-free guidance needs."""

Read = Callable[[Int64[Tensor, "batch length"]], tuple[Float[Tensor, "batch width"], ...]]
"""The states of some captions that shall hold every attribute that they mention."""


def text_config(tokenizer: CLIPTokenizer, *, width: int, num_layers: int) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=4 * width,
        projection_dim=width,
        num_hidden_layers=num_layers,
        num_attention_heads=4,
        max_position_embeddings=MAX_LENGTH,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def tokenize(tokenizer: CLIPTokenizer, texts: list[str]) -> Int64[Tensor, "batch length"]:
    return tokenizer(
        texts, padding="max_length", max_length=MAX_LENGTH, truncation=True, return_tensors="pt"
    ).input_ids


def captions(codes: list[list[int]], rng: random.Random) -> list[str]:
    """A fresh caption of each portrait, some of them empty."""
    return ["" if rng.random() < EMPTY_CAPTIONS else caption(decode(row), rng)[0] for row in codes]


def train_text(
    text_encoder: nn.Module,
    read: Read,
    tokenizer: CLIPTokenizer,
    rng: random.Random,
    arguments: argparse.Namespace,
    *,
    width: int,
    report: bool,
) -> None:
    """Teaches the states that `read` takes from the text encoder to hold every attribute of a caption."""
    clock = Clock()
    heads = readout(width, torch.Generator().manual_seed(arguments.seed))
    parameters = [*text_encoder.parameters(), *heads.parameters()]
    optimiser = torch.optim.AdamW(parameters, lr=2e-3)
    prompts = portrait_prompts("train", rng.randrange(2**32))
    for step in range(arguments.num_text_steps):
        factor = warmup_cosine(step, num_steps=arguments.num_text_steps, num_warmup=30)
        optimiser.param_groups[0]["lr"] = 2e-3 * factor
        batch = list(itertools.islice(prompts, arguments.text_batch))
        states = read(tokenize(tokenizer, [text for text, _ in batch]))
        loss = readout_loss(heads, states, torch.tensor([encode(m) for _, m in batch]))
        optimiser.zero_grad()
        loss.backward()
        average_gradients(parameters)
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        if report and step % 50 == 0:
            print(f"text step {step} loss {loss.item():.4f} ({clock})", flush=True)


def readout(width: int, generator: torch.Generator) -> nn.ModuleList:
    """A linear head for each attribute, with one class more than it has values: not mentioned."""
    heads = nn.ModuleList(nn.Linear(width, len(a.values) + 1) for a in SCHEMA)
    for head in heads:
        nn.init.normal_(head.weight, std=0.1, generator=generator)
        nn.init.zeros_(head.bias)
    return heads


def readout_loss(
    heads: nn.ModuleList,
    states: tuple[Float[Tensor, "batch width"], ...],
    codes: Int64[Tensor, "batch attributes"],
) -> Tensor:
    """Cross-entropy in nats, summed over attributes, mean over all states."""
    wanted = torch.cat([codes] * len(states)) + 1
    together = torch.cat(states)
    losses = [F.cross_entropy(head(together), w) for head, w in zip(heads, wanted.T, strict=True)]
    return torch.stack(losses).sum()
