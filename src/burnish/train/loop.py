"""The trainer: one function that knows no algorithm, model or reward.

collect -> shuffle -> loss -> backward -> step -> report. It yields a report an iteration; callers
iterate, and stop when they like.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import Parameter

from burnish import decays
from burnish.algorithms import Algorithm
from burnish.experience import Task
from burnish.lanes import side_by_side
from burnish.policy import Policy
from burnish.prompts import PromptSource
from burnish.randomness import Randomness
from burnish.reward import Reward, prepare
from burnish.rollout import Samples
from burnish.rows import Rows
from burnish.scoring import Adapts, Told
from burnish.scoring import means as part_means
from burnish.shaping import Potential
from burnish.train.settings import AdamW, Training, check
from burnish.train.state import State, follow, start


class TrainingError(RuntimeError):
    """The arithmetic of a run went wrong; the message names the iteration and what to do."""


@dataclass(frozen=True, slots=True)
class Iteration:
    """What one iteration did.

    number: counted from 1
    queries: rewards asked for since the run began
    samples, rewards: what was collected; the rewards are those that are reported (`scoring.Scored.values`)
    parts: what each reward that a composite one is made of says of them
    metrics: means over rows; `first_log_ratio` is the largest |log-ratio| in nats a dimension before
        the first update; `dropped`, where there are any, samples that were left out without a reward
    by_step: the same means for each row key (the denoising step, counted from noise)
    seconds: of collecting and of updating
    """

    number: int
    queries: int
    samples: Samples
    rewards: Tensor
    parts: Told
    metrics: Mapping[str, float]
    by_step: Mapping[str, Mapping[int, float]]
    seconds: Mapping[str, float]

    def __str__(self) -> str:
        mean, std = self.rewards.mean().item(), self.rewards.std(correction=0).item()
        return f"iteration {self.number}: reward {mean:.4g} +- {std:.2g} over {len(self.samples)}"


def train(
    policy: Policy,
    algorithm: Algorithm,
    prompts: PromptSource,
    reward: Reward,
    *,
    training: Training | None = None,
    optimizer: AdamW | None = None,
    potential: Potential | None = None,
    seed: int = 0,
    state: State | None = None,
) -> Iterator[Iteration]:
    """Train the policy's denoiser in place; one report an iteration.

    potential: shapes the chains of a policy gradient; see `Potential`
    state: to go on from; by default the beginning

    Raises ValueError for settings that cannot be, `RewardError` for a reward that fails, and
    `TrainingError` for a non-finite loss or gradient, or a likelihood ratio that is not 1 before the
    first update.
    """
    training = training or Training()
    optimizer = optimizer or AdamW()
    check(algorithm, training)
    prepare(reward)
    if potential is not None:
        prepare(potential.reward)
    if state is None:
        state = start(policy.denoiser, optimizer, averaged=training.ema is not None)
    while state.iteration < training.iterations:
        yield _iterate(
            policy, algorithm, prompts, reward, potential, training, optimizer, seed, state
        )


def _iterate(
    policy: Policy,
    algorithm: Algorithm,
    prompts: PromptSource,
    reward: Reward,
    potential: Potential | None,
    training: Training,
    optimizer: AdamW,
    seed: int,
    state: State,
) -> Iteration:
    began = time.perf_counter()
    randomness = Randomness(seed).at("iteration", state.iteration)
    levels = dict(decays.moving(policy.sampler, state.iteration))
    asked = reward
    if isinstance(reward, Adapts):
        levels |= reward.levels(state.iteration, state.reward)
        asked = reward.at(state.iteration, state.reward)
    policy = policy.at(state.iteration, Randomness(seed).at("sampler"))
    task = Task(policy, prompts, asked, training.samples, training.sample_batch, potential)
    collection = algorithm.collect(task, memory=state.memory, randomness=randomness)
    collected = time.perf_counter()
    diagnostics = _learn(policy, algorithm, collection.rows, training, optimizer, state, randomness)
    state.memory = collection.memory
    if isinstance(reward, Adapts):
        state.reward = reward.learned(collection.scored, state.reward)
    state.iteration += 1
    state.queries += collection.queries
    means, by_step = _summary(diagnostics)
    parts = {f"part {name}": mean for name, mean in part_means(collection.scored.parts).items()}
    dropped = training.samples - len(collection.samples)
    if dropped:
        means["dropped"] = float(dropped)
    return Iteration(
        number=state.iteration,
        queries=state.queries,
        samples=collection.samples,
        rewards=collection.scored.values,
        parts=collection.scored.parts,
        metrics={**levels, **parts, **collection.metrics, **means},
        by_step=by_step,
        seconds={"collect": collected - began, "update": time.perf_counter() - collected},
    )


@dataclass(frozen=True, slots=True)
class _Diagnostics:
    """Of one optimiser step: row keys, row values, gradient norm; on the device, without gradient."""

    key: Tensor
    rows: Mapping[str, Tensor]
    grad_norm: Tensor


def _learn(
    policy: Policy,
    algorithm: Algorithm,
    rows: Rows,
    training: Training,
    optimizer: AdamW,
    state: State,
    randomness: Randomness,
) -> list[_Diagnostics]:
    diagnostics = []
    for epoch in range(training.epochs):
        order = randomness.at("shuffle", epoch).permutation(len(rows)).to(policy.device)
        for drawn in order.tensor_split(min(training.updates, len(rows))):
            # Neighbours are of one chain, so a microbatch has few prompts; the gradient is the same.
            index = drawn.sort().values
            done = _accumulate(policy, algorithm, rows, index, training, optimizer, state)
            if not diagnostics:
                _check_first_ratio(done, training.ratio_tolerance, state.iteration)
            state.optimizer.step()
            state.optimizer.zero_grad(set_to_none=True)
            if state.average is not None:
                assert training.ema is not None
                follow(state.average, state.parameters, training.ema)
            diagnostics.append(done)
    return diagnostics


def _accumulate(
    policy: Policy,
    algorithm: Algorithm,
    rows: Rows,
    index: Tensor,
    training: Training,
    optimizer: AdamW,
    state: State,
) -> _Diagnostics:
    """The gradient of the mean loss over the rows `index`, clipped, in the parameters' `.grad`."""

    def gradient(micro: Tensor) -> tuple[Sequence[Tensor | None], dict[str, Tensor]]:
        loss, values = algorithm.loss(policy, rows[micro])
        mean = loss.sum() / len(index)
        gradients = torch.autograd.grad(mean, state.parameters, allow_unused=True)
        return gradients, {**values, "loss": loss.detach()}

    parts = []
    for gradients, values in side_by_side(gradient, index.split(training.microbatch), index.device):
        _add(state.parameters, gradients)
        parts.append(values)
    norm = torch.nn.utils.clip_grad_norm_(state.parameters, optimizer.max_grad_norm)
    whole = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    _check_finite(whole["loss"], norm, state.iteration)
    return _Diagnostics(key=rows[index].key, rows=whole, grad_norm=norm)


def _add(parameters: Sequence[Parameter], gradients: Sequence[Tensor | None]) -> None:
    """Add to the parameters' `.grad`; None stands for a parameter that the loss does not use."""
    for parameter, gradient in zip(parameters, gradients, strict=True):
        if gradient is None:
            continue
        if parameter.grad is None:
            parameter.grad = gradient
        else:
            parameter.grad += gradient


def _check_finite(loss: Tensor, norm: Tensor, iteration: int) -> None:
    if bool(loss.isfinite().all() & norm.isfinite()):
        return
    what = "gradient" if bool(loss.isfinite().all()) else "loss"
    raise TrainingError(
        f"iteration {iteration + 1}: the {what} is not finite; the weights were not changed by this "
        "step. A lower optimizer.learning_rate usually helps; in half precision, try float32"
    )


def _check_first_ratio(done: _Diagnostics, tolerance: float, iteration: int) -> None:
    if "log_ratio" not in done.rows:
        return
    deviation = done.rows["log_ratio"].abs().max().item()
    if not deviation <= tolerance:
        raise TrainingError(
            f"iteration {iteration + 1}: before any update the policy's log-ratio to itself is "
            f"{deviation:.2e} nats a dimension, expected at most {tolerance:.0e}. The network does not "
            "give the same output twice: look for dropout or batch normalisation in training mode, "
            "for random numbers inside `predict`, or for half precision (then raise "
            "training.ratio_tolerance knowingly)"
        )


def _summary(
    diagnostics: list[_Diagnostics],
) -> tuple[dict[str, float], dict[str, dict[int, float]]]:
    """Means over all rows, and means over the rows of each key."""
    key = torch.cat([done.key for done in diagnostics]).cpu()
    rows = {
        name: torch.cat([done.rows[name] for done in diagnostics]).double().cpu()
        for name in diagnostics[0].rows
    }
    means = {name: values.mean().item() for name, values in rows.items()}
    means["grad_norm"] = torch.stack([done.grad_norm for done in diagnostics]).mean().item()
    if "log_ratio" in rows:
        means["first_log_ratio"] = diagnostics[0].rows["log_ratio"].abs().max().item()
    by_step = {
        name: {int(k): values[key == k].mean().item() for k in key.unique()}
        for name, values in rows.items()
    }
    return means, by_step
