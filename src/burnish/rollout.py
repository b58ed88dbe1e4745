"""Rollout: prompts and noise in, trajectories and samples out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from burnish.kernels import Kernel
from burnish.lanes import side_by_side
from burnish.policy import Cond, Policy, take
from burnish.prompts import Prompt
from burnish.randomness import Randomness
from burnish.transitions import Mixture

Result = TypeVar("Result")
Explore = Callable[[Int[Tensor, " batch"], Tensor, Cond], Mixture]
"""From steps, states and their conditioning to the distribution that is drawn from; its `policy` is what
`Policy.transition` gives there, bit for bit."""


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

    states: in the policy's storage dtype, from noise to data: those that `kept` numbers, from 0 for noise;
        the last is the clean one
    log_prob: float32, nats, summed over the event; row j is the step `steps[j]`
    steps: the steps that have a density; the states before and after them are kept
    cond: conditioning of each chain
    behaviour_log_prob: as `log_prob`, of the density that the steps were drawn from; None if that is the
        policy's own
    """

    states: Float[Tensor, "num_states batch *event"]
    log_prob: Float[Tensor, "scored batch"]
    steps: tuple[int, ...]
    kept: tuple[int, ...]
    cond: Cond
    behaviour_log_prob: Float[Tensor, "scored batch"] | None = None

    @property
    def weight(self) -> Float[Tensor, " batch"]:
        """Importance weight of each chain: the policy's density of all its steps over the behaviour's.

        The mean over chains of `weight * f(chain)` is the policy's mean of f, without bias. It takes the
        sum over event dimensions and over steps: a part of the sum leaves a bias.
        """
        if self.behaviour_log_prob is None:
            return self.log_prob.new_ones(self.states.shape[1])
        return (self.log_prob - self.behaviour_log_prob).sum(0).exp()

    @property
    def x0(self) -> Tensor:
        return self.states[-1]

    @property
    def num_steps(self) -> int:
        """Of the sampler, with a density or not."""
        return self.kept[-1]

    def before(self, step: Int[Tensor, " rows"]) -> Int[Tensor, " rows"]:
        """Index in `states` of the state before each step; the one after is next, if it has a density."""
        return torch.searchsorted(torch.tensor(self.kept, device=step.device), step)

    def chains(self, places: Sequence[int]) -> Trajectory:
        """The chains at these places, in this order."""
        index = torch.tensor(places, device=self.states.device)
        behaviour = self.behaviour_log_prob
        return Trajectory(
            self.states[:, index],
            self.log_prob[:, index],
            self.steps,
            self.kept,
            take(self.cond, index),
            None if behaviour is None else behaviour[:, index],
        )


def join(parts: Sequence[Trajectory]) -> Trajectory:
    """The chains of several trajectories of one sampler and behaviour, one after another."""
    behaviour = [p.behaviour_log_prob for p in parts if p.behaviour_log_prob is not None]
    assert len(behaviour) in (0, len(parts))
    return Trajectory(
        states=torch.cat([part.states for part in parts], dim=1),
        log_prob=torch.cat([part.log_prob for part in parts], dim=1),
        steps=parts[0].steps,
        kept=parts[0].kept,
        cond={name: torch.cat([part.cond[name] for part in parts]) for name in parts[0].cond},
        behaviour_log_prob=torch.cat(behaviour, dim=1) if behaviour else None,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Sharing:
    """What the chains of a group, neighbours of one prompt, have in common.

    group: chains in a group
    states: of a group that are the same, counted from noise: 0 for none, 1 for the initial noise, k + 1 for
        the chain up to where step k branches
    """

    group: int = 1
    states: int = 0

    def addresses(self, indices: Sequence[int], state: int) -> list[int]:
        """The chain whose address each chain's draw of a state has: its group's first, if it is shared."""
        if state >= self.states:
            return list(indices)
        return [index - index % self.group for index in indices]


ALONE = Sharing()


def rollout(
    policy: Policy,
    prompts: Sequence[Prompt],
    randomness: Randomness,
    batch: int,
    *,
    sharing: Sharing = ALONE,
    explore: Explore | None = None,
    keep: Sequence[int] = (),
) -> Trajectory:
    """Draw one chain a prompt; no gradient.

    The noise of chain i comes from (randomness, i), and what is shared from its group's first chain: `batch`,
    the chains computed at once, changes speed and memory, and the result within float tolerance only.

    explore: the distribution that steps are drawn from; by default the policy's. The choice of component
        comes from (randomness, step, i). `log_prob` is the policy's either way.
    keep: steps, with a density or not, before which the states are kept besides
    Raises ValueError if the chains of a group would be the same to their end, or for states that are to be
    kept where the kernel's tail takes no steps.
    """
    parts = rollouts(
        policy,
        prompts,
        randomness,
        batch,
        lambda chains, _: chains,
        sharing=sharing,
        explore=explore,
        keep=keep,
    )
    return join(list(parts))


def rollouts(
    policy: Policy,
    prompts: Sequence[Prompt],
    randomness: Randomness,
    batch: int,
    finish: Callable[[Trajectory, Sequence[Prompt]], Result],
    *,
    sharing: Sharing = ALONE,
    explore: Explore | None = None,
    keep: Sequence[int] = (),
) -> Iterator[Result]:
    """`rollout`, `batch` chains at a time: what `finish` makes of them and of their prompts, in order, each
    as soon as it is there."""
    _check_kept(policy.kernel, keep)
    drawn = policy.kernel.stochastic
    most = max(drawn) + 1 if drawn else 0
    if sharing.states > most:
        raise ValueError(
            f"chains that share {sharing.states} states would be the same to their end: the steps "
            f"{list(drawn)} of this sampler draw, so {most} states can be shared at most"
        )

    def part(start: int) -> Result:
        own = prompts[start : start + batch]
        return finish(_chains(policy, own, randomness, start, sharing, explore, keep), own)

    return side_by_side(part, range(0, len(prompts), batch), policy.device)


def chain_noise(
    policy: Policy, chains: Sequence[int], randomness: Randomness, sharing: Sharing = ALONE
) -> Float[Tensor, "draws batch *event"]:
    """Standard normal numbers of each chain: [0] is its first state, and [k + 1] the noise of its step k.

    They depend on (randomness, number of the chain) only, so a chain can be run again from any of its states.
    """
    shape = (policy.kernel.num_steps + 1, *policy.denoiser.event_shape)
    noise = randomness.normal(chains, shape)
    if sharing.states:
        firsts = sharing.addresses(chains, 0)
        noise[:, : sharing.states] = randomness.normal(firsts, shape)[:, : sharing.states]
    return noise.to(policy.device).transpose(0, 1)


@torch.no_grad()
def _chains(
    policy: Policy,
    prompts: Sequence[Prompt],
    randomness: Randomness,
    start: int,
    sharing: Sharing,
    explore: Explore | None,
    keep: Sequence[int],
) -> Trajectory:
    kernel = policy.kernel
    indices = range(start, start + len(prompts))
    noise = chain_noise(policy, indices, randomness, sharing)
    cond = policy.denoiser.encode([prompt.text for prompt in prompts])
    state, states = noise[0].to(policy.storage), []
    log_prob, behaviour = [], []
    kept = _kept(kernel, keep)
    for k in range(kernel.num_steps):
        if k in kept:
            states.append(state)
        if k == kernel.walked:
            break
        step = torch.full((len(prompts),), k, device=policy.device)
        if explore is None or k not in kernel.stochastic:
            transition = policy.transition(step, state, cond)
            state = transition.sample(noise[k + 1]).to(policy.storage)
        else:
            mixture = explore(step, state, cond)
            transition = mixture.policy
            addresses = sharing.addresses(indices, k + 1)
            chance = randomness.at("explore", k).uniform(addresses).float().to(policy.device)
            state = mixture.sample(noise[k + 1], chance).to(policy.storage)
            behaviour.append(mixture.log_prob(state))
        if k in kernel.stochastic:
            log_prob.append(transition.log_prob(state))
    state = policy.finish(state, cond).to(policy.storage)
    scores = torch.stack(log_prob) if log_prob else noise[0].new_empty(0, len(prompts))
    return Trajectory(
        states=torch.stack([*states, state]),
        log_prob=scores,
        steps=kernel.stochastic,
        kept=kept,
        cond=cond,
        behaviour_log_prob=torch.stack(behaviour) if behaviour else None,
    )


def _check_kept(kernel: Kernel, keep: Sequence[int]) -> None:
    if kernel.tail is not None and max(keep, default=-1) > kernel.walked:
        raise ValueError(
            f"the states before the steps {list(keep)} cannot be kept: the chain has none after step "
            f"{kernel.walked}, where a solver carries it to clean data"
        )


def _kept(kernel: Kernel, keep: Sequence[int]) -> tuple[int, ...]:
    """States to keep: around the steps that have a density, before those of `keep`, and the last."""
    around = {state for step in kernel.stochastic for state in (step, step + 1)}
    return tuple(sorted({*around, *keep, kernel.num_steps}))


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
