"""Preferences: pairs of images of one prompt, of which one was preferred, listed in a file."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from burnish.prompts import Prompt

LISTED = "pairs.jsonl"
"""The list's name in a folder of pairs."""
KEYS = ("prompt", "chosen", "rejected")


@dataclass(frozen=True, slots=True)
class Preference:
    """Two image files of one prompt; people, or a model, liked `chosen` better."""

    prompt: Prompt
    chosen: Path
    rejected: Path


def read(pairs: str) -> list[Preference]:
    """The pairs of a JSON Lines file, or of the file `pairs.jsonl` of a folder.

    A line is an object with a text `prompt` and the paths of two images, `chosen` and `rejected`, relative
    to the file's folder; whatever else it holds becomes the prompt's metadata. Blank lines are passed over.

    Raises ValueError that names the line and the key for what is not there or not so; images are looked
    for, and not opened.
    """
    path = Path(pairs) / LISTED if Path(pairs).is_dir() else Path(pairs)
    if not path.is_file():
        raise ValueError(f"pairs = {pairs!r}: there is no file {path}")
    lines = path.read_text(encoding="utf-8").splitlines()
    found = [
        _preference(line, path.parent, f"pairs = {pairs!r}: line {number} of {path.name}")
        for number, line in enumerate(lines, start=1)
        if line.strip()
    ]
    if not found:
        raise ValueError(f"pairs = {pairs!r}: {path} is empty, expected at least one pair")
    return found


def _preference(line: str, folder: Path, where: str) -> Preference:
    try:
        entry = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"{where} is not JSON: {error}") from error
    if not isinstance(entry, dict):
        raise ValueError(f"{where} is {line.strip()!r}, expected an object {{{', '.join(KEYS)}}}")
    for key in KEYS:
        if key not in entry:
            raise ValueError(f"{where} has no key {key!r}, expected {', '.join(KEYS)}")
        if not isinstance(entry[key], str):
            raise ValueError(f"{where}: {key} = {entry[key]!r}, expected a text")
    files = {key: folder / entry[key] for key in ("chosen", "rejected")}
    for key, file in files.items():
        if not file.is_file():
            raise ValueError(f"{where}: {key} = {entry[key]!r}: there is no such image in {folder}")
    metadata = {key: value for key, value in entry.items() if key not in KEYS}
    return Preference(Prompt(entry["prompt"], metadata), **files)
