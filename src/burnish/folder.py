"""The run folder: which file holds what. Written by a run, read by the report and by people.

recipe.toml          the resolved recipe: every field, also those left at their default
environment.json     package versions, git hash, machine
metrics.jsonl        one line an iteration; line 0 is the base model; bitwise repeatable
timing.jsonl         seconds of each iteration, by part; samples that the cache of rewards answered for
samples/held-out-N/  images after N iterations, with index.jsonl (prompt, reward, file)
samples/train-N/     the first training samples of iteration N, likewise
checkpoints/N/       all that is needed to go on
weights/             the final weights, loadable by diffusers
report.html
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from burnish.images import to_pil

if TYPE_CHECKING:
    from torch import Tensor

    from burnish.rollout import Samples


@dataclass(frozen=True, slots=True)
class RunFolder:
    path: Path

    @property
    def recipe(self) -> Path:
        return self.path / "recipe.toml"

    @property
    def environment(self) -> Path:
        return self.path / "environment.json"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def timing(self) -> Path:
        return self.path / "timing.jsonl"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def weights(self) -> Path:
        return self.path / "weights"

    @property
    def report(self) -> Path:
        return self.path / "report.html"

    def samples(self, kind: str, iteration: int) -> Path:
        """kind: `held-out` or `train`"""
        return self.path / "samples" / f"{kind}-{iteration:06d}"

    def sampled(self, kind: str) -> list[int]:
        """The iterations that have samples of this kind, in order."""
        found = (self.path / "samples").glob(f"{kind}-[0-9]*")
        return sorted(int(path.name.removeprefix(f"{kind}-")) for path in found)


def choose(name: str, *, resume: bool) -> Path:
    """`runs/NAME`, or the next free `runs/NAME-2`, ...; to resume, the last one that there is."""
    root = Path("runs")
    paths = [root / name, *(root / f"{name}-{i}" for i in range(2, 10_000))]
    free = next(i for i, path in enumerate(paths) if not path.exists())
    return paths[max(free - 1, 0)] if resume else paths[free]


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def append(path: Path, line: Mapping[str, Any]) -> None:
    """Add one JSON line and see it to the disk."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")
        file.flush()
        os.fsync(file.fileno())


def lines(path: Path) -> Iterator[dict[str, Any]]:
    """The JSON lines of a file; a last line that a crash cut short is left out."""
    if not path.exists():
        return
    for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
        if line.endswith("\n"):
            yield json.loads(line)


def keep_until(path: Path, iteration: int) -> None:
    """Drop the lines of later iterations, which are about to be computed again."""
    if not path.exists():
        return
    kept = [line for line in lines(path) if line["iteration"] <= iteration]
    partial = path.with_suffix(".partial")
    partial.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
    partial.replace(path)


def write_samples(folder: Path, samples: Samples, rewards: Tensor) -> None:
    """PNG images, and `index.jsonl` with the prompt, the reward and the file of each."""
    folder.mkdir(parents=True, exist_ok=True)
    index = []
    for i, (image, prompt) in enumerate(zip(samples.media, samples.prompts, strict=True)):
        name = f"{i:04d}.png"
        to_pil(image).save(folder / name)
        index.append({"file": name, "prompt": prompt, "reward": rewards[i].item()})
    text = "".join(json.dumps(entry) + "\n" for entry in index)
    (folder / "index.jsonl").write_text(text, encoding="utf-8")
