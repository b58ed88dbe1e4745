"""From pairs of image files to a reward model in a folder, and what it is worth on pairs it has not seen."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from burnish import image_list
from burnish.image_list import Entry
from burnish.images import open_image
from burnish.preference import features as seeing
from burnish.preference.bradley_terry import accuracy, linear, log_loss, perceptron, rewarded
from burnish.preference.model import Model, store
from burnish.preference.settings import Features, Fitting, Head, Linear
from burnish.randomness import Randomness

SIDES = ("chosen", "rejected")
TOGETHER = 64
"""Images of one size whose features are computed at once."""


@dataclass(frozen=True, slots=True)
class Split:
    """Places of pairs."""

    learned: list[int]
    held_out: list[int]


def fit_preference(pairs: str, out: Path | str, fitting: Fitting | None = None) -> dict[str, Any]:
    """Learn a reward model from pairs of images; write it into the folder `out`, for the reward `preference`.

    pairs: as for offline DPO: a JSON Lines file, or a folder with `metadata.jsonl`, with `prompt`, `chosen`
        and `rejected` in each line

    Returns what it found, which preference.json has too: of the pairs learned from and of those held out, how
    many there are, the accuracy, and the mean log-loss in nats. Raises ValueError for what cannot be read or
    split.
    """
    fitting = fitting or Fitting()
    entries = image_list.read(pairs, SIDES)
    split = split_pairs(entries, fitting.held_out, Randomness(fitting.seed).at("split"))
    seeing.prepare(fitting.features)
    seen = _seen(entries, fitting.features)
    sides = [torch.stack([seen[entry.images[side]] for entry in entries]) for side in SIDES]
    learned = [side[split.learned] for side in sides]
    model = fit(learned[0], learned[1], fitting)
    report = {"learned": _measured(model, learned)}
    if split.held_out:
        report["held_out"] = _measured(model, [side[split.held_out] for side in sides])
    store(model, Path(out), report)
    return report


def fit(
    chosen: Float[Tensor, "pairs features"],
    rejected: Float[Tensor, "pairs features"],
    fitting: Fitting,
) -> Model:
    """The model of features, whose mean and deviation are taken over both sides."""
    both = torch.cat([chosen, rejected]).double()
    mean, deviation = both.mean(0), both.std(0, correction=0)
    deviation = torch.where(deviation > 0, deviation, 1.0)
    one, other = ((side.double() - mean) / deviation for side in (chosen, rejected))
    head = _head(one, other, fitting.head, Randomness(fitting.seed).at("head"))
    level = rewarded(head, torch.cat([one, other])).mean()
    return Model(features=fitting.features, mean=mean, deviation=deviation, head=head, level=level)


def _head(one: Tensor, other: Tensor, head: Head, randomness: Randomness) -> list[Tensor]:
    if isinstance(head, Linear):
        return [linear(one, other, head.l2)]
    return perceptron(
        one,
        other,
        head.l2,
        hidden=head.hidden,
        updates=head.updates,
        generator=randomness.generator(),
    )


def split_pairs(entries: Sequence[Entry], share: float, randomness: Randomness) -> Split:
    """Sets of pairs that have images in common, in a random order, into those held out until `share` of all
    pairs is reached or passed. Raises ValueError if nothing is left to learn from."""
    groups = _connected([[entry.images[side] for side in SIDES] for entry in entries])
    held_out: list[int] = []
    for place in randomness.permutation(len(groups)).tolist():
        if len(held_out) < share * len(entries):
            held_out += groups[place]
    learned = sorted({*range(len(entries))} - {*held_out})
    if not learned:
        raise ValueError(
            f"the {len(entries)} pairs fall into {len(groups)} sets without an image in common, and "
            f"held_out = {share} leaves none to learn from: give more pairs, or hold out none"
        )
    return Split(learned, sorted(held_out))


def _connected(edges: Sequence[Sequence[Path]]) -> list[list[int]]:
    """Places of edges, those that hang together in one list; in the order of each one's first."""
    above: dict[Path, Path] = {}

    def top(node: Path) -> Path:
        while above.setdefault(node, node) != node:
            above[node] = node = above[above[node]]
        return node

    for one, other in edges:
        above[top(other)] = top(one)
    groups: dict[Path, list[int]] = {}
    for place, (one, _) in enumerate(edges):
        groups.setdefault(top(one), []).append(place)
    return list(groups.values())


def _seen(entries: Sequence[Entry], settings: Features) -> dict[Path, Tensor]:
    """The features of each image file, each read once. Neighbours of one size are computed together."""
    paths = list(dict.fromkeys(entry.images[side] for entry in entries for side in SIDES))
    found: dict[Path, Tensor] = {}
    waiting: dict[Path, Tensor] = {}
    for path in paths:
        image = open_image(path)
        if waiting and (
            len(waiting) == TOGETHER or next(iter(waiting.values())).shape != image.shape
        ):
            found |= _together(waiting, settings)
            waiting = {}
        waiting[path] = image
    return found | _together(waiting, settings)


def _together(images: Mapping[Path, Tensor], settings: Features) -> dict[Path, Tensor]:
    with torch.no_grad():
        seen = seeing.features(settings, torch.stack(list(images.values()))).cpu()
    return dict(zip(images, seen, strict=True))


def _measured(model: Model, sides: Sequence[Tensor]) -> dict[str, Any]:
    chosen, rejected = (model.of(side) for side in sides)
    share = accuracy(chosen, rejected)
    return {
        "pairs": len(chosen),
        "accuracy": share,
        "accuracy_error": math.sqrt(share * (1 - share) / len(chosen)),
        "log_loss": log_loss(chosen, rejected).mean().item(),
    }
