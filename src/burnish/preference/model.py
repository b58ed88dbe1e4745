"""A reward model in a folder: safetensors and JSON, and nothing that is executed."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from burnish.content import digest
from burnish.preference.bradley_terry import rewarded
from burnish.preference.features import features
from burnish.preference.settings import CLIPFeatures, Features, Pixels, Statistics

ABOUT, WEIGHTS = "preference.json", "preference.safetensors"
FORMAT = 1
KINDS: Mapping[str, type[Features]] = {
    "pixels": Pixels,
    "statistics": Statistics,
    "clip": CLIPFeatures,
}
HEAD = ("weight", "bias", "out")
"""Names of a head's tensors: the first alone, or all three (`bradley_terry.rewarded`)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """r(image) = head((features - mean) / deviation) - level, in nats.

    mean, deviation: of each feature over the images it was learned from; a deviation of 0 is 1 instead
    head: float64, as all tensors
    level: by which the mean reward of these images is 0
    """

    features: Features
    mean: Tensor
    deviation: Tensor
    head: list[Tensor]
    level: Tensor

    def __call__(self, media: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, " batch"]:
        """Differentiable in the images, in [0, 1], wherever they are."""
        return self.of(features(self.features, media))

    def of(self, seen: Float[Tensor, "batch features"]) -> Float[Tensor, " batch"]:
        """The rewards of features. float64, on the CPU."""
        standard = (seen.cpu().double() - self.mean) / self.deviation
        return rewarded(self.head, standard) - self.level


def store(model: Model, folder: Path, report: Mapping[str, Any]) -> None:
    """Write it, with what was found out about it, into the folder, which is made if there is none."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {"mean": model.mean, "deviation": model.deviation, "level": model.level}
    tensors |= dict(zip(HEAD, model.head, strict=False))
    (folder / WEIGHTS).write_bytes(save(tensors))
    kind = next(name for name, each in KINDS.items() if isinstance(model.features, each))
    about = {
        "format": FORMAT,
        "features": {"name": kind, **dataclasses.asdict(model.features)},
        "report": report,
    }
    (folder / ABOUT).write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")


def restore(folder: Path) -> Model:
    """The model that `store` wrote. Raises ValueError that names the file at fault."""
    try:
        about = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
        settings = _features(about)
    except (OSError, ValueError) as error:
        raise ValueError(f"{folder / ABOUT} is not that of a reward model: {error}") from error
    try:
        tensors = load((folder / WEIGHTS).read_bytes())
        head = [tensors[name] for name in HEAD if name in tensors]
        model = Model(
            features=settings,
            mean=tensors["mean"],
            deviation=tensors["deviation"],
            head=head,
            level=tensors["level"],
        )
        model.of(
            torch.zeros(1, len(model.mean))
        )  # else shapes that do not fit show in the first batch
    except (OSError, KeyError, RuntimeError, ValueError, SafetensorError) as error:
        raise ValueError(f"{folder / WEIGHTS} does not hold a reward model: {error}") from error
    return model


def content(folder: Path) -> str:
    """Digests of its two files."""
    return " ".join(digest(str(folder / name)) for name in (ABOUT, WEIGHTS))


def _features(about: Any) -> Features:
    if not isinstance(about, Mapping) or about.get("format") != FORMAT:
        raise ValueError(f"expected a table with format = {FORMAT}")
    table = about.get("features")
    if not isinstance(table, Mapping) or table.get("name") not in KINDS:
        raise ValueError(f"expected features with a name of {', '.join(KINDS)}")
    kind = KINDS[table["name"]]
    settings = {key: value for key, value in table.items() if key != "name"}
    if set(settings) != {each.name for each in dataclasses.fields(kind)}:
        raise ValueError(
            f"the features have {sorted(settings)}, which are not those of {kind.__name__}"
        )
    try:
        return TypeAdapter(kind).validate_json(json.dumps(settings), strict=True)
    except ValidationError as error:
        raise ValueError(f"features: {error.errors()[0]['msg']}") from error
