"""Direct preference optimisation: of finished samples (Wallace et al. 2023, arXiv 2311.12908) and of chains
(D3PO: Yang et al. 2023, arXiv 2311.13231).

Both compare the best of a prompt's group with its worst; only the order of rewards counts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from burnish import advantages, experience, losses, rows
from burnish.algorithms import Collection, Memory, chains, endpoints

if TYPE_CHECKING:
    from torch import Tensor

    from burnish.experience import Experience, Task
    from burnish.policy import Policy
    from burnish.randomness import Randomness


@dataclass(frozen=True, slots=True, kw_only=True)
class DPO:
    """Diffusion-DPO (eq. 14) on fresh pairs: best against worst of each group of samples.

    The reference is the base model. Any sampler draws.
    """

    on_policy: ClassVar[bool] = False
    needs_density: ClassVar[bool] = False
    train_steps = None

    group_size: int = 4
    """Samples of a prompt, of which the best and the worst are compared."""
    beta: float = 100.0
    """Weight of the denoising errors' difference, a mean over dimensions; 2000 to 5000 in the paper on Stable
    Diffusion, with a learning rate of 1e-8."""
    draws: int = 8
    """Rows a pair: noise levels at which it is compared, with the same noise on both sides."""

    def __post_init__(self) -> None:
        _check(self.group_size, self.beta)
        endpoints.check(self.draws)

    def collect(
        self, task: Task, *, memory: Memory, randomness: Randomness
    ) -> Collection[rows.Pairs[rows.Endpoints]]:
        memory = experience.keep_reference(memory, task.policy.denoiser)
        acted = chains.act_in_groups(
            task, task.samples // self.group_size, self.group_size, randomness
        )
        best, worst = _best_and_worst(acted, self.group_size)
        pairs = rows.Pairs(
            chosen=self._side(task, acted, best, memory, randomness),
            rejected=self._side(task, acted, worst, memory, randomness),
        )
        return _collection(acted, pairs, memory, self.group_size)

    def loss(self, policy: Policy, minibatch: rows.Pairs) -> tuple[Tensor, Mapping[str, Tensor]]:
        chosen, rejected = minibatch.chosen, minibatch.rejected
        return losses.preference(
            chosen.recorded["reference_error"] - endpoints.error(policy, chosen),
            rejected.recorded["reference_error"] - endpoints.error(policy, rejected),
            self.beta,
        )

    def _side(
        self,
        task: Task,
        acted: Experience,
        places: list[int],
        memory: Memory,
        randomness: Randomness,
    ) -> rows.Endpoints:
        """One side of all pairs; both sides have the same levels and noise, by their rows' addresses."""
        own = acted.trajectory.chains(places)
        side = rows.endpoints(
            own.x0,
            own.cond,
            acted.rewards[places],
            draws=self.draws,
            randomness=randomness.at("noised"),
        )
        error = experience.recorded_under(
            task, side, lambda some: endpoints.error(task.policy, some), memory["reference"]
        )
        return replace(side, recorded={"reference_error": error})


@dataclass(frozen=True, slots=True, kw_only=True)
class D3PO:
    """DPO on each denoising step of two chains, by their own log-ratios to the base model (eq. 14)."""

    on_policy: ClassVar[bool] = False
    needs_density: ClassVar[bool] = True

    group_size: int = 4
    """Samples of a prompt, of which the best and the worst are compared."""
    beta: float = 0.1
    """Weight of the log-ratios' difference, in 1 / nats, summed over dimensions; 0.1 in the paper's code."""
    train_steps: chains.TrainSteps = None
    """Which denoising steps are trained: all that have a density, so many drawn anew each
    iteration, or those listed (counted from noise)."""

    def __post_init__(self) -> None:
        _check(self.group_size, self.beta)
        chains.check(1.0, self.train_steps)

    def collect(
        self, task: Task, *, memory: Memory, randomness: Randomness
    ) -> Collection[rows.Pairs]:
        memory = experience.keep_reference(memory, task.policy.denoiser)
        acted = chains.act_in_groups(
            task, task.samples // self.group_size, self.group_size, randomness
        )
        steps = chains.chosen_steps(
            acted.trajectory.steps, self.train_steps, randomness.at("steps")
        )

        def side(places: list[int]) -> rows.Transitions:
            own = rows.transitions(acted.trajectory.chains(places), acted.rewards[places], steps)
            reference = experience.recorded_under(
                task, own, lambda some: rows.log_prob(task.policy, some), memory["reference"]
            )
            return replace(own, recorded={"reference_log_prob": reference})

        best, worst = _best_and_worst(acted, self.group_size)
        pairs = rows.Pairs(chosen=side(best), rejected=side(worst))
        return _collection(acted, pairs, memory, self.group_size)

    def loss(self, policy: Policy, minibatch: rows.Pairs) -> tuple[Tensor, Mapping[str, Tensor]]:
        chosen, rejected = minibatch.chosen, minibatch.rejected
        return losses.preference(
            rows.log_prob(policy, chosen) - chosen.recorded["reference_log_prob"],
            rows.log_prob(policy, rejected) - rejected.recorded["reference_log_prob"],
            self.beta,
        )


def _best_and_worst(acted: Experience, size: int) -> tuple[list[int], list[int]]:
    """Places of each group's best and worst sample; of groups without spread only where all are so."""
    groups = acted.rewards.reshape(-1, size)
    dead = set(advantages.without_spread(acted.rewards, size))
    kept = [i for i in range(len(groups)) if i not in dead] or [*range(len(groups))]
    best, worst = groups.argmax(1).tolist(), groups.argmin(1).tolist()
    return [i * size + best[i] for i in kept], [i * size + worst[i] for i in kept]


def _collection(
    acted: Experience, pairs: rows.Pairs, memory: Memory, size: int
) -> Collection[rows.Pairs]:
    dead = len(advantages.without_spread(acted.rewards, size)) * size / len(acted.samples)
    return Collection(
        rows=pairs,
        samples=acted.samples,
        rewards=acted.rewards,
        queries=len(acted.samples),
        memory=memory,
        metrics={"groups_without_spread": dead},
    )


def _check(group_size: int, beta: float) -> None:
    if group_size < 2:
        raise ValueError(f"group_size = {group_size}, expected at least 2")
    if beta <= 0:
        raise ValueError(f"beta = {beta}, expected a positive number")
