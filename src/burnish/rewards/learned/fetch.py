"""Weights and tokenizers from files, folders and the hub. What cannot be had is told with what to do."""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from burnish.content import digest

CONFIG = "config.json"
"""What every network of transformers has."""
TOKENIZER = "tokenizer_config.json"
"""What every tokenizer of transformers has."""

CURE = (
    "Name a folder or a file that has it; log in to a gated repository by `hf auth login`; where there is "
    "no network, fill the hub's cache beforehand by `hf download`. See docs/rewards-learned.md"
)


@contextmanager
def having(what: str) -> Iterator[None]:
    """Turns what goes wrong while `what` is fetched, read or put together into a ValueError that says so."""
    from huggingface_hub.errors import HfHubHTTPError
    from safetensors import SafetensorError

    try:
        yield
    except (
        OSError,
        ValueError,
        TypeError,
        KeyError,
        RuntimeError,
        EOFError,
        pickle.UnpicklingError,
        SafetensorError,
        HfHubHTTPError,
    ) as error:
        told = " ".join(str(error).split())[:300]
        raise ValueError(
            f"{what} cannot be had ({type(error).__name__}: {told}). {CURE}"
        ) from error


def pretrained(kind: Any, name: str, revision: str, *, unread: str | None = None) -> Any:
    """The network of a folder or of a repository on the hub, in float32, on the CPU.

    kind: its class in transformers, which would draw at random what the checkpoint lacks
    revision: of the repository; a folder has none
    unread: how the names of weights begin that may be missing, since nothing reads what they give

    Raises ValueError, also if a weight is missing.
    """
    with having(f"{kind.__name__} {name!r} (revision {revision!r})"):
        network, report = kind.from_pretrained(
            name, revision=revision, dtype=torch.float32, output_loading_info=True
        )
        missing = report["missing_keys"]
        _refuse([key for key in missing if unread is None or not key.startswith(unread)], "lacks")
    return network


def assembled(kind: Any, config: Any, weights: Mapping[str, Tensor], **options: Any) -> Any:
    """A network of the class `kind` with these weights, all of them and no others, in float32, on the CPU.

    Raises ValueError.
    """
    network, report = kind.from_pretrained(
        None,
        config=config,
        state_dict=dict(weights),
        dtype=torch.float32,
        output_loading_info=True,
        **options,
    )
    _refuse(report["missing_keys"], "lacks")
    _refuse(report["unexpected_keys"], "has besides")
    return network


def _refuse(names: Any, fault: str) -> None:
    if names:
        raise ValueError(f"the checkpoint {fault} {len(names)} weights, such as {min(names)!r}")


def file(name: str, inside: str, revision: str) -> Path:
    """The file `name`; or the file `inside` the folder or hub repository `name`. Raises ValueError."""
    if Path(name).is_file():
        return Path(name)
    with having(f"{inside!r} of {name!r} (revision {revision!r})"):
        if Path(name).is_dir():
            if not (Path(name) / inside).is_file():
                raise FileNotFoundError("there is no such file in the folder")
            return Path(name) / inside
        from huggingface_hub import hf_hub_download

        return Path(hf_hub_download(name, inside, revision=revision))


@cache
def content(name: str, inside: str, revision: str) -> str:
    """What tells the content of the file or the folder `name`, or of the hub repository: a digest of all that
    is in it, or the commit that `revision` stands for. Found out once a process.

    inside: a file that the repository has; it is fetched, and tells the commit

    Raises ValueError.
    """
    if Path(name).exists():
        with having(f"the content of {name!r}"):
            return digest(name)
    path = file(name, inside, revision)
    return path.parents[inside.count("/")].name  # in the hub's cache: .../snapshots/COMMIT/inside


def contents(*places: tuple[str, str, str]) -> str:
    """`content` of each (name, inside, revision), in one text. Raises ValueError."""
    return " ".join(content(*place) for place in places)


def state_dict(path: Path) -> dict[str, Tensor]:
    """Tensors by name, of a safetensors or of a torch file, on the CPU; nothing in the file is executed.

    Of a training checkpoint, its `state_dict`. Raises ValueError.
    """
    with having(f"the weights in {str(path)!r}"):
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        found = torch.load(path, map_location="cpu", weights_only=True)
        found = found.get("state_dict", found) if isinstance(found, dict) else found
        if not isinstance(found, dict) or not all(isinstance(x, Tensor) for x in found.values()):
            raise ValueError("it holds something other than tensors by name")
        return found


def tokenizer(
    name: str, revision: str, *, added: tuple[str, ...] = (), words: int, spare: float = 0.0
) -> Any:
    """The tokenizer of a folder or of a repository on the hub.

    added: special words that it does not have yet
    words: how many the network embeds; transformers would make do with an empty vocabulary
    spare: share of these that may be there for no word, such as those that round their number up

    Raises ValueError, also if it has another number of words.
    """
    from transformers import AutoTokenizer

    with having(f"the tokenizer {name!r} (revision {revision!r})"):
        found = AutoTokenizer.from_pretrained(name, revision=revision)
        found.add_tokens(list(added), special_tokens=True)
        if not (1 - spare) * words <= len(found) <= words:
            raise ValueError(f"it has {len(found)} words, but the network embeds {words}")
    return found
