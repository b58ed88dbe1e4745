"""ImageReward."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from burnish.rewards.learned.settings import BERT, BERT_REVISION, Precision, check_batch

if TYPE_CHECKING:
    from torch import Tensor

    from burnish.rewards.learned.blip import Scorer
    from burnish.rollout import Samples


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageReward:
    """Standardised score of image and prompt (Xu et al. 2023): about mean 0 and deviation 1; differentiable.

    BLIP's text encoder reads the prompt, 35 tokens of it, while it looks at the image; a head was trained
    on people's rankings.
    """

    differentiable: ClassVar[bool] = True
    version: ClassVar[int] = 1

    weights: str = "zai-org/ImageReward"
    """A folder or a repository that has `file` and med_config.json (once THUDM/ImageReward)."""
    file: str = "ImageReward.pt"
    """The checkpoint's name there."""
    revision: str = "5736be03b2652728fb87788c9797b0570450ab72"
    """Of that repository: a commit, a tag or a branch."""
    tokenizer: str = BERT
    """A folder or a repository with BERT's tokenizer."""
    tokenizer_revision: str = BERT_REVISION
    """Of that repository."""
    dtype: Precision = "float32"
    """Of BLIP's arithmetic; the head's is float32."""
    device: str = "auto"
    """`cpu`, `cuda`, `mps`, or `auto` for the best there is."""
    batch: int = 32
    """Images a forward."""

    def __post_init__(self) -> None:
        check_batch(self.batch)

    def prepare(self) -> None:
        """Load the weights. Raises ValueError if they cannot be had."""
        self._scorer()

    def content(self) -> str:
        """Of its weights, for a cache's key. Raises ValueError if they cannot be had."""
        from burnish.rewards.learned import fetch

        return fetch.contents(
            (self.weights, self.file, self.revision),
            (self.tokenizer, fetch.TOKENIZER, self.tokenizer_revision),
        )

    def __call__(self, samples: Samples) -> Tensor:
        import torch

        score, size = self._scorer(), self.batch
        chunks = (samples[i : i + size] for i in range(0, len(samples), size))
        return torch.cat([score(chunk.media, chunk.prompts) for chunk in chunks])

    def _scorer(self) -> Scorer:
        from burnish.rewards.learned import blip

        return blip.scorer(
            weights=self.weights,
            file=self.file,
            revision=self.revision,
            texts=self.tokenizer,
            texts_revision=self.tokenizer_revision,
            dtype=self.dtype,
            device=self.device,
        )
