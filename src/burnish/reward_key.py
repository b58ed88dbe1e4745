"""What a reward was asked, as a key: the same key has the same answer.

A key is a hash of all that a reward's value may depend on: which reward it is, with its settings, its version
and the content of its files, and the sample's image (its exact numbers, not their 8-bit form: rewards see
the numbers), prompt and metadata.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from collections.abc import Callable, Mapping
from types import BuiltinFunctionType, FunctionType, MethodType
from typing import Any

import torch

from burnish.reward import Holds, Reward, is_deterministic, name_of
from burnish.rollout import Samples

FORMAT = 1
"""Of the keys; another one forgets all that was kept under the old."""

_HIDDEN = (BuiltinFunctionType, MethodType, functools.partial)
"""Callables that hold what cannot be seen from outside."""


def keys(reward: Reward, samples: Samples) -> list[bytes]:
    """A key of 32 bytes for each sample, in order.

    Raises ValueError as `identity` does, and for metadata that are not plain values.
    """
    asked = identity(reward)
    pixels = samples.media.detach().cpu().contiguous()
    shape = [str(pixels.dtype), *pixels.shape[1:]]
    found = []
    for image, prompt, metadata in zip(pixels, samples.prompts, samples.metadata, strict=True):
        known = _plain(metadata, "metadata", _content)
        text = json.dumps([FORMAT, asked, shape, prompt, known], sort_keys=True)
        digest = hashlib.blake2b(text.encode(), digest_size=32)
        digest.update(image.flatten().view(torch.uint8).numpy().tobytes())
        found.append(digest.digest())
    return found


def identity(reward: Reward) -> Any:
    """What tells a reward from all others, of JSON types: where it is defined, its settings, its version, and
    the content of what it `Holds`, as do the rewards among its settings.

    Settings are the fields of a dataclass, or the attributes of another object; those that begin with an
    underscore are left to the version. Those that the reward calls `transport` say how an answer comes, not
    what it is, and are left out.

    Raises ValueError as `check` does, and if what it holds cannot be had.
    """
    check(reward)
    return _plain(reward, f"reward {name_of(reward)!r}", _content)


def check(reward: Reward) -> None:
    """Raises ValueError for a reward that is not deterministic, has no `version`, or cannot be told from
    others. Looks at no file that the reward holds."""
    name = name_of(reward)
    if not is_deterministic(reward):
        raise ValueError(f"reward {name!r} is not deterministic, so its values cannot be kept")
    if _version(reward) is None:
        raise ValueError(
            f"reward {name!r} has no `version`, so it cannot be told when its values change: give it one, "
            "a number or a text, and another one whenever it judges otherwise"
        )
    _plain(reward, f"reward {name!r}", _unread)


def _content(reward: Holds, where: str) -> str:
    try:
        return reward.content()
    except (ValueError, OSError) as error:
        raise ValueError(f"{where} cannot be told from others: {error}") from error


def _unread(reward: Holds, where: str) -> str:
    del reward, where
    return ""


Content = Callable[[Holds, str], str]
"""Of a reward, and where it is."""


def _plain(value: Any, where: str, content: Content) -> Any:
    """The value of JSON types; lists and tuples are the same. Raises ValueError that names where it is."""
    match value:
        case None | bool() | int() | float() | str():
            return value
        case list() | tuple():
            return [_plain(each, where, content) for each in value]
        case Mapping():
            return {
                _text(key, where): _plain(each, f"{where}.{key}", content)
                for key, each in value.items()
            }
        case _:
            return _defined(value, where, content)


def _text(key: Any, where: str) -> str:
    if not isinstance(key, str):
        raise ValueError(
            f"{where} has the key {key!r}, expected a text: it cannot be part of a cache's key"
        )
    return key


def _defined(value: Any, where: str, content: Content) -> Any:
    """A function or an object by where it, or its class, is defined, with its version, its settings, and the
    content of what it holds."""
    of = value if isinstance(value, FunctionType) else type(value)
    place = f"{of.__module__}:{of.__qualname__}"
    settings = {} if of is value else _settings(value)
    if isinstance(value, _HIDDEN) or "<" in place or settings is None:
        raise ValueError(
            f"{where} is {value!r}, which cannot be part of a cache's key: expected numbers, texts, lists or "
            "tables of these, a function at the top of a module, a dataclass, or an object with a `version`. "
            "An attribute that begins with an underscore is left out: the reward's `version` speaks for it"
        )
    transport = getattr(value, "transport", ())
    told = {
        key: each
        for key, each in settings.items()
        if not key.startswith("_") and key not in transport
    }
    found = {
        "defined": place,
        "version": _version(value),
        "settings": _plain(told, where, content),
    }
    return {**found, "content": content(value, where)} if isinstance(value, Holds) else found


def _settings(value: Any) -> Mapping[str, Any] | None:
    """The fields of a dataclass, or the attributes of an object with a version; None for any other."""
    if dataclasses.is_dataclass(value):
        return {each.name: getattr(value, each.name) for each in dataclasses.fields(value)}
    return getattr(value, "__dict__", None) if _version(value) is not None else None


def _version(value: Any) -> int | str | None:
    version = getattr(value, "version", None)
    return version if isinstance(version, int | str) else None
