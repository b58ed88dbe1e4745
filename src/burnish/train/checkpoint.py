"""Checkpoints: complete, verified, and never half there.

A checkpoint is a folder that appears by one rename. Its manifest holds the SHA-256 of its files; one
that does not match is passed over, and the one before it is used. Nothing is pickled.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import warnings
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from burnish.algorithms import Memory
from burnish.train.state import State

_MANIFEST = "manifest.json"


def save(state: State, folder: Path, *, keep: int) -> Path:
    """Write `folder/<iteration>` and remove all but the newest `keep` checkpoints."""
    target = folder / f"{state.iteration:06d}"
    partial = folder / f".partial-{target.name}"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    save_file(_tensors(state), partial / "tensors.safetensors")
    (partial / "state.json").write_text(json.dumps(_values(state)), encoding="utf-8")
    manifest = {path.name: _digest(path) for path in sorted(partial.iterdir())}
    (partial / _MANIFEST).write_text(json.dumps(manifest), encoding="utf-8")
    for path in partial.iterdir():
        _flush(path)
    if target.exists():
        shutil.rmtree(target)
    partial.rename(target)
    _flush(folder)
    for old in _numbered(folder)[keep:]:
        shutil.rmtree(old)
    return target


def restore(state: State, folder: Path) -> Path | None:
    """Load the newest whole checkpoint into `state`; None if there is none.

    A corrupt or half-written one is named in a warning and passed over.
    """
    for path in _numbered(folder):
        fault = fault_of(path)
        if fault is None:
            _load(state, path)
            return path
        warnings.warn(f"checkpoint {path} is passed over: {fault}", stacklevel=2)
    return None


def fault_of(path: Path) -> str | None:
    """What is wrong with a checkpoint, or None."""
    try:
        manifest = json.loads((path / _MANIFEST).read_text(encoding="utf-8"))
        for name, digest in manifest.items():
            if _digest(path / name) != digest:
                return f"{name} does not match its checksum"
    except (OSError, ValueError, AttributeError) as error:
        return f"{type(error).__name__}: {error}"
    return None


def _numbered(folder: Path) -> list[Path]:
    """Checkpoints, newest first."""
    if not folder.is_dir():
        return []
    return sorted((p for p in folder.iterdir() if p.name.isdigit()), reverse=True)


def _tensors(state: State) -> dict[str, Tensor]:
    tensors = {f"parameter.{i}": p.detach() for i, p in enumerate(state.parameters)}
    for i, moments in state.optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{i}.{name}": value for name, value in moments.items()}
    if state.average is not None:
        tensors |= {f"average.{i}": mean for i, mean in enumerate(state.average)}
    for name, weights in _weights(state.memory).items():
        tensors |= {f"memory.{name}.{i}": tensor for i, tensor in enumerate(weights)}
    return {name: tensor.contiguous() for name, tensor in tensors.items()}


def _values(state: State) -> dict[str, Any]:
    weights = _weights(state.memory)
    return {
        "iteration": state.iteration,
        "queries": state.queries,
        "reward": state.reward,
        "memory": {name: value for name, value in state.memory.items() if name not in weights},
        "weights": {name: len(tensors) for name, tensors in weights.items()},
    }


def _weights(memory: Memory) -> dict[str, list[Tensor]]:
    """What the algorithm remembers as tensors; all else of its memory is JSON."""
    return {
        name: value
        for name, value in memory.items()
        if isinstance(value, list) and value and all(isinstance(each, Tensor) for each in value)
    }


def _load(state: State, path: Path) -> None:
    tensors = load_file(path / "tensors.safetensors")
    values = json.loads((path / "state.json").read_text(encoding="utf-8"))
    for i, parameter in enumerate(state.parameters):
        parameter.data.copy_(tensors[f"parameter.{i}"])
    if state.average is not None:
        for i, mean in enumerate(state.average):
            mean.copy_(tensors[f"average.{i}"])
    moments: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        kind, *rest = name.split(".")
        if kind == "optimizer":
            moments.setdefault(int(rest[0]), {})[rest[1]] = tensor
    groups = state.optimizer.state_dict()["param_groups"]
    state.optimizer.load_state_dict({"state": moments, "param_groups": groups})
    state.iteration = values["iteration"]
    state.queries = values["queries"]
    state.reward = values.get("reward", {})
    device = state.parameters[0].device
    state.memory = values["memory"] | {
        name: [tensors[f"memory.{name}.{i}"].to(device) for i in range(count)]
        for name, count in values["weights"].items()
    }


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
