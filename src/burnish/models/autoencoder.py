"""The VAE of latent models: latents to images and back.

`scaling_factor` and `shift_factor` of its configuration bring its latents to the unit and the mean that the
denoiser was trained with.
"""

from __future__ import annotations

import torch
from diffusers import AutoencoderKL
from jaxtyping import Float
from torch import Tensor


def decode(
    vae: AutoencoderKL, x: Float[Tensor, "batch channels height width"]
) -> Float[Tensor, "batch 3 image_height image_width"]:
    """Images in [0, 1]; differentiable."""
    latents = x / vae.config["scaling_factor"] + _shift(vae)
    image = vae.decode(latents.to(memory_format=torch.channels_last), return_dict=False)[0]  # type: ignore[arg-type]
    return (image / 2 + 0.5).clamp(0, 1)


@torch.no_grad()
def encode(vae: AutoencoderKL, media: Float[Tensor, "batch 3 height width"]) -> Tensor:
    """The mean of the VAE's posterior of images in [0, 1], in the denoiser's unit; float32."""
    images = (2 * media - 1).to(vae.device, memory_format=torch.channels_last)
    posterior = vae.encode(images).latent_dist  # type: ignore[union-attr]
    return (posterior.mean - _shift(vae)) * vae.config["scaling_factor"]


def media_shape(vae: AutoencoderKL, latent: tuple[int, int, int]) -> tuple[int, int, int]:
    """Of an image (channels, height, width) whose latents have this shape."""
    _, height, width = latent
    scale = 2 ** (len(vae.config["block_out_channels"]) - 1)
    return (vae.config["out_channels"], height * scale, width * scale)


def _shift(vae: AutoencoderKL) -> float:
    return vae.config["shift_factor"] or 0.0
