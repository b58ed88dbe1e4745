"""Tiny learned rewards with random weights, of the real classes and checkpoint formats."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tiny
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import BertTokenizer, CLIPConfig, CLIPModel, CLIPTokenizer

from burnish.rewards.learned.aesthetic import Aesthetic
from burnish.rewards.learned.clip_score import CLIPScore
from burnish.rewards.learned.head import Head
from burnish.rewards.learned.hps_v2 import HPSv2
from burnish.rewards.learned.image_reward import ImageReward
from burnish.rewards.learned.pick_score import PickScore

WORDS = [token for token in tiny.TOKENS if token not in ("<|startoftext|>", "<|endoftext|>")]
TOKENS = (*WORDS, "<|startoftext|>", "<|endoftext|>")
"""The end of a text has the highest number, as in CLIP's vocabulary: open_clip finds it by that."""
BERT_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *tiny.WORDS)
SIZE = 12
"""Pixels on a side that the networks see."""


def everything(folder: Path) -> dict[str, Any]:
    """One reward of each kind, by its name in a recipe, with weights in folders of their own."""
    model, hps, image_reward = clip(folder / "clip"), open_clip(folder / "hps"), blip(folder / "ir")
    save_file(head(6).state_dict(), folder / "head.safetensors")
    own = {"device": "cpu"}
    return {
        "aesthetic": Aesthetic(model=model, head=str(folder / "head.safetensors"), **own),
        "clip-score": CLIPScore(model=model, **own),
        "pick-score": PickScore(model=model, tokenizer=model, **own),
        "hps-v2": HPSv2(weights=hps, architecture=hps, **own),
        "image-reward": ImageReward(weights=image_reward, tokenizer=image_reward, **own),
    }


def clip(folder: Path, *, hidden_act: str = "quick_gelu", turned: bool = False) -> str:
    """A CLIPModel with its tokenizer; `turned`: its images' embeddings point the other way."""
    torch.manual_seed(2)  # by which some of the tests' images and texts agree, and one does not
    network = _shaken(CLIPModel(clip_config(hidden_act)))
    if turned:
        network.visual_projection.weight.data.neg_()
    network.save_pretrained(folder)
    clip_tokenizer(folder)
    return str(folder)


def clip_config(hidden_act: str) -> CLIPConfig:
    layers = {"num_hidden_layers": 2, "num_attention_heads": 2, "hidden_act": hidden_act}
    return CLIPConfig(
        text_config={
            "vocab_size": len(TOKENS),
            "hidden_size": 8,
            "intermediate_size": 32,
            "max_position_embeddings": 9,
            "bos_token_id": len(TOKENS) - 2,
            "eos_token_id": len(TOKENS) - 1,
            **layers,
        },
        vision_config={
            "hidden_size": 16,
            "intermediate_size": 64,
            "image_size": SIZE,
            "patch_size": 4,
            **layers,
        },
        projection_dim=6,
    )


def clip_tokenizer(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(TOKENS)}))
    merges = ["#version: 0.2", *(f"{left} {right}" for left, right in tiny.MERGES)]
    (folder / "merges.txt").write_text("\n".join(merges))
    CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt")).save_pretrained(folder)


def head(width: int) -> Head:
    torch.manual_seed(1)
    return Head(width)


def open_clip(folder: Path, file: str = "HPS_v2_compressed.pt") -> str:
    """open_clip's checkpoint of a tiny network beside its configuration for transformers."""
    clip_config("gelu").save_pretrained(folder)
    clip_tokenizer(folder)
    shapes = {
        "logit_scale": (),
        "token_embedding.weight": (len(TOKENS), 8),
        "positional_embedding": (9, 8),
        "text_projection": (8, 6),
        **_block_shapes("", 8),
        **_norm("ln_final", 8),
        "visual.class_embedding": (16,),
        "visual.conv1.weight": (16, 3, 4, 4),
        "visual.positional_embedding": (10, 16),
        "visual.proj": (16, 6),
        **_norm("visual.ln_pre", 16),
        **_block_shapes("visual.", 16),
        **_norm("visual.ln_post", 16),
    }
    torch.save({"epoch": 3, "state_dict": _drawn(shapes)}, folder / file)
    return str(folder)


def _block_shapes(prefix: str, width: int) -> dict[str, tuple[int, ...]]:
    return {
        f"{prefix}transformer.resblocks.{i}.{name}": shape
        for i in range(2)
        for name, shape in {
            **_norm("ln_1", width),
            "attn.in_proj_weight": (3 * width, width),
            "attn.in_proj_bias": (3 * width,),
            **_linear("attn.out_proj", width, width),
            **_norm("ln_2", width),
            **_linear("mlp.c_fc", 4 * width, width),
            **_linear("mlp.c_proj", width, 4 * width),
        }.items()
    }


def blip(folder: Path) -> str:
    """ImageReward's checkpoint of a tiny network: two heads in each attention, as med_config.json says."""
    folder.mkdir(parents=True, exist_ok=True)
    vision, text = "blip.visual_encoder.", "blip.text_encoder."
    shapes = {
        f"{vision}cls_token": (1, 1, 128),
        f"{vision}pos_embed": (1, 10, 128),
        f"{vision}patch_embed.proj.weight": (128, 3, 4, 4),
        f"{vision}patch_embed.proj.bias": (128,),
        **_norm(f"{vision}norm", 128),
        f"{text}embeddings.word_embeddings.weight": (len(BERT_TOKENS) + 2, 16),
        f"{text}embeddings.position_embeddings.weight": (40, 16),
        **_norm(f"{text}embeddings.LayerNorm", 16),
    }
    for i in range(2):
        block, layer = f"{vision}blocks.{i}.", f"{text}encoder.layer.{i}."
        shapes |= {
            **_norm(f"{block}norm1", 128),
            **_linear(f"{block}attn.qkv", 3 * 128, 128),
            **_linear(f"{block}attn.proj", 128, 128),
            **_norm(f"{block}norm2", 128),
            **_linear(f"{block}mlp.fc1", 48, 128),
            **_linear(f"{block}mlp.fc2", 128, 48),
            **_bert_attention(f"{layer}attention.", 16),
            **_bert_attention(f"{layer}crossattention.", 128),
            **_linear(f"{layer}intermediate.dense", 24, 16),
            **_linear(f"{layer}output.dense", 16, 24),
            **_norm(f"{layer}output.LayerNorm", 16),
        }
    weights = _drawn(shapes)
    for name in ("cls_token", "pos_embed", "patch_embed.proj.weight", "patch_embed.proj.bias"):
        weights[f"{vision}{name}"] *= 0.02  # so small that LayerNorm's epsilon is seen
    weights |= {f"mlp.{name}": value for name, value in head(16).state_dict().items()}
    weights[f"{text}embeddings.position_ids"] = torch.arange(40)[None]
    weights["blip.vision_proj.weight"] = torch.zeros(4, 128)  # there, and not used
    torch.save(weights, folder / "ImageReward.pt")
    (folder / "med_config.json").write_text(json.dumps(MED_CONFIG))
    (folder / "vocab.txt").write_text("\n".join(BERT_TOKENS))
    BertTokenizer(str(folder / "vocab.txt")).save_pretrained(folder)
    return str(folder)


MED_CONFIG: Mapping[str, Any] = {
    "add_cross_attention": True,
    "encoder_width": 768,  # BLIP's code puts the vision transformer's in its place
    "hidden_act": "gelu",
    "hidden_size": 16,
    "intermediate_size": 24,
    "layer_norm_eps": 1e-12,
    "max_position_embeddings": 40,
    "num_attention_heads": 2,
    "num_hidden_layers": 2,
    "pad_token_id": 0,
    "vocab_size": len(BERT_TOKENS) + 2,
}


def _bert_attention(prefix: str, seen: int) -> dict[str, tuple[int, ...]]:
    return {
        **_linear(f"{prefix}self.query", 16, 16),
        **_linear(f"{prefix}self.key", 16, seen),
        **_linear(f"{prefix}self.value", 16, seen),
        **_linear(f"{prefix}output.dense", 16, 16),
        **_norm(f"{prefix}output.LayerNorm", 16),
    }


def _linear(name: str, out: int, width: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (out, width), f"{name}.bias": (out,)}


def _norm(name: str, width: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def _drawn(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Vectors and numbers around 1 or 0, matrices that keep the size of what they multiply."""
    torch.manual_seed(2)
    drawn = {}
    for name, shape in shapes.items():
        matrix = len(shape) > 1
        centre = 1.0 if not matrix and name.endswith("weight") else 0.0
        spread = torch.tensor(shape[1:]).prod().rsqrt() if matrix else 0.3
        drawn[name] = centre + spread * torch.randn(shape)
    return drawn


@torch.no_grad()
def _shaken(network: nn.Module) -> nn.Module:
    """Away from the values that networks are initialised with, at which biases and scales go unseen."""
    for parameter in network.parameters():
        parameter += 0.3 * torch.randn(parameter.shape)
    return network
