"""Stable Diffusion 3 and 3.5: two CLIP text encoders, T5 if it is there, transformer, VAE; flow matching.

The components are called; the pipeline's own `__call__` is neither copied nor patched.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)
from torch import Tensor
from torch.nn import Parameter
from transformers import (
    AutoTokenizer,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    PreTrainedTokenizerBase,
    T5EncoderModel,
)

from burnish.models import autoencoder
from burnish.models.guidance import guided_and_not
from burnish.models.joint_attention import JointAttention
from burnish.models.placed import placed
from burnish.models.trainable import Trainable, load_weights, prepare, save_weights
from burnish.policy import Cond
from burnish.schedules import FlowSchedule

T5_TOKENS = 256
"""Of a prompt, as the pipeline has it by default; zeros stand for them where there is no T5 encoder."""

UNSUPPORTED = (
    "use_dynamic_shifting",
    "use_karras_sigmas",
    "use_exponential_sigmas",
    "use_beta_sigmas",
    "invert_sigmas",
    "shift_terminal",
    "stochastic_sampling",
)
"""Options of the scheduler that burnish has no rule for."""


@dataclass(frozen=True, slots=True)
class Texts:
    """The text encoders with their tokenizers, as the pipeline combines them.

    Both CLIPs' penultimate hidden states side by side, padded to T5's width, then T5's tokens after them;
    and both CLIPs' pooled outputs side by side.
    """

    clips: tuple[tuple[CLIPTokenizer, CLIPTextModelWithProjection], ...]
    t5: tuple[PreTrainedTokenizerBase, T5EncoderModel] | None
    width: int

    @property
    def repeats(self) -> int:
        """How many tokens the last one of an embedding stands for."""
        return 1 if self.t5 else T5_TOKENS

    @torch.no_grad()
    def encode(self, prompts: Sequence[str]) -> Cond:
        """embedding: (batch, length, width); pooled: (batch, sum of the CLIPs' projections)"""
        longest = self.clips[0][0].model_max_length  # of both, as in the pipeline
        found = [
            encoder(_tokens(tokenizer, prompts, longest, encoder.device), output_hidden_states=True)
            for tokenizer, encoder in self.clips
        ]
        clip = torch.cat([each.hidden_states[-2] for each in found], dim=-1)
        clip = F.pad(clip, (0, self.width - clip.shape[-1]))
        return {
            "embedding": torch.cat([clip, self._t5(prompts, clip)], dim=1),
            "pooled": torch.cat([each.text_embeds for each in found], dim=-1),
        }

    def _t5(self, prompts: Sequence[str], clip: Tensor) -> Tensor:
        if self.t5 is None:
            return clip.new_zeros(len(prompts), 1, self.width)
        tokenizer, encoder = self.t5
        return encoder(_tokens(tokenizer, prompts, T5_TOKENS, encoder.device))[0].to(clip.dtype)


class StableDiffusion3:
    """A `Denoiser` in the VAE's latent space, with classifier-free guidance inside `predict`.

    guidance: weight w of u + w (c - u) (Ho & Salimans 2022); at 1 the unconditional pass is left out
    """

    def __init__(
        self,
        *,
        texts: Texts,
        transformer: SD3Transformer2DModel,
        vae: AutoencoderKL,
        scheduler: FlowMatchEulerDiscreteScheduler,
        guidance: float,
        trainable: Trainable,
        seed: int,
    ) -> None:
        self.texts = texts
        self.transformer = transformer
        self.vae = vae
        self.schedule = schedule_of(scheduler)
        self.guidance = guidance
        self.trainable = trainable
        self._parameters = prepare(transformer, trainable, seed)
        transformer.set_attn_processor(JointAttention())  # type: ignore[arg-type]
        self._unconditional = self.encode([""])

    @property
    def event_shape(self) -> tuple[int, int, int]:
        size = self.transformer.config["sample_size"]
        return (self.transformer.config["in_channels"], size, size)

    def encode(self, prompts: Sequence[str]) -> Cond:
        """As `Texts.encode`."""
        return self.texts.encode(prompts)

    def predict(self, x: Tensor, time: Tensor, cond: Cond) -> Tensor:
        return self.predict_both(x, time, cond)[0]

    def predict_both(self, x: Tensor, time: Tensor, cond: Cond) -> tuple[Tensor, Tensor]:
        return guided_and_not(self._network, x, time, cond, self._unconditional, self.guidance)

    def _network(self, x: Tensor, time: Tensor, cond: Cond) -> Tensor:
        return self.transformer(
            hidden_states=x.to(self.transformer.dtype),
            timestep=time,
            encoder_hidden_states=cond["embedding"],
            pooled_projections=cond["pooled"],
            joint_attention_kwargs={"repeats": self.texts.repeats},
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
        """For `pipe.load_lora_weights`, or `SD3Transformer2DModel.from_pretrained`: see `save_weights`."""
        save_weights(
            self.transformer,
            self.trainable,
            folder,
            part="transformer",
            pipeline=StableDiffusion3Pipeline,
        )

    def load(self, folder: Path) -> None:
        """Read what `save` wrote back into the trainable weights."""
        load_weights(self.transformer, self.trainable, folder, part="transformer")


def load(
    folder: str,
    *,
    guidance: float,
    trainable: Trainable,
    dtype: torch.dtype,
    device: torch.device,
    seed: int,
) -> StableDiffusion3:
    """From a pipeline folder. The text encoders and the transformer run in `dtype`, the VAE in float32."""
    scheduler = FlowMatchEulerDiscreteScheduler.from_pretrained(folder, subfolder="scheduler")
    assert isinstance(scheduler, FlowMatchEulerDiscreteScheduler)
    transformer = SD3Transformer2DModel.from_pretrained(
        folder, subfolder="transformer", torch_dtype=dtype
    )
    vae = AutoencoderKL.from_pretrained(folder, subfolder="vae", torch_dtype=torch.float32)
    return StableDiffusion3(
        texts=_texts(folder, transformer.config["joint_attention_dim"], dtype, device),
        transformer=placed(transformer, device),
        vae=placed(vae, device),
        scheduler=scheduler,
        guidance=guidance,
        trainable=trainable,
        seed=seed,
    )


def _texts(folder: str, width: int, dtype: torch.dtype, device: torch.device) -> Texts:
    def encoder(kind: Any, name: str) -> Any:
        return placed(kind.from_pretrained(folder, subfolder=name, torch_dtype=dtype), device)

    clips = [
        (
            CLIPTokenizer.from_pretrained(folder, subfolder=f"tokenizer{number}"),
            encoder(CLIPTextModelWithProjection, f"text_encoder{number}"),
        )
        for number in ("", "_2")
    ]
    t5 = None
    if _has_t5(folder):
        tokenizer = AutoTokenizer.from_pretrained(folder, subfolder="tokenizer_3")
        t5 = (tokenizer, encoder(T5EncoderModel, "text_encoder_3"))
    return Texts(tuple(clips), t5, width)


def _has_t5(folder: str) -> bool:
    """Whether the pipeline says so: a T5 that it names and that is not there is a fault, not a choice."""
    parts: Any = StableDiffusion3Pipeline.load_config(folder)
    return parts.get("text_encoder_3", (None, None))[1] is not None


def _tokens(tokenizer: Any, prompts: Sequence[str], length: int, device: torch.device) -> Tensor:
    tokens = tokenizer(
        list(prompts),
        padding="max_length",
        max_length=length,
        truncation=True,
        return_tensors="pt",
    )
    return tokens.input_ids.to(device)


def schedule_of(scheduler: FlowMatchEulerDiscreteScheduler) -> FlowSchedule:
    """Raises ValueError for a scheduler whose times are not those of a constant shift."""
    config = scheduler.config
    for name in UNSUPPORTED:
        if config.get(name):
            raise ValueError(
                f"the scheduler has {name} = {config[name]!r}, a rule that burnish does not have yet; "
                "set it to false or null in scheduler_config.json"
            )
    return FlowSchedule(num_train=config["num_train_timesteps"], shift=config["shift"])
