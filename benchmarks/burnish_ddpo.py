"""burnish's side of the speed benchmarks: the settings and the output of peers/trl_ddpo.py.

    python benchmarks/burnish_ddpo.py --model FOLDER --prompts FILE.json --settings FILE.json --out FILE.jsonl

The settings carry TRL's names, so that one file drives both sides; each key below is translated, and an
unknown one is refused.
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from dataclasses import dataclass
from pathlib import Path

import torch

import burnish
from burnish.algorithms.ddpo import PerPrompt, WholeBatch
from burnish.evaluate import evaluate, spread
from burnish.models.trainable import LoRA
from burnish.prompts import Prompt
from burnish.rewards.files import Compressibility


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Fields of TRL's `DDPOConfig`, and the drivers' own."""

    seed: int = 0
    num_epochs: int = 100
    sample_num_steps: int = 50
    sample_guidance_scale: float = 5.0
    sample_batch_size: int = 1
    sample_num_batches_per_epoch: int = 2
    train_batch_size: int = 1
    train_learning_rate: float = 3e-4
    train_clip_range: float = 1e-4
    per_prompt_stat_tracking: bool = False
    per_prompt_stat_tracking_buffer_size: int = 16
    threads: int = 2
    max_seconds: float | None = None
    eval_every: int | None = None
    eval_prompts: str | None = None
    stop_rise: float | None = None
    microbatch: int = 32
    """Rows a forward pass; a matter of speed and memory only. TRL's is train_batch_size."""
    train_steps: list[int] | None = None
    """Denoising steps that are trained; TRL trains the first `sample_num_steps * train_timestep_fraction`."""


def main() -> None:
    arguments = _arguments()
    settings = Settings(**json.loads(arguments.settings.read_text()))
    torch.set_num_threads(settings.threads)
    with arguments.out.open("w", encoding="utf-8") as file:
        run(arguments.model, json.loads(arguments.prompts.read_text()), settings, file)


def run(model: str, prompts: list[str], settings: Settings, file) -> None:
    denoiser = burnish.load(
        model, guidance=settings.sample_guidance_scale, trainable=LoRA(rank=4), seed=settings.seed
    )
    policy = burnish.Policy(denoiser, burnish.DDIM(num_steps=settings.sample_num_steps))
    tracked = settings.per_prompt_stat_tracking
    size = settings.per_prompt_stat_tracking_buffer_size
    algorithm = burnish.DDPOIS(
        clip=settings.train_clip_range,
        baseline=PerPrompt(size=size) if tracked else WholeBatch(),
        train_steps=tuple(settings.train_steps) if settings.train_steps else None,
    )
    samples = settings.sample_batch_size * settings.sample_num_batches_per_epoch
    reports = burnish.train(
        policy,
        algorithm,
        burnish.Listed(tuple(prompts)),
        Compressibility(),
        training=burnish.Training(
            iterations=settings.num_epochs,
            samples=samples,
            updates=samples // settings.train_batch_size,
            sample_batch=settings.sample_batch_size,
            microbatch=settings.microbatch,
        ),
        optimizer=burnish.AdamW(learning_rate=settings.train_learning_rate),
        seed=settings.seed,
    )
    seconds, target = 0.0, float("inf")
    base = _evaluate(policy, settings, file, epochs=0, training_seconds=0.0, num_queries=0)
    if base is not None and settings.stop_rise is not None:
        target = base["mean"] + settings.stop_rise * base["std"]
    started = time.perf_counter()
    for report in reports:
        took = time.perf_counter() - started
        seconds += took
        so_far = {"training_seconds": seconds, "num_queries": report.queries}
        outcome = spread(report.rewards)
        _log(
            file,
            "epoch",
            epoch=report.number,
            seconds=took,
            **so_far,
            **report.seconds,
            reward_mean=outcome["mean"],
            reward_std=outcome["std"],
            peak_rss_mb=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6,
        )
        over = settings.max_seconds is not None and seconds >= settings.max_seconds
        result = _evaluate(policy, settings, file, epochs=report.number, **so_far)
        if over or (result is not None and result["mean"] >= target):
            return
        started = time.perf_counter()


def _evaluate(
    policy: burnish.Policy, settings: Settings, file, epochs: int, **so_far
) -> dict[str, float] | None:
    """The held-out summary, where an evaluation is due after `epochs` epochs."""
    if settings.eval_every is None or settings.eval_prompts is None or epochs % settings.eval_every:
        return None
    asked = [Prompt(text) for text in json.loads(Path(settings.eval_prompts).read_text())]
    result = evaluate(policy, asked, Compressibility(), seed=0, batch=32).summary()
    _log(
        file,
        "evaluation",
        epochs=epochs,
        **so_far,
        reward_mean=result["mean"],
        reward_std=result["std"],
        diversity=result["diversity"],
        blank=result["blank"],
    )
    return result


def _log(file, kind: str, **fields: object) -> None:
    print(json.dumps({"kind": kind} | fields), file=file, flush=True)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="burnish's DDPO, timed epoch by epoch.")
    parser.add_argument("--model", required=True)
    parser.add_argument("--prompts", type=Path, required=True)
    parser.add_argument("--settings", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    return parser.parse_args()


if __name__ == "__main__":
    main()
