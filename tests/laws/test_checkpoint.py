"""A checkpoint is whole or passed over, and a run that goes on from it is the run itself."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import pytest
import torch
from worlds import PROMPTS, Network

from burnish.algorithms.ddpo import DDPOIS, PerPrompt
from burnish.policy import Policy
from burnish.samplers.ddim import DDIM
from burnish.train import checkpoint
from burnish.train.loop import train
from burnish.train.settings import AdamW, Training
from burnish.train.state import State, start

OPTIMIZER = AdamW(learning_rate=0.01)


class Run:
    """A small run with an average of its weights and statistics of its prompts."""

    def __init__(self, seed: int = 0) -> None:
        self.model = Network(seed=seed)
        self.state = start(self.model, OPTIMIZER, averaged=True)
        self.metrics = []

    def until(self, iterations: int) -> Run:
        reports = train(
            Policy(self.model, DDIM(num_steps=2)),
            DDPOIS(baseline=PerPrompt(size=8, min_count=2), train_steps=1),
            PROMPTS,
            lambda samples: samples.media.flatten(1).mean(1),
            training=Training(
                iterations=iterations, samples=6, updates=2, ema=0.9, ratio_tolerance=1e-5
            ),
            optimizer=OPTIMIZER,
            state=self.state,
        )
        self.metrics += [report.metrics for report in reports]
        return self


def everything(state: State) -> dict[str, torch.Tensor]:
    tensors = {f"p{i}": p.detach().clone() for i, p in enumerate(state.parameters)}
    tensors |= {f"a{i}": mean.clone() for i, mean in enumerate(state.average)}
    for i, moments in state.optimizer.state_dict()["state"].items():
        tensors |= {f"o{i}{name}": value.clone() for name, value in moments.items()}
    return tensors


def assert_same(one: State, other: State) -> None:
    ours, theirs = everything(one), everything(other)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert (one.iteration, one.queries, one.memory) == (
        other.iteration,
        other.queries,
        other.memory,
    )


def saved(folder: Path, *iterations: int, keep: int = 10) -> Run:
    run = Run()
    for iteration in iterations:
        checkpoint.save(run.until(iteration).state, folder, keep=keep)
    return run


def test_a_run_that_goes_on_from_a_checkpoint_is_the_run_that_never_stopped(tmp_path):
    whole = Run().until(4)
    stopped = saved(tmp_path, 2)
    resumed = Run(seed=7)  # other weights, which the checkpoint must replace
    assert checkpoint.restore(resumed.state, tmp_path) == tmp_path / "000002"
    assert_same(resumed.state, stopped.state)
    resumed.until(4)
    assert resumed.metrics == whole.metrics[2:]
    assert_same(resumed.state, whole.state)


def test_a_checkpoint_of_the_beginning_can_be_gone_on_from(tmp_path):
    fresh = Run()
    checkpoint.save(fresh.state, tmp_path, keep=1)
    resumed = Run(seed=7)
    checkpoint.restore(resumed.state, tmp_path)
    assert_same(resumed.state, fresh.state)
    assert_same(resumed.until(1).state, Run().until(1).state)


def test_the_newest_checkpoint_is_taken_without_a_word(tmp_path):
    saved(tmp_path, 1, 2, 3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert checkpoint.restore(Run().state, tmp_path) == tmp_path / "000003"


def flip_a_byte(path: Path) -> None:
    file = path / "tensors.safetensors"
    content = bytearray(file.read_bytes())
    content[-3] ^= 1
    file.write_bytes(content)


def truncate_tensors(path: Path) -> None:
    file = path / "tensors.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def truncate_values(path: Path) -> None:
    file = path / "state.json"
    file.write_text(file.read_text()[:-5])


def lose_tensors(path: Path) -> None:
    (path / "tensors.safetensors").unlink()


def lose_manifest(path: Path) -> None:
    (path / "manifest.json").unlink()


def truncate_manifest(path: Path) -> None:
    file = path / "manifest.json"
    file.write_text(file.read_text()[:-5])


def list_for_manifest(path: Path) -> None:
    (path / "manifest.json").write_text("[]")


DAMAGE = [
    flip_a_byte,
    truncate_tensors,
    truncate_values,
    lose_tensors,
    lose_manifest,
    truncate_manifest,
    list_for_manifest,
]


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_used(damage, tmp_path):
    before = saved(tmp_path, 1)
    expected = everything(before.state)
    checkpoint.save(before.until(2).state, tmp_path, keep=10)
    damage(tmp_path / "000002")
    resumed = Run(seed=7)
    with pytest.warns(UserWarning, match="000002 is passed over"):
        assert checkpoint.restore(resumed.state, tmp_path) == tmp_path / "000001"
    found = everything(resumed.state)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_damage_to_all_leaves_nothing_and_the_state_untouched(tmp_path):
    saved(tmp_path, 1, 2)
    for name in ("000001", "000002"):
        flip_a_byte(tmp_path / name)
    run = Run(seed=7)
    before = everything(run.state)
    with pytest.warns(UserWarning, match="passed over"):
        assert checkpoint.restore(run.state, tmp_path) is None
    assert all(torch.equal(value, before[name]) for name, value in everything(run.state).items())


def test_a_half_written_checkpoint_is_no_checkpoint_and_does_not_hinder(tmp_path):
    run = saved(tmp_path, 1)
    partial = tmp_path / ".partial-000002"
    partial.mkdir()
    (partial / "tensors.safetensors").write_bytes(b"half")
    (partial / "rubbish").write_bytes(b"left over")
    assert checkpoint.restore(Run().state, tmp_path) == tmp_path / "000001"
    path = checkpoint.save(run.until(2).state, tmp_path, keep=10)
    assert not partial.exists()
    assert sorted(p.name for p in path.iterdir()) == [
        "manifest.json",
        "state.json",
        "tensors.safetensors",
    ]
    assert checkpoint.fault_of(path) is None


def test_a_damaged_checkpoint_is_replaced_when_its_iteration_is_saved_again(tmp_path):
    saved(tmp_path, 1, 2)
    flip_a_byte(tmp_path / "000002")
    resumed = Run(seed=7)
    with pytest.warns(UserWarning, match="passed over"):
        checkpoint.restore(resumed.state, tmp_path)
    checkpoint.save(resumed.until(2).state, tmp_path, keep=10)
    assert checkpoint.fault_of(tmp_path / "000002") is None
    assert_same(resumed.state, Run().until(2).state)


@pytest.mark.parametrize("keep", [1, 2])
def test_only_the_newest_are_kept(keep, tmp_path):
    saved(tmp_path, 1, 2, 3, keep=keep)
    kept = sorted(path.name for path in tmp_path.iterdir())
    assert kept == ["000001", "000002", "000003"][-keep:]


def test_no_folder_is_no_checkpoint(tmp_path):
    assert checkpoint.restore(Run().state, tmp_path / "nowhere") is None


def test_a_checkpoint_holds_no_pickle(tmp_path):
    saved(tmp_path, 1)
    path = tmp_path / "000001"
    values = json.loads((path / "state.json").read_text())
    assert values["iteration"] == 1
    assert values["queries"] == 6
    assert set(values["memory"]["rewards"]) <= {"a cat", "a dog", "a bird"}
    assert not (path / "tensors.safetensors").read_bytes().startswith(b"\x80")
