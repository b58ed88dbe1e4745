"""Stable Diffusion 1.x and 2.x: CLIP text encoder, UNet, VAE.

The components are called; the pipeline's own `__call__` is neither copied nor patched.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from peft import get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import Parameter
from transformers import CLIPTextModel, CLIPTokenizer

from burnish.models.attention import SharedTextAttention, distinct
from burnish.models.trainable import Full, Trainable, lora_metadata, prepare
from burnish.policy import Cond
from burnish.schedules import PARAMETERISATIONS, SPACINGS, DiffusionSchedule

Network = TypeVar("Network", bound=nn.Module)


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
        if self.guidance == 1:
            return self._network(x, time, cond)
        both = {
            name: torch.cat([self._unconditional[name].expand_as(value), value])
            for name, value in cond.items()
        }
        u, c = self._network(torch.cat([x, x]), torch.cat([time, time]), both).chunk(2)
        return u + self.guidance * (c - u)

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
        x = (x / self.vae.config["scaling_factor"]).to(memory_format=torch.channels_last)
        image = self.vae.decode(x, return_dict=False)[0]  # type: ignore[arg-type]
        return (image / 2 + 0.5).clamp(0, 1)

    @property
    def media_shape(self) -> tuple[int, int, int]:
        _, height, width = self.event_shape
        scale = 2 ** (len(self.vae.config["block_out_channels"]) - 1)
        return (self.vae.config["out_channels"], height * scale, width * scale)

    @torch.no_grad()
    def encode_media(self, media: Tensor) -> Tensor:
        """The mean of the VAE's posterior, in the latents' unit; float32."""
        images = (2 * media - 1).to(self.vae.device, memory_format=torch.channels_last)
        posterior = self.vae.encode(images).latent_dist  # type: ignore[union-attr]
        return posterior.mean * self.vae.config["scaling_factor"]

    def parameters(self) -> list[Parameter]:
        return self._parameters

    def save(self, folder: Path) -> None:
        """Write the trained weights so that diffusers loads them.

        A LoRA goes to `folder/pytorch_lora_weights.safetensors`, for `pipe.load_lora_weights`; full
        weights go to `folder/unet`, for `UNet2DConditionModel.from_pretrained`.
        """
        if isinstance(self.trainable, Full):
            self.unet.save_pretrained(folder / "unet")
            return
        StableDiffusionPipeline.save_lora_weights(
            folder,
            unet_lora_layers=dict(get_peft_model_state_dict(self.unet)),
            unet_lora_adapter_metadata=lora_metadata(self.unet),
        )

    def load(self, folder: Path) -> None:
        """Read what `save` wrote back into the trainable weights."""
        if isinstance(self.trainable, Full):
            saved = UNet2DConditionModel.from_pretrained(folder / "unet").state_dict()
            self.unet.load_state_dict(saved)
            return
        saved = load_file(folder / "pytorch_lora_weights.safetensors")
        adapter = {name.removeprefix("unet."): tensor for name, tensor in saved.items()}
        fault = set_peft_model_state_dict(self.unet, adapter)
        assert not fault.unexpected_keys, fault.unexpected_keys


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
        text_encoder=_placed(text_encoder, device),
        unet=_placed(unet, device),
        vae=_placed(vae, device),
        scheduler=scheduler,
        guidance=guidance,
        trainable=trainable,
        seed=seed,
    )


def _placed(network: Network, device: torch.device) -> Network:
    """Frozen, in evaluation mode (dropout would make the policy a different one at each call), with
    channels last, which the convolutions of CPUs and GPUs are fastest with."""
    network.requires_grad_(False).eval()
    move: Any = network.to  # diffusers and torch disagree on its signature
    return move(device, memory_format=torch.channels_last)


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
