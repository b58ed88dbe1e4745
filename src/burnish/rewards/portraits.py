"""Prompt-image alignment on the embedded model, by the portrait judge."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from torch import Tensor

    from burnish.portraits.judge import Judge
    from burnish.rollout import Samples


@dataclass(frozen=True, slots=True, kw_only=True)
class PortraitAlignment:
    """Share of the attributes a caption asks for that the judge sees in the portrait, in [0, 1].

    The judge is a small classifier that was trained here, on the same kind of portraits; it knows
    nothing else.
    """

    differentiable: ClassVar[bool] = False
    version: ClassVar[int] = 1

    def __call__(self, samples: Samples) -> Tensor:
        return _judge().accuracy(samples.media, list(samples.metadata))


@dataclass(frozen=True, slots=True, kw_only=True)
class PortraitLikelihood:
    """Mean log-probability, by the judge, of the attributes a caption asks for, in nats, at most 0.

    The differentiable companion of `PortraitAlignment`.
    """

    differentiable: ClassVar[bool] = True
    version: ClassVar[int] = 1

    def __call__(self, samples: Samples) -> Tensor:
        return _judge().log_likelihood(samples.media, list(samples.metadata))


@cache
def _judge() -> Judge:
    from burnish.portraits.judge import load_judge

    return load_judge()
