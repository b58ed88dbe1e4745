"""Rollout: prompts and noise in, trajectories and samples out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from burnish.lanes import side_by_side
from burnish.policy import Cond, Policy, take
from burnish.prompts import Prompt
from burnish.randomness import Randomness


@dataclass(frozen=True, slots=True)
class Samples:
    """Finished samples, as a reward sees them.

    media: images, float in [0, 1]
    prompts: the text of each sample
    metadata: what the prompt source knows of each sample, for example its true attributes
    """

    media: Float[Tensor, "batch channels height width"]
    prompts: tuple[str, ...]
    metadata: tuple[Mapping[str, Any], ...]

    def __len__(self) -> int:
        return len(self.prompts)

    def __getitem__(self, index: slice) -> Samples:
        return Samples(self.media[index], self.prompts[index], self.metadata[index])

    def pick(self, index: Sequence[int]) -> Samples:
        """The samples at these places, in this order."""
        return Samples(
            self.media[list(index)],
            tuple(self.prompts[i] for i in index),
            tuple(self.metadata[i] for i in index),
        )


def join_samples(parts: Sequence[Samples]) -> Samples:
    return Samples(
        torch.cat([part.media for part in parts]),
        tuple(prompt for part in parts for prompt in part.prompts),
        tuple(known for part in parts for known in part.metadata),
    )


@dataclass(frozen=True, slots=True)
class Trajectory:
    """Denoising chains as they were drawn.

    states: in the policy's storage dtype; [0] is noise, [-1] is clean
    log_prob: float32, nats, summed over the event; row j is the step `steps[j]`
    steps: the steps that have a density
    cond: conditioning of each chain
    """

    states: Float[Tensor, "num_states batch *event"]
    log_prob: Float[Tensor, "scored batch"]
    steps: tuple[int, ...]
    cond: Cond

    @property
    def x0(self) -> Tensor:
        return self.states[-1]

    def chains(self, places: Sequence[int]) -> Trajectory:
        """The chains at these places, in this order."""
        index = torch.tensor(places, device=self.states.device)
        return Trajectory(
            self.states[:, index], self.log_prob[:, index], self.steps, take(self.cond, index)
        )


def join(parts: Sequence[Trajectory]) -> Trajectory:
    """The chains of several trajectories of one sampler, one after another."""
    return Trajectory(
        states=torch.cat([part.states for part in parts], dim=1),
        log_prob=torch.cat([part.log_prob for part in parts], dim=1),
        steps=parts[0].steps,
        cond={name: torch.cat([part.cond[name] for part in parts]) for name in parts[0].cond},
    )


def rollout(
    policy: Policy, prompts: Sequence[Prompt], randomness: Randomness, batch: int
) -> Trajectory:
    """Draw one chain a prompt; no gradient.

    The noise of chain i comes from (randomness, i): `batch`, the chains computed at once, changes
    speed and memory, and the result within float tolerance only.
    """

    def chains(start: int) -> Trajectory:
        return _chains(policy, prompts[start : start + batch], randomness, start)

    starts = range(0, len(prompts), batch)
    return join(list(side_by_side(chains, starts, policy.device)))


def chain_noise(
    policy: Policy, chains: Sequence[int], randomness: Randomness
) -> Float[Tensor, "draws batch *event"]:
    """Standard normal numbers of each chain: [0] is its first state, and [k + 1] the noise of its step k.

    They depend on (randomness, number of the chain) only, so a chain can be run again from any of its states.
    """
    shape = (policy.kernel.num_steps + 1, *policy.denoiser.event_shape)
    return randomness.normal(chains, shape).to(policy.device).transpose(0, 1)


@torch.no_grad()
def _chains(
    policy: Policy, prompts: Sequence[Prompt], randomness: Randomness, start: int
) -> Trajectory:
    kernel = policy.kernel
    indices = range(start, start + len(prompts))
    noise = chain_noise(policy, indices, randomness)
    cond = policy.denoiser.encode([prompt.text for prompt in prompts])
    states, log_prob = [noise[0].to(policy.storage)], []
    for k in range(kernel.num_steps):
        step = torch.full((len(prompts),), k, device=policy.device)
        transition = policy.transition(step, states[-1], cond)
        states.append(transition.sample(noise[k + 1]).to(policy.storage))
        if k in kernel.stochastic:
            log_prob.append(transition.log_prob(states[-1]))
    scores = torch.stack(log_prob) if log_prob else noise[0].new_empty(0, len(prompts))
    return Trajectory(torch.stack(states), scores, kernel.stochastic, cond)


def decode(policy: Policy, x0: Tensor, prompts: Sequence[Prompt], batch: int) -> Samples:
    """Samples on the CPU, in float32, from clean states; no gradient."""

    @torch.no_grad()
    def media(chunk: Tensor) -> Tensor:
        return policy.denoiser.decode(chunk.float()).float().cpu()

    return Samples(
        media=torch.cat(list(side_by_side(media, x0.split(batch), policy.device))),
        prompts=tuple(prompt.text for prompt in prompts),
        metadata=tuple(prompt.metadata for prompt in prompts),
    )


def sample(
    policy: Policy, prompts: Sequence[Prompt | str], *, seed: int = 0, batch: int = 64
) -> Samples:
    """One sample a prompt. The same seed gives the same noise, whatever the weights are."""
    asked = [prompt if isinstance(prompt, Prompt) else Prompt(prompt) for prompt in prompts]
    if not asked:
        raise ValueError("no prompts were given, expected at least one")
    trajectory = rollout(policy, asked, Randomness(seed).at("sample"), batch)
    return decode(policy, trajectory.x0, asked, batch)
