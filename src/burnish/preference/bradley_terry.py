"""The Bradley-Terry model (1952): p(a is preferred to b) = sigmoid(r(a) - r(b)), with r in nats.

A reward that is fitted so is one of log-odds: a constant added to it changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

Rows = Float[Tensor, " pairs"]
Pairs = Float[Tensor, "pairs features"]

PRECISE = 1e-10
"""A linear fit is finished when no entry of its gradient is larger; features have deviation 1."""
ROUNDS = 100
"""Of Newton's method; a handful suffice where it converges."""


def log_loss(chosen: Rows, rejected: Rows) -> Rows:
    """-log p(chosen is preferred), nats; log 2 is a coin's."""
    return -F.logsigmoid(chosen - rejected)


def accuracy(chosen: Rows, rejected: Rows) -> float:
    """Share of pairs whose chosen side has the larger reward; equal ones count half."""
    margin = chosen - rejected
    return ((margin > 0).double() + (margin == 0).double() / 2).mean().item()


def linear(chosen: Pairs, rejected: Pairs, l2: float) -> Float[Tensor, " features"]:
    """The w of least mean log-loss + l2 |w|^2 / 2 with r = w . features, by Newton's method; float64.

    The objective is strictly convex for l2 > 0, so there is one, and exchanging the sides negates it.

    Raises ValueError if rounding keeps it from the minimum.
    """
    away = (chosen - rejected).double()
    count, width = away.shape
    ridge = l2 * torch.eye(width, dtype=torch.float64)

    def objective(w: Tensor) -> float:
        return (log_loss(away @ w, torch.zeros(())).mean() + l2 * w @ w / 2).item()

    w = slope = torch.zeros(width, dtype=torch.float64)
    for _ in range(ROUNDS):
        wrong = torch.sigmoid(-(away @ w))
        slope = l2 * w - away.T @ wrong / count
        if slope.abs().max() <= PRECISE:
            return w
        curvature = away.T @ (away * (wrong * (1 - wrong))[:, None]) / count + ridge
        step = torch.linalg.solve(curvature, slope)
        w = w - _share(objective, w, step, (slope @ step).item()) * step
    raise ValueError(
        f"the fit has not come to its minimum in {ROUNDS} rounds: its gradient is "
        f"{slope.abs().max():.1g} with l2 = {l2}; make l2 larger"
    )


def _share(objective: Callable[[Tensor], float], w: Tensor, step: Tensor, fall: float) -> float:
    """How much of Newton's step is gone: the largest of 1, 1/2, 1/4 ... that lowers the objective enough
    (Armijo's rule). A step within rounding is gone whole."""
    now, share = objective(w), 1.0
    while objective(w - share * step) > now - 1e-4 * share * fall + 1e-14 and share > 1e-8:
        share /= 2
    return share


def perceptron(
    chosen: Pairs,
    rejected: Pairs,
    l2: float,
    *,
    hidden: int,
    updates: int,
    generator: torch.Generator,
) -> list[Tensor]:
    """Weights of `rewarded` with a hidden layer, of small mean log-loss + l2 |weights|^2 / 2; float64.

    By L-BFGS from first weights of deviation 1 / sqrt(inputs), and 0 for the biases.
    """
    width = chosen.shape[1]
    shapes = [(hidden, width), (hidden,), (hidden,)]
    weights = [
        torch.randn(shape, generator=generator, dtype=torch.float64) / shape[-1] ** 0.5
        for shape in shapes
    ]
    weights[1] = torch.zeros(hidden, dtype=torch.float64)
    for each in weights:
        each.requires_grad_()
    optimizer = torch.optim.LBFGS(weights, max_iter=updates, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = log_loss(*(rewarded(weights, x.double()) for x in (chosen, rejected))).mean()
        loss = loss + l2 / 2 * sum((each.square().sum() for each in weights), torch.zeros(()))
        loss.backward()
        return loss

    optimizer.step(closure)  # pyright: ignore[reportArgumentType]
    return [each.detach() for each in weights]


def rewarded(weights: Sequence[Tensor], features: Float[Tensor, "rows features"]) -> Rows:
    """Of one tensor w: w . features; of three W, b, v: v . silu(W features + b)."""
    if len(weights) == 1:
        return features @ weights[0]
    matrix, bias, out = weights
    return F.silu(F.linear(features, matrix, bias)) @ out
