"""All that changes while a run goes on, in one place; a checkpoint is this and nothing else."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from burnish.algorithms import Memory
from burnish.policy import Denoiser, snapshot
from burnish.train.settings import AdamW


@dataclass(slots=True, kw_only=True)
class State:
    """The mutable handle of a run.

    iteration: how many are finished
    queries: rewards asked for in training
    memory: what the algorithm carries on
    reward: what a reward that `Adapts` carries on
    average: running average of the trainable weights, if asked for
    """

    parameters: Sequence[Parameter]
    optimizer: torch.optim.Optimizer
    average: list[Tensor] | None = None
    iteration: int = 0
    queries: int = 0
    memory: Memory = field(default_factory=dict)
    reward: Mapping[str, Any] = field(default_factory=dict)


def start(denoiser: Denoiser, optimizer: AdamW, *, averaged: bool) -> State:
    """The state before the first iteration. Raises ValueError if nothing is trainable."""
    parameters = list(denoiser.parameters())
    if not any(parameter.requires_grad for parameter in parameters):
        raise ValueError("the denoiser has no parameter that requires a gradient")
    return State(
        parameters=parameters,
        optimizer=adamw(parameters, optimizer),
        average=snapshot(denoiser) if averaged else None,
    )


def adamw(parameters: Iterable[Parameter], settings: AdamW) -> torch.optim.AdamW:
    return torch.optim.AdamW(
        parameters,
        lr=settings.learning_rate,
        betas=settings.betas,
        eps=settings.eps,
        weight_decay=settings.weight_decay,
    )


@torch.no_grad()
def follow(average: Sequence[Tensor], parameters: Sequence[Parameter], decay: float) -> None:
    """Move the average towards the parameters, in place."""
    for mean, parameter in zip(average, parameters, strict=True):
        mean.lerp_(parameter.detach(), 1 - decay)
