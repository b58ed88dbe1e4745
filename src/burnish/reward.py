"""The reward contract, and the only place where a reward is called.

A reward is a function of `Samples` to one finite number a sample. Whatever goes wrong stops the run
with an error that names the reward, the sample and its prompt; nothing is ever turned into 0.

One that says `unit = "group"` compares the samples of a prompt: it is asked about each prompt by itself.
One that says `unit = "pair"` compares two samples: it is a function of two `Samples` of one length and the
same prompts, to how much each of the first is preferred, such as a probability. A sample's reward is the mean
over all others of its prompt; every two are asked about in both orders, so a preference for a place cancels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from burnish.rollout import Samples

Reward = Callable[..., Tensor]
"""Of `Samples`; one whose unit is a pair, of two of them."""
Unit = Literal["sample", "group", "pair"]


class RewardError(ValueError):
    """A reward raised, cannot be made ready, or returned something other than one finite number a sample.

    A reward that raises this itself, since it knows the sample at fault, is not asked again.
    """


class Unanswered(RewardError):
    """A reward could not be had of some samples, and a batch may go on without them.

    `score` lets it pass, which stops a run; `score_answered` goes on.
    """

    def __init__(self, message: str, reward: Reward, rewards: Mapping[int, float]) -> None:
        """reward: the one that raises this. rewards: of the samples that were answered, by their place"""
        super().__init__(message)
        self.reward, self.rewards = reward, rewards


@runtime_checkable
class Prepares(Protocol):
    """What a reward may have besides, if it needs something that can be missing, such as weights."""

    def prepare(self) -> None:
        """Fetch and load it. A second call does nothing. Raises whatever tells why it cannot be had."""
        ...


@runtime_checkable
class Holds(Protocol):
    """What a reward may have besides, if it judges by files whose content can change under the same settings,
    such as weights: a cache's key has it in it."""

    def content(self) -> str:
        """A digest of them, or the commit of their repository, which it may fetch. Raises whatever tells why
        they cannot be had."""
        ...


def prepare(reward: Reward) -> None:
    """Make a reward that `Prepares` ready, before anything is drawn for it. Raises `RewardError`."""
    name = name_of(reward)
    if not isinstance(reward, Prepares):
        return
    try:
        reward.prepare()
    except Exception as error:
        told = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
        raise RewardError(f"reward {name!r} cannot be made ready: {told}") from error


def name_of(reward: Reward) -> str:
    return getattr(reward, "__name__", None) or type(reward).__name__


def is_deterministic(reward: Reward) -> bool:
    """Whether the reward of a sample is a function of that sample alone, as it is unless the reward says
    `deterministic = False`."""
    return getattr(reward, "deterministic", True)


def unit_of(reward: Reward) -> Unit:
    """What the reward judges: a sample, unless it says otherwise. Raises `RewardError` for any other."""
    unit: Any = getattr(reward, "unit", "sample")
    if unit not in ("sample", "group", "pair"):
        raise RewardError(
            f"reward {name_of(reward)!r} has unit = {unit!r}, expected 'sample', 'group' or 'pair'"
        )
    return unit


def score(reward: Reward, samples: Samples) -> Float[Tensor, " batch"]:
    """The rewards of `samples`, float32, on the CPU, without gradient. Raises `RewardError`."""
    return answer(reward, samples).detach()


def score_answered(
    reward: Reward, samples: Samples
) -> tuple[Float[Tensor, " answered"], list[int]]:
    """As `score`, of the samples that were answered, and their places in order.

    They are all, unless the reward raises `Unanswered`. Raises `RewardError`, also if none was answered.
    """
    try:
        return score(reward, samples), list(range(len(samples)))
    except Unanswered as error:
        # One that comes from a reward inside this one says nothing of this one's values.
        if error.reward is not reward or not error.rewards:
            raise
        places = sorted(error.rewards)
        values = [error.rewards[place] for place in places]
        return checked(values, reward, samples.pick(places)), places


def differentiable(reward: Reward, samples: Samples) -> Float[Tensor, " batch"]:
    """The rewards of `samples` with their gradient, float32, on the CPU.

    Raises `RewardError`, also where they carry no gradient though `samples.media` does.
    """
    values = answer(reward, samples)
    if not values.requires_grad:
        raise RewardError(_without_gradient(reward))
    return values


def check_differentiable(reward: Reward, samples: Samples) -> None:
    """Raises `RewardError` unless a gradient reaches `samples.media`; asks the reward once."""
    media = samples.media.detach().requires_grad_()
    values = differentiable(reward, replace(samples, media=media))
    if torch.autograd.grad(values.sum(), media, allow_unused=True)[0] is None:
        raise RewardError(_without_gradient(reward))


def _without_gradient(reward: Reward) -> str:
    return (
        f"reward {name_of(reward)!r} has no gradient with respect to the image, which this algorithm "
        "differentiates through: compute it from samples.media by torch operations alone (no detach, "
        "no_grad, argmax or conversion to numbers), or take an algorithm that needs none, such as ddpo-is"
    )


def answer(reward: Reward, samples: Samples) -> Tensor:
    """One number a sample, float32, on the CPU, with the gradient if there is one. Raises `RewardError`."""
    unit = unit_of(reward)
    if unit == "sample":
        return _answer(reward, samples)
    values: dict[int, Tensor] = {}
    for places in _of_one_prompt(reward, samples):
        group = samples.pick(places)
        judged = _answer(reward, group) if unit == "group" else _preferences(reward, group)
        values |= zip(places, judged, strict=True)
    return torch.stack([values[place] for place in range(len(samples))])


def _of_one_prompt(reward: Reward, samples: Samples) -> list[list[int]]:
    """The places of each prompt's samples, at least two of each. Raises `RewardError`."""
    groups: dict[str, list[int]] = {}
    for place, prompt in enumerate(samples.prompts):
        groups.setdefault(prompt, []).append(place)
    for prompt, places in groups.items():
        if len(places) < 2:
            raise RewardError(
                f"reward {name_of(reward)!r} compares the samples of a prompt, but {prompt!r} has only one "
                f"(sample {places[0]}); draw several of each: an algorithm with a group_size, fewer prompts, "
                "or evaluation.repeats for held-out ones"
            )
    return list(groups.values())


def _preferences(reward: Reward, group: Samples) -> Tensor:
    """Mean over all others of how much each sample is preferred to them."""
    count = len(group)
    first = [i for i in range(count) for _ in range(count - 1)]
    second = [j for i in range(count) for j in range(count) if j != i]
    values = _answer(reward, group.pick(first), group.pick(second))
    return values.reshape(count, count - 1).mean(dim=1)


def _answer(reward: Reward, *asked: Samples) -> Tensor:
    try:
        values = reward(*asked)
    except RewardError:
        raise
    except Exception as error:
        raise RewardError(_blame(reward, asked, error)) from error
    return checked(values, reward, asked[0])


def checked(values: object, reward: Reward, samples: Samples) -> Tensor:
    """What the reward returned, float32, on the CPU. Raises `RewardError` unless it is one finite number a
    sample."""
    name = name_of(reward)
    try:
        tensor = torch.as_tensor(values, dtype=torch.float32).cpu()
    except (TypeError, ValueError, RuntimeError) as error:
        raise RewardError(
            f"reward {name!r} returned {type(values).__name__}, expected {len(samples)} numbers, "
            "one a sample"
        ) from error
    if tensor.shape != (len(samples),):
        raise RewardError(
            f"reward {name!r} returned shape {tuple(tensor.shape)}, expected ({len(samples)},): "
            "one number a sample. Reduce over pixels before returning."
        )
    broken = torch.nonzero(~tensor.isfinite()).flatten().tolist()
    if broken:
        first = broken[0]
        raise RewardError(
            f"reward {name!r} returned {tensor[first].item()} for sample {first} "
            f"(prompt: {samples.prompts[first]!r}), expected a finite number; "
            f"{len(broken)} of {len(samples)} samples are so"
        )
    return tensor


def _blame(reward: Reward, asked: Sequence[Samples], error: Exception) -> str:
    """Name the sample at fault by asking for each one alone; a batch-wide fault names the batch."""
    name, samples = name_of(reward), asked[0]
    alone = len(samples) if unit_of(reward) != "group" else 0
    for index in range(alone):
        try:
            reward(*(each[index : index + 1] for each in asked))
        except Exception as own:  # noqa: BLE001
            return (
                f"reward {name!r} raised {type(own).__name__}: {own} at sample {index} "
                f"(prompt: {samples.prompts[index]!r})"
            )
    return (
        f"reward {name!r} raised {type(error).__name__}: {error} on a batch of {len(samples)} "
        f"(first prompt: {samples.prompts[0]!r})"
        + (", though not on any of its samples alone" if alone else "")
    )
