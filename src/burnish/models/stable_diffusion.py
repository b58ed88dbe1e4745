"""Stable Diffusion 1.x and 2.x: CLIP text encoder, UNet, VAE.

The components are called; the pipeline's own `__call__` is neither copied nor patched.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from torch import Tensor
from torch.nn import Parameter
from transformers import CLIPTextModel, CLIPTokenizer

from burnish.models import autoencoder
from burnish.models.attention import SharedTextAttention, distinct
from burnish.models.guidance import guided_and_not
from burnish.models.placed import placed
from burnish.models.trainable import Trainable, load_weights, prepare, save_weights
from burnish.policy import Cond
from burnish.schedules import PARAMETERISATIONS, SPACINGS, DiffusionSchedule


class StableDiffusion:
    """A `Denoiser` in the VAE's latent space, with classifier-free guidance inside `predict`.

    guidance: weight w of u + w (c - u) (Ho & Salimans 2022); at 1 the unconditional pass is left out
    """

    def __init__(
        self,
        *,
        tokenizer: CLIPTokenizer,
        text_encoder: CLIPTextModel,
        unet: UNet2DConditionModel,
        vae: AutoencoderKL,
        scheduler: DDIMScheduler,
        guidance: float,
        trainable: Trainable,
        seed: int,
    ) -> None:
        self.tokenizer = tokenizer
        self.text_encoder = text_encoder
        self.unet = unet
        self.vae = vae
        self.schedule = schedule_of(scheduler)
        self.guidance = guidance
        self.trainable = trainable
        self._parameters = prepare(unet, trainable, seed)
        unet.set_attn_processor(SharedTextAttention())  # type: ignore[arg-type]
        self._unconditional = self.encode([""])

    @property
    def event_shape(self) -> tuple[int, int, int]:
        size = self.unet.config["sample_size"]
        return (self.unet.config["in_channels"], size, size)

    @torch.no_grad()
    def encode(self, prompts: Sequence[str]) -> Cond:
        """tokens: (batch, length); embedding: the text encoder's last hidden state, (batch, length, width)"""
        tokens = self.tokenizer(
            list(prompts),
            padding="max_length",
            max_length=self.tokenizer.model_max_length,
            truncation=True,
            return_tensors="pt",
        ).input_ids.to(self.text_encoder.device)
        return {"tokens": tokens, "embedding": self.text_encoder(tokens).last_hidden_state}

    def predict(self, x: Tensor, time: Tensor, cond: Cond) -> Tensor:
        return self.predict_both(x, time, cond)[0]

    def predict_both(self, x: Tensor, time: Tensor, cond: Cond) -> tuple[Tensor, Tensor]:
        return guided_and_not(self._network, x, time, cond, self._unconditional, self.guidance)

    def _network(self, x: Tensor, time: Tensor, cond: Cond) -> Tensor:
        texts, rows = distinct(cond["tokens"], cond["embedding"])
        return self.unet(
            x.to(self.unet.dtype, memory_format=torch.channels_last),
            time,
            encoder_hidden_states=texts,
            cross_attention_kwargs={"rows": rows},
            return_dict=False,
        )[0]

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
        """For `pipe.load_lora_weights`, or `UNet2DConditionModel.from_pretrained`: see `save_weights`."""
        save_weights(
            self.unet, self.trainable, folder, part="unet", pipeline=StableDiffusionPipeline
        )

    def load(self, folder: Path) -> None:
        """Read what `save` wrote back into the trainable weights."""
        load_weights(self.unet, self.trainable, folder, part="unet")


def load(
    folder: str,
    *,
    guidance: float,
    trainable: Trainable,
    dtype: torch.dtype,
    device: torch.device,
    seed: int,
) -> StableDiffusion:
    """From a pipeline folder or a hub name. The text encoder and the UNet run in `dtype`, the VAE in
    float32."""
    scheduler = DDIMScheduler.from_pretrained(folder, subfolder="scheduler")
    assert isinstance(scheduler, DDIMScheduler)
    text_encoder = CLIPTextModel.from_pretrained(
        folder, subfolder="text_encoder", torch_dtype=dtype
    )
    unet = UNet2DConditionModel.from_pretrained(folder, subfolder="unet", torch_dtype=dtype)
    vae = AutoencoderKL.from_pretrained(folder, subfolder="vae", torch_dtype=torch.float32)
    return StableDiffusion(
        tokenizer=CLIPTokenizer.from_pretrained(folder, subfolder="tokenizer"),
        text_encoder=placed(text_encoder, device),
        unet=placed(unet, device),
        vae=placed(vae, device),
        scheduler=scheduler,
        guidance=guidance,
        trainable=trainable,
        seed=seed,
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
