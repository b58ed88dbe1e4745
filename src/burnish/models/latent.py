"""A latent model as a `Denoiser`: a family's texts and network, a VAE, and classifier-free guidance."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from diffusers import AutoencoderKL
from torch import Tensor
from torch.nn import Parameter

from burnish.models import autoencoder
from burnish.models.guidance import guided_and_not
from burnish.models.placed import placed
from burnish.models.trainable import Trainable, load_weights, prepare, save_weights
from burnish.policy import Cond
from burnish.schedules import Schedule


class Family(Protocol):
    """What a family of pipelines has of its own. It calls the pipeline's components, frozen and in evaluation
    mode; the pipeline's own `__call__` is neither copied nor patched."""

    @property
    def network(self) -> Any:
        """The network that is trained, with diffusers' `sample_size` and `in_channels` in its `config`."""
        ...

    @property
    def part(self) -> str:
        """What the pipeline calls it, such as `unet`."""
        ...

    @property
    def pipeline(self) -> Any:
        """diffusers' class, which knows the format of a LoRA's file."""
        ...

    @property
    def schedule(self) -> Schedule: ...

    def encode(self, prompts: Sequence[str]) -> Cond:
        """Conditioning of each prompt; no gradient."""
        ...

    def forward(self, x: Tensor, time: Tensor, cond: Cond) -> Tensor:
        """One pass of the network, without guidance; shaped as `x`."""
        ...


class LatentModel:
    """A `Denoiser` in the VAE's latent space, with classifier-free guidance inside `predict`.

    guidance: weight w of u + w (c - u) (Ho & Salimans 2022); at 1 the unconditional pass is left out
    """

    def __init__(
        self,
        family: Family,
        *,
        vae: AutoencoderKL,
        guidance: float,
        trainable: Trainable,
        seed: int,
    ) -> None:
        self.family = family
        self.vae = vae
        self.guidance = guidance
        self.trainable = trainable
        self._parameters = prepare(family.network, trainable, seed)
        self._unconditional = family.encode([""])

    @property
    def schedule(self) -> Schedule:
        return self.family.schedule

    @property
    def event_shape(self) -> tuple[int, int, int]:
        config = self.family.network.config
        return (config["in_channels"], config["sample_size"], config["sample_size"])

    def encode(self, prompts: Sequence[str]) -> Cond:
        return self.family.encode(prompts)

    def predict(self, x: Tensor, time: Tensor, cond: Cond) -> Tensor:
        return self.predict_both(x, time, cond)[0]

    def predict_both(self, x: Tensor, time: Tensor, cond: Cond) -> tuple[Tensor, Tensor]:
        return guided_and_not(
            self.family.forward, x, time, cond, self._unconditional, self.guidance
        )

    def decode(self, x: Tensor) -> Tensor:
        return autoencoder.decode(self.vae, x)

    @property
    def media_shape(self) -> tuple[int, int, int]:
        return autoencoder.media_shape(self.vae, self.event_shape)

    def encode_media(self, media: Tensor) -> Tensor:
        return autoencoder.encode(self.vae, media)

    def parameters(self) -> list[Parameter]:
        return self._parameters

    def save(self, folder: Path) -> None:
        """For `pipe.load_lora_weights`, or the network's `from_pretrained`: see `save_weights`."""
        family = self.family
        save_weights(
            family.network, self.trainable, folder, part=family.part, pipeline=family.pipeline
        )

    def load(self, folder: Path) -> None:
        """Read what `save` wrote back into the trainable weights."""
        load_weights(self.family.network, self.trainable, folder, part=self.family.part)


class LoadFamily(Protocol):
    def __call__(self, folder: str, *, dtype: torch.dtype, device: torch.device) -> Family: ...


def load(
    load_family: LoadFamily,
    folder: str,
    *,
    guidance: float,
    trainable: Trainable,
    dtype: torch.dtype,
    device: torch.device,
    seed: int,
) -> LatentModel:
    """From a pipeline's folder. The family's networks run in `dtype`, the VAE in float32."""
    vae = AutoencoderKL.from_pretrained(folder, subfolder="vae", torch_dtype=torch.float32)
    return LatentModel(
        load_family(folder, dtype=dtype, device=device),
        vae=placed(vae, device),
        guidance=guidance,
        trainable=trainable,
        seed=seed,
    )
