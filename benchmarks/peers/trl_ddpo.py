"""TRL 0.23.1's DDPOTrainer on a CPU, timed epoch by epoch: the peer side of our speed benchmarks.

Runs in the peer's own virtual environment (make_venv.sh), knows nothing of burnish, and uses only
TRL's published classes with their arithmetic untouched:

    python trl_ddpo.py --model FOLDER --prompts FILE.json --settings FILE.json --out FILE.jsonl

FOLDER is a StableDiffusionPipeline folder. FILE.json holds a list of prompts, each drawn with equal
probability. A setting is a field of TRL's `DDPOConfig` or of `Driver` below, in one flat object;
what is absent keeps the default of its class, but for the two in `FOR_A_CPU`. The LoRA is TRL's
own, fixed in its pipeline class: rank 4, alpha 4, on to_k, to_q, to_v and to_out.0.

The output has one JSON object a line, told apart by "kind": "settings" (first), "evaluation"
(epochs = how many were trained before it; 0 is the base model) and "epoch". Rewards are minus
kilobytes of 1000 bytes; standard deviations are of the population (divided by n).
"""

import argparse
import dataclasses
import difflib
import io
import json
import platform
import random
import resource
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import torch
from accelerate import PartialState
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from PIL import Image
from transformers import CLIPTextModel
from trl import DDPOConfig, DDPOTrainer, DefaultDDPOStableDiffusionPipeline

PACKAGES = ("trl", "torch", "diffusers", "transformers", "peft", "accelerate", "numpy", "pillow")
NEVER = 10**9
FOR_A_CPU = {"mixed_precision": "no", "save_freq": NEVER}
"""TRL's fp16 does not run on a CPU, and its checkpoint after every epoch would only slow it."""

Reward = Callable[[torch.Tensor, tuple[str, ...], tuple[Any, ...]], tuple[torch.Tensor, dict]]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Driver:
    """What a run needs beside TRL's own `DDPOConfig`."""

    threads: int = 2
    """Threads that torch may use within an operation."""
    max_seconds: float | None = None
    """No epoch starts once this many training seconds have passed; evaluation is not counted."""
    eval_every: int | None = None
    """Evaluate before the first epoch and after every so many; None for never."""
    eval_prompts: str | None = None
    """JSON file with the list of held-out prompts, one image each."""
    eval_num_steps: int = 20
    """DDIM steps of an evaluation, at eta 1."""
    eval_guidance: float = 2.0
    """Guidance scale of an evaluation."""
    eval_seed: int = 0
    """Prompt i is drawn with a generator of its own, seeded with eval_seed + i."""
    eval_batch_size: int = 32
    """Images drawn at once in an evaluation; which images they are depends on it by rounding only."""
    stop_rise: float | None = None
    """End the run at the first evaluation whose mean reward is this many standard deviations of the base
    model's rewards above the base model's mean."""

    def __post_init__(self) -> None:
        if (self.eval_every is None) != (self.eval_prompts is None):
            raise ValueError("give both eval_every and eval_prompts, or neither")
        if self.stop_rise is not None and self.eval_every is None:
            raise ValueError("stop_rise needs eval_every: it looks at the evaluations")


class RecordedReward:
    """A TRL reward function that keeps what it gave until it is asked."""

    def __init__(self) -> None:
        self.given: list[np.ndarray] = []
        self.num_queries = 0

    def __call__(
        self, images: torch.Tensor, _prompts: tuple[str, ...], _metadata: tuple[Any, ...]
    ) -> tuple[torch.Tensor, dict]:
        reward = minus_kilobytes(images)
        self.given.append(reward)
        self.num_queries += len(reward)
        return torch.from_numpy(reward), {}

    def take(self) -> np.ndarray:
        """The rewards given since the last call."""
        given, self.given = np.concatenate(self.given), []
        return given


class Log:
    """Writes JSON lines, each of which is on the disk before the next thing happens."""

    def __init__(self, file: TextIO) -> None:
        self.file = file

    def __call__(self, kind: str, **fields: Any) -> None:
        print(json.dumps({"kind": kind} | fields), file=self.file, flush=True)


def main() -> None:
    arguments = parse_arguments()
    config, driver = read_settings(arguments.settings)
    torch.set_num_threads(driver.threads)
    reward = RecordedReward()
    with tempfile.TemporaryDirectory() as scratch, arguments.out.open("w") as file:
        trainer = make_trainer(config, arguments.model, arguments.prompts, reward, scratch)
        log = Log(file)
        log("settings", **describe(config, driver, arguments.model))
        run(trainer, reward, driver, log)


def run(trainer: DDPOTrainer, reward: RecordedReward, driver: Driver, log: Log) -> None:
    """What `trainer.train()` does, with a clock around each epoch and evaluations between them."""
    seconds, num_updates, target = 0.0, 0, float("inf")
    base = evaluate(trainer, driver, log, epochs=0, training_seconds=0.0, num_queries=0)
    if base is not None and driver.stop_rise is not None:
        target = base["reward_mean"] + driver.stop_rise * base["reward_std"]
    for epoch in range(trainer.config.num_epochs):
        if driver.max_seconds is not None and seconds >= driver.max_seconds:
            return
        start, cpu_start = time.perf_counter(), time.process_time()
        num_updates = trainer.step(epoch, num_updates)
        cost = {
            "seconds": time.perf_counter() - start,
            "cpu_seconds": time.process_time() - cpu_start,
        }
        seconds += cost["seconds"]
        so_far = {"training_seconds": seconds, "num_queries": reward.num_queries}
        outcome = spread(reward.take()) | {"num_updates": num_updates, "peak_rss_mb": peak_rss_mb()}
        log("epoch", epoch=epoch + 1, **cost, **so_far, **outcome)
        result = evaluate(trainer, driver, log, epochs=epoch + 1, **so_far)
        if result is not None and result["reward_mean"] >= target:
            return


def evaluate(
    trainer: DDPOTrainer, driver: Driver, log: Log, *, epochs: int, **so_far: float
) -> dict[str, float] | None:
    """The held-out rewards' spread, where an evaluation is due after `epochs` epochs."""
    if driver.eval_every is None or driver.eval_prompts is None or epochs % driver.eval_every:
        return None
    prompts = read_prompts(Path(driver.eval_prompts))
    start = time.perf_counter()
    rewards = minus_kilobytes(draw(trainer, driver, prompts))
    outcome = spread(rewards) | {"num_images": len(rewards)}
    seconds = time.perf_counter() - start
    log("evaluation", epochs=epochs, **so_far, **outcome, evaluation_seconds=seconds)
    return outcome


@torch.no_grad()
def draw(trainer: DDPOTrainer, driver: Driver, prompts: list[str]) -> torch.Tensor:
    """One image in [0, 1] a prompt, from diffusers' own pipeline with the LoRA as it is now.

    The scheduler is a copy: TRL's trainer reads the number of steps from its own.
    """
    trained = trainer.sd_pipeline.sd_pipeline
    scheduler = DDIMScheduler.from_config(trained.scheduler.config)
    pipeline = StableDiffusionPipeline(
        **(trained.components | {"scheduler": scheduler}), requires_safety_checker=False
    )
    pipeline.set_progress_bar_config(disable=True)
    pipeline.unet.eval()
    noise = [torch.Generator().manual_seed(driver.eval_seed + i) for i in range(len(prompts))]
    size = driver.eval_batch_size
    images = [
        pipeline(
            prompts[start : start + size],
            num_inference_steps=driver.eval_num_steps,
            guidance_scale=driver.eval_guidance,
            eta=1.0,
            generator=noise[start : start + size],
            output_type="pt",
        ).images
        for start in range(0, len(prompts), size)
    ]
    return torch.cat(images)


def minus_kilobytes(images: torch.Tensor) -> np.ndarray:
    """Minus the size in kilobytes (1000 bytes) of each image as a JPEG at quality 95.

    images: (batch, 3, height, width) in [0, 1]
    """
    pixels = (images.clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
    return np.array([-jpeg_bytes(image) / 1000 for image in pixels], dtype=np.float32)


def jpeg_bytes(pixels: np.ndarray) -> int:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="JPEG", quality=95)
    return buffer.tell()


def make_trainer(
    config: DDPOConfig, model: Path, prompts: Path, reward: Reward, scratch: str
) -> DDPOTrainer:
    PartialState()  # accelerate's logger, which TRL uses at once, needs it
    check_every_weight_is_read(model)
    config.project_kwargs = {
        "project_dir": scratch,
        "logging_dir": scratch,
        "automatic_checkpoint_naming": True,
        "total_limit": 5,
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        trainer = DDPOTrainer(
            config,
            reward,
            drawn_from(read_prompts(prompts), config.seed),
            DefaultDDPOStableDiffusionPipeline(str(model)),
            image_samples_hook=None,
        )
    trainer.sd_pipeline.set_progress_bar_config(disable=True)
    return trainer


def drawn_from(prompts: list[str], seed: int) -> Callable[[], tuple[str, dict]]:
    """A TRL prompt function: an endless draw, with replacement."""
    chance = random.Random(seed)
    return lambda: (chance.choice(prompts), {})


def read_prompts(path: Path) -> list[str]:
    prompts = json.loads(path.read_text())
    if not prompts or not all(isinstance(prompt, str) for prompt in prompts):
        raise ValueError(f"{path} must hold a JSON list of at least one string")
    return prompts


def check_every_weight_is_read(model: Path) -> None:
    """A weight absent under the name that is expected here would be random, with a mere warning."""
    parts = {"text_encoder": CLIPTextModel, "unet": UNet2DConditionModel, "vae": AutoencoderKL}
    for name, kind in parts.items():
        _, loading = kind.from_pretrained(model / name, output_loading_info=True)
        if missing := sorted(loading["missing_keys"]):
            raise ValueError(
                f"{model / name} lacks {len(missing)} weights that {kind.__name__} of transformers "
                f"{version('transformers')} and diffusers {version('diffusers')} expects, such as "
                f"{missing[0]!r}. Saved by transformers 5, which drops the prefix 'text_model.'?"
            )


def read_settings(path: Path) -> tuple[DDPOConfig, Driver]:
    given = json.loads(path.read_text())
    of_trl = {field.name for field in dataclasses.fields(DDPOConfig)} - {"project_kwargs"}
    own = {field.name for field in dataclasses.fields(Driver)}
    for key in given:
        if key not in of_trl | own:
            near = difflib.get_close_matches(key, of_trl | own, n=1, cutoff=0)
            raise ValueError(f"{path}: unknown setting {key!r}; the nearest is {near[0]!r}")
    config = FOR_A_CPU | {key: value for key, value in given.items() if key in of_trl}
    return DDPOConfig(**config), Driver(
        **{key: value for key, value in given.items() if key in own}
    )


def describe(config: DDPOConfig, driver: Driver, model: Path) -> dict[str, Any]:
    return {
        "model": str(model.resolve()),
        "versions": {"python": platform.python_version()}
        | {name: version(name) for name in PACKAGES},
        "machine": {"processor": processor(), "threads": torch.get_num_threads()},
        "lora": {"rank": 4, "alpha": 4, "targets": ["to_k", "to_q", "to_v", "to_out.0"]},
        "trl": dataclasses.asdict(config),
        "driver": dataclasses.asdict(driver),
    }


def processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def spread(rewards: np.ndarray) -> dict[str, float]:
    return {"reward_mean": float(rewards.mean()), "reward_std": float(rewards.std())}


def peak_rss_mb() -> float:
    """The most memory this process has held so far, in megabytes (1e6 bytes)."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak * (1 if sys.platform == "darwin" else 1024) / 1e6


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="TRL's DDPOTrainer on a CPU, timed epoch by epoch."
    )
    parser.add_argument("--model", type=Path, required=True, help="StableDiffusionPipeline folder")
    parser.add_argument("--prompts", type=Path, required=True, help="JSON list of training prompts")
    parser.add_argument("--settings", type=Path, required=True, help="JSON object of settings")
    parser.add_argument("--out", type=Path, required=True, help="JSON lines are written here")
    return parser.parse_args()


if __name__ == "__main__":
    main()
