"""Rewards that servers compute."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from burnish.rewards import servers

if TYPE_CHECKING:
    from torch import Tensor

    from burnish.rollout import Samples


@dataclass(frozen=True, slots=True, kw_only=True)
class Remote:
    """The reward that one or several servers offer (`burnish serve-reward`, docs/rewards-remote.md).

    A reward of single samples: a server sees `batch` of them at a time.
    """

    differentiable: ClassVar[bool] = False

    servers: tuple[str, ...]
    """Addresses, such as `http://127.0.0.1:8000`; all must offer the same reward."""
    batch: int = 16
    """Samples a request."""
    timeout: float = 60.0
    """Seconds that a request may take, from connecting to the last byte of the answer."""
    retries: int = 5
    """How often a request that failed is sent again, to whichever server is well."""
    backoff: float = 0.5
    """Seconds that a server rests after a failure; twice as long after each further one in a row, up to 30,
    times a random number from 0.5 to 1."""
    concurrency: int = 8
    """Requests under way at a time, over all servers."""
    format: Literal["npz", "png"] = "npz"
    """How images travel: npz is exact, png rounds to 8 bits and is several times smaller."""
    token_variable: str | None = None
    """The name of an environment variable that holds the servers' token."""
    on_failure: Literal["stop", "drop"] = "stop"
    """When a request's retries are spent: stop the run, or leave its samples out of the batch, and count
    them. An evaluation stops in either case."""

    def __post_init__(self) -> None:
        servers.check(self)
        if self.batch < 1:
            raise ValueError(f"batch = {self.batch}, expected at least 1")

    def __call__(self, samples: Samples) -> Tensor:
        import torch

        from burnish.serving.client import ask

        return torch.tensor(ask(self, samples), dtype=torch.float32)
