"""Direct preference optimisation: of finished samples (Wallace et al. 2023, arXiv 2311.12908) and of chains
(D3PO: Yang et al. 2023, arXiv 2311.13231).

Pairs are the best and the worst of a prompt's group, of whose rewards only the order counts, or they are
given as files.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from burnish import advantages, experience, image_list, losses, rows
from burnish.algorithms import Collection, Memory, chains, endpoints

if TYPE_CHECKING:
    from torch import Tensor

    from burnish.experience import Experience, Task
    from burnish.image_list import Entry
    from burnish.policy import Policy
    from burnish.randomness import Randomness
    from burnish.rollout import Samples


@dataclass(frozen=True, slots=True, kw_only=True)
class DPO:
    """Diffusion-DPO (eq. 14) on fresh pairs: best against worst of each group of samples.

    The reference is the base model. Any sampler draws.
    """

    on_policy: ClassVar[bool] = False
    needs_density: ClassVar[bool] = False
    differentiates_reward: ClassVar[bool] = False
    train_steps = None

    group_size: int = 4
    """Samples of a prompt, of which the best and the worst are compared."""
    beta: float = 100.0
    """Weight of the denoising errors' difference, a mean over dimensions: half of the `beta` of the paper's
    code, which is 2000 to 5000 at a learning rate of 1e-8 for all of Stable Diffusion's weights."""
    draws: int = 8
    """Rows a pair: noise levels at which it is compared, with the same noise on both sides."""

    def __post_init__(self) -> None:
        _check_group(self.group_size)
        _check_beta(self.beta)
        endpoints.check(self.draws)

    def collect(
        self, task: Task, *, memory: Memory, randomness: Randomness
    ) -> Collection[rows.Pairs[rows.Endpoints]]:
        memory = experience.keep_reference(memory, task.policy.denoiser)
        acted = chains.act_in_groups(
            task, task.samples // self.group_size, self.group_size, randomness
        )

        def side(places: list[int]) -> rows.Endpoints:
            own = acted.trajectory.chains(places)
            found = rows.endpoints(
                own.x0,
                own.cond,
                acted.rewards[places],
                draws=self.draws,
                randomness=randomness.at("noised"),
            )
            return _with_reference_error(task, found, memory)

        best, worst = _best_and_worst(acted, self.group_size)
        pairs = rows.Pairs(chosen=side(best), rejected=side(worst))
        return _collection(acted, pairs, memory, self.group_size)

    def loss(
        self, policy: Policy, minibatch: rows.Pairs[rows.Endpoints]
    ) -> tuple[Tensor, Mapping[str, Tensor]]:
        return _error_preference(policy, minibatch, self.beta)


@dataclass(frozen=True, slots=True, kw_only=True)
class OfflineDPO:
    """Diffusion-DPO (eq. 14) on pairs of images that are given, as in the paper.

    The model draws nothing in training. The rewards of an iteration are those of the chosen images, and
    nothing is learnt from them.
    """

    on_policy: ClassVar[bool] = False
    needs_density: ClassVar[bool] = False
    differentiates_reward: ClassVar[bool] = False
    group_size = 1
    train_steps = None

    pairs: str
    """A JSON Lines file, or a folder with one named `metadata.jsonl`: in each line a `prompt`, and the paths
    of a `chosen` and a `rejected` image from the file's folder. An iteration takes
    `training.samples` pairs."""
    beta: float = 1000.0
    """Weight of the denoising errors' difference, a mean over dimensions: half of the `beta` of the paper's
    code, which is 2000 for Stable Diffusion 1.5."""
    draws: int = 1
    """Rows a pair: noise levels at which it is compared, with the same noise on both sides; 1 in the
    paper."""

    def __post_init__(self) -> None:
        _check_beta(self.beta)
        endpoints.check(self.draws)
        self._pairs()

    def collect(
        self, task: Task, *, memory: Memory, randomness: Randomness
    ) -> Collection[rows.Pairs[rows.Endpoints]]:
        memory = experience.keep_reference(memory, task.policy.denoiser)
        drawn = randomness.at("pairs").choices(self._pairs(), task.samples)
        prompts = [pair.prompt for pair in drawn]
        chosen = experience.read(task, prompts, [pair.images["chosen"] for pair in drawn])
        rejected = experience.read(task, prompts, [pair.images["rejected"] for pair in drawn])
        scored = experience.assess(task.reward, chosen)

        def side(samples: Samples) -> rows.Endpoints:
            found = rows.endpoints(
                *experience.encode(task, samples),
                scored.rewards,
                draws=self.draws,
                randomness=randomness.at("noised"),
            )
            return _with_reference_error(task, found, memory)

        return Collection(
            rows=rows.Pairs(chosen=side(chosen), rejected=side(rejected)),
            scored=scored,
            queries=len(chosen),
            memory=memory,
            metrics={},
        )

    def loss(
        self, policy: Policy, minibatch: rows.Pairs[rows.Endpoints]
    ) -> tuple[Tensor, Mapping[str, Tensor]]:
        return _error_preference(policy, minibatch, self.beta)

    def _pairs(self) -> list[Entry]:
        return image_list.read(self.pairs, ("chosen", "rejected"))


@dataclass(frozen=True, slots=True, kw_only=True)
class D3PO:
    """DPO on each denoising step of two chains, by their own log-ratios to the base model (eq. 14)."""

    on_policy: ClassVar[bool] = False
    needs_density: ClassVar[bool] = True
    differentiates_reward: ClassVar[bool] = False

    group_size: int = 4
    """Samples of a prompt, of which the best and the worst are compared."""
    beta: float = 0.1
    """Weight of the log-ratios' difference, in 1 / nats, summed over dimensions; 0.1 in the paper's code,
    where the log-ratios are means over dimensions."""
    train_steps: chains.TrainSteps = None
    """Which denoising steps are trained: all that have a density, so many drawn anew each
    iteration, or those listed (counted from noise)."""

    def __post_init__(self) -> None:
        _check_group(self.group_size)
        _check_beta(self.beta)
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


def _with_reference_error(task: Task, side: rows.Endpoints, memory: Memory) -> rows.Endpoints:
    """One side of all pairs. Both sides have the same levels and noise, by their rows' addresses."""

    def error(some: rows.Endpoints) -> Tensor:
        return endpoints.error(task.policy, some)

    recorded = experience.recorded_under(task, side, error, memory["reference"])
    return replace(side, recorded={"reference_error": recorded})


def _error_preference(
    policy: Policy, pairs: rows.Pairs[rows.Endpoints], beta: float
) -> tuple[Tensor, Mapping[str, Tensor]]:
    """How much further the error has fallen on the chosen than on the rejected."""
    chosen, rejected = pairs.chosen, pairs.rejected
    return losses.preference(
        chosen.recorded["reference_error"] - endpoints.error(policy, chosen),
        rejected.recorded["reference_error"] - endpoints.error(policy, rejected),
        beta,
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
        scored=acted.scored,
        queries=len(acted.samples),
        memory=memory,
        metrics={"groups_without_spread": dead},
    )


def _check_group(size: int) -> None:
    if size < 2:
        raise ValueError(f"group_size = {size}, expected at least 2")


def _check_beta(beta: float) -> None:
    if beta <= 0:
        raise ValueError(f"beta = {beta}, expected a positive number")
