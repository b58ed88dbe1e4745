"""Seconds and reward queries to lift held-out compressibility by 2 standard deviations.

burnish's shipped recipe against TRL 0.23.1's trainer with its own published settings (the command of its
example script), on the recipe's own prompts. Each side is evaluated on the same 64 held-out captions under
its own sampler (the steps and guidance that it trains with), and must rise by 2 standard deviations of the
base model's rewards under that sampler. Evaluation is not counted in the seconds; nor is loading.

    python benchmarks/time_to_reward.py [--seeds 3] [--limit 900]
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path
from typing import Any

from sides import Side, burnish_side, of_kind, trl_side, write_prompts

from burnish.algorithms.ddpo import DDPOIS, PerPrompt
from burnish.config import load_recipe
from burnish.recipe import Recipe

RISE = 2.0
"""Standard deviations of the base model's held-out rewards."""

PUBLISHED = {
    "sample_num_steps": 50,
    "sample_guidance_scale": 5.0,
    "sample_batch_size": 6,
    "sample_num_batches_per_epoch": 4,
    "train_batch_size": 3,
    "per_prompt_stat_tracking": True,
    "per_prompt_stat_tracking_buffer_size": 32,
    "eval_num_steps": 50,
    "eval_guidance": 5.0,
}
"""TRL: examples/scripts/ddpo.py; all else is the default of its DDPOConfig."""


def ours(recipe: Recipe) -> dict[str, Any]:
    """The recipe in the drivers' terms."""
    training, algorithm = recipe.training, recipe.algorithm
    assert isinstance(algorithm, DDPOIS)
    assert isinstance(algorithm.baseline, PerPrompt)
    return {
        "sample_num_steps": recipe.sampler.num_steps,
        "sample_guidance_scale": recipe.model.guidance,
        "sample_batch_size": training.sample_batch,
        "sample_num_batches_per_epoch": training.samples // training.sample_batch,
        "train_batch_size": training.samples // training.updates,
        "train_learning_rate": recipe.optimizer.learning_rate,
        "train_clip_range": algorithm.clip,
        "train_steps": algorithm.train_steps,
        "per_prompt_stat_tracking": True,
        "per_prompt_stat_tracking_buffer_size": algorithm.baseline.size,
        "microbatch": training.microbatch,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--limit", type=float, default=900, help="training seconds a run")
    parser.add_argument("--folder", type=Path, default=Path("build/time_to_reward"))
    arguments = parser.parse_args()
    recipe = load_recipe("compressibility")
    write_prompts(arguments.folder, recipe.prompts)
    rows = []
    sides = ((burnish_side(), ours(recipe), 1), (trl_side(), PUBLISHED, 4))
    for seed in range(arguments.seeds):
        for side, settings, every in sides:
            row = _run(side, arguments.folder, seed, arguments.limit, settings, every)
            rows.append(row)
            print(row, flush=True)
    _table(rows)


def _run(
    side: Side, folder: Path, seed: int, limit: float, settings: dict[str, Any], every: int
) -> dict[str, Any]:
    """Train until the target is reached, or for `limit` seconds."""
    limits = {"stop_rise": RISE, "max_seconds": limit, "num_epochs": 10_000, "eval_every": every}
    common = {"seed": seed, "threads": 2, "eval_prompts": str(folder / "held_out.json")}
    evaluations = of_kind(
        side.run(folder, f"{seed}", {**settings, **common, **limits}), "evaluation"
    )
    before, last = evaluations[0], evaluations[-1]
    target = before["reward_mean"] + RISE * before["reward_std"]
    return {
        "side": side.name,
        "seed": seed,
        "base": before["reward_mean"],
        "std": before["reward_std"],
        "target": target,
        "reached": last["reward_mean"] >= target,
        "last": last["reward_mean"],
        "seconds": last["training_seconds"],
        "queries": last["num_queries"],
    }


def _table(rows: list[dict[str, Any]]) -> None:
    print("\n| side | seed | base | target | last | reached | seconds | reward queries |")
    print("|---|---|---|---|---|---|---|---|")
    for row in rows:
        print(
            f"| {row['side']} | {row['seed']} | {row['base']:.3f} ± {row['std']:.3f} "
            f"| {row['target']:.3f} | {row['last']:.3f} | {'yes' if row['reached'] else 'no'} "
            f"| {row['seconds']:.0f} | {row['queries']} |"
        )
    median = {
        side: statistics.median(row["seconds"] for row in rows if row["side"] == side)
        for side in ("burnish", "trl")
    }
    ratio = median["trl"] / median["burnish"]
    print(f"\nMedians: burnish {median['burnish']:.0f} s, TRL {median['trl']:.0f} s: {ratio:.1f}x")


if __name__ == "__main__":
    main()
