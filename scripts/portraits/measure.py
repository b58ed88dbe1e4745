"""Measures a finished model and the judge: the tables of the model card, and contact sheets."""

from __future__ import annotations

import argparse
import itertools
import json
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.distributed as dist
from jaxtyping import Float
from PIL import Image
from torch import Tensor
from train_judge import accuracy_by_attribute
from training import BUILD, NUM_PROCESSES, in_parallel, load_portraits

import burnish
from burnish.policy import Sampler
from burnish.portraits.attributes import SCHEMA, Split
from burnish.portraits.captions import portrait_prompts
from burnish.portraits.judge import Judge, load_judge, wanted_codes
from burnish.samplers.ddim import DDIM
from burnish.samplers.flow import FlowODE, FlowSDE

NUM_STEPS = 20
SPLITS: tuple[Split, ...] = ("train", "held-out")
PROMPT_SEED = 20_000


SAMPLERS: dict[str, dict[str, Sampler]] = {
    "portraits": {
        "eta 0": DDIM(num_steps=NUM_STEPS, eta=0.0),
        "eta 1": DDIM(num_steps=NUM_STEPS, eta=1.0),
    },
    "portraits-flow": {
        "ODE": FlowODE(num_steps=NUM_STEPS),
        "SDE 0.7": FlowSDE(num_steps=NUM_STEPS, eta=0.7),
    },
}
"""Of each embedded model, by the name that the table has for them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """One way of sampling."""

    split: Split
    guidance: float
    sampler: str

    def __str__(self) -> str:
        return f"{self.split}, guidance {self.guidance:g}, {self.sampler}"


def settings(model: str) -> list[Setting]:
    return [
        Setting(split=split, guidance=guidance, sampler=sampler)
        for split in SPLITS
        for sampler in SAMPLERS[model]
        for guidance in (1.0, 2.0, 3.0)
    ]


def main() -> None:
    arguments = parse()
    in_parallel(work, arguments)
    torch.set_num_threads(2)
    speed = speeds(arguments.model)
    print("\n".join(f"{name}: {value:.1f}" for name, value in speed.items()))


def work(rank: int, arguments: argparse.Namespace) -> None:
    """Every process takes its share of the settings; the first one reports."""
    judge = load_judge()
    everything = settings(arguments.model)
    columns = {str(s): column(judge, s, arguments) for s in everything[rank::NUM_PROCESSES]}
    shares: list[dict[str, list[float]]] = [{}] * NUM_PROCESSES
    dist.all_gather_object(shares, columns)
    if rank > 0:
        return
    judged = accuracy_by_attribute(judge, load_portraits("held-out"))
    together = {"judge on renderings": [*judged, sum(judged) / len(judged)]}
    sampled = {name: values for share in shares for name, values in share.items()}
    together |= {str(setting): sampled[str(setting)] for setting in everything}
    (BUILD / f"{arguments.model}-measured.json").write_text(json.dumps(together, indent=2) + "\n")
    print(table(together))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=sorted(SAMPLERS), default="portraits")
    parser.add_argument("--num-images", type=int, default=192, help="of each setting")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def column(judge: Judge, setting: Setting, arguments: argparse.Namespace) -> list[float]:
    """Accuracy of each attribute over the captions that mention it, then `Judge.accuracy`'s mean."""
    prompts = list(
        itertools.islice(portrait_prompts(setting.split, PROMPT_SEED), arguments.num_images)
    )
    images = draw(arguments.model, [text for text, _ in prompts], setting, arguments.batch)
    draw_sheet(images[:48], f"{arguments.model}, {setting}")
    wanted = wanted_codes([mentioned for _, mentioned in prompts], images)
    with torch.no_grad():
        found = torch.stack([head.argmax(-1) for head in judge(images)], -1)
    right, mentioned = (found == wanted), wanted >= 0
    by_attribute = ((right & mentioned).sum(0) / mentioned.sum(0)).tolist()
    overall = ((right & mentioned).sum(-1) / mentioned.sum(-1)).mean().item()
    print(f"{setting}: {overall:.4f}", flush=True)
    return [*by_attribute, overall]


def draw(
    model: str, texts: list[str], setting: Setting, batch: int
) -> Float[Tensor, "num 3 64 64"]:
    """Images in [0, 1], one for each text; the same noise for every setting."""
    denoiser = burnish.load(model, guidance=setting.guidance)
    policy = burnish.Policy(denoiser, SAMPLERS[model][setting.sampler])
    return burnish.sample(policy, texts, batch=batch).media


def draw_sheet(images: Float[Tensor, "num 3 64 64"], name: str, num_columns: int = 12) -> None:
    """Writes the images side by side to build/portraits/samples-....png."""
    tiles = (images * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    num_rows = -(-len(tiles) // num_columns)
    sheet = Image.new("RGB", (num_columns * 68, num_rows * 68), "white")
    for index, tile in enumerate(tiles):
        sheet.paste(Image.fromarray(tile), (index % num_columns * 68, index // num_columns * 68))
    sheet.save(BUILD / f"samples-{name.replace(', ', '-').replace(' ', '-')}.png")


@torch.no_grad()
def speeds(model: str, batch: int = 64) -> dict[str, float]:
    """How fast the parts run at batch 64: the best of ten, so that other work on the machine matters less."""
    denoiser = burnish.load(model, guidance=1.0)
    x = torch.randn(batch, *denoiser.event_shape)
    cond = denoiser.encode(list(map(str, range(batch))))
    when = torch.full((batch,), 500)
    forward = min(seconds(lambda: denoiser.predict(x, when, cond)) for _ in range(10))
    decoding = min(seconds(lambda: denoiser.decode(x)) for _ in range(10))
    return {
        "forwards a second": batch / forward,
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
