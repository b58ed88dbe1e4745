"""Trained samples a second of whole iterations (rollout, reward, update): burnish against TRL 0.23.1.

Same checkpoint, reward, prompts, steps, guidance, batch sizes, LoRA, dtype and threads. The sides take
turns; the first epoch of each run is a warm-up and is not counted.

    python benchmarks/throughput.py [--repeats 3]
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path

from sides import Side, burnish_side, of_kind, trl_side, write_prompts

from burnish.portraits.prompts import Portraits

SETTINGS = {
    "num_epochs": 2,
    "sample_num_steps": 20,
    "sample_guidance_scale": 2.0,
    "sample_batch_size": 32,
    "sample_num_batches_per_epoch": 2,
    "train_batch_size": 32,
    "train_learning_rate": 3e-4,
    "per_prompt_stat_tracking": True,
    "per_prompt_stat_tracking_buffer_size": 32,
    "threads": 2,
}
SAMPLES = SETTINGS["sample_batch_size"] * SETTINGS["sample_num_batches_per_epoch"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=Path("build/throughput"))
    arguments = parser.parse_args()
    write_prompts(arguments.folder, Portraits(count=32))
    sides = [burnish_side(), trl_side()]
    seconds: dict[str, list[float]] = {side.name: [] for side in sides}
    memory: dict[str, float] = {}
    for repeat in range(arguments.repeats):
        for side in sides:
            took, peak = _measure(side, arguments.folder, repeat)
            seconds[side.name] += took
            memory[side.name] = max(peak, memory.get(side.name, 0.0))
            print(f"repeat {repeat}: {side.name} {took} s, {peak:.0f} MB", flush=True)
    _table(seconds, memory)


def _measure(side: Side, folder: Path, repeat: int) -> tuple[list[float], float]:
    """Seconds of the counted epochs, and peak memory in MB."""
    lines = side.run(folder, f"{repeat}", {**SETTINGS, "seed": repeat})
    epochs = of_kind(lines, "epoch")
    return [round(epoch["seconds"], 2) for epoch in epochs[1:]], epochs[-1]["peak_rss_mb"]


def _table(seconds: dict[str, list[float]], memory: dict[str, float]) -> None:
    print("\n| side | seconds an iteration (median) | trained samples/s | peak memory, MB |")
    print("|---|---|---|---|")
    for name, values in seconds.items():
        median = statistics.median(values)
        print(f"| {name} | {median:.2f} | {SAMPLES / median:.2f} | {memory[name]:.0f} |")
    pairs = [b / a for a, b in zip(seconds["burnish"], seconds["trl"], strict=True)]
    print(f"\nSpeed-up, median of pairs: {statistics.median(pairs):.2f}x ({sorted(pairs)})")


if __name__ == "__main__":
    main()
