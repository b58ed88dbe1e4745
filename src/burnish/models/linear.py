"""The closed-form world: a model whose whole chain is affine-Gaussian.

The network is the exact noise prediction for data x0 ~ N(mean, std^2 I). Each step of a sampler is then
affine in the state, so the law of the final sample is a Gaussian whose moments are known, and so is the
expected reward of any quadratic reward, with its gradient. Estimators are proven against it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import Parameter

from burnish.kernels import Kernel
from burnish.policy import Cond
from burnish.schedules import DiffusionSchedule


class Linear(nn.Module):
    """E[e | x_t] for x0 ~ N(mean + shift(prompt), exp(log_std)^2 I), with trainable mean and log_std.

    Its media are its states, (batch, size, 1, 1), and not images.
    """

    def __init__(
        self,
        schedule: DiffusionSchedule,
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
        alpha_bar = self.schedule.alpha_bar.to(x.device)[time].float().reshape(-1, 1, 1, 1)
        mean = self.mean + cond["shift"].reshape(-1, 1, 1, 1)
        slope, offset = _noise_estimate(alpha_bar, mean, self.log_std)
        return slope * x - offset

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
            slope, offset = _noise_estimate(signal.square(), centre, self.log_std.double())
            gain = kernel.clean[k] * (1 - sigma * slope) / signal + kernel.noise[k] * slope
            bias = (kernel.clean[k] * sigma / signal - kernel.noise[k]) * offset
            mean = gain * mean + bias
            variance = gain.square() * variance + kernel.std[k].square()
        return mean, variance

    def expected_reward(self, kernel: Kernel, target: Sequence[float], prompt: str = "") -> Tensor:
        """E[-|x0 - target|^2] of the final sample; differentiable in the parameters."""
        mean, variance = self.moments(kernel, prompt)
        distance = mean - torch.tensor(target, dtype=torch.float64)
        return -(distance.square().sum() + len(mean) * variance)


def _noise_estimate(alpha_bar: Tensor, mean: Tensor, log_std: Tensor) -> tuple[Tensor, Tensor]:
    """(slope, offset) of E[e | x_t] = slope x_t - offset for x0 ~ N(mean, exp(log_std)^2)."""
    signal, sigma = alpha_bar.sqrt(), (1 - alpha_bar).sqrt()
    slope = sigma / (alpha_bar * (2 * log_std).exp() + sigma.square())
    return slope, slope * signal * mean
