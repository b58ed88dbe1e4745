"""Worlds to test in: schedules, a closed-form model, a small network, and exact answers about them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from burnish import schedules
from burnish.models.guidance import guided_and_not
from burnish.models.linear import Linear
from burnish.policy import Policy
from burnish.prompts import Listed, Prompt
from burnish.randomness import Randomness
from burnish.rollout import Samples
from burnish.schedules import DiffusionSchedule, FlowSchedule, scaled_linear, trailing

ALPHA_BAR = scaled_linear()
ENDS_NOISY = DiffusionSchedule(alpha_bar=ALPHA_BAR, final_alpha_bar=float(ALPHA_BAR[0]), offset=1)
"""Stable Diffusion's: every step has a density under eta = 1."""
ENDS_CLEAN = DiffusionSchedule(alpha_bar=ALPHA_BAR, final_alpha_bar=1.0)
"""The last step ends in clean data and has no density."""
COARSE = DiffusionSchedule(alpha_bar=ALPHA_BAR, final_alpha_bar=0.9, spacing=trailing)
"""Wide last steps, so that policy gradients have small standard errors."""
VELOCITY = replace(ENDS_NOISY, parameterisation=schedules.VELOCITY)
"""For networks that are not trained: their states stay near 1, as a trained network's do."""
STRAIGHT = FlowSchedule(shift=1.0)
COARSE_FLOW = FlowSchedule(num_train=4, shift=1.0)
"""Times 1, 3/4, 1/2, 1/4 of a flow in 4 steps: a wide last step, as of `COARSE`."""
SHIFTED = FlowSchedule(shift=3.0)
"""Stable Diffusion 3's."""

PROMPTS = Listed(("a cat", "a dog", "a bird"))


def prompts(*texts: str) -> list[Prompt]:
    return [Prompt(text) for text in texts]


def linear(
    mean: Sequence[float] = (0.5, -0.5),
    log_std: float = -0.3,
    schedule: DiffusionSchedule | FlowSchedule = ENDS_NOISY,
    shifts: Mapping[str, float] | None = None,
) -> Linear:
    return Linear(schedule, mean, log_std, shifts)


class GuidedLinear:
    """`Linear` under guidance, by the function that Stable Diffusion has; the empty prompt has no shift.

    A prediction is affine in the data's mean. So this is the world whose shifts are `guidance` times as large
    (`guided_world`), and without guidance it is `conditional`.
    """

    def __init__(self, conditional: Linear, guidance: float) -> None:
        self.conditional, self.guidance = conditional, guidance
        self.schedule, self.event_shape = conditional.schedule, conditional.event_shape

    @property
    def guided_world(self) -> Linear:
        """It has the same parameters, not copies."""
        world = self.conditional
        shifts = {prompt: self.guidance * shift for prompt, shift in world.shifts.items()}
        found = linear([0.0] * len(world.mean), schedule=world.schedule, shifts=shifts)
        found.mean, found.log_std = world.mean, world.log_std
        return found

    def encode(self, prompts: Sequence[str]) -> Mapping[str, Tensor]:
        return self.conditional.encode(prompts)

    def predict(self, x: Tensor, time: Tensor, cond: Mapping[str, Tensor]) -> Tensor:
        return self.predict_both(x, time, cond)[0]

    def predict_both(
        self, x: Tensor, time: Tensor, cond: Mapping[str, Tensor]
    ) -> tuple[Tensor, Tensor]:
        network, empty = self.conditional.predict, self.encode([""])
        return guided_and_not(network, x, time, cond, empty, self.guidance)

    def decode(self, x: Tensor) -> Tensor:
        return x

    def parameters(self) -> list[nn.Parameter]:
        return list(self.conditional.parameters())


def nearness(target: Sequence[float]) -> Callable[[Samples], Tensor]:
    """The reward -|x0 - target|^2, whose expectation `Linear.expected_reward` knows."""

    def near(samples: Samples) -> Tensor:
        return -(samples.media.flatten(1) - torch.tensor(target)).square().sum(1)

    return near


@dataclass(frozen=True)
class Always:
    """The same prompts at every draw, in their order, as often as it takes."""

    asked: Sequence[Prompt]

    def draw(self, count: int, randomness: Randomness) -> list[Prompt]:
        del randomness
        return [self.asked[i % len(self.asked)] for i in range(count)]

    def held_out(self, count: int) -> list[Prompt]:
        return list(self.asked[:count])


class Network(nn.Module):
    """A two-layer network: unlike `Linear`, its arithmetic depends on the batch size."""

    def __init__(
        self, schedule: DiffusionSchedule = VELOCITY, seed: int = 0, side: int = 2
    ) -> None:
        super().__init__()
        self.schedule = schedule
        self.event_shape = (3, side, side)
        size = 3 * side * side
        self.layers = nn.Sequential(nn.Linear(size + 2 + 4, 64), nn.Tanh(), nn.Linear(64, size))
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in self.parameters():
                scale = 1 / parameter.shape[-1] ** 0.5
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale)

    def encode(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        letters = [[float(text.count(letter)) for letter in "acdo"] for text in prompts]
        return {"letters": torch.tensor(letters)}

    def predict(self, x: Tensor, time: Tensor, cond: Mapping[str, Tensor]) -> Tensor:
        angle = time.float() / 300
        features = torch.stack([angle.sin(), angle.cos()], dim=1)
        inputs = torch.cat([x.float().flatten(1), features, cond["letters"]], dim=1)
        return self.layers(inputs).reshape(x.shape)

    def decode(self, x: Tensor) -> Tensor:
        return x.sigmoid()


def affine_steps(policy: Policy, prompt: str = "") -> list[tuple[Tensor, Tensor, Tensor]]:
    """(gain, bias, std) of each step in a linear world, read off the transition at x = 0 and x = 1.

    float64; differentiable in the parameters. It shares no formula with `Linear.moments`.
    """
    size = policy.denoiser.event_shape
    cond = policy.denoiser.encode([prompt, prompt])
    x = torch.stack([torch.zeros(size), torch.ones(size)])
    steps = []
    for k in range(policy.kernel.num_steps):
        transition = policy.transition(torch.full((2,), k), x, cond)
        at_zero, at_one = transition.mean.double().flatten(1)
        steps.append((at_one - at_zero, at_zero, transition.std[0].double()))
    return steps


def reward_of_chain(
    steps: Sequence[tuple[Tensor, Tensor, Tensor]], target: Sequence[float]
) -> Tensor:
    """E[-|x0 - target|^2] after affine Gaussian steps from N(0, 1)."""
    mean, variance = final_moments(steps)
    return -((mean - torch.tensor(target, dtype=torch.float64)).square() + variance).sum()


def final_moments(steps: Sequence[tuple[Tensor, Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Mean and variance of each dimension after affine Gaussian steps from N(0, 1)."""
    size = len(steps[0][0])
    mean, variance = torch.zeros(size).double(), torch.ones(size).double()
    for gain, bias, std in steps:
        mean, variance = gain * mean + bias, gain.square() * variance + std.square()
    return mean, variance
