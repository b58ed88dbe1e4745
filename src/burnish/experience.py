"""Acting, and what is recorded of the policy that acted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from burnish.images import read_image
from burnish.lanes import side_by_side
from burnish.policy import Cond, Denoiser, MediaEncoder, Policy, snapshot, using
from burnish.prompts import Prompt, PromptSource
from burnish.randomness import Randomness
from burnish.reward import Reward, RewardError, name_of
from burnish.rollout import (
    ALONE,
    Explore,
    Samples,
    Sharing,
    Trajectory,
    decode,
    join,
    join_samples,
    rollouts,
)
from burnish.rows import Rows
from burnish.scoring import Answer, Scored, ask, assess, join_scored, weigh
from burnish.shaping import Potential

R = TypeVar("R", bound=Rows)


@dataclass(frozen=True, slots=True)
class Task:
    """Where an algorithm acts.

    samples: to be drawn an iteration
    batch: samples, or rows without gradient, computed at once
    potential: by which the chains of a policy gradient are shaped, if any
    """

    policy: Policy
    prompts: PromptSource
    reward: Reward
    samples: int
    batch: int
    potential: Potential | None = None


@dataclass(frozen=True, slots=True)
class Experience:
    """Chains, and the samples they ended in with their rewards."""

    trajectory: Trajectory
    scored: Scored

    @property
    def samples(self) -> Samples:
        return self.scored.samples

    @property
    def rewards(self) -> Float[Tensor, " batch"]:
        """What is learned from, float32, on the CPU."""
        return self.scored.rewards


def act(
    task: Task,
    prompts: Sequence[Prompt],
    randomness: Randomness,
    *,
    sharing: Sharing = ALONE,
    explore: Explore | None = None,
    keep: Sequence[int] = (),
    whole: bool = False,
) -> Experience:
    """Draw one sample a prompt and ask for its reward. Raises `RewardError`.

    A sample that its reward has given up on (`reward.Unanswered`) is left out, and with it the group that
    `sharing` puts it in: what comes back holds whole groups.

    sharing, explore, keep: as for `rollout`
    whole: no sample may be left out
    """

    def decoded(chains: Trajectory, own: Sequence[Prompt]) -> tuple[Trajectory, Samples]:
        return chains, decode(task.policy, chains.x0, own, task.batch)

    drawn = rollouts(
        task.policy,
        prompts,
        noise_of(randomness),
        task.batch,
        decoded,
        sharing=sharing,
        explore=explore,
        keep=keep,
    )
    trajectory, samples, answers = _asked_meanwhile(task.reward, drawn, whole=whole)
    places = [place for place, answer in enumerate(answers) if answer is not None]
    kept = _whole_groups(places, sharing.group)
    if not kept:
        raise RewardError(
            f"reward {name_of(task.reward)!r} answered {len(places)} of {len(samples)} samples, and no group "
            f"of {sharing.group} whole"
        )
    if len(kept) < len(samples):
        trajectory, samples = trajectory.chains(kept), samples.pick(kept)
    return Experience(
        trajectory, weigh(task.reward, samples, [answers[place] or {} for place in kept])
    )


def _asked_meanwhile(
    reward: Reward, drawn: Iterator[tuple[Trajectory, Samples]], *, whole: bool
) -> tuple[Trajectory, Samples, list[Answer | None]]:
    """All chains, their samples, and what the reward says of each.

    A thread asks about each batch while the next one is drawn: one call at a time, in order.
    """
    chains: list[Trajectory] = []
    parts: list[Samples] = []
    asked: list[Future[list[Answer | None]]] = []
    worker = ThreadPoolExecutor(1)
    try:
        for batch, samples in drawn:
            first = sum(len(part) for part in parts)
            asked.append(worker.submit(_asked, reward, samples, first, whole))
            chains.append(batch)
            parts.append(samples)
            for each in asked:
                if each.done():
                    each.result()  # raises now what would else be seen after the last batch
        answers = [answer for each in asked for answer in each.result()]
    finally:
        worker.shutdown(cancel_futures=True)
    return join(chains), join_samples(parts), answers


def _asked(reward: Reward, samples: Samples, first: int, whole: bool) -> list[Answer | None]:
    try:
        return ask(reward, samples, whole=whole)
    except RewardError as error:
        if first:
            error.args = (f"{error} (samples are counted from number {first} on)",)
        raise


def _whole_groups(places: Sequence[int], size: int) -> list[int]:
    """Those of `places`, in order, whose group of `size` neighbours is there whole."""
    held = Counter(place // size for place in places)
    return [place for place in places if held[place // size] == size]


def read(task: Task, prompts: Sequence[Prompt], files: Sequence[Path]) -> Samples:
    """Images from files, one a prompt, in the size that the model draws.

    Raises ValueError if the denoiser is no `MediaEncoder`, or for a file that is no image.
    """
    _, height, width = _encoder(task.policy.denoiser).media_shape
    return Samples(
        media=torch.stack([read_image(file, height, width) for file in files]),
        prompts=tuple(prompt.text for prompt in prompts),
        metadata=tuple(prompt.metadata for prompt in prompts),
    )


def encode(task: Task, samples: Samples) -> tuple[Tensor, Cond]:
    """Clean states and conditioning of samples that the policy has not drawn; no gradient."""
    denoiser, device = task.policy.denoiser, task.policy.device
    encoder = _encoder(denoiser)

    @torch.no_grad()
    def part(start: int) -> tuple[Tensor, Cond]:
        some = samples[start : start + task.batch]
        return encoder.encode_media(some.media.to(device)), denoiser.encode(some.prompts)

    starts = range(0, len(samples), task.batch)
    states, conds = zip(*side_by_side(part, starts, device), strict=True)
    x0 = torch.cat(states).to(task.policy.storage)
    return x0, {name: torch.cat([cond[name] for cond in conds]) for name in conds[0]}


def given(task: Task, samples: Samples) -> Experience:
    """Samples that the policy has not drawn, with their rewards: chains of no steps.

    Raises ValueError if the denoiser is no `MediaEncoder`, and `RewardError`.
    """
    x0, cond = encode(task, samples)
    chains = Trajectory(x0[None], x0.new_empty(0, len(x0)), (), (0,), cond)
    return Experience(chains, assess(task.reward, samples))


def _encoder(denoiser: Denoiser) -> MediaEncoder:
    if not isinstance(denoiser, MediaEncoder):
        raise ValueError(
            f"{type(denoiser).__name__} cannot learn from images that it has not drawn: it has no "
            "`encode_media` and `media_shape` (see docs/dpo.md)"
        )
    return denoiser


def noise_of(randomness: Randomness) -> Randomness:
    """Where the noise of the chains comes from that `act` draws with `randomness`."""
    return randomness.at("rollout")


def replace_groups(
    acted: Experience, fresh: Experience, groups: Sequence[int], size: int
) -> Experience:
    """`acted` with its groups of `size` neighbours `groups` replaced by those of `fresh`, in order."""
    order = torch.arange(len(acted.samples)).reshape(-1, size)
    order[list(groups)] = len(acted.samples) + torch.arange(len(fresh.samples)).reshape(-1, size)
    index = order.flatten().tolist()
    return Experience(
        trajectory=join([acted.trajectory, fresh.trajectory]).chains(index),
        scored=join_scored([acted.scored, fresh.scored]).pick(index),
    )


def keep_reference(memory: Mapping[str, Any], denoiser: Denoiser) -> Mapping[str, Any]:
    """The memory with the weights `reference`: those that the denoiser had when this was first asked."""
    return memory if "reference" in memory else {**memory, "reference": snapshot(denoiser)}


def recorded_under(
    task: Task, rows: R, measure: Callable[[R], Tensor], weights: Sequence[Tensor]
) -> Tensor:
    """`recorded`, while the denoiser has other weights."""
    with using(task.policy.denoiser, weights):
        return recorded(task, rows, measure)


def recorded(task: Task, rows: R, measure: Callable[[R], Tensor]) -> Tensor:
    """`measure` of all rows under the policy as it is now; no gradient.

    What a loss compares with (the prediction of a reference or of an old policy) is recorded once, when
    the rows are collected; so a loss never swaps weights.
    """

    @torch.no_grad()
    def part(index: Tensor) -> Tensor:
        return measure(rows[index])

    device = task.policy.device
    pieces = torch.arange(len(rows), device=device).split(task.batch)
    return torch.cat(list(side_by_side(part, pieces, device)))
