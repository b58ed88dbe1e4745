"""Run folders that were made up, and what every page must be."""

from __future__ import annotations

import json
import math
import random
import re
from collections import Counter
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from burnish.folder import RunFolder

COUNT = 48
BASE, LIFT, STD = -2.41, 0.69, 0.21
PROMPTS = (
    "a portrait of a person with long red hair, dark glasses and a blue hat, smiling, in a green shirt",
    "a pixel art portrait of someone with a blond bob and a striped blue shirt, looking calm",
    "curly black hair, a red shirt, against a yellow wall",
    "a drawing of a man with no hair, gold earrings, in front of a gray wall",
    'pink & green <braids>, "looking surprised", on a white background',
)
RECIPE = """seed = 0
[model]
name = "portraits"
guidance = 1.0
dtype = "float32"
device = "auto"
[trainable]
name = "lora"
rank = 4
targets = ["to_q", "to_k", "to_v", "to_out.0"]
[prompts]
name = "portraits"
[reward]
name = "compressibility"
quality = 95
[sampler]
name = "ddim"
num_steps = 10
eta = 1.0
[algorithm]
name = "ddpo-is"
clip = 0.0001
advantage_clip = 5.0
[algorithm.baseline]
name = "per-prompt"
size = 32
min_count = 16
[training]
iterations = {iterations}
samples = 64
epochs = 1
updates = 4
sample_batch = 64
microbatch = 64
ratio_tolerance = 1e-06
[optimizer]
learning_rate = 0.0003
betas = [0.9, 0.999]
eps = 1e-08
weight_decay = 0.0001
max_grad_norm = 1.0
[evaluation]
every = 5
prompts = 48
[checkpoint]
every = 5
keep = 2
"""
ENVIRONMENT = {
    "burnish": "0.1.0",
    "python": "3.11.7",
    "packages": {"torch": "2.13.0+cpu", "diffusers": "0.42.1", "numpy": "2.4.6"},
    "git": "b3a73ad0f1744d8a561b40adeb1f009f55be144a",
    "machine": {"system": "Linux x86_64", "processor": "AMD EPYC", "device": "cpu"},
    "threads": 2,
    "command": "burnish train compressibility --training.iterations 40 --algorithm.clip 1e-4",
}


def make_run(
    root: Path,
    *,
    iterations: int = 40,
    done: int | None = None,
    size: int = 64,
    lift: float = LIFT,
    count: int = COUNT,
    name: str = "compressibility",
) -> RunFolder:
    """A run folder with plausible numbers, evaluated every five iterations and at the end.

    done: iterations until it was stopped
    size: of the images, in pixels
    count: held-out samples
    """
    folder = RunFolder(root / name)
    folder.path.mkdir(parents=True)
    done = iterations if done is None else done
    rng = random.Random(0)
    folder.recipe.write_text(RECIPE.replace("{iterations}", str(iterations)))
    folder.environment.write_text(json.dumps(ENVIRONMENT))
    metrics = [_metrics(i, done, lift, folder, size, count, rng) for i in range(done + 1)]
    folder.metrics.write_text("".join(json.dumps(line) + "\n" for line in metrics))
    timing = [_seconds(line) for line in metrics]
    folder.timing.write_text("".join(json.dumps(line) + "\n" for line in timing))
    return folder


def _metrics(
    i: int, done: int, lift: float, folder: RunFolder, size: int, count: int, rng: random.Random
) -> dict[str, Any]:
    progress = 1 - math.exp(-3 * i / max(done, 1))
    mean = BASE + lift * progress
    line: dict[str, Any] = {"iteration": i, "queries": 64 * i}
    if i:
        line["reward"] = _spread([rng.gauss(mean, STD) for _ in range(64)])
        line["metrics"] = _diagnostics(rng)
        line["by_step"] = _by_step(i, rng)
    if i % 5 == 0 or i == done:
        local = random.Random(7)  # the same noise every time
        rewards = [local.gauss(0, STD) + mean + rng.gauss(0, 0.06) for _ in range(count)]
        guards = {"diversity": 0.21 - 0.02 * progress + rng.gauss(0, 0.001), "blank": 0.0}
        line["held_out"] = {**_spread(rewards), **guards}
        write_samples(folder, i, rewards, size, random.Random(3), fade=0.75 * progress)
    return line


def _spread(rewards: list[float]) -> dict[str, float]:
    mean = sum(rewards) / len(rewards)
    std = math.sqrt(sum((r - mean) ** 2 for r in rewards) / len(rewards))
    return {
        "mean": mean,
        "std": std,
        "min": min(rewards),
        "max": max(rewards),
        "count": len(rewards),
    }


def _diagnostics(rng: random.Random) -> dict[str, float]:
    return {
        "advantage_clipped": max(0.0, rng.gauss(0.01, 0.01)),
        "log_ratio": rng.gauss(-2e-6, 4e-6),
        "approx_kl": abs(rng.gauss(3e-8, 1e-8)),
        "clip_fraction": min(1.0, abs(rng.gauss(0.3, 0.05))),
        "loss": rng.gauss(0, 2e-3),
        "grad_norm": abs(rng.gauss(0.02, 0.005)),
        "first_log_ratio": abs(rng.gauss(1e-7, 3e-8)),
    }


def _by_step(i: int, rng: random.Random) -> dict[str, dict[str, float]]:
    size = 1 + 0.5 * math.sin(i / 9)
    heights = {step: size * math.exp(-(((step - 6) / 3) ** 2)) for step in range(10)}
    return {
        "log_ratio": {str(s): rng.gauss(-1e-5, 6e-6) * h for s, h in heights.items()},
        "approx_kl": {str(s): abs(rng.gauss(5e-8, 1e-8)) * h for s, h in heights.items()},
        "clip_fraction": {
            str(s): min(1.0, abs(rng.gauss(0.5, 0.04)) * h) for s, h in heights.items()
        },
        "loss": {str(s): rng.gauss(0, 2e-3) for s in heights},
    }


def _seconds(line: dict[str, Any]) -> dict[str, float]:
    seconds: dict[str, float] = {"iteration": line["iteration"]}
    if line["iteration"]:
        seconds |= {"collect": 4.75 + 0.3 * (-1) ** line["iteration"], "update": 3.1}
    if "held_out" in line:
        seconds["evaluate"] = 3.6
    return seconds


def write_samples(
    folder: RunFolder,
    number: int,
    rewards: list[float],
    size: int,
    rng: random.Random,
    fade: float = 0.0,
) -> None:
    """Faces of a kind; `fade`, in [0, 1], takes their detail away."""
    path = folder.samples("held-out", number)
    path.mkdir(parents=True)
    index = []
    for i, reward in enumerate(rewards):
        _face(rng, fade).resize((size, size), Image.Resampling.NEAREST).save(path / f"{i:04d}.png")
        prompt = PROMPTS[i % len(PROMPTS)]
        index.append({"file": f"{i:04d}.png", "prompt": prompt, "reward": reward})
    (path / "index.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in index))


def _face(rng: random.Random, fade: float) -> Image.Image:
    def color() -> tuple[int, ...]:
        return tuple(rng.randrange(60, 240) for _ in range(3))

    background = color()
    image = Image.new("RGB", (16, 16), background)
    draw = ImageDraw.Draw(image)
    draw.rectangle((3, 2, 12, 13), fill=color())
    skin = rng.choice([(245, 207, 160), (201, 146, 96), (122, 78, 48)])
    draw.rectangle((4, 4, 11, 12), fill=skin)
    draw.rectangle((3, 13, 12, 15), fill=color())
    for x in (6, 9):
        draw.point((x, 7), fill=(30, 30, 40))
    draw.line((6, 10, 9, 10), fill=(150, 60, 60))
    return Image.blend(image, Image.new("RGB", (16, 16), background), fade)


def set_rewards(folder: RunFolder, number: int, rewards: list[float]) -> None:
    path = folder.samples("held-out", number) / "index.jsonl"
    entries = [json.loads(line) for line in path.read_text().splitlines()]
    changed = [{**entry, "reward": r} for entry, r in zip(entries, rewards, strict=True)]
    path.write_text("".join(json.dumps(entry) + "\n" for entry in changed))


def rewrite(folder: RunFolder, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change every line of the metrics in place."""
    found = [json.loads(line) for line in folder.metrics.read_text().splitlines()]
    for line in found:
        change(line)
    folder.metrics.write_text("".join(json.dumps(line) + "\n" for line in found))


# --- pages ---------------------------------------------------------------------------------------


class Page(HTMLParser):
    """Elements that are open, and what was found on the way."""

    OPTIONAL = frozenset({"li", "td", "th", "tr", "meta", "img"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.references: list[str] = []
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {key: value or "" for key, value in attrs}
        if tag not in self.OPTIONAL:
            self.open.append(tag)
        self.ids += [given["id"]] if "id" in given else []
        self.references += re.findall(r"url\(#([^)]*)\)", " ".join(given.values()))
        self.references += [given["aria-labelledby"]] if "aria-labelledby" in given else []
        self.addresses += [given[key] for key in ("src", "href", "xlink:href") if key in given]
        assert tag not in {"script", "link", "iframe", "object"}
        if tag == "img":
            assert given["alt"]
        if tag == "svg":
            assert given["role"] == "img"
            assert given["aria-label"]

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in self.OPTIONAL:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.OPTIONAL:
            assert self.open.pop() == tag


def check_page(text: str) -> None:
    """Elements nest, ids are unique, references resolve, nothing is fetched, no colour is fixed."""
    page = Page()
    page.feed(text)
    page.close()
    assert page.open == []
    assert [name for name, number in Counter(page.ids).items() if number > 1] == []
    links = [address for address in page.addresses if not address.startswith("data:")]
    assert all(address.startswith("#") for address in links)
    assert {*page.references, *(link[1:] for link in links)} <= set(page.ids)
    outside = re.sub(r"data:image/[^\"]*", "", text)
    assert not re.search(r"https?:|@import|//[a-z]", outside)
    assert not re.search(r"<svg.*?(#[0-9a-f]{6}\b).*?</svg>", outside)
    assert not re.search(r"\bnan\b|\binf\b|None", outside)
