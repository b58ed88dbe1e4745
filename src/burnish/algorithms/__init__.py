"""Algorithms: frozen dataclasses whose fields are their configuration; one file a family.

What a recipe can name is imported from here: the algorithms, and the settings inside them.

An algorithm turns prompts into rows to learn from (`collect`) and rows into a loss (`loss`). It sees a
policy, never a model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Protocol, TypeVar

if TYPE_CHECKING:
    from torch import Tensor

    from burnish.experience import Task
    from burnish.policy import Policy
    from burnish.randomness import Randomness
    from burnish.rollout import Samples
    from burnish.rows import Rows
    from burnish.scoring import Scored

R = TypeVar("R", bound="Rows")
Memory = Mapping[str, Any]
"""What an algorithm carries from one iteration to the next; {} at the start. JSON values, and lists of
tensors for weights, such as those of a reference policy."""


@dataclass(frozen=True, slots=True)
class Collection(Generic[R]):
    """What `collect` brings home.

    rows: to learn from
    scored: finished samples, one a prompt, with their rewards
    queries: rewards asked for; more than there are samples, if some were drawn and dropped
    memory: for the next iteration; the one that was passed in is not changed
    metrics: numbers to log
    """

    rows: R
    scored: Scored
    queries: int
    memory: Memory
    metrics: Mapping[str, float]

    @property
    def samples(self) -> Samples:
        return self.scored.samples

    @property
    def rewards(self) -> Tensor:
        """What was learned from, one a sample, float32."""
        return self.scored.rewards


class Algorithm(Protocol[R]):
    on_policy: ClassVar[bool]
    """True if an iteration may take one optimiser step only."""
    needs_density: ClassVar[bool]
    """True if it learns from the densities of the sampler's steps."""
    differentiates_reward: ClassVar[bool]
    """True if it needs the reward's gradient with respect to the image."""

    @property
    def train_steps(self) -> int | tuple[int, ...] | None:
        """Which denoising steps are trained; None for all, or for an algorithm that looks at none."""
        ...

    @property
    def group_size(self) -> int:
        """Samples drawn of each prompt; an iteration's samples are a multiple of it."""
        ...

    def collect(self, task: Task, *, memory: Memory, randomness: Randomness) -> Collection[R]:
        """Act: draw samples, ask for their rewards, and prepare rows to learn from."""
        ...

    def loss(self, policy: Policy, minibatch: R) -> tuple[Tensor, Mapping[str, Tensor]]:
        """Losses of the rows, (rows,), whose mean is minimised, and diagnostics of each row."""
        ...


# After the contract, which these modules import.
from burnish.algorithms.awm import AWM as AWM
from burnish.algorithms.critic import Critic as Critic
from burnish.algorithms.ddpo import DDPOIS as DDPOIS
from burnish.algorithms.ddpo import DDPOSF as DDPOSF
from burnish.algorithms.ddpo import PerPrompt as PerPrompt
from burnish.algorithms.ddpo import WholeBatch as WholeBatch
from burnish.algorithms.dpo import D3PO as D3PO
from burnish.algorithms.dpo import DPO as DPO
from burnish.algorithms.dpo import OfflineDPO as OfflineDPO
from burnish.algorithms.dpok import DPOK as DPOK
from burnish.algorithms.draft import AlignProp as AlignProp
from burnish.algorithms.draft import DRaFT as DRaFT
from burnish.algorithms.draft import ReFL as ReFL
from burnish.algorithms.exploration import Unguided as Unguided
from burnish.algorithms.exploration import Wider as Wider
from burnish.algorithms.grpo import GRPO as GRPO
from burnish.algorithms.nft import NFT as NFT
from burnish.algorithms.rwr import RWR as RWR
from burnish.algorithms.rwr import RWRSparse as RWRSparse
from burnish.algorithms.sft import SFT as SFT
from burnish.algorithms.sft import BestOf as BestOf
