"""LAION's aesthetic predictor."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar

from burnish.rewards.learned.settings import CLIP_L, CLIP_L_REVISION, Precision, check_batch

if TYPE_CHECKING:
    from torch import Tensor

    from burnish.rollout import Samples


@dataclass(frozen=True, slots=True, kw_only=True)
class Aesthetic:
    """LAION's aesthetic predictor v2, as in Black et al. 2023, sec. 5.1: about 1 to 10; differentiable.

    A head on CLIP's normalised image embedding, fitted to people's ratings of images (Schuhmann 2022,
    sac+logos+ava1-l14-linearMSE). It does not read the prompt.
    """

    differentiable: ClassVar[bool] = True
    version: ClassVar[int] = 1

    model: str = CLIP_L
    """The CLIP that the head was fitted on: a folder, or a repository on the hub."""
    revision: str = CLIP_L_REVISION
    """Of that repository: a commit, a tag or a branch."""
    head: str = "trl-lib/ddpo-aesthetic-predictor"
    """The head's weights: a file (.safetensors, .pth), or a folder or repository that has `head_file`."""
    head_file: str = "aesthetic-model.pth"
    """Its name there."""
    head_revision: str = "main"
    """Of that repository."""
    dtype: Precision = "float32"
    """Of CLIP's arithmetic; the head's is float32."""
    device: str = "auto"
    """`cpu`, `cuda`, `mps`, or `auto` for the best there is."""
    batch: int = 32
    """Images a forward."""

    def __post_init__(self) -> None:
        check_batch(self.batch)

    def prepare(self) -> None:
        """Load the weights. Raises ValueError if they cannot be had."""
        self._networks()

    def content(self) -> str:
        """Of its weights, for a cache's key. Raises ValueError if they cannot be had."""
        from burnish.rewards.learned import fetch

        return fetch.contents(
            (self.model, fetch.CONFIG, self.revision),
            (self.head, self.head_file, self.head_revision),
        )

    def __call__(self, samples: Samples) -> Tensor:
        import torch

        from burnish.rewards.learned.clip import embedded

        network, head = self._networks()
        return torch.cat([head(embedded(network, x)) for x in samples.media.split(self.batch)])

    def _networks(self) -> tuple[Any, Any]:
        from burnish.rewards.learned import clip

        network = clip.image_tower(
            model=self.model, revision=self.revision, dtype=self.dtype, device=self.device
        )
        head = _head(self.head, self.head_file, self.head_revision, self.device)
        width = network.visual_projection.out_features
        if head.width != width:
            raise ValueError(
                f"head = {self.head!r} reads embeddings of {head.width} numbers, but those of model = "
                f"{self.model!r} have {width}: it was fitted on another CLIP; name that one as model"
            )
        return network, head


@cache
def _head(name: str, inside: str, revision: str, device: str) -> Any:
    from burnish.models.placed import device_named, placed
    from burnish.rewards.learned import fetch
    from burnish.rewards.learned.head import head_of

    path = fetch.file(name, inside, revision)
    weights = fetch.state_dict(path)
    with fetch.having(f"a head of sac+logos+ava1-l14-linearMSE's shape from {str(path)!r}"):
        return placed(head_of(weights), device_named(device))
