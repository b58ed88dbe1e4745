"""The head of LAION's aesthetic predictor, whose shape ImageReward took over."""

from __future__ import annotations

from collections.abc import Mapping

from jaxtyping import Float
from torch import Tensor, nn


class Head(nn.Module):
    """Five linear layers to one number, dropout between them, no activations: an affine function.

    Its weights are called as in sac+logos+ava1-l14-linearMSE: `layers.0.weight`, `layers.2.weight` ...
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width
        self.layers = nn.Sequential(
            nn.Linear(width, 1024),
            nn.Dropout(0.2),
            nn.Linear(1024, 128),
            nn.Dropout(0.2),
            nn.Linear(128, 64),
            nn.Dropout(0.1),
            nn.Linear(64, 16),
            nn.Linear(16, 1),
        )

    def forward(self, features: Float[Tensor, "batch width"]) -> Float[Tensor, " batch"]:
        return self.layers(features).squeeze(-1)


def head_of(weights: Mapping[str, Tensor]) -> Head:
    """The head with these weights, in float32. Raises KeyError or RuntimeError for another's."""
    head = Head(weights["layers.0.weight"].shape[1])
    head.load_state_dict(dict(weights))
    return head
