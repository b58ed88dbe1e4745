"""Stable Diffusion 1.x and 2.x: CLIP text encoder, UNet."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from burnish.models.attention import SharedTextAttention, distinct
from burnish.models.placed import placed
from burnish.models.tokens import tokens
from burnish.policy import Cond
from burnish.schedules import PARAMETERISATIONS, SPACINGS, DiffusionSchedule


@dataclass(frozen=True, slots=True, kw_only=True)
class StableDiffusion:
    """The family's own part of a `LatentModel`."""

    tokenizer: CLIPTokenizer
    text_encoder: CLIPTextModel
    network: UNet2DConditionModel
    schedule: DiffusionSchedule

    part: ClassVar[str] = "unet"
    pipeline: ClassVar[type] = StableDiffusionPipeline

    @torch.no_grad()
    def encode(self, prompts: Sequence[str]) -> Cond:
        """tokens: (batch, length); embedding: the text encoder's last hidden state, (batch, length, width)"""
        longest = self.tokenizer.model_max_length
        found = tokens(self.tokenizer, prompts, longest).to(self.text_encoder.device)
        return {"tokens": found, "embedding": self.text_encoder(found).last_hidden_state}

    def forward(self, x: Tensor, time: Tensor, cond: Cond) -> Tensor:
        texts, rows = distinct(cond["tokens"], cond["embedding"])
        return self.network(
            x.to(self.network.dtype, memory_format=torch.channels_last),
            time,
            encoder_hidden_states=texts,
            cross_attention_kwargs={"rows": rows},
            return_dict=False,
        )[0]


def load(folder: str, *, dtype: torch.dtype, device: torch.device) -> StableDiffusion:
    """From a pipeline's folder; the networks run in `dtype`."""
    scheduler = DDIMScheduler.from_pretrained(folder, subfolder="scheduler")
    assert isinstance(scheduler, DDIMScheduler)
    text_encoder = CLIPTextModel.from_pretrained(
        folder, subfolder="text_encoder", torch_dtype=dtype
    )
    unet = UNet2DConditionModel.from_pretrained(folder, subfolder="unet", torch_dtype=dtype)
    unet.set_attn_processor(SharedTextAttention())  # type: ignore[arg-type]
    return StableDiffusion(
        tokenizer=CLIPTokenizer.from_pretrained(folder, subfolder="tokenizer"),
        text_encoder=placed(text_encoder, device),
        network=placed(unet, device),
        schedule=schedule_of(scheduler),
    )


def schedule_of(scheduler: DDIMScheduler) -> DiffusionSchedule:
    """Raises ValueError for a scheduler whose reverse step is not Gaussian in the prediction."""
    config = scheduler.config
    for name in ("clip_sample", "thresholding"):
        if config[name]:
            raise ValueError(
                f"the scheduler has {name} = true, which changes the prediction by a rule that "
                "burnish does not have yet; set it to false in scheduler_config.json"
            )
    return DiffusionSchedule(
        alpha_bar=scheduler.alphas_cumprod.double(),
        final_alpha_bar=float(scheduler.final_alpha_cumprod),
        parameterisation=PARAMETERISATIONS[config["prediction_type"]],
        spacing=SPACINGS[config["timestep_spacing"]],
        offset=config["steps_offset"],
    )
