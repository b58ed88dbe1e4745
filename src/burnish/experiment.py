"""From a recipe to a run folder: build what the recipe names, drive the loop, write what happens."""

from __future__ import annotations

import importlib
import signal
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import FrameType
from typing import Any, cast

import torch

from burnish import report
from burnish.config import dump, load_recipe
from burnish.environment import environment
from burnish.evaluate import Evaluation, evaluate, spread
from burnish.folder import RunFolder, append, keep_until, lines, write_json, write_samples
from burnish.models import hub
from burnish.policy import Policy, using
from burnish.recipe import Plugin, Recipe, Rewards, Single
from burnish.reward import Reward, is_deterministic, name_of, prepare, unit_of
from burnish.reward_cache import Cached, Counts
from burnish.rewards.combine import Combine
from burnish.shaping import Potential
from burnish.tables import ConfigError
from burnish.track.console import Console
from burnish.train import checkpoint
from burnish.train.loop import Iteration, train
from burnish.train.state import State, start

SHOWN = 16
"""Training samples of an evaluated iteration that are written as images."""


@dataclass(frozen=True, slots=True)
class Experiment:
    """A recipe with its objects built.

    policy: what is trained
    shown: the same denoiser under the sampler that evaluates and draws
    watched: the reward that is measured beside, if any
    potential: that shapes the chains, if any
    counts: of the cache that both share, if the recipe has one
    """

    recipe: Recipe
    policy: Policy
    shown: Policy
    reward: Reward
    watched: Reward | None
    potential: Potential | None
    counts: Counts = field(default_factory=Counts)

    @property
    def denoiser(self) -> Any:
        return self.policy.denoiser


def assemble(recipe: Recipe) -> Experiment:
    """Load the model and resolve the plug-ins. Raises ValueError for what cannot be had."""
    counts, watched = Counts(), recipe.evaluation.watched

    def cached(reward: Reward) -> Reward:
        return _cached(reward, recipe, counts)

    reward = resolve(recipe.reward, cached)
    watched = None if watched is None else resolve(watched, cached)
    shaping, potential = recipe.shaping, None
    if shaping is not None:
        potential = Potential(resolve(shaping.reward, cached), shaping.weight)
    model = recipe.model
    denoiser = hub.load(
        model.name,
        guidance=model.guidance,
        trainable=recipe.trainable,
        dtype=model.dtype,
        device=model.device,
        seed=recipe.seed,
    )
    policy = Policy(denoiser, recipe.sampler, storage=getattr(torch, model.dtype))
    shown = replace(policy, sampler=recipe.evaluation.sampler or recipe.sampler)
    return Experiment(recipe, policy, shown, reward, watched, potential, counts)


def resolve(reward: Rewards, around: Callable[[Reward], Reward] = lambda one: one) -> Reward:
    """The reward as it can be asked: plug-ins are imported, and each reward that is asked is what `around`
    makes of it. Raises ConfigError for a plug-in that is not there."""
    if isinstance(reward, Combine):
        return reward.with_each(lambda single: around(_imported(single)))
    return around(_imported(reward))


def _imported(reward: Single) -> Reward:
    if not isinstance(reward, Plugin):
        return reward
    module, _, attribute = reward.target.partition(":")
    try:
        found: Any = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"reward.name = {reward.target!r}: {error}") from error
    if not callable(found):
        raise ConfigError(f"reward.name = {reward.target!r} is not a function")
    return cast(Reward, found)


def _cached(reward: Reward, recipe: Recipe, counts: Counts) -> Reward:
    """The reward under the recipe's cache, if it has one. Raises ValueError if it cannot be cached."""
    if recipe.cache is None:
        return reward
    alone = unit_of(reward) == "sample"
    if not alone or not is_deterministic(reward):
        why = "is not deterministic" if alone else "compares samples"
        warnings.warn(
            f"cache: reward {name_of(reward)!r} {why}; it is asked anew each time", stacklevel=2
        )
        return reward
    return Cached(reward=reward, folder=recipe.cache.folder, counts=counts)


def run(recipe: Recipe, folder: RunFolder, *, resume: bool) -> bool:
    """Train as the recipe says, into the folder; True if it ran to its end.

    resume: go on from the newest whole checkpoint, if there is one. The result is bitwise that of a
        run that was never stopped.
    """
    _prepare(recipe, folder, resume=resume)
    experiment = assemble(recipe)
    potential = experiment.potential
    for reward in (experiment.reward, experiment.watched, potential and potential.reward):
        if reward is not None:
            prepare(reward)
    averaged = recipe.training.ema is not None
    state = start(experiment.denoiser, recipe.optimizer, averaged=averaged)
    checkpoint.restore(state, folder.checkpoints)
    for path in (folder.metrics, folder.timing):
        keep_until(path, state.iteration)
    with Console(recipe.training.iterations, state.iteration) as console, asked_to_stop() as stop:
        _drive(experiment, state, folder, console, stop)
    if state.iteration < recipe.training.iterations:
        return False
    with _final_weights(experiment, state):
        experiment.denoiser.save(folder.weights)
    report.build(folder)
    return True


def _prepare(recipe: Recipe, folder: RunFolder, *, resume: bool) -> None:
    """Make the folder, or see that it belongs to the same recipe."""
    if folder.recipe.exists():
        if not resume:
            raise ConfigError(
                f"{folder.path} already holds a run; go on with it by --resume, or choose another "
                "folder by --out"
            )
        check_same(recipe, folder)
    folder.path.mkdir(parents=True, exist_ok=True)
    folder.recipe.write_text(dump(recipe), encoding="utf-8")
    write_json(folder.environment, environment())


def check_same(recipe: Recipe, folder: RunFolder) -> None:
    """Only the cache and the number of iterations may change when a run goes on, and the latter not to fewer
    than it has done."""
    before = load_recipe(str(folder.recipe))
    iterations = recipe.training.iterations
    training = replace(before.training, iterations=iterations)
    before = replace(before, training=training, cache=recipe.cache)
    if before != recipe:
        old, new = dump(before).splitlines(), dump(recipe).splitlines()
        changed = [line for line in new if line not in old] or ["(a field was left out)"]
        raise ConfigError(
            f"{folder.path} was begun with another recipe; it cannot go on with {changed[0]!r}"
        )
    done = max((line["iteration"] for line in lines(folder.metrics)), default=0)
    if done > iterations:
        raise ConfigError(
            f"{folder.path} has done {done} iterations, but training.iterations = {iterations}; ask for "
            "as many or more, or choose another folder by --out"
        )


def _drive(
    experiment: Experiment, state: State, folder: RunFolder, console: Console, stop: Stop
) -> None:
    recipe = experiment.recipe
    if not folder.metrics.exists() or not any(lines(folder.metrics)):
        _record_base(experiment, state, folder, console)
    reports = train(
        experiment.policy,
        recipe.algorithm,
        recipe.prompts,
        experiment.reward,
        training=recipe.training,
        optimizer=recipe.optimizer,
        potential=experiment.potential,
        seed=recipe.seed,
        state=state,
    )
    for done in reports:
        last = done.number == recipe.training.iterations
        due = last or done.number % recipe.evaluation.every == 0
        _record(experiment, state, folder, done, console, evaluated=due)
        console.iterated(done)
        if last or stop.asked or done.number % recipe.checkpoint.every == 0:
            checkpoint.save(state, folder.checkpoints, keep=recipe.checkpoint.keep)
        if stop.asked and not last:
            console.say(
                f"Stopped after iteration {done.number} of {recipe.training.iterations}; everything "
                f"is saved. To go on: the same command with --resume --out {folder.path}"
            )
            return


def _record_base(experiment: Experiment, state: State, folder: RunFolder, console: Console) -> None:
    line: dict[str, Any] = {"iteration": 0, "queries": 0}
    seconds = _evaluate_into(line, experiment, state, folder, console)
    append(folder.metrics, line)
    _time(experiment, folder, {"iteration": 0, "evaluate": seconds})


def _record(
    experiment: Experiment,
    state: State,
    folder: RunFolder,
    done: Iteration,
    console: Console,
    *,
    evaluated: bool,
) -> None:
    """Write an iteration's metrics, and its samples where it is evaluated."""
    line = {
        "iteration": done.number,
        "queries": done.queries,
        "reward": spread(done.rewards),
        "metrics": dict(done.metrics),
        "by_step": done.by_step,
    }
    timing = {"iteration": done.number, **done.seconds}
    if evaluated:
        timing["evaluate"] = _evaluate_into(line, experiment, state, folder, console)
        shown = folder.samples("train", done.number)
        write_samples(shown, done.samples[:SHOWN], done.rewards[:SHOWN])
    append(folder.metrics, line)
    _time(experiment, folder, timing)


def _time(experiment: Experiment, folder: RunFolder, line: dict[str, Any]) -> None:
    """Write what depends on more than the recipe: seconds, and what the cache knew."""
    cache = {} if experiment.recipe.cache is None else {"cache": experiment.counts.take()}
    append(folder.timing, {**line, **cache})


def _evaluate_into(
    line: dict[str, Any],
    experiment: Experiment,
    state: State,
    folder: RunFolder,
    console: Console,
) -> float:
    """Add the held-out summary to `line`, write the samples, return the seconds it took."""
    began = time.perf_counter()
    with _final_weights(experiment, state):
        result = held_out(experiment)
    write_samples(folder.samples("held-out", line["iteration"]), result.samples, result.rewards)
    line["held_out"] = result.summary()
    console.evaluated(line["held_out"])
    return time.perf_counter() - began


def held_out(experiment: Experiment) -> Evaluation:
    """The evaluation that the recipe asks for, with the denoiser's present weights."""
    recipe = experiment.recipe
    prompts = recipe.prompts.held_out(recipe.evaluation.prompts)
    return evaluate(
        experiment.shown,
        [prompt for prompt in prompts for _ in range(recipe.evaluation.repeats)],
        experiment.reward,
        seed=recipe.seed,
        batch=recipe.training.sample_batch,
        watched=experiment.watched,
    )


@contextmanager
def _final_weights(experiment: Experiment, state: State) -> Iterator[None]:
    """Within the block the denoiser has the weights that a user will get: the average, if any."""
    if state.average is None:
        yield
    else:
        with using(experiment.denoiser, state.average):
            yield


@dataclass(slots=True)
class Stop:
    asked: bool = False


@contextmanager
def asked_to_stop() -> Iterator[Stop]:
    """Turn the first Ctrl-C or SIGTERM into a request to stop after this iteration.

    A second one stops at once; the newest checkpoint is whole even then.
    """
    stop = Stop()

    def ask(number: int, frame: FrameType | None) -> None:
        del number, frame
        if stop.asked:
            raise KeyboardInterrupt
        stop.asked = True
        print("\nStopping after this iteration; press again to stop at once.", flush=True)

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def open_run(path: Path) -> tuple[Experiment, RunFolder]:
    """A finished run with its final weights loaded. Raises ConfigError if it is none."""
    folder = RunFolder(path)
    if not folder.recipe.is_file():
        raise ConfigError(f"{path} is not a run folder: it has no recipe.toml")
    if not folder.weights.is_dir():
        raise ConfigError(f"{path} has no final weights yet; finish it with burnish train --resume")
    experiment = assemble(load_recipe(str(folder.recipe)))
    return experiment, folder
