"""Measures the finished model and its judge: the tables of the model card, and contact sheets."""

from __future__ import annotations

import argparse
import itertools
import json
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.distributed as dist
from diffusers import StableDiffusionPipeline
from jaxtyping import Float
from PIL import Image
from torch import Tensor
from train_judge import accuracy_by_attribute
from training import BUILD, NUM_PROCESSES, PACKAGE, in_parallel, load_portraits

from burnish.portraits.attributes import SCHEMA, Split
from burnish.portraits.captions import portrait_prompts
from burnish.portraits.judge import Judge, load_judge, wanted_codes

NUM_STEPS = 20
SPLITS: tuple[Split, ...] = ("train", "held-out")
PROMPT_SEED = 20_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """One way of sampling."""

    split: Split
    guidance: float
    eta: float

    def __str__(self) -> str:
        return f"{self.split}, guidance {self.guidance:g}, eta {self.eta:g}"


SETTINGS = tuple(
    Setting(split=split, guidance=guidance, eta=eta)
    for split in SPLITS
    for eta in (0.0, 1.0)
    for guidance in (1.0, 2.0, 3.0)
)


def main() -> None:
    arguments = parse()
    in_parallel(work, arguments)
    torch.set_num_threads(2)
    speed = speeds(load_pipeline())
    print("\n".join(f"{name}: {value:.1f}" for name, value in speed.items()))


def work(rank: int, arguments: argparse.Namespace) -> None:
    """Every process takes its share of the settings; the first one reports."""
    pipeline, judge = load_pipeline(), load_judge()
    mine = SETTINGS[rank::NUM_PROCESSES]
    columns = {str(s): column(pipeline, judge, s, arguments) for s in mine}
    shares: list[dict[str, list[float]]] = [{}] * NUM_PROCESSES
    dist.all_gather_object(shares, columns)
    if rank > 0:
        return
    judged = accuracy_by_attribute(judge, load_portraits("held-out"))
    together = {"judge on renderings": [*judged, sum(judged) / len(judged)]}
    sampled = {name: values for share in shares for name, values in share.items()}
    together |= {str(setting): sampled[str(setting)] for setting in SETTINGS}
    (BUILD / "measured.json").write_text(json.dumps(together, indent=2) + "\n")
    print(table(together))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--num-images", type=int, default=192, help="of each setting")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def load_pipeline() -> StableDiffusionPipeline:
    pipeline = StableDiffusionPipeline.from_pretrained(PACKAGE / "pipeline")
    pipeline.unet.to(memory_format=torch.channels_last)
    pipeline.vae.to(memory_format=torch.channels_last)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def column(
    pipeline: StableDiffusionPipeline, judge: Judge, setting: Setting, arguments: argparse.Namespace
) -> list[float]:
    """Accuracy of each attribute over the captions that mention it, then `Judge.accuracy`'s mean."""
    prompts = list(
        itertools.islice(portrait_prompts(setting.split, PROMPT_SEED), arguments.num_images)
    )
    images = sample(pipeline, [text for text, _ in prompts], setting, arguments.batch)
    draw_sheet(images[:48], str(setting))
    wanted = wanted_codes([mentioned for _, mentioned in prompts], images)
    with torch.no_grad():
        found = torch.stack([head.argmax(-1) for head in judge(images)], -1)
    right, mentioned = (found == wanted), wanted >= 0
    by_attribute = ((right & mentioned).sum(0) / mentioned.sum(0)).tolist()
    overall = ((right & mentioned).sum(-1) / mentioned.sum(-1)).mean().item()
    print(f"{setting}: {overall:.4f}", flush=True)
    return [*by_attribute, overall]


def sample(
    pipeline: StableDiffusionPipeline, texts: list[str], setting: Setting, batch: int
) -> Float[Tensor, "num 3 64 64"]:
    """Images in [0, 1], one for each text; the same noise for every setting."""
    generator = torch.Generator().manual_seed(0)
    images = [
        pipeline(
            some,
            num_inference_steps=NUM_STEPS,
            guidance_scale=setting.guidance,
            eta=setting.eta,
            generator=generator,
            output_type="pt",
        ).images
        for some in (texts[i : i + batch] for i in range(0, len(texts), batch))
    ]
    return torch.cat(images)


def draw_sheet(images: Float[Tensor, "num 3 64 64"], name: str, num_columns: int = 12) -> None:
    """Writes the images side by side to build/portraits/samples-....png."""
    tiles = (images * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    num_rows = -(-len(tiles) // num_columns)
    sheet = Image.new("RGB", (num_columns * 68, num_rows * 68), "white")
    for index, tile in enumerate(tiles):
        sheet.paste(Image.fromarray(tile), (index % num_columns * 68, index // num_columns * 68))
    sheet.save(BUILD / f"samples-{name.replace(', ', '-').replace(' ', '-')}.png")


@torch.no_grad()
def speeds(pipeline: StableDiffusionPipeline, batch: int = 64) -> dict[str, float]:
    """How fast the parts run at batch 64: the best of ten, so that other work on the machine matters less."""
    x = torch.randn(batch, 12, 8, 8).to(memory_format=torch.channels_last)
    states = torch.randn(batch, 48, pipeline.unet.config.cross_attention_dim)
    when = torch.zeros(batch, dtype=torch.long)
    forward = min(seconds(lambda: pipeline.unet(x, when, states)) for _ in range(10))
    decoding = min(seconds(lambda: pipeline.vae.decode(x)) for _ in range(10))
    return {
        "UNet forwards a second": batch / forward,
        "decoding, ms an image": 1e3 * decoding / batch,
    }


def seconds(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def table(columns: dict[str, list[float]]) -> str:
    """Markdown: a row for each attribute and one for all, in percent."""
    rows = ["| attribute | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for index, name in enumerate([*(a.name for a in SCHEMA), "**all**"]):
        values = " | ".join(f"{100 * c[index]:.1f}" for c in columns.values())
        rows.append(f"| {name} | {values} |")
    return "\n".join(rows)


if __name__ == "__main__":
    main()
