"""Run one side of a benchmark as a process of its own, and read what it wrote."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from burnish.models.hub import locate
from burnish.prompts import PromptSource
from burnish.randomness import Randomness

HERE = Path(__file__).parent


@dataclass(frozen=True, slots=True)
class Side:
    """A driver and the Python that runs it."""

    name: str
    python: str
    driver: Path

    def run(self, folder: Path, label: str, settings: Mapping[str, Any]) -> list[dict[str, Any]]:
        """The driver's JSON lines; its own output goes to a log beside them."""
        stem = folder / f"{self.name}-{label}"
        stem.with_suffix(".settings.json").write_text(json.dumps(settings, indent=2))
        out = stem.with_suffix(".jsonl")
        command = [self.python, str(self.driver), "--model", str(locate("portraits"))]
        command += ["--prompts", str(folder / "prompts.json")]
        command += ["--settings", str(stem.with_suffix(".settings.json")), "--out", str(out)]
        with stem.with_suffix(".log").open("w") as log:
            threads = {"OMP_NUM_THREADS": str(settings["threads"])}
            subprocess.run(
                command, check=True, stdout=log, stderr=log, env={**os.environ, **threads}
            )
        return [json.loads(line) for line in out.read_text().splitlines()]


def burnish_side() -> Side:
    return Side("burnish", sys.executable, HERE / "burnish_ddpo.py")


def trl_side() -> Side:
    """Makes the peer's virtual environment if it is not there."""
    made = subprocess.run(
        [str(HERE / "peers" / "make_venv.sh")], check=True, capture_output=True, text=True
    )
    return Side("trl", made.stdout.strip().splitlines()[-1], HERE / "peers" / "trl_ddpo.py")


def write_prompts(folder: Path, source: PromptSource, held_out: int = 64) -> None:
    """`prompts.json` and `held_out.json`: the different ones of 1024 draws, the same on both sides."""
    folder.mkdir(parents=True, exist_ok=True)
    drawn = source.draw(1024, Randomness(0).at("benchmark"))
    texts = list(dict.fromkeys(prompt.text for prompt in drawn))
    (folder / "prompts.json").write_text(json.dumps(texts))
    asked = source.held_out(held_out)
    (folder / "held_out.json").write_text(json.dumps([prompt.text for prompt in asked]))


def of_kind(lines: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    return [line for line in lines if line["kind"] == kind]
