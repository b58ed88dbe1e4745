"""A policy is a denoiser walked by a sampler."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Int
from torch import Tensor
from torch.nn import Parameter

from burnish.kernels import Kernel
from burnish.randomness import Randomness
from burnish.schedules import Schedule
from burnish.transitions import Gaussian

Cond = Mapping[str, Tensor]
"""What a denoiser is conditioned on: named tensors whose first axis is the batch."""


def take(cond: Cond, index: Tensor | slice) -> dict[str, Tensor]:
    """The rows `index` of every tensor."""
    return {name: value[index] for name, value in cond.items()}


class Denoiser(Protocol):
    """All that a new model implements."""

    @property
    def event_shape(self) -> tuple[int, ...]:
        """Shape of one state, for example (channels, height, width) of a latent."""
        ...

    @property
    def schedule(self) -> Schedule:
        """The noise schedule that the model was trained with."""
        ...

    def encode(self, prompts: Sequence[str]) -> Cond:
        """Conditioning of each prompt; no gradient."""
        ...

    def predict(self, x: Tensor, time: Tensor, cond: Cond) -> Tensor:
        """The network's output at states (batch, *event) and times (batch,), shaped as `x`.

        Differentiable in the parameters. Guidance, if any, is part of it: the policy that samples is
        the policy that is trained.
        """
        ...

    def decode(self, x: Tensor) -> Tensor:
        """Media of clean states: images (batch, 3, height, width), float in [0, 1]; differentiable."""
        ...

    def parameters(self) -> Iterable[Parameter]:
        """The trainable parameters, always in the same order."""
        ...


@runtime_checkable
class MediaEncoder(Protocol):
    """What a denoiser may implement besides, to learn from media that it has not drawn itself."""

    @property
    def media_shape(self) -> tuple[int, int, int]:
        """Of one medium that it draws: (channels, height, width)."""
        ...

    def encode_media(self, media: Tensor) -> Tensor:
        """Clean states (batch, *event) of media (batch, *media_shape), float in [0, 1]; no gradient.

        The inverse of `decode`, as well as the model has one.
        """
        ...


@runtime_checkable
class Guided(Protocol):
    """What a denoiser with classifier-free guidance may implement besides, to be explored without it."""

    @property
    def guidance(self) -> float:
        """Weight w of u + w (c - u), the conditional prediction c and the unconditional u; 1 for none."""
        ...

    def predict_both(self, x: Tensor, time: Tensor, cond: Cond) -> tuple[Tensor, Tensor]:
        """What `predict` gives, bit for bit, and c, of one pass of the network."""
        ...


class Sampler(Protocol):
    """Settings of a sampler; `on` lays it over the schedule of a model."""

    @property
    def deterministic(self) -> bool:
        """True if no step has a density, whatever the schedule; also if it only comes to that, as a noise
        level does that falls to 0."""
        ...

    def at(self, iteration: int, randomness: Randomness) -> Sampler:
        """The sampler of an iteration, counted from 0: itself, unless it moves (`Window`, a decay of eta).

        A function of its arguments: it remembers nothing, so a resumed run has the same ones.
        """
        ...

    def on(self, schedule: Schedule) -> Kernel:
        """The kernel; of a sampler that moves, the one where there is no iteration (evaluation, drawing).

        Raises ValueError for a schedule of another family (diffusion, flow).
        """
        ...


@dataclass(frozen=True, slots=True)
class Policy:
    """p(x_next | x, step, prompt): the denoiser's prediction through the sampler's kernel.

    storage: dtype in which states are kept. States are rounded to it before they are scored, so
        rollout and update score the same numbers.
    """

    denoiser: Denoiser
    sampler: Sampler
    storage: torch.dtype = torch.float32
    kernel: Kernel = field(init=False)

    def __post_init__(self) -> None:
        kernel = self.sampler.on(self.denoiser.schedule).to(self.device)
        object.__setattr__(self, "kernel", kernel)

    @property
    def device(self) -> torch.device:
        return next(iter(self.denoiser.parameters())).device

    def at(self, iteration: int, randomness: Randomness) -> Policy:
        """The policy of an iteration, counted from 0, over the same denoiser; see `Sampler.at`."""
        sampler = self.sampler.at(iteration, randomness)
        return self if sampler == self.sampler else replace(self, sampler=sampler)

    def transition(self, step: Int[Tensor, " batch"], x: Tensor, cond: Cond) -> Gaussian:
        """Distribution of the next state; each row may be at a step of its own."""
        prediction = self.denoiser.predict(x, self.kernel.time(step), cond)
        return self.kernel.transition(step, x, prediction)

    def clean(self, step: Int[Tensor, " batch"], x: Tensor, cond: Cond) -> Tensor:
        """The network's estimate of the clean state before each step.

        It is the mean of a step that lands on clean data, whatever the sampler.
        """
        one, zero = torch.ones_like(self.kernel.std), torch.zeros_like(self.kernel.std)
        landing = replace(self.kernel, clean=one, noise=zero, std=zero)
        prediction = self.denoiser.predict(x, self.kernel.time(step), cond)
        return landing.transition(step, x, prediction).mean

    def finish(self, x: Tensor, cond: Cond) -> Tensor:
        """Clean states of a chain that has walked its steps: what the kernel's tail makes of them, if any."""
        if self.kernel.tail is None:
            return x

        def predict(x: Tensor, time: Tensor) -> Tensor:
            return self.denoiser.predict(x.to(self.storage), time, cond)

        return self.kernel.tail.solve(predict, x)

    def guided(self) -> Guided:
        """The denoiser, whose guidance can be left out. Raises ValueError if it has none."""
        denoiser = self.denoiser
        if not isinstance(denoiser, Guided):
            raise ValueError(
                f"{type(denoiser).__name__} cannot be explored without guidance: it has no `guidance` and "
                "`predict_both` (see docs/exploration.md)"
            )
        if denoiser.guidance == 1:
            raise ValueError(
                "guidance = 1 leaves nothing out, so there is nothing to explore without it; load the model "
                "with more guidance, or explore with a wider deviation"
            )
        return denoiser

    def with_and_without_guidance(
        self, step: Int[Tensor, " batch"], x: Tensor, cond: Cond
    ) -> tuple[Gaussian, Gaussian]:
        """`transition`, and what it would be without guidance: the same deviation, another mean.

        Raises ValueError as `guided` does.
        """
        both = self.guided().predict_both(x, self.kernel.time(step), cond)
        guided, unguided = (self.kernel.transition(step, x, each) for each in both)
        return guided, unguided


def snapshot(denoiser: Denoiser) -> list[Tensor]:
    """A copy of the trainable weights, for `using`."""
    return [parameter.detach().clone() for parameter in denoiser.parameters()]


@contextmanager
def using(denoiser: Denoiser, weights: Sequence[Tensor]) -> Iterator[None]:
    """Within the block the denoiser's trainable weights are `weights`; then its own are back.

    This is how the reference policy, an old policy or an average of weights is asked: no second
    network is held. Of a LoRA only the adapter is swapped.

    The weights are laid out in memory as the denoiser's own (a checkpoint does not keep that), since the
    rounding of a convolution depends on it.
    """
    own = [(parameter, parameter.data) for parameter in denoiser.parameters()]
    try:
        for (parameter, data), other in zip(own, weights, strict=True):
            same = other.stride() == data.stride()
            parameter.data = other if same else torch.empty_like(data).copy_(other)
        yield
    finally:
        for parameter, data in own:
            parameter.data = data
