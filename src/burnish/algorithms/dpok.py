"""Policy gradient with an exact KL to the base model (DPOK: Fan et al. 2023, arXiv 2305.16381)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from burnish import rows
from burnish.algorithms import Collection, Memory, chains
from burnish.algorithms.critic import Critic
from burnish.algorithms.ddpo import PerPrompt, WholeBatch, collect
from burnish.algorithms.exploration import Exploration

if TYPE_CHECKING:
    from torch import Tensor

    from burnish.experience import Task
    from burnish.policy import Policy
    from burnish.randomness import Randomness


@dataclass(frozen=True, slots=True, kw_only=True)
class DPOK:
    """Maximise E[r] - kl * KL(policy || base model), by the clipped ratio (algorithm 1, section 4.2)."""

    on_policy: ClassVar[bool] = False
    needs_density: ClassVar[bool] = True
    differentiates_reward: ClassVar[bool] = False
    group_size = 1

    kl: float = 0.01
    """Weight of the KL, in advantages a nat. The paper's code has 0.01, with rewards that are not normalised
    and weighted by 100."""
    clip: float = 1e-4
    """Half-width of the ratio's interval, on the mean log-ratio over dimensions; 1e-4 in the paper's code."""
    advantage_clip: float = 5.0
    """Advantages are clipped to +- this, as in DDPO."""
    baseline: PerPrompt | WholeBatch | Critic = field(default_factory=PerPrompt)
    """How rewards become advantages; the paper learns a value function, as `Critic` does."""
    train_steps: chains.TrainSteps = None
    """Which denoising steps are trained: all that have a density, so many drawn anew each
    iteration, or those listed (counted from noise)."""
    discount: float = 1.0
    """An advantage at step k of T is weighted by discount^(T - 1 - k); 1 in the paper, less in 2409.00588."""
    exploration: Exploration | None = None
    """Draw some actions from another distribution, and weight the chains back; none in the paper."""

    def __post_init__(self) -> None:
        if self.kl <= 0:
            raise ValueError(
                f"kl = {self.kl}, expected a positive number; without KL this is ddpo-is"
            )
        if not 0 < self.clip < 1:
            raise ValueError(f"clip = {self.clip}, expected a number between 0 and 1")
        chains.check(self.advantage_clip, self.train_steps, self.discount)

    def collect(
        self, task: Task, *, memory: Memory, randomness: Randomness
    ) -> Collection[rows.Transitions]:
        return chains.with_reference(task, collect(self, task, memory, randomness))

    def loss(
        self, policy: Policy, minibatch: rows.Transitions
    ) -> tuple[Tensor, Mapping[str, Tensor]]:
        return chains.clipped_loss(policy, minibatch, clip=self.clip, kl=self.kl)
