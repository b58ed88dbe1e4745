"""Image quality without a reference for each image."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from PIL import Image

from burnish.content import digest
from burnish.images import open_image
from burnish.rewards.statistics import luma

if TYPE_CHECKING:
    from torch import Tensor

    from burnish.rewards.natural_scenes import Normal
    from burnish.rollout import Samples


@dataclass(frozen=True, slots=True, kw_only=True)
class Quality:
    """Minus the distance of the image's local statistics to those of pictures of yours: NIQE, at most 0.

    Mittal et al. 2013: the luma of each patch, normalised by its local mean and deviation, has 36 statistics
    (shapes, scales and means of generalised Gaussians, at two scales). Over the sharp patches of the
    pictures, and over all of the image, they are two normal distributions N(m1, S1) and N(m2, S2), and the
    reward is

        - sqrt((m1 - m2)^T ((S1 + S2) / 2)^-1 (m1 - m2)).

    Blur, noise and blocks lower it. The paper's own model of 125 photographs is not used: what is good is
    what your pictures are like. Numbers for other pictures, or another patch, are not comparable. No
    gradient.
    """

    differentiable: ClassVar[bool] = False
    version: ClassVar[int] = 1

    reference: str
    """A folder with pictures that are good, of any sizes; those in folders within count too."""
    patch: int = 96
    """Pixels on a side of a patch, an even number; 96 in the paper, for photographs. An image
    must hold one at least."""
    sharpness: float = 0.75
    """Patches of a picture are learned from if their sharpness exceeds that of its sharpest times this; 0.75
    in the paper. In [0, 1); 0 takes all that are not plain."""

    def __post_init__(self) -> None:
        if not Path(self.reference).is_dir():
            raise ValueError(f"reference = {self.reference!r}: there is no such folder")
        if not _pictures(self.reference):
            raise ValueError(f"reference = {self.reference!r} has no pictures in it")
        if self.patch < 16 or self.patch % 2:
            raise ValueError(f"patch = {self.patch}, expected an even number of 16 or more")
        if not 0 <= self.sharpness < 1:
            raise ValueError(f"sharpness = {self.sharpness}, expected 0 to less than 1")

    def prepare(self) -> None:
        """Learn the pictures' statistics. Raises ValueError if there are too few."""
        self._learned()

    def content(self) -> str:
        """Of the folder, for a cache's key."""
        return _digest(self.reference)

    def __call__(self, samples: Samples) -> Tensor:
        from burnish.rewards.natural_scenes import distance, features, fitted

        height, width = samples.media.shape[2:]
        if min(height, width) < self.patch:
            raise ValueError(
                f"images of {height} x {width} pixels, expected at least {self.patch} x {self.patch}: "
                "make `patch` smaller"
            )
        good, grey = self._learned(), luma(samples.media.detach().cpu().double().clamp(0, 1))
        found = [distance(good, fitted(features(image, self.patch)[0])) for image in grey]
        return -samples.media.new_tensor(found)

    def _learned(self) -> Normal:
        return _learned(self.reference, self.patch, self.sharpness)


@cache
def _learned(folder: str, patch: int, sharpness: float) -> Normal:
    """The statistics of the sharp patches of all pictures. Raises ValueError."""
    import torch

    from burnish.rewards.natural_scenes import FEATURES, features, fitted

    chosen = []
    for path in _pictures(folder):
        picture = open_image(path)
        height, width = picture.shape[1:]
        if min(height, width) < patch:
            raise ValueError(
                f"{path} has {height} x {width} pixels, expected at least {patch} x {patch}: make `patch` "
                "smaller, or take larger pictures"
            )
        found, sharp = features(luma(picture[None].double())[0], patch)
        chosen.append(found[sharp > sharpness * sharp.max()])
    together = torch.cat(chosen)
    good = fitted(together)
    count = len(together)
    rank = int(torch.linalg.matrix_rank(good.covariance, hermitian=True)) if count else 0
    if rank < FEATURES:
        raise ValueError(
            f"reference = {folder!r}: its pictures have {count} sharp patches, which vary in {rank} "
            f"of {FEATURES} directions; add pictures (hundreds of patches are better), or make `patch` or "
            "`sharpness` smaller"
        )
    return good


def _pictures(folder: str) -> list[Path]:
    """All files below the folder that have the ending of an image that can be read, in order."""
    forms = Image.registered_extensions()
    endings = {ending for ending, form in forms.items() if form in Image.OPEN}
    return sorted(
        each
        for each in Path(folder).rglob("*")
        if each.is_file() and each.suffix.lower() in endings
    )


_digest = cache(digest)
