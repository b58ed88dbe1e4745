"""What the policy gradients on denoising chains share: which steps are trained, and on which rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from burnish import advantages, experience, losses, rollout, rows
from burnish.algorithms import Collection, Memory
from burnish.algorithms.exploration import Exploration, counted

if TYPE_CHECKING:
    from torch import Tensor

    from burnish.experience import Experience, Task
    from burnish.policy import Policy
    from burnish.randomness import Randomness
    from burnish.rollout import Explore

TrainSteps = int | tuple[int, ...] | None
"""All steps that have a density, so many drawn anew each iteration, or those listed."""


def collection(
    task: Task,
    acted: Experience,
    advantage: Tensor,
    memory: Memory,
    *,
    advantage_clip: float,
    train_steps: TrainSteps,
    randomness: Randomness,
    discount: float = 1.0,
    exploration: Exploration | None = None,
) -> Collection[rows.Transitions]:
    """The chosen steps of all chains, each with its chain's advantage: shaped by the task's potential, then
    clipped to +- `advantage_clip`, then discounted.

    advantage: one a chain, or one for each scored step of each chain
    """
    chains, queries, shaped = acted.trajectory, len(acted.samples), {}
    steps = chosen_steps(chains.steps, train_steps, randomness.at("steps"))
    if task.potential is not None:
        advantage, share = task.potential.shaped(
            task.policy, chains, acted.samples, advantage, steps, task.batch
        )
        queries *= 1 + len(steps)
        shaped = {"potential_explains": share}
    clipped = advantage.clamp(-advantage_clip, advantage_clip)
    weighed = clipped
    if discount != 1:
        weighed = advantages.discounted(clipped, chains.steps, chains.num_steps, discount)
    memory, explored = counted(exploration, memory)
    if exploration is not None:
        explored["effective_samples"] = advantages.effective_share(chains.weight)
    return Collection(
        rows=rows.transitions(chains, weighed, steps),
        scored=acted.scored,
        queries=queries,
        memory=memory,
        metrics={
            "advantage_clipped": (advantage != clipped).float().mean().item(),
            **shaped,
            **explored,
        },
    )


def act_in_groups(
    task: Task,
    groups: int,
    size: int,
    randomness: Randomness,
    *,
    shared: int = 0,
    explore: Explore | None = None,
) -> Experience:
    """`size` samples of each of so many prompts, group by group.

    shared: states that a group's chains have in common, counted from noise (`rollout.Sharing`)
    explore: the distribution that steps are drawn from; by default the policy's
    """
    drawn = task.prompts.draw(groups, randomness.at("prompts"))
    asked = [prompt for prompt in drawn for _ in range(size)]
    sharing = rollout.Sharing(group=size, states=shared)
    return experience.act(task, asked, randomness, sharing=sharing, explore=explore)


def with_reference(task: Task, found: Collection[rows.Transitions]) -> Collection[rows.Transitions]:
    """The rows with the mean of each step under the base model, for the exact KL to it; the base model's
    weights are remembered."""

    def mean(some: rows.Transitions) -> Tensor:
        return rows.transition(task.policy, some).mean

    memory = experience.keep_reference(found.memory, task.policy.denoiser)
    means = experience.recorded_under(task, found.rows, mean, memory["reference"])
    return replace(
        found, rows=replace(found.rows, recorded={"reference_mean": means}), memory=memory
    )


def clipped_loss(
    policy: Policy, minibatch: rows.Transitions, *, clip: float, kl: float
) -> tuple[Tensor, Mapping[str, Tensor]]:
    """PPO's clipped surrogate, with the KL to the base model weighted by `kl` where that is not 0."""
    now = rows.transition(policy, minibatch)
    loss, diagnostics = losses.clipped_ratio(
        now.log_prob(minibatch.x_next),
        minibatch.old_log_prob,
        minibatch.advantage,
        event_size=minibatch.event_size,
        clip=clip,
    )
    if not kl:
        return weighted(minibatch, loss), diagnostics
    reference = replace(now, mean=minibatch.recorded["reference_mean"])
    penalty = losses.divergence_penalty(now.kl(reference), minibatch.event_size, kl)
    return weighted(minibatch, loss + penalty[0]), {**diagnostics, **penalty[1]}


def weighted(minibatch: rows.Transitions, loss: Tensor) -> Tensor:
    """The rows' losses by the importance weights of their chains: what exploration drew, as the policy would
    have drawn it. The ratio in the loss stays that of the policy to the one that collected (Hilton et al.
    2021, arXiv 2110.00641), so clipping bounds the policy's move and not the weight."""
    return minibatch.weight * loss


def chosen_steps(
    stochastic: Sequence[int], asked: int | Sequence[int] | None, randomness: Randomness
) -> list[int]:
    """The denoising steps to train on, out of those that have a density.

    Raises ValueError if the sampler has no such steps, or fewer than asked for.
    """
    if not stochastic:
        raise ValueError(
            "this sampler is deterministic: no step has a density, so there is no policy gradient. "
            "Give it noise, for example sampler.eta = 1, or take a sampler that has some"
        )
    if asked is None:
        return list(stochastic)
    if isinstance(asked, int):
        if asked > len(stochastic):
            raise ValueError(
                f"train_steps = {asked}, but only {len(stochastic)} steps have a density"
            )
        return sorted(randomness.python().sample(list(stochastic), asked))
    return list(asked)


def check(advantage_clip: float, train_steps: TrainSteps, discount: float = 1.0) -> None:
    """Raises ValueError for settings that cannot be."""
    if not 0 < discount <= 1:
        raise ValueError(f"discount = {discount}, expected a number above 0, up to 1")
    if advantage_clip <= 0:
        raise ValueError(f"advantage_clip = {advantage_clip}, expected a positive number")
    if train_steps == () or (isinstance(train_steps, int) and train_steps < 1):
        raise ValueError(f"train_steps = {train_steps}, expected at least one step")
