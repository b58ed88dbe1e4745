"""Human Preference Score v2."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from burnish.rewards.learned.settings import CLIP_H, CLIP_H_REVISION, Precision, check_batch

if TYPE_CHECKING:
    from torch import Tensor

    from burnish.rewards.learned.clip import Towers
    from burnish.rollout import Samples


@dataclass(frozen=True, slots=True, kw_only=True)
class HPSv2:
    """Cosine of the embeddings of image and prompt by a CLIP-H trained on preferences, mostly 0.2 to 0.35.

    Wu et al. 2023. No logit scale, as in the paper's code. An image that is not square is not cropped but
    shown whole, between black bars. Differentiable.
    """

    differentiable: ClassVar[bool] = True
    version: ClassVar[int] = 1

    weights: str = "xswu/HPSv2"
    """A checkpoint of open_clip's ViT-H-14: a file, or a folder or repository that has `file`."""
    file: str = "HPS_v2_compressed.pt"
    """Its name there: that of v2.0; v2.1 is HPS_v2.1_compressed.pt."""
    revision: str = "697403c78157020a1ae59d23f111aa58ced35b0a"
    """Of that repository: a commit, a tag or a branch."""
    architecture: str = CLIP_H
    """A folder or a repository with that network's config.json and tokenizer; its weights are not read."""
    architecture_revision: str = CLIP_H_REVISION
    """Of that repository."""
    dtype: Precision = "float32"
    """Of CLIP's arithmetic; the cosine's is float32."""
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
            (self.weights, self.file, self.revision),
            (self.architecture, fetch.CONFIG, self.architecture_revision),
        )

    def __call__(self, samples: Samples) -> Tensor:
        from burnish.rewards.learned.pixels import letterboxed

        return self._towers().cosine(samples, self.batch, letterboxed)

    def _towers(self) -> Towers:
        from burnish.rewards.learned import open_clip

        return open_clip.towers(
            weights=self.weights,
            file=self.file,
            revision=self.revision,
            architecture=self.architecture,
            architecture_revision=self.architecture_revision,
            dtype=self.dtype,
            device=self.device,
        )
