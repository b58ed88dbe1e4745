"""The families of pipelines: a tiny one of each, and its pictures by burnish and by diffusers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tiny
import torch
from diffusers import (
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from torch import Tensor, nn

import burnish
from burnish.models.trainable import Trainable
from burnish.policy import Sampler
from burnish.prompts import Prompt
from burnish.randomness import Randomness
from burnish.rollout import decode, rollout
from burnish.samplers.flow import FlowODE, FlowSDE

PROMPTS = [Prompt("a portrait of a person"), Prompt("red hair"), Prompt("a person with blue hair")]
SEED = Randomness(3)


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """What diffusers calls things, and what burnish samples with.

    write: makes the folder of a tiny pipeline
    pipeline, network: diffusers' classes of it, and of the part of it that is trained
    absent: components that it does not have, which diffusers wants to be told
    ode, sde: samplers of four steps without and with a density
    frozen: a denoiser's other networks
    """

    write: Callable[[Path], Path]
    pipeline: Any
    network: Any
    part: str
    absent: tuple[str, ...] = ()
    ode: Sampler
    sde: Sampler
    frozen: Callable[[Any], tuple[nn.Module, ...]]


STABLE_DIFFUSION = Family(
    write=tiny.stable_diffusion,
    pipeline=StableDiffusionPipeline,
    network=UNet2DConditionModel,
    part="unet",
    ode=burnish.DDIM(num_steps=4, eta=0.0),
    sde=burnish.DDIM(num_steps=4, eta=1.0),
    frozen=lambda denoiser: (denoiser.family.text_encoder, denoiser.vae),
)


def stable_diffusion_3(*, t5: bool, **settings: Any) -> Family:
    """settings: those of `tiny.stable_diffusion_3`"""
    return Family(
        write=lambda folder: tiny.stable_diffusion_3(folder, t5=t5, **settings),
        pipeline=StableDiffusion3Pipeline,
        network=SD3Transformer2DModel,
        part="transformer",
        absent=() if t5 else ("text_encoder_3", "tokenizer_3"),
        ode=FlowODE(num_steps=4),
        sde=FlowSDE(num_steps=4),
        frozen=lambda denoiser: (
            *(encoder for _, encoder in denoiser.family.texts.clips),
            *([denoiser.family.texts.t5[1]] if denoiser.family.texts.t5 else []),
            denoiser.vae,
        ),
    )


FAMILIES = {
    "stable-diffusion": STABLE_DIFFUSION,
    "stable-diffusion-3": stable_diffusion_3(t5=False, shift=3.0),
    "stable-diffusion-3.5-t5": stable_diffusion_3(t5=True, transformer=tiny.MEDIUM_3_5, shift=1.0),
}


@dataclass(frozen=True, slots=True)
class Model:
    """A family's tiny pipeline in its folder."""

    family: Family
    folder: str

    def policy(
        self,
        sampler: Sampler | None = None,
        *,
        guidance: float = 3.0,
        trainable: Trainable | None = None,
        dtype: str = "float32",
        seed: int = 0,
    ) -> burnish.Policy:
        """By default with the stochastic sampler."""
        denoiser = burnish.load(
            self.folder,
            guidance=guidance,
            trainable=trainable,
            dtype=dtype,
            device="cpu",
            seed=seed,
        )
        return burnish.Policy(denoiser, sampler or self.family.sde, storage=getattr(torch, dtype))

    def pipeline(self, **parts: Any) -> Any:
        """diffusers' own, quiet."""
        absent = dict.fromkeys(self.family.absent)
        pipeline = self.family.pipeline.from_pretrained(self.folder, **absent, **parts)
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    def network(self, denoiser: Any) -> nn.Module:
        """The one that is trained."""
        return denoiser.family.network


def trained(policy: burnish.Policy) -> burnish.Policy:
    """Random weights where training would have put some."""
    generator = torch.Generator().manual_seed(1)
    for parameter in policy.denoiser.parameters():
        parameter.data += 0.05 * torch.randn(parameter.shape, generator=generator)
    return policy


def pictures(policy: burnish.Policy) -> Tensor:
    x0 = rollout(policy, PROMPTS, SEED, batch=3).x0
    return decode(policy, x0, PROMPTS, batch=3).media


def pipeline_pictures(pipeline: Any, policy: burnish.Policy, *, guidance: float) -> Tensor:
    """The pipeline's own pictures of `PROMPTS` under the noise that `rollout` draws for `SEED`."""
    shape = (policy.kernel.num_steps + 1, *policy.denoiser.event_shape)
    noise = SEED.normal(range(len(PROMPTS)), shape)[:, 0]
    images = pipeline(
        [prompt.text for prompt in PROMPTS],
        latents=noise,
        guidance_scale=guidance,
        num_inference_steps=policy.sampler.num_steps,
        output_type="np",
        height=16,
        width=16,
    ).images
    return torch.from_numpy(images).permute(0, 3, 1, 2)


def adapters_alone_have_a_gradient(model: Model, denoiser: Any) -> None:
    """Each adapter has one that is not 0, and no other weight has any."""
    adapters = {id(parameter) for parameter in denoiser.parameters()}
    for network in (model.network(denoiser), *model.family.frozen(denoiser)):
        for name, parameter in network.named_parameters():
            assert (parameter.grad is not None) == (id(parameter) in adapters), name
            assert parameter.grad is None or parameter.grad.abs().max() > 0, name
