"""Potential-based shaping of denoising chains (Ng, Harada & Russell 1999, theorem 1)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from burnish import advantages
from burnish.lanes import side_by_side
from burnish.policy import Policy
from burnish.policy import take as take_cond
from burnish.reward import Reward
from burnish.rollout import Samples, Trajectory
from burnish.scoring import assess


@dataclass(frozen=True, slots=True)
class Potential:
    """Pays a chain, at each step, for the rise of a potential: a reward of the clean sample that is foreseen.

    The potential is `weight` times the reward of the network's estimate of the clean sample, centred and in
    standard deviations, and 0 at the end. What is paid from a step on adds up to minus the potential there, a
    function of the state alone. So no policy becomes better than another by it, and the policy gradient keeps
    its mean; its variance falls, as far as the potential foresees the reward.

    weight: of the potential, in standard deviations of the reward; best is their correlation
    """

    reward: Reward
    weight: float

    def shaped(
        self,
        policy: Policy,
        chains: Trajectory,
        samples: Samples,
        advantage: Float[Tensor, " batch"] | Float[Tensor, "scored batch"],
        steps: Sequence[int],
        batch: int,
    ) -> tuple[Float[Tensor, "scored batch"], float]:
        """The advantages of the scored steps, those of `steps` less their potential, and the share of their
        variance that it took away there.

        samples: that the chains ended in; each costs a query of the potential's reward a step of `steps`
        batch: states that are decoded at once
        Raises `RewardError`.
        """
        plain = advantage.expand(len(chains.steps), -1)
        shaped = plain.clone()
        for step in steps:
            foreseen = assess(self.reward, _foreseen(policy, chains, samples, step, batch)).values
            relative = advantages.centred(foreseen.to(plain.device), samples.prompts)
            shaped[chains.steps.index(step)] -= self.weight * relative
        rows = [chains.steps.index(step) for step in steps]
        before, after = plain[rows].var(), shaped[rows].var()
        return shaped, (1 - after / before).item() if before > 0 else 0.0


def _foreseen(
    policy: Policy, chains: Trajectory, samples: Samples, step: int, batch: int
) -> Samples:
    """The samples with the network's estimates of them, before a step, for their media."""
    device = chains.states.device
    at = int(chains.before(torch.tensor([step], device=device)))

    @torch.no_grad()
    def media(index: Tensor) -> Tensor:
        x, cond = chains.states[at, index], take_cond(chains.cond, index)
        clean = policy.clean(torch.full_like(index, step), x, cond)
        return policy.denoiser.decode(clean.float()).float().cpu()

    pieces = torch.arange(len(samples), device=device).split(batch)
    return replace(samples, media=torch.cat(list(side_by_side(media, pieces, policy.device))))
