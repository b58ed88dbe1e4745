"""Images with prompts, listed in a file of JSON lines: what supervised fine-tuning learns from."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image, UnidentifiedImageError

from burnish import images
from burnish.prompts import Prompt

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Captioned:
    """An image's file and its prompt, whose metadata are the other keys of its line.

    line: counted from 1, for messages
    """

    image: Path
    prompt: Prompt
    line: int


def read(path: Path) -> list[Captioned]:
    """The lines of a file; blank ones are passed over.

    Raises ValueError with the line and the key if something is missing or of another type.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{str(path)!r} cannot be read as text: {error}") from error
    found = [
        _parsed(path, number, line)
        for number, line in enumerate(text.split("\n"), start=1)
        if line.strip()
    ]
    if not found:
        raise ValueError(
            f'{str(path)!r} has no lines, expected one an image: {{"image": path, "prompt": text}}'
        )
    return found


def check_images(path: Path) -> None:
    """Read the file, and the header of each image. Raises ValueError with the line, and with the key
    where an image is missing, is none, or is not of the size of the first."""
    entries = read(path)
    first = _size(path, entries[0])
    for entry in entries[1:]:
        size = _size(path, entry)
        if size != first:
            fault = f"has {size[0]} x {size[1]} pixels, but the first has {first[0]} x {first[1]}"
            raise ValueError(f"{_blame(path, entry, fault)}; bring all to the model's size")


def load(path: Path, entry: Captioned) -> Tensor:
    """The image of a line of `path`, (3, height, width), float32 in [0, 1].

    Raises ValueError with the line if it cannot be read whole.
    """
    try:
        return images.read(entry.image)
    except OSError as error:
        raise ValueError(_blame(path, entry, f"cannot be read: {error}")) from error


def _parsed(path: Path, number: int, line: str) -> Captioned:
    try:
        table = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"{_where(path, number)} is not JSON: {error}") from error
    if not isinstance(table, Mapping):
        raise ValueError(
            f'{_where(path, number)} is {line!r}, expected {{"image": ..., "prompt": ...}}'
        )
    image = _text(path, number, table, "image")
    prompt = _text(path, number, table, "prompt")
    known = {key: value for key, value in table.items() if key not in ("image", "prompt")}
    return Captioned(image=path.parent / image, prompt=Prompt(prompt, known), line=number)


def _text(path: Path, number: int, table: Mapping[str, Any], key: str) -> str:
    if key not in table:
        raise ValueError(f"{_where(path, number)}: key {key!r} is missing")
    if not isinstance(table[key], str):
        raise ValueError(f"{_where(path, number)}, key {key!r}: {table[key]!r} is not a text")
    return table[key]


def _size(path: Path, entry: Captioned) -> tuple[int, int]:
    try:
        with Image.open(entry.image) as image:
            return image.size
    except UnidentifiedImageError as error:
        fault = "is not an image"
        raise ValueError(_blame(path, entry, fault)) from error
    except OSError as error:
        fault = "cannot be read" if entry.image.exists() else "does not exist"
        raise ValueError(_blame(path, entry, fault)) from error


def _blame(path: Path, entry: Captioned, fault: str) -> str:
    return f"{_where(path, entry.line)}, key 'image': {str(entry.image)!r} {fault}"


def _where(path: Path, line: int) -> str:
    return f"{str(path)!r}, line {line}"
