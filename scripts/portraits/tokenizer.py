"""Builds the CLIP tokenizer: byte-pair merges until every word of a caption is a single token."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from pathlib import Path

from transformers import CLIPTokenizer

from burnish.portraits.captions import portrait_prompts

MAX_LENGTH = 48
"""Tokens of a caption with its start and end; the longest caption has fewer."""

START, END = "<|startoftext|>", "<|endoftext|>"
NUM_CAPTIONS = 20_000
"""Captions read to collect the vocabulary: enough to meet every word many times."""


def build_tokenizer(folder: Path) -> CLIPTokenizer:
    """Writes vocab.json and merges.txt into `folder` and returns the tokenizer made from them."""
    merges = byte_pair_merges(caption_words())
    letters = list(byte_letters().values())
    tokens = letters + [x + "</w>" for x in letters] + ["".join(m) for m in merges] + [START, END]
    folder.mkdir(parents=True, exist_ok=True)
    vocab = {token: index for index, token in enumerate(dict.fromkeys(tokens))}
    (folder / "vocab.json").write_text(json.dumps(vocab, ensure_ascii=False) + "\n")
    lines = ["#version: 0.2", *(" ".join(m) for m in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n")
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer_config(), indent=2) + "\n")
    return CLIPTokenizer.from_pretrained(folder)


def tokenizer_config() -> dict[str, object]:
    return {
        "tokenizer_class": "CLIPTokenizer",
        "bos_token": START,
        "eos_token": END,
        "pad_token": END,
        "unk_token": END,
        "do_lower_case": True,
        "errors": "replace",
        "model_max_length": MAX_LENGTH,
    }


def caption_words() -> Counter[str]:
    """How often each word occurs in the captions of both splits."""
    both = itertools.chain(
        itertools.islice(portrait_prompts("train", 0), NUM_CAPTIONS),
        itertools.islice(portrait_prompts("held-out", 0), NUM_CAPTIONS),
    )
    return Counter(word for text, _ in both for word in text.replace(",", " ").split())


def byte_pair_merges(words: Counter[str]) -> list[tuple[str, str]]:
    """Merges, most frequent pair first, until each word is one token."""
    pieces = {word: [*word[:-1], word[-1] + "</w>"] for word in words}
    merges = []
    while pairs := _pair_counts(pieces, words):
        best = max(pairs, key=lambda pair: (pairs[pair], pair))
        merges.append(best)
        pieces = {word: _merge(parts, best) for word, parts in pieces.items()}
    return merges


def byte_letters() -> dict[int, str]:
    """The printable letter that stands for each byte, in GPT-2's order (which CLIP shares)."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in printable]
    return {b: chr(b) for b in printable} | {b: chr(256 + i) for i, b in enumerate(others)}


def _pair_counts(pieces: dict[str, list[str]], words: Counter[str]) -> Counter[tuple[str, str]]:
    counts: Counter[tuple[str, str]] = Counter()
    for word, parts in pieces.items():
        for pair in itertools.pairwise(parts):
            counts[pair] += words[word]
    return counts


def _merge(parts: list[str], pair: tuple[str, str]) -> list[str]:
    merged: list[str] = []
    for part in parts:
        if merged and (merged[-1], part) == pair:
            merged[-1] += part
        else:
            merged.append(part)
    return merged
