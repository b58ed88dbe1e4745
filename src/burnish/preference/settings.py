"""What a reward model sees of an image, what it makes of that, and how it is learned."""

from __future__ import annotations

from dataclasses import dataclass, field

from burnish.rewards.learned.settings import CLIP_B, CLIP_B_REVISION, Precision, check_batch


@dataclass(frozen=True, slots=True, kw_only=True)
class Pixels:
    """Mean red, green and blue of side x side cells: colours and layout, no detail. No weights."""

    side: int = 8
    """Cells on a side; 3 side^2 numbers."""

    def __post_init__(self) -> None:
        if self.side < 1:
            raise ValueError(f"side = {self.side}, expected at least 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class Statistics:
    """Brightness, contrast, colourfulness and log sharpness, as the rewards of these names. No weights."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CLIPFeatures:
    """A CLIP's normalised image embedding, by transformers."""

    model: str = CLIP_B
    """A folder, or a repository on the hub."""
    revision: str = CLIP_B_REVISION
    """Of that repository: a commit, a tag or a branch."""
    dtype: Precision = "float32"
    """Of CLIP's arithmetic."""
    device: str = "auto"
    """`cpu`, `cuda`, `mps`, or `auto` for the best there is."""
    batch: int = 32
    """Images a forward."""

    def __post_init__(self) -> None:
        check_batch(self.batch)


Features = Pixels | Statistics | CLIPFeatures


@dataclass(frozen=True, slots=True, kw_only=True)
class Linear:
    """w . features: the fit is unique, and found exactly."""

    l2: float = 0.01
    """Weight of |w|^2 / 2 beside the mean log-loss, in nats; the features have deviation 1. Ours."""

    def __post_init__(self) -> None:
        _check_l2(self.l2)


@dataclass(frozen=True, slots=True, kw_only=True)
class Perceptron:
    """One hidden layer. Its fit depends on the seed."""

    hidden: int = 32
    """Its width."""
    l2: float = 0.001
    """Weight of the weights' squares / 2 beside the mean log-loss, in nats. Ours. A large one sends them all
    to 0, where a product of two layers has no slope."""
    updates: int = 200
    """Steps of L-BFGS at most, each on all pairs."""

    def __post_init__(self) -> None:
        _check_l2(self.l2)
        for name in ("hidden", "updates"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} = {getattr(self, name)}, expected at least 1")


Head = Linear | Perceptron


@dataclass(frozen=True, slots=True, kw_only=True)
class Fitting:
    """How a reward model is learned from pairs."""

    features: Features = field(default_factory=Pixels)
    head: Head = field(default_factory=Linear)
    held_out: float = 0.2
    """Share of the pairs that is not learned from but measured on, in [0, 1). Pairs that have an image in
    common stay together."""
    seed: int = 0
    """Of that split, and of a perceptron's first weights."""

    def __post_init__(self) -> None:
        if not 0 <= self.held_out < 1:
            raise ValueError(f"held_out = {self.held_out}, expected 0 to less than 1")


def _check_l2(l2: float) -> None:
    if not 0 < l2 < float("inf"):
        raise ValueError(
            f"l2 = {l2}, expected more than 0: pairs that can be told apart whole have no finite weights "
            "without it"
        )
