"""The closed-form world: a model whose whole chain is affine-Gaussian.

The network is the exact prediction for data x0 ~ N(mean, std^2 I), of noise, velocity, or whatever else its
schedule asks for. Each step of a sampler is then affine in the state, so the law of the final sample is
a Gaussian whose moments are known, and so is the expected reward of any quadratic reward, with its
gradient. Estimators are proven against it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import Parameter

from burnish.kernels import Kernel
from burnish.policy import Cond
from burnish.schedules import DiffusionSchedule, FlowSchedule


class Linear(nn.Module):
    """E[target | x_t] for x0 ~ N(mean + shift(prompt), exp(log_std)^2 I), with trainable mean and log_std.

    Its media are its states, (batch, size, 1, 1), and not images.
    """

    def __init__(
        self,
        schedule: DiffusionSchedule | FlowSchedule,
        mean: Sequence[float],
        log_std: float = 0.0,
        shifts: Mapping[str, float] | None = None,
    ) -> None:
        """shifts: how far each known prompt moves the data's mean; unknown prompts move it by 0"""
        super().__init__()
        self.schedule = schedule
        self.event_shape = (len(mean), 1, 1)
        self.mean = Parameter(torch.tensor(mean).reshape(self.event_shape))
        self.log_std = Parameter(torch.tensor(log_std))
        self.shifts = dict(shifts or {})

    def encode(self, prompts: Sequence[str]) -> Cond:
        shift = torch.tensor([self.shifts.get(prompt, 0.0) for prompt in prompts])
        return {"shift": shift.to(self.mean.device)}

    def predict(self, x: Tensor, time: Tensor, cond: Cond) -> Tensor:
        level = self.schedule.at(time)
        signal, sigma = (each.float().reshape(-1, 1, 1, 1) for each in (level.signal, level.sigma))
        mean = self.mean + cond["shift"].reshape(-1, 1, 1, 1)
        clean, noise = _slopes(signal, sigma, self.log_std)
        away = x - signal * mean
        return self.schedule.parameterisation.target(
            mean + clean * away, noise * away, signal, sigma
        )

    def decode(self, x: Tensor) -> Tensor:
        return x

    @property
    def media_shape(self) -> tuple[int, int, int]:
        return self.event_shape

    def encode_media(self, media: Tensor) -> Tensor:
        return media

    def moments(
        self, kernel: Kernel, prompt: str = ""
    ) -> tuple[Float[Tensor, " size"], Float[Tensor, ""]]:
        """Exact mean and variance (the same in each dimension) of the final sample, in float64.

        Differentiable in the parameters.
        """
        mean = torch.zeros(self.event_shape[0], dtype=torch.float64)
        variance = torch.ones((), dtype=torch.float64)
        centre = self.mean.double().flatten() + self.shifts.get(prompt, 0.0)
        for k in range(kernel.num_steps):
            signal, sigma = kernel.signal[k], kernel.sigma[k]
            clean, noise = _slopes(signal, sigma, self.log_std.double())
            gain = kernel.clean[k] * clean + kernel.noise[k] * noise
            mean = kernel.clean[k] * centre + gain * (mean - signal * centre)
            variance = gain.square() * variance + kernel.std[k].square()
        return mean, variance

    def expected_reward(self, kernel: Kernel, target: Sequence[float], prompt: str = "") -> Tensor:
        """E[-|x0 - target|^2] of the final sample; differentiable in the parameters."""
        mean, variance = self.moments(kernel, prompt)
        distance = mean - torch.tensor(target, dtype=torch.float64)
        return -(distance.square().sum() + len(mean) * variance)


def _slopes(signal: Tensor, sigma: Tensor, log_std: Tensor) -> tuple[Tensor, Tensor]:
    """Slopes of E[x0 | x_t] and of E[e | x_t] in x_t, for x0 ~ N(mean, exp(log_std)^2)."""
    variance = (2 * log_std).exp()
    total = signal.square() * variance + sigma.square()
    return signal * variance / total, sigma / total
