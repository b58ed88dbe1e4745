"""What a portrait shows: ten attributes, their values, and seeded draws of them.

A portrait is described by a mapping from attribute name to value, for example
`{"hair": "long", "hat": "blue", ...}`. Every mapping drawn here names all attributes except
`hair_color`, which a bald head lacks.

Six pairs of hair colour and shirt colour (`HELD_OUT`) never occur in the training data, so that prompts
with them measure whether a model composes what it has only seen apart.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Split = Literal["train", "held-out"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Attribute:
    """One thing to say about a portrait."""

    name: str
    values: tuple[str, ...]
    weights: tuple[int, ...]
    """How often each value is drawn, relative to the others."""


def _even(name: str, *values: str) -> Attribute:
    return Attribute(name=name, values=values, weights=(1,) * len(values))


SCHEMA: tuple[Attribute, ...] = (
    Attribute(
        name="hair",
        values=("bald", "short", "curly", "bob", "long", "braids"),
        weights=(1, 2, 2, 2, 2, 2),
    ),
    _even("hair_color", "black", "brown", "blond", "red", "pink", "blue", "green"),
    _even("skin", "light", "tan", "dark"),
    Attribute(name="glasses", values=("none", "black", "red", "sunglasses"), weights=(5, 2, 2, 2)),
    Attribute(
        name="hat",
        values=("none", "red", "blue", "green", "purple", "yellow"),
        weights=(6, 1, 1, 1, 1, 1),
    ),
    _even("mouth", "smiling", "frowning", "neutral", "surprised"),
    _even("shirt_color", "red", "blue", "green", "yellow", "purple", "black"),
    Attribute(name="shirt_pattern", values=("plain", "striped", "checked"), weights=(2, 1, 1)),
    Attribute(name="earrings", values=("none", "gold"), weights=(1, 1)),
    _even("background", "white", "pink", "yellow", "green", "blue", "purple", "gray"),
)
"""Every attribute, in the order in which the judge's heads and the rendered data store them."""

HELD_OUT: frozenset[tuple[str, str]] = frozenset(
    {
        ("black", "red"),
        ("brown", "purple"),
        ("blond", "blue"),
        ("red", "green"),
        ("blue", "yellow"),
        ("green", "black"),
    }
)
"""Pairs of (hair_color, shirt_color) that no training image shows."""

HAIR_UNDER_HAT = frozenset({"short", "bob", "long", "braids"})
"""Hair that can still be told apart when a hat covers the top of the head."""

HAIR_SHOWING_EARS = frozenset({"bald", "short"})
"""Hair that leaves room for earrings; with any other hair, `earrings` is "none"."""


def attribute(name: str) -> Attribute:
    """The attribute called `name`; ValueError if there is none."""
    for candidate in SCHEMA:
        if candidate.name == name:
            return candidate
    names = ", ".join(a.name for a in SCHEMA)
    raise ValueError(f"no attribute is called {name!r}; expected one of: {names}")


def is_held_out(attributes: Mapping[str, str]) -> bool:
    """Whether the portrait has a pair of hair and shirt colour kept out of training."""
    return (attributes.get("hair_color", ""), attributes["shirt_color"]) in HELD_OUT


def draw_attributes(rng: random.Random, split: Split) -> dict[str, str]:
    """A random portrait: never with a held-out colour pair for "train", always for "held-out"."""
    if split not in ("train", "held-out"):
        raise ValueError(f'split is {split!r}; expected "train" or "held-out"')
    while True:
        attributes = _draw_visible(rng)
        if is_held_out(attributes) == (split == "held-out"):
            return attributes


def encode(attributes: Mapping[str, str]) -> list[int]:
    """The index of each attribute's value in schema order, -1 for an attribute not there."""
    _check(attributes)
    return [a.values.index(attributes[a.name]) if a.name in attributes else -1 for a in SCHEMA]


def decode(codes: list[int]) -> dict[str, str]:
    """The inverse of `encode`."""
    return {a.name: a.values[code] for a, code in zip(SCHEMA, codes, strict=True) if code >= 0}


def _draw_visible(rng: random.Random) -> dict[str, str]:
    """Independent draws, with what the picture could not show taken back."""
    drawn = {a.name: rng.choices(a.values, a.weights)[0] for a in SCHEMA}
    if drawn["hair"] not in HAIR_UNDER_HAT:
        drawn["hat"] = "none"
    if drawn["hair"] not in HAIR_SHOWING_EARS:
        drawn["earrings"] = "none"
    if drawn["hair"] == "bald":
        del drawn["hair_color"]
    return drawn


def _check(attributes: Mapping[str, str]) -> None:
    for name, value in attributes.items():
        values = attribute(name).values
        if value not in values:
            raise ValueError(f"{name} is {value!r}; expected one of: {', '.join(values)}")
