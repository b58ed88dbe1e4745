"""A reward model that `burnish fit-preference` has learned from pairs."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from torch import Tensor

    from burnish.preference.model import Model
    from burnish.rollout import Samples


@dataclass(frozen=True, slots=True, kw_only=True)
class Preference:
    """Log-odds that the image is preferred to an average one of those the model was learned from, in nats.

    The difference of two images' rewards is the log-odds that the first is preferred (Bradley and Terry
    1952). It does not read the prompt. Differentiable.
    """

    differentiable: ClassVar[bool] = True
    version: ClassVar[int] = 1

    folder: str
    """What `burnish fit-preference` wrote."""

    def __post_init__(self) -> None:
        if not Path(self.folder, "preference.json").is_file():
            raise ValueError(
                f"folder = {self.folder!r} has no preference.json: expected what `burnish fit-preference` "
                "wrote"
            )

    def prepare(self) -> None:
        """Load the model, and what its features need. Raises ValueError."""
        from burnish.preference import features

        features.prepare(self._model()[0].features)

    def content(self) -> str:
        """Of the model and of its features' weights, for a cache's key. Raises ValueError."""
        from burnish.preference import features

        model, content = self._model()
        return f"{content} {features.content(model.features)}"

    def __call__(self, samples: Samples) -> Tensor:
        return self._model()[0](samples.media)

    def _model(self) -> tuple[Model, str]:
        return _loaded(self.folder)


@cache
def _loaded(folder: str) -> tuple[Model, str]:
    """The model with the content that it was read from."""
    from burnish.preference.model import content, restore

    return restore(Path(folder)), content(Path(folder))
