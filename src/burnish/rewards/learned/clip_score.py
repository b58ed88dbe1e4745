"""CLIPScore."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from burnish.rewards.learned.settings import CLIP_B, CLIP_B_REVISION, Precision, check_batch

if TYPE_CHECKING:
    from torch import Tensor

    from burnish.rewards.learned.clip import Towers
    from burnish.rollout import Samples


@dataclass(frozen=True, slots=True, kw_only=True)
class CLIPScore:
    """w max(cos, 0) of CLIP's embeddings of image and prompt (Hessel et al. 2021); differentiable.

    The prompt is read as it is; the paper puts "A photo depicts" before a caption. Where the cosine is
    negative there is no gradient.
    """

    differentiable: ClassVar[bool] = True
    version: ClassVar[int] = 1

    model: str = CLIP_B
    """A CLIP: a folder, or a repository on the hub. ViT-B/32 in the paper."""
    revision: str = CLIP_B_REVISION
    """Of that repository: a commit, a tag or a branch."""
    weight: float = 2.5
    """w; 2.5 in the paper, which spreads the score over about [0, 1]. torchmetrics has 100."""
    dtype: Precision = "float32"
    """Of CLIP's arithmetic; the cosine's is float32."""
    device: str = "auto"
    """`cpu`, `cuda`, `mps`, or `auto` for the best there is."""
    batch: int = 32
    """Images a forward."""

    def __post_init__(self) -> None:
        check_batch(self.batch)
        if self.weight <= 0:
            raise ValueError(f"weight = {self.weight}, expected more than 0")

    def prepare(self) -> None:
        """Load the weights. Raises ValueError if they cannot be had."""
        self._towers()

    def content(self) -> str:
        """Of its weights, for a cache's key. Raises ValueError if they cannot be had."""
        from burnish.rewards.learned import fetch

        return fetch.contents(
            (self.model, fetch.CONFIG, self.revision),
        )

    def __call__(self, samples: Samples) -> Tensor:
        return self.weight * self._towers().cosine(samples, self.batch).clamp(min=0)

    def _towers(self) -> Towers:
        from burnish.rewards.learned import clip

        return clip.towers(
            model=self.model,
            revision=self.revision,
            texts=self.model,
            texts_revision=self.revision,
            dtype=self.dtype,
            device=self.device,
        )
