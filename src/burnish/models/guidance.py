"""Classifier-free guidance (Ho & Salimans 2022, arXiv 2207.12598)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from burnish.policy import Cond


def guided_and_not(
    network: Callable[[Tensor, Tensor, Cond], Tensor],
    x: Tensor,
    time: Tensor,
    cond: Cond,
    unconditional: Cond,
    weight: float,
) -> tuple[Tensor, Tensor]:
    """u + weight (c - u), and the conditional prediction c, of one pass of the network with a batch twice as
    large; c alone at weight 1.

    unconditional: of one row, the empty prompt's
    """
    if weight == 1:
        c = network(x, time, cond)
        return c, c
    both = {
        name: torch.cat([unconditional[name].expand_as(value), value])
        for name, value in cond.items()
    }
    u, c = network(torch.cat([x, x]), torch.cat([time, time]), both).chunk(2)
    return u + weight * (c - u), c
