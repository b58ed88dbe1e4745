"""Stable Diffusion 3 and 3.5: two CLIP text encoders, T5 if it is there, transformer; flow matching."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from diffusers import (
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)
from torch import Tensor
from transformers import (
    AutoTokenizer,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    PreTrainedTokenizerBase,
    T5EncoderModel,
)

from burnish.models.joint_attention import JointAttention
from burnish.models.placed import placed
from burnish.models.tokens import tokens
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
            encoder(
                tokens(tokenizer, prompts, longest).to(encoder.device), output_hidden_states=True
            )
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
        return encoder(tokens(tokenizer, prompts, T5_TOKENS).to(encoder.device))[0].to(clip.dtype)


@dataclass(frozen=True, slots=True, kw_only=True)
class StableDiffusion3:
    """The family's own part of a `LatentModel`."""

    texts: Texts
    network: SD3Transformer2DModel
    schedule: FlowSchedule

    part: ClassVar[str] = "transformer"
    pipeline: ClassVar[type] = StableDiffusion3Pipeline

    def encode(self, prompts: Sequence[str]) -> Cond:
        """As `Texts.encode`."""
        return self.texts.encode(prompts)

    def forward(self, x: Tensor, time: Tensor, cond: Cond) -> Tensor:
        return self.network(
            hidden_states=x.to(self.network.dtype),
            timestep=time,
            encoder_hidden_states=cond["embedding"],
            pooled_projections=cond["pooled"],
            joint_attention_kwargs={"repeats": self.texts.repeats},
            return_dict=False,
        )[0]


def load(folder: str, *, dtype: torch.dtype, device: torch.device) -> StableDiffusion3:
    """From a pipeline's folder; the networks run in `dtype`."""
    scheduler = FlowMatchEulerDiscreteScheduler.from_pretrained(folder, subfolder="scheduler")
    assert isinstance(scheduler, FlowMatchEulerDiscreteScheduler)
    transformer = SD3Transformer2DModel.from_pretrained(
        folder, subfolder="transformer", torch_dtype=dtype
    )
    transformer.set_attn_processor(JointAttention())  # type: ignore[arg-type]
    return StableDiffusion3(
        texts=_texts(folder, transformer.config["joint_attention_dim"], dtype, device),
        network=placed(transformer, device),
        schedule=schedule_of(scheduler),
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
