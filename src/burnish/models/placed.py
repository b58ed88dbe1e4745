"""A frozen network on its device, and which device that is."""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from torch import nn

Network = TypeVar("Network", bound=nn.Module)


def device_named(name: str) -> torch.device:
    """`cpu`, `cuda`, `mps`, or `auto` for the best there is."""
    if name != "auto":
        return torch.device(name)
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def placed(network: Network, device: torch.device) -> Network:
    """Frozen, in evaluation mode (dropout would make the policy a different one at each call), with
    channels last, which the convolutions of CPUs and GPUs are fastest with."""
    network.requires_grad_(False).eval()
    move: Any = network.to  # diffusers and torch disagree on its signature
    return move(device, memory_format=torch.channels_last)
