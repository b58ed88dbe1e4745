"""Image files with prompts, listed in a file of JSON lines: what is learned from given images."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from PIL import Image, UnidentifiedImageError

from burnish.prompts import Prompt

LISTED = "metadata.jsonl"
"""The list's name in a folder, as image folders of Hugging Face datasets have it."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A line: image files by their key, and their prompt, whose metadata are the other keys."""

    images: Mapping[str, Path]
    prompt: Prompt


def read(path: str, keys: Sequence[str]) -> list[Entry]:
    """The lines of a file, or of `metadata.jsonl` in a folder; blank ones are passed over.

    path: of the file or the folder; `package:path` for one inside an installed Python package

    A line is an object with a text `prompt`, and under each of `keys` the path of an image, relative to the
    file's folder. Images are opened, but not read whole.

    Raises ValueError that names the line and the key for what is missing or not so.
    """
    place = _place(path)
    file = place / LISTED if place.is_dir() else place
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{str(file)!r} cannot be read as text: {error}") from error
    found = [
        _entry(line, keys, file.parent, f"{str(file)!r}, line {number}")
        for number, line in enumerate(text.split("\n"), start=1)
        if line.strip()
    ]
    if not found:
        raise ValueError(f"{str(file)!r} has no lines, expected {_expected(keys)} in each")
    return found


def _place(path: str) -> Path:
    package, colon, inside = path.partition(":")
    if not colon or Path(path).exists():
        return Path(path)
    try:
        spec = find_spec(package)
    except (ImportError, ValueError):
        spec = None
    folders = spec.submodule_search_locations if spec else None
    return Path(folders[0]) / inside if folders else Path(path)


def _entry(line: str, keys: Sequence[str], folder: Path, where: str) -> Entry:
    try:
        table = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"{where} is not JSON: {error}") from error
    if not isinstance(table, Mapping):
        raise ValueError(f"{where} is {line.strip()!r}, expected {_expected(keys)}")
    texts = {key: _text(table, key, where) for key in ("prompt", *keys)}
    images = {key: folder / texts[key] for key in keys}
    for key, image in images.items():
        _check(image, f"{where}, key {key!r}: {str(image)!r}")
    known = {key: value for key, value in table.items() if key not in texts}
    return Entry(images, Prompt(texts["prompt"], known))


def _text(table: Mapping[str, Any], key: str, where: str) -> str:
    if key not in table:
        raise ValueError(f"{where}: key {key!r} is missing")
    if not isinstance(table[key], str):
        raise ValueError(f"{where}, key {key!r}: {table[key]!r} is not a text")
    return table[key]


def _check(image: Path, where: str) -> None:
    try:
        with Image.open(image):
            return
    except UnidentifiedImageError as error:
        raise ValueError(f"{where} is not an image") from error
    except OSError as error:
        fault = "cannot be read" if image.exists() else "does not exist"
        raise ValueError(f"{where} {fault}") from error


def _expected(keys: Sequence[str]) -> str:
    return "{" + ", ".join(f'"{key}": ...' for key in ("prompt", *keys)) + "}"
