"""Settings of the loop and of its optimiser."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from burnish.algorithms import Algorithm


@dataclass(frozen=True, slots=True, kw_only=True)
class AdamW:
    """AdamW (Loshchilov & Hutter 2019) with the paper's settings, and its LoRA learning rate."""

    learning_rate: float = 3e-4
    """3e-4 for LoRA, 1e-5 for full fine-tuning of Stable Diffusion (Black et al. 2023)."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Decay of the first and second moment."""
    eps: float = 1e-8
    """Added to the root of the second moment."""
    weight_decay: float = 1e-4
    """Decoupled weight decay."""
    max_grad_norm: float = 1.0
    """The gradient's 2-norm is clipped to this."""

    def __post_init__(self) -> None:
        for name in ("learning_rate", "eps", "max_grad_norm"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} = {getattr(self, name)}, expected a positive number")
        if self.weight_decay < 0:
            raise ValueError(f"weight_decay = {self.weight_decay}, expected 0 or more")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas = {self.betas}, expected two numbers in [0, 1)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """Geometry of a run: an iteration is one round of collecting and updating."""

    iterations: int = 50
    """Rounds of collecting samples and updating on them."""
    samples: int = 64
    """Samples collected an iteration; 256 in the paper."""
    epochs: int = 1
    """Passes over an iteration's rows."""
    updates: int = 4
    """Optimiser steps a pass; 4 in the paper for DDPO-IS. The rows are divided among them equally."""
    sample_batch: int = 64
    """Samples drawn at once; changes speed and memory only."""
    microbatch: int = 64
    """Rows a forward and backward pass; changes speed and memory only."""
    ema: float | None = None
    """Decay of an average of the weights, an optimiser step; it then serves for evaluation and as
    the final weights."""
    ratio_tolerance: float = 1e-6
    """How far, in nats a dimension, the first update's log-ratios may be from 0 before the run stops.
    1e-6 is for networks in float32; bfloat16 needs about 1e-3 where rollout and update differ in
    batch size."""

    def __post_init__(self) -> None:
        for name in ("iterations", "samples", "epochs", "updates", "sample_batch", "microbatch"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} = {getattr(self, name)}, expected at least 1")
        if self.ema is not None and not 0 < self.ema < 1:
            raise ValueError(f"ema = {self.ema}, expected a decay between 0 and 1")
        if self.ratio_tolerance <= 0:
            raise ValueError(
                f"ratio_tolerance = {self.ratio_tolerance}, expected a positive number"
            )


def check(algorithm: Algorithm, training: Training) -> None:
    """Raises ValueError if the algorithm is not sound under this geometry."""
    if training.samples % algorithm.group_size:
        raise ValueError(
            f"training.samples = {training.samples} is not a multiple of algorithm.group_size = "
            f"{algorithm.group_size}: a group is so many samples of one prompt"
        )
    if algorithm.on_policy and training.epochs * training.updates > 1:
        raise ValueError(
            f"{type(algorithm).__name__} is on-policy: one update an iteration is sound, but "
            f"training asks for {training.epochs} x {training.updates}. Set training.updates = 1 "
            "and training.epochs = 1, or take an algorithm with importance sampling"
        )
