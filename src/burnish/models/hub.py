"""Find a model by name and load it with the adapter of its family."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from burnish.models.placed import device_named
from burnish.models.trainable import LoRA, Trainable, check
from burnish.portraits import FLOW_PIPELINE, PIPELINE

EMBEDDED: Mapping[str, Path] = {"portraits": PIPELINE, "portraits-flow": FLOW_PIPELINE}
"""Models that ship inside the package, and their folders."""

WANTED: tuple[str, ...] = (
    "*.json",
    "*.txt",
    "*/spiece.model",
    "*/*model.safetensors",
    "*/*model-?????-of-?????.safetensors",
)
"""Files of a hub repository that are downloaded: settings, tokenizers, and each component's weights, whole or
in shards. A `*` matches slashes too. Variants (`.fp16`, `.non_ema`) and checkpoints of one file, which repeat
these weights, do not match."""

UNWANTED: tuple[str, ...] = ("safety_checker/*",)
"""Of the wanted files: those of a component that no family has."""


def load(
    name: str,
    *,
    guidance: float = 5.0,
    trainable: Trainable | None = None,
    dtype: str = "float32",
    device: str = "auto",
    seed: int = 0,
) -> Any:
    """A denoiser, ready to train.

    name: an embedded model, a pipeline's folder, or the name of a repository on the hub
    guidance: weight of classifier-free guidance; 5 in the DDPO paper, 1 for none
    trainable: a LoRA of rank 4 by default
    dtype: of the frozen networks' and the trained network's arithmetic: `float32`, `bfloat16`, `float16`
    device: `cpu`, `cuda`, `mps`, or `auto` for the best there is
    seed: of a LoRA's initial weights

    Raises ValueError if there is no such model, if its family is not supported, or if all weights are to
    be trained in half precision.
    """
    trainable = trainable or LoRA()
    check(trainable, dtype)
    folder = locate(name)
    family = _family(folder)

    from burnish.models import latent

    with _quiet():
        return latent.load(
            family,
            str(folder),
            guidance=guidance,
            trainable=trainable,
            dtype=getattr(torch, dtype),
            device=device_named(device),
            seed=seed,
        )


def locate(name: str) -> Path:
    """The folder of a model; a hub repository is downloaded to the hub's cache."""
    if name in EMBEDDED:
        return EMBEDDED[name]
    if Path(name).exists():
        return Path(name)
    return _download(name)


def _download(name: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    wanted, unwanted = list(WANTED), list(UNWANTED)
    try:
        return Path(snapshot_download(name, allow_patterns=wanted, ignore_patterns=unwanted))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise ValueError(
            f"model {name!r}: there is no such folder, it is not embedded ({', '.join(EMBEDDED)}), "
            f"and the hub did not give it ({type(error).__name__})"
        ) from error


def _families() -> dict[str, Callable[..., Any]]:
    from burnish.models import stable_diffusion, stable_diffusion_3

    return {
        "StableDiffusionPipeline": stable_diffusion.load,
        "StableDiffusion3Pipeline": stable_diffusion_3.load,
    }


def _family(folder: Path) -> Callable[..., Any]:
    index = folder / "model_index.json"
    if not index.is_file():
        raise ValueError(f"{folder} is not a pipeline's folder: it has no model_index.json")
    pipeline = json.loads(index.read_text(encoding="utf-8")).get("_class_name")
    families = _families()
    if pipeline not in families:
        raise ValueError(
            f"{folder} holds a {pipeline}; supported are: {', '.join(families)}. Any other network "
            "can be trained through the Python API: see docs/denoiser.md"
        )
    return families[pipeline]


@contextmanager
def _quiet() -> Iterator[None]:
    """No progress bars of transformers while local files are read."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
