"""Draws the portraits: build/portraits/train.npz and held-out.npz, with exact attributes.

Each file has `images`, uint8 (num, 16, 16, 3), one value per art pixel, and `codes`, int8
(num, num_attributes), as `burnish.portraits.attributes.encode` writes them.
"""

from __future__ import annotations

import argparse
import io
import json
import random
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import resvg_py
from PIL import Image

from burnish.portraits.attributes import Split, draw_attributes, encode

HERE = Path(__file__).parent
OUT = HERE.parents[1] / "build" / "portraits"
FIXTURE = HERE.parents[1] / "tests" / "unit" / "portraits_renderings.npz"
"""The first 400 held-out portraits, for the tests."""

GRID = 16
"""Art pixels on a side."""

HAIR = {
    "short": ("short01", "short06", "short14", "short15", "short17", "short22"),
    "curly": ("short11", "short13", "long15"),
    "bob": ("long04", "long16", "long17", "long21"),
    "long": ("long03", "long07", "long09", "long12", "long13"),
    "braids": ("long06", "long18", "long19"),
}
SHORT_UNDER_HAT = ("short01", "short14", "short15", "short17")
HAIR_COLOR = {
    "black": "1c1618", "brown": "6b3a12", "blond": "ecc12c", "red": "c8260a",
    "pink": "f070b4", "blue": "2277dd", "green": "58b81c",
}  # fmt: skip
SKIN = {"light": "fdd8b8", "tan": "d9a066", "dark": "955f36"}
GLASSES = {
    "black": (("light05", "light06"), "191919"),
    "red": (("light05", "light06"), "d01030"),
    "sunglasses": (("dark05", "dark06"), "191919"),
}
HAT = {"red": "c02020", "blue": "2560c0", "green": "2f8a4a", "purple": "7a3fb0", "yellow": "eebb10"}
HAT_VARIANTS = tuple(f"variant{i:02d}" for i in (1, 2, 3, 4, 6, 8, 9))
MOUTH = {
    "smiling": ("happy07", "happy08", "happy09"),
    "frowning": ("sad01", "sad08", "sad09"),
    "neutral": ("sad04", "sad05", "sad06"),
    "surprised": ("happy01",),
}
SHIRT = {
    "red": "d02a2a", "blue": "3b82d8", "green": "2fa358", "yellow": "e8b80c",
    "purple": "8a4cc4", "black": "262626",
}  # fmt: skip
CLOTHING = {
    "plain": ("variant03", "variant04", "variant05", "variant08", "variant11"),
    "striped": ("variant13",),
    "checked": ("variant06",),
}
BACKGROUND = {
    "white": "f8f8f8", "pink": "f9bfd5", "yellow": "fbf0a0", "green": "b9ebb5",
    "blue": "b0d6fa", "purple": "d6c0f5", "gray": "aeb4ba",
}  # fmt: skip
EYES = tuple(f"variant{i:02d}" for i in (1, 4, 6, 8, 11))
EYES_COLOR = "47607a"
MOUTH_COLOR = "a01418"
EARRINGS = (("variant01", "variant03"), "ffc400")


def main() -> None:
    arguments = parse()
    OUT.mkdir(parents=True, exist_ok=True)
    for split, count, seed in (
        ("train", arguments.num_train, 1),
        ("held-out", arguments.num_held_out, 2),
    ):
        began = time.perf_counter()
        images, codes = render(split, count, random.Random(seed))
        np.savez_compressed(OUT / f"{split}.npz", images=images, codes=codes)
        if split == "held-out":
            np.savez_compressed(FIXTURE, images=images[:400], codes=codes[:400])
        print(f"{split}: {count} portraits in {time.perf_counter() - began:.0f} s", flush=True)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--num-train", type=int, default=24_000)
    parser.add_argument("--num-held-out", type=int, default=2_000)
    return parser.parse_args()


def render(split: Split, count: int, rng: random.Random) -> tuple[np.ndarray, np.ndarray]:
    """Images, uint8 (count, 16, 16, 3), and attribute codes, int8 (count, num_attributes)."""
    portraits = [draw_attributes(rng, split) for _ in range(count)]
    options = [dicebear_options(attributes, rng) for attributes in portraits]
    images = np.stack([rasterise(svg) for svg in draw(options)])
    return images, np.array([encode(attributes) for attributes in portraits], np.int8)


def dicebear_options(attributes: dict[str, str], rng: random.Random) -> dict[str, object]:
    """DiceBear's options for a portrait; what attributes leave open, such as the eyes, is random."""
    options = _only(
        skinColor=SKIN[attributes["skin"]],
        eyes=rng.choice(EYES), eyesColor=EYES_COLOR,
        mouth=rng.choice(MOUTH[attributes["mouth"]]), mouthColor=MOUTH_COLOR,
        clothing=rng.choice(CLOTHING[attributes["shirt_pattern"]]),
        clothingColor=SHIRT[attributes["shirt_color"]],
        backgroundColor=BACKGROUND[attributes["background"]],
    )  # fmt: skip
    for part in (_hair, _hat, _glasses, _earrings):
        options |= part(attributes, rng)
    return {"seed": "portrait", "beardProbability": 0, **options}


def _hair(attributes: dict[str, str], rng: random.Random) -> dict[str, object]:
    hair = attributes["hair"]
    if hair == "bald":
        return _only(hair="short01", hairColor="transparent")
    variants = SHORT_UNDER_HAT if hair == "short" and attributes["hat"] != "none" else HAIR[hair]
    color = HAIR_COLOR[attributes["hair_color"]]
    return _only(hair=rng.choice(variants), hairColor=color)


def _hat(attributes: dict[str, str], rng: random.Random) -> dict[str, object]:
    if attributes["hat"] == "none":
        return {"hatProbability": 0}
    color = HAT[attributes["hat"]]
    return _only(hat=rng.choice(HAT_VARIANTS), hatColor=color) | {"hatProbability": 100}


def _glasses(attributes: dict[str, str], rng: random.Random) -> dict[str, object]:
    if attributes["glasses"] == "none":
        return {"glassesProbability": 0}
    variants, color = GLASSES[attributes["glasses"]]
    return _only(glasses=rng.choice(variants), glassesColor=color) | {"glassesProbability": 100}


def _earrings(attributes: dict[str, str], rng: random.Random) -> dict[str, object]:
    if attributes["earrings"] == "none":
        return {"accessoriesProbability": 0}
    variants, color = EARRINGS
    chosen = _only(accessories=rng.choice(variants), accessoriesColor=color)
    return chosen | {"accessoriesProbability": 100}


def _only(**choices: str) -> dict[str, object]:
    """DiceBear draws from lists; a list of one is a choice."""
    return {name: [choice] for name, choice in choices.items()}


def draw(options: list[dict[str, object]]) -> Iterator[str]:
    """The SVG text of each avatar, drawn by DiceBear under node."""
    lines = "\n".join(json.dumps(o) for o in options)
    command = ["node", str(HERE / "avatars.mjs")]
    drawn = subprocess.run(command, input=lines, capture_output=True, text=True, check=True)
    yield from drawn.stdout.splitlines()


def rasterise(svg: str) -> np.ndarray:
    """uint8 (16, 16, 3): one value per art pixel."""
    png = resvg_py.svg_to_bytes(svg_string=svg, width=GRID, height=GRID)
    return np.asarray(Image.open(io.BytesIO(bytes(png))).convert("RGB"))


if __name__ == "__main__":
    main()
