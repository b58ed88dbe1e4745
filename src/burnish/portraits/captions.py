"""Captions of portraits: a small grammar of English that says all or some of a portrait's attributes.

`draw_prompt` is the way in for prompts, `caption` for the caption of a known portrait. Both also return
which attributes the text mentions, so that a judge scores nothing that was not asked for. What a
portrait lacks (no hat, no glasses, a plain shirt) is mostly left unsaid.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping

from burnish.portraits.attributes import Split, draw_attributes

MENTION_PRESENT = 0.9
"""Probability that a caption mentions an attribute."""

MENTION_ABSENT = 0.12
"""Probability that a caption mentions a value of `UNREMARKABLE`."""

UNREMARKABLE = frozenset(
    {("glasses", "none"), ("hat", "none"), ("earrings", "none"), ("shirt_pattern", "plain")}
)
"""Values that one seldom talks about."""

HAIR = {
    "short": ("short {} hair",),
    "curly": ("curly {} hair", "{} curls"),
    "bob": ("a {} bob", "{} hair cut in a bob"),
    "long": ("long {} hair",),
    "braids": ("{} braids", "braided {} hair"),
}
NO_HAIR = "no hair"
GLASSES = {
    "none": ("no glasses",),
    "black": ("black glasses", "black framed glasses"),
    "red": ("red glasses", "red framed glasses"),
    "sunglasses": ("sunglasses", "dark sunglasses"),
}
MOUTH = {
    "smiling": ("smiling", "looking happy"),
    "frowning": ("frowning", "looking sad"),
    "neutral": ("with a straight mouth", "looking calm"),
    "surprised": ("with an open mouth", "looking surprised"),
}
PATTERN = {
    "plain": ("plain {} shirt", "{} shirt without pattern"),
    "striped": ("striped {} shirt", "{} shirt with stripes"),
    "checked": ("checked {} shirt", "{} shirt with checks"),
}
OPENINGS = ("a portrait of ", "a pixel art portrait of ", "a picture of ", "a drawing of ", "")
BACKGROUNDS = ("on a {} background", "against a {} background", "in front of a {} wall")


def draw_prompt(
    rng: random.Random, split: Split, about: tuple[str, ...] = (), *, terse: bool = False
) -> tuple[str, dict[str, str]]:
    """A caption of a random portrait, and the attributes that it mentions.

    about: exactly the attributes to mention; by default a random part of all. A bald head lacks
        `hair_color`, so asking for that asks for hair
    terse: worded as `describe_tersely` does
    A "held-out" prompt always mentions the pair of colours that training lacks.
    """
    pair = ("hair_color", "shirt_color") if split == "held-out" else ()
    attributes = draw_attributes(rng, split)
    while not attributes.keys() >= set(about):
        attributes = draw_attributes(rng, split)
    if about:
        mentioned = {name: attributes[name] for name in dict.fromkeys((*about, *pair))}
    else:
        mentioned = mention(attributes, rng, always=pair)
    return (describe_tersely if terse else describe)(mentioned, rng), mentioned


def portrait_prompts(split: Split, seed: int) -> Iterator[tuple[str, dict[str, str]]]:
    """Endless prompts, as `draw_prompt` gives them, the same for the same seed."""
    rng = random.Random(seed)
    while True:
        yield draw_prompt(rng, split)


def caption(attributes: Mapping[str, str], rng: random.Random) -> tuple[str, dict[str, str]]:
    """One of many captions of a portrait, and the attributes that it mentions."""
    mentioned = mention(attributes, rng)
    return describe(mentioned, rng), mentioned


def mention(
    attributes: Mapping[str, str], rng: random.Random, *, always: tuple[str, ...] = ()
) -> dict[str, str]:
    """A random part of `attributes`, never empty; those named in `always` are kept."""
    while True:
        kept = {
            name: value
            for name, value in attributes.items()
            if rng.random() < _mention_probability(name, value) or name in always
        }
        if kept:
            return kept


def describe(mentioned: Mapping[str, str], rng: random.Random) -> str:
    """A text that says exactly what `mentioned` holds, in one of many phrasings and orders."""
    features, clauses = _features(mentioned, rng), _clauses(mentioned, rng)
    rng.shuffle(features)
    rng.shuffle(clauses)
    if rng.random() < 0.2 and features:
        return ", ".join(features + clauses)
    person = "a person"
    if NO_HAIR in features:
        features.remove(NO_HAIR)
        person = "a bald person"
    if features:
        person += " with " + _enumerate(features)
    return rng.choice(OPENINGS) + ", ".join([person, *clauses])


def describe_tersely(mentioned: Mapping[str, str], rng: random.Random) -> str:
    """A list without grammar, such as "shirt striped, no hat, hair red, shirt blue, hair long".

    The base model knows the words (but "neutral"), though not in this order, and follows them worse.
    """
    parts = [_tersely(name.partition("_")[0], value) for name, value in mentioned.items()]
    rng.shuffle(parts)
    return ", ".join(parts)


def _tersely(noun: str, value: str) -> str:
    return f"no {noun}" if value == "none" else f"{noun} {value}"


def _mention_probability(name: str, value: str) -> float:
    return MENTION_ABSENT if (name, value) in UNREMARKABLE else MENTION_PRESENT


def _features(mentioned: Mapping[str, str], rng: random.Random) -> list[str]:
    """Noun phrases for what a person has."""
    phrases = [_hair(mentioned, rng)]
    if "skin" in mentioned:
        phrases.append(f"{mentioned['skin']} skin")
    if "glasses" in mentioned:
        phrases.append(rng.choice(GLASSES[mentioned["glasses"]]))
    if "hat" in mentioned:
        phrases.append("no hat" if mentioned["hat"] == "none" else f"a {mentioned['hat']} hat")
    if "earrings" in mentioned:
        phrases.append("no earrings" if mentioned["earrings"] == "none" else "gold earrings")
    return [phrase for phrase in phrases if phrase]


def _hair(mentioned: Mapping[str, str], rng: random.Random) -> str:
    """What the hair is like, or "" if that is not mentioned."""
    style, color = mentioned.get("hair"), mentioned.get("hair_color", "")
    if style == "bald":
        return NO_HAIR
    if style is None:
        return f"{color} hair" if color else ""
    return _fill(rng.choice(HAIR[style]), color)


def _clauses(mentioned: Mapping[str, str], rng: random.Random) -> list[str]:
    """What follows the person: the mouth, the shirt and the background."""
    clauses = [_shirt(mentioned, rng)]
    if "mouth" in mentioned:
        clauses.append(rng.choice(MOUTH[mentioned["mouth"]]))
    if "background" in mentioned:
        clauses.append(_fill(rng.choice(BACKGROUNDS), mentioned["background"]))
    return [clause for clause in clauses if clause]


def _shirt(mentioned: Mapping[str, str], rng: random.Random) -> str:
    pattern, color = mentioned.get("shirt_pattern"), mentioned.get("shirt_color", "")
    if pattern is None and not color:
        return ""
    template = rng.choice(PATTERN[pattern]) if pattern else "{} shirt"
    return f"{rng.choice(('in', 'wearing'))} a {_fill(template, color)}"


def _fill(template: str, word: str) -> str:
    """The template with `word` in its gap; an empty word leaves no double space."""
    return " ".join(template.format(word).split())


def _enumerate(phrases: list[str]) -> str:
    """ "a", "a and b", "a, b and c"."""
    if len(phrases) == 1:
        return phrases[0]
    return ", ".join(phrases[:-1]) + " and " + phrases[-1]
