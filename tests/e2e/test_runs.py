"""Runs survive anything: what a killed run leaves behind, `--resume` completes bit for bit."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import time
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from burnish.cli import main
from burnish.config import load_recipe
from burnish.experiment import run
from burnish.folder import RunFolder, lines
from burnish.reward import RewardError
from burnish.tables import ConfigError

SMALL = [
    "--sampler.num_steps=4",
    "--algorithm.train_steps=3",
    "--training.iterations=5",
    "--training.samples=8",
    "--training.updates=2",
    "--training.microbatch=4",
    "--training.sample_batch=4",
    "--training.ema=0.8",
    "--evaluation.every=2",
    "--evaluation.prompts=4",
    "--checkpoint.every=1",
    "--algorithm.baseline.min_count=2",
    "--prompts.count=3",
]
# A server process that has everything imported and has not computed anything: forking from it is quick,
# and safe where forking from the test process, with its pools of threads, is not.
fresh = multiprocessing.get_context("forkserver")
fresh.set_forkserver_preload(["burnish.experiment", "burnish.models.stable_diffusion"])


def _train(path: str, resume: bool, overrides: list[str]) -> None:
    torch.set_num_threads(1)
    run(load_recipe("compressibility", overrides), RunFolder(Path(path)), resume=resume)


def _start(path: Path, *, resume: bool = False, overrides: list[str] = SMALL):
    process = fresh.Process(target=_train, args=(str(path), resume, overrides))
    process.start()
    return process


def _finish(path: Path, *, resume: bool = False) -> None:
    process = _start(path, resume=resume)
    process.join(timeout=120)
    assert process.exitcode == 0


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> RunFolder:
    """A run that was never stopped."""
    path = tmp_path_factory.mktemp("whole") / "run"
    _finish(path)
    return RunFolder(path)


def _same(one: RunFolder, other: RunFolder) -> None:
    assert one.metrics.read_bytes() == other.metrics.read_bytes()
    files = sorted(path.relative_to(one.weights) for path in one.weights.rglob("*.safetensors"))
    assert files
    for file in files:
        assert _contents(one.weights / file) == _contents(other.weights / file)
    assert _last(one) == _last(other)


def _contents(path: Path) -> tuple[dict[str, str], dict[str, tuple[str, bytes]]]:
    """Metadata and tensors: the order of two metadata entries in a safetensors file is arbitrary."""
    with safe_open(path, framework="np") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return file.metadata(), {k: (str(v.dtype), v.tobytes()) for k, v in tensors.items()}


def _last(folder: RunFolder) -> dict[str, bytes]:
    newest = max(folder.checkpoints.iterdir())
    return {path.name: path.read_bytes() for path in newest.iterdir()}


def _duration(folder: RunFolder) -> float:
    """Seconds from the first file of the run to its last checkpoint."""
    return max(folder.checkpoints.iterdir()).stat().st_mtime - folder.recipe.stat().st_mtime


@pytest.mark.parametrize("kill", range(5))
def test_a_run_killed_at_a_random_moment_resumes_bitwise(kill, whole, tmp_path):
    chance = random.Random(f"kill {kill} {os.environ.get('BURNISH_KILL_SEED', '')}")
    process = _start(tmp_path)
    while not (tmp_path / "recipe.toml").exists():
        time.sleep(0.001)
    time.sleep(chance.uniform(0, 1.1) * _duration(whole))
    process.kill()
    process.join()
    _finish(tmp_path, resume=True)
    _same(whole, RunFolder(tmp_path))


def test_a_run_killed_while_it_writes_a_checkpoint_resumes_bitwise(whole, tmp_path):
    for attempt in range(20):
        path = tmp_path / str(attempt)
        partial = path / "checkpoints" / ".partial-000003"
        process = _start(path)
        while not partial.exists() and process.is_alive():
            pass
        process.kill()
        process.join()
        if partial.exists():
            break
    assert partial.exists(), "no kill hit the writing of a checkpoint"
    _finish(path, resume=True)
    _same(whole, RunFolder(path))


def test_a_damaged_checkpoint_is_passed_over_and_the_one_before_it_used(whole, tmp_path):
    first = [*SMALL, "--training.iterations=4"]
    process = _start(tmp_path, overrides=first)
    process.join(timeout=120)
    newest = max((tmp_path / "checkpoints").iterdir()) / "tensors.safetensors"
    damaged = bytearray(newest.read_bytes())
    damaged[-1] ^= 1
    newest.write_bytes(bytes(damaged))
    _finish(tmp_path, resume=True)
    _same(whole, RunFolder(tmp_path))


def test_ctrl_c_stops_after_the_iteration_saves_and_can_go_on(whole, tmp_path):
    process = _start(tmp_path)
    metrics = tmp_path / "metrics.jsonl"
    while len(list(lines(metrics))) < 3:
        time.sleep(0.001)
    os.kill(process.pid, signal.SIGINT)
    process.join(timeout=60)
    assert process.exitcode == 0
    done = len(list(lines(metrics))) - 1
    assert 2 <= done < 5
    assert (tmp_path / "checkpoints" / f"{done:06d}").is_dir()
    assert not (tmp_path / "weights").exists()
    _finish(tmp_path, resume=True)
    _same(whole, RunFolder(tmp_path))


def test_a_run_folder_holds_what_it_promises(whole):
    recorded = list(lines(whole.metrics))
    assert [line["iteration"] for line in recorded] == [0, 1, 2, 3, 4, 5]
    assert [line["iteration"] for line in recorded if "held_out" in line] == [0, 2, 4, 5]
    assert recorded[-1]["queries"] == 5 * 8
    assert set(recorded[1]["by_step"]["log_ratio"]) == {"0", "1", "2"}
    assert all(line["metrics"]["first_log_ratio"] <= 1e-6 for line in recorded[1:])
    environment = json.loads(whole.environment.read_text())
    assert environment["packages"]["torch"] == torch.__version__
    assert whole.sampled("held-out") == [0, 2, 4, 5]
    index = list(lines(whole.samples("held-out", 5) / "index.jsonl"))
    assert len(index) == 4
    assert all((whole.samples("held-out", 5) / entry["file"]).is_file() for entry in index)
    assert index[0]["prompt"]
    rewards = [entry["reward"] for entry in index]
    assert sum(rewards) / 4 == pytest.approx(recorded[-1]["held_out"]["mean"], abs=1e-6)
    assert whole.report.is_file()
    assert len(list(whole.checkpoints.iterdir())) == 2


def test_the_final_weights_are_the_average_if_one_is_kept(whole):
    weights = load_file(whole.weights / "pytorch_lora_weights.safetensors")
    newest = load_file(max(whole.checkpoints.iterdir()) / "tensors.safetensors")
    total = sum(tensor.double().sum() for tensor in weights.values())
    averages = [tensor for name, tensor in newest.items() if name.startswith("average.")]
    assert total == pytest.approx(sum(t.double().sum() for t in averages).item(), rel=1e-9)
    assert sorted(map(tuple, (t.shape for t in weights.values()))) == sorted(
        map(tuple, (t.shape for t in averages))
    )


def test_a_run_folder_is_not_overwritten_nor_continued_with_another_recipe(whole):
    with pytest.raises(ConfigError, match="--resume"):
        run(load_recipe("compressibility", SMALL), whole, resume=False)
    with pytest.raises(ConfigError, match="clip"):
        run(load_recipe("compressibility", [*SMALL, "--algorithm.clip=0.1"]), whole, resume=True)
    before = whole.recipe.read_bytes()
    with pytest.raises(ConfigError, match=r"has done 5 iterations, but training\.iterations = 3"):
        run(load_recipe("compressibility", [*SMALL, "--training.iterations=3"]), whole, resume=True)
    assert whole.recipe.read_bytes() == before


def failing(samples):
    """A reward of one's own that breaks at its third call, which is about the second batch that is drawn."""
    failing.calls = getattr(failing, "calls", 0) + 1
    rewards = samples.media.mean(dim=(1, 2, 3))
    if failing.calls == 3:
        rewards[1] = float("nan")
    return rewards


def test_a_reward_that_fails_stops_the_run_and_loses_nothing(tmp_path):
    overrides = [*SMALL, f"--reward.name={__name__}:failing"]
    with pytest.raises(
        RewardError,
        match=r"'failing' returned nan for sample 1 \(prompt: '.*counted from number 4 on",
    ):
        run(load_recipe("compressibility", overrides), RunFolder(tmp_path), resume=False)
    assert [line["iteration"] for line in lines(tmp_path / "metrics.jsonl")] == [0]
    assert (tmp_path / "samples" / "held-out-000000" / "0003.png").is_file()


def test_a_run_with_a_constraint_and_a_potential_goes_on_as_it_began(tmp_path):
    """The bound is beyond reach, so the multiplier rises in every iteration."""
    recipe = tmp_path / "constrained.toml"
    recipe.write_text("""
        base = "compressibility"
        [reward]
        name = "combine"
        terms = { small = { reward = { name = "compressibility" }, normalise = "z-score", over = "batch" } }
        constraints = { bright = { reward = { name = "brightness" }, at_least = 2.0 } }
        [shaping]
        reward = { name = "brightness" }
    """)
    overrides = [*SMALL, "--evaluation.every=1"]

    def finish(name, iterations, resume):
        asked = load_recipe(str(recipe), [*overrides, f"--training.iterations={iterations}"])
        assert run(asked, RunFolder(tmp_path / name), resume=resume)
        return RunFolder(tmp_path / name)

    finish("halved", 1, resume=False)
    _same(finish("at-once", 3, resume=False), finish("halved", 3, resume=True))
    measured = [*lines(tmp_path / "halved" / "metrics.jsonl")]
    multipliers = [line["metrics"]["multiplier bright"] for line in measured[1:]]
    assert multipliers == sorted({0.0, *multipliers})
    assert measured[1]["metrics"]["part bright"] == pytest.approx(2.0 - multipliers[1])
    assert measured[1]["queries"] == 8 * (1 + 3)  # three trained steps are shaped
    assert measured[3]["held_out"]["held-out small"] == measured[3]["held_out"]["mean"]


def test_the_command_line_draws_before_and_after(whole, tmp_path, capsys):
    prompt = "a portrait of a person with long red hair"
    code = main(
        ["sample", str(whole.path), "--prompt", prompt, "--count", "2", "--out", str(tmp_path)]
    )
    assert code == 0
    written = capsys.readouterr().out.split()
    assert [Path(path).name for path in written] == ["0000.png", "0001.png"]
    assert all(Path(path).is_file() for path in written)


def test_a_mistake_on_the_command_line_is_told_in_one_line(capsys, tmp_path):
    assert main(["train", "compressibility", "--algorithm.clp", "1"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert main(["sample", str(tmp_path), "--prompt", "x"]) == 2
    assert "is not a run folder" in capsys.readouterr().err
    assert main(["report", str(tmp_path)]) == 2
