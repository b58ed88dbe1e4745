"""Which weights are trained, a LoRA on named modules or all of them, and how they are kept in files."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    from torch.nn import Parameter


@dataclass(frozen=True, slots=True, kw_only=True)
class LoRA:
    """Low-rank adapters (Hu et al. 2021) through peft; the network itself is frozen.

    Adapters are float32 whatever the network's dtype is: in half precision an optimiser's steps would
    be rounded away.
    """

    rank: int = 4
    """Rank of each adapter; 4 in the DDPO authors' LoRA version."""
    alpha: float | None = None
    """The adapter is scaled by alpha / rank; by default alpha = rank."""
    targets: tuple[str, ...] = ("to_q", "to_k", "to_v", "to_out.0")
    """Endings of the names of the modules that get one; the attention projections by default."""

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ValueError(f"rank = {self.rank}, expected at least 1")
        if not self.targets:
            raise ValueError("targets is empty, expected at least one module name")


@dataclass(frozen=True, slots=True, kw_only=True)
class Full:
    """Every weight of the network, which must be float32."""


Trainable = LoRA | Full


def check(trainable: Trainable, dtype: str) -> None:
    """Raises ValueError for full fine-tuning in half precision, where steps would be rounded away."""
    if isinstance(trainable, Full) and dtype != "float32":
        raise ValueError(
            f"model.dtype = {dtype!r} does not go with trainable.name = 'full': a step of 1e-5 is less "
            "than the rounding of a half-precision weight. Set model.dtype = 'float32', or train a LoRA, "
            "whose weights are float32 always"
        )


def prepare(network: Any, trainable: Trainable, seed: int) -> list[Parameter]:
    """Freeze or free the network's weights, add adapters, and return what is trained.

    seed: of the adapters' initial weights; they leave the network's output as it was
    Raises ValueError if no module's name ends with one of a LoRA's targets.
    """
    network.requires_grad_(isinstance(trainable, Full))
    if isinstance(trainable, LoRA):
        _add_adapter(network, trainable, seed)
    return [parameter for parameter in network.parameters() if parameter.requires_grad]


def _add_adapter(network: Any, lora: LoRA, seed: int) -> None:
    import torch
    from diffusers.training_utils import cast_training_params
    from peft import LoraConfig

    names = [name for name, _ in network.named_modules()]
    unmatched = [t for t in lora.targets if not any(_ends_with(name, t) for name in names)]
    if unmatched:
        raise ValueError(
            f"trainable.targets: no module's name ends with {unmatched[0]!r}; the names look like "
            f"{next((name for name in names if 'to_q' in name), names[-1])!r}"
        )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network.add_adapter(
            LoraConfig(
                r=lora.rank,
                lora_alpha=lora.rank if lora.alpha is None else lora.alpha,  # type: ignore[arg-type]
                target_modules=list(lora.targets),
                init_lora_weights="gaussian",
            )
        )
    cast_training_params(network, torch.float32)


def save_weights(
    network: Any, trainable: Trainable, folder: Path, *, part: str, pipeline: Any
) -> None:
    """Write the trained weights so that diffusers loads them.

    A LoRA goes to `folder/pytorch_lora_weights.safetensors`, for `pipe.load_lora_weights`; full
    weights go to `folder/PART`, for the network's `from_pretrained`.

    part: what the pipeline calls the network, such as `unet`
    pipeline: its class, which knows the file's format
    """
    from peft import get_peft_model_state_dict

    if isinstance(trainable, Full):
        network.save_pretrained(folder / part)
        return
    layers: dict[str, Any] = {
        f"{part}_lora_layers": dict(get_peft_model_state_dict(network)),
        f"{part}_lora_adapter_metadata": _metadata(network),
    }
    pipeline.save_lora_weights(folder, **layers)


def load_weights(network: Any, trainable: Trainable, folder: Path, *, part: str) -> None:
    """Read what `save_weights` wrote back into the trainable weights."""
    from peft import set_peft_model_state_dict
    from safetensors.torch import load_file

    if isinstance(trainable, Full):
        network.load_state_dict(type(network).from_pretrained(folder / part).state_dict())
        return
    saved = load_file(folder / "pytorch_lora_weights.safetensors")
    adapter = {name.removeprefix(f"{part}."): tensor for name, tensor in saved.items()}
    fault = set_peft_model_state_dict(network, adapter)
    assert not fault.unexpected_keys, fault.unexpected_keys


def _metadata(network: Any) -> dict[str, Any]:
    """The adapter's configuration as JSON values, so that a loader knows its rank and scale."""
    config = network.peft_config["default"].to_dict()
    return {key: sorted(v) if isinstance(v, set) else v for key, v in config.items()}


def _ends_with(name: str, target: str) -> bool:
    return name == target or name.endswith(f".{target}")
