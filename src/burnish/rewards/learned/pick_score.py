"""PickScore."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from burnish.rewards.learned.settings import CLIP_H, CLIP_H_REVISION, Precision, check_batch

if TYPE_CHECKING:
    from torch import Tensor

    from burnish.rewards.learned.clip import Towers
    from burnish.rollout import Samples


@dataclass(frozen=True, slots=True, kw_only=True)
class PickScore:
    """Logit scale times cos of the embeddings of image and prompt (Kirstain et al. 2023), mostly 18 to 24.

    A CLIP-H trained on which of two images people picked for a prompt. In nats: the difference of two
    images' scores is the log-odds that the first is picked. Differentiable.
    """

    differentiable: ClassVar[bool] = True
    version: ClassVar[int] = 1

    model: str = "yuvalkirstain/PickScore_v1"
    """A folder, or a repository on the hub."""
    revision: str = "a4e4367c6dfa7288a00c550414478f865b875800"
    """Of that repository: a commit, a tag or a branch."""
    tokenizer: str = CLIP_H
    """A folder or a repository with the tokenizer: in the paper's code, of the CLIP-H that it began with."""
    tokenizer_revision: str = CLIP_H_REVISION
    """Of that repository."""
    dtype: Precision = "float32"
    """Of CLIP's arithmetic; that of the scale and the cosine is float32."""
    device: str = "auto"
    """`cpu`, `cuda`, `mps`, or `auto` for the best there is."""
    batch: int = 16
    """Images a forward."""

    def __post_init__(self) -> None:
        check_batch(self.batch)

    def prepare(self) -> None:
        """Load the weights. Raises ValueError if they cannot be had."""
        self._towers()

    def content(self) -> str:
        """Of its weights, for a cache's key. Raises ValueError if they cannot be had."""
        from burnish.rewards.learned import fetch

        return fetch.contents(
            (self.model, fetch.CONFIG, self.revision),
            (self.tokenizer, fetch.TOKENIZER, self.tokenizer_revision),
        )

    def __call__(self, samples: Samples) -> Tensor:
        towers = self._towers()
        return towers.scale * towers.cosine(samples, self.batch)

    def _towers(self) -> Towers:
        from burnish.rewards.learned import clip

        return clip.towers(
            model=self.model,
            revision=self.revision,
            texts=self.tokenizer,
            texts_revision=self.tokenizer_revision,
            dtype=self.dtype,
            device=self.device,
        )
