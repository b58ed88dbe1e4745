"""What the three trainings share: the rendered portraits as tensors, a schedule, a clock, two processes.

On two cores, two processes of one thread each, which average their gradients, were two to four times
as fast as one process of two threads: these networks are so small that the threads mostly wait for
each other.
"""

from __future__ import annotations

import argparse
import math
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from jaxtyping import Float, Int8, UInt8
from torch import Tensor

from burnish.portraits.attributes import Split

ROOT = Path(__file__).parents[2]
BUILD = ROOT / "build" / "portraits"
PACKAGE = ROOT / "src" / "burnish" / "portraits"
PIXELS_PER_ART_PIXEL = 4
NUM_PROCESSES = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Portraits:
    """Rendered portraits, one value per art pixel."""

    grid: UInt8[Tensor, "num 3 16 16"]
    codes: Int8[Tensor, "num attributes"]
    """Index of each attribute's value in schema order; -1 where there is none."""


def load_portraits(split: Split) -> Portraits:
    """The portraits that render.py wrote for `split`."""
    with np.load(BUILD / f"{split}.npz") as stored:
        grid = torch.from_numpy(stored["images"]).permute(0, 3, 1, 2).contiguous()
        return Portraits(grid=grid, codes=torch.from_numpy(stored["codes"]))


def pixels(grid: UInt8[Tensor, "batch 3 16 16"]) -> Float[Tensor, "batch 3 64 64"]:
    """Images in [0, 1], each art pixel a crisp square of 4 by 4 pixels."""
    large = F.interpolate(grid.float() / 255, scale_factor=PIXELS_PER_ART_PIXEL, mode="nearest")
    return large.contiguous(memory_format=torch.channels_last)


def warmup_cosine(step: int, *, num_steps: int, num_warmup: int) -> float:
    """Factor of the peak learning rate, in (0, 1]: linear warm-up, then a cosine to 2%."""
    if step < num_warmup:
        return (step + 1) / num_warmup
    progress = (step - num_warmup) / max(1, num_steps - num_warmup)
    return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * progress))


@dataclass(frozen=True, slots=True)
class Clock:
    """Wall seconds, and CPU seconds of all processes together, since it was made."""

    wall_start: float = field(default_factory=time.perf_counter)
    cpu_start: float = field(default_factory=time.process_time)

    def __str__(self) -> str:
        wall = time.perf_counter() - self.wall_start
        cpu = NUM_PROCESSES * (time.process_time() - self.cpu_start)
        return f"{wall:.0f} s wall, {cpu:.0f} s CPU"


def in_parallel(
    work: Callable[[int, argparse.Namespace], None], arguments: argparse.Namespace
) -> None:
    """Calls `work(rank, arguments)` in `NUM_PROCESSES` processes of one thread each; rank seeds torch."""
    with tempfile.TemporaryDirectory() as folder:
        meeting_point = f"file://{folder}/meeting-point"
        torch.multiprocessing.spawn(_join, (work, arguments, meeting_point), nprocs=NUM_PROCESSES)


def _join(rank: int, work: Callable, arguments: argparse.Namespace, meeting_point: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=meeting_point, rank=rank, world_size=NUM_PROCESSES)
    torch.manual_seed(arguments.seed)
    work(rank, arguments)
    dist.barrier()
    dist.destroy_process_group()


def average_gradients(parameters: Iterable[Tensor]) -> None:
    """Replaces the gradients by their mean over the processes."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    flat = torch.cat([g.reshape(-1) for g in gradients])
    dist.all_reduce(flat)
    flat /= NUM_PROCESSES
    for gradient, mean in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(mean.view_as(gradient))
