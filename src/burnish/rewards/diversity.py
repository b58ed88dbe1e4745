"""What a sample adds to the others of its prompt."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

if TYPE_CHECKING:
    from torch import Tensor

    from burnish.rollout import Samples


@dataclass(frozen=True, slots=True, kw_only=True)
class Diversity:
    """Root mean square distance of a sample's pixels, in [0, 1], to those of another sample of its prompt,
    averaged over all others.

    The mean over samples is what an evaluation reports as diversity, prompt by prompt. As a term of `combine`
    it keeps a group from becoming one image.
    """

    differentiable: ClassVar[bool] = False
    unit: ClassVar[Literal["group"]] = "group"
    version: ClassVar[int] = 1

    def __call__(self, samples: Samples) -> Tensor:
        import torch

        flat = samples.media.flatten(1).double()
        distances = torch.cdist(flat, flat, compute_mode="donot_use_mm_for_euclid_dist")
        return distances.sum(dim=1) / (len(flat) - 1) / flat.shape[1] ** 0.5
