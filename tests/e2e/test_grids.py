"""A grid runs, goes on where it was stopped, and does not stop for a cell that fails."""

from __future__ import annotations

import os
import re
import shutil
import signal
import threading
import time
from pathlib import Path

import pytest
from made_up import check_page

from burnish.bench.cells import check_folders, is_finished, run_cells
from burnish.bench.grid import load_grid
from burnish.cli import main
from burnish.folder import RunFolder, lines
from burnish.tables import ConfigError

GRID = """
seeds = [0, 1]
queries = 4
jobs = 2
[base]
sampler.num_steps = 2
model.guidance = 1.0
training = { samples = 2, updates = 1, sample_batch = 2, microbatch = 2 }
evaluation = { every = 1, prompts = 2 }
checkpoint.every = 1
[rewards.compressibility.prompts]
count = 3
[algorithms.ddpo-is]
[algorithms.rwr.algorithm]
draws = 1
"""
NAMES = [f"compressibility/{a}/seed-{s}" for s in (0, 1) for a in ("ddpo-is", "rwr")]


def write(folder: Path, text: str = GRID) -> str:
    file = folder / "mine.toml"
    file.write_text(text)
    return str(file)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """The folder of a grid that ran to its end, not to be changed; its grid is beside it."""
    out = tmp_path_factory.mktemp("bench")
    assert main(["bench", write(out), "--out", str(out / "runs")]) == 0
    return out / "runs"


def test_every_cell_is_a_finished_run_folder(whole):
    _, cells = load_grid(str(whole.parent / "mine.toml"))
    assert [str(cell) for cell in cells] == NAMES
    assert all(is_finished(cell, RunFolder(whole / str(cell))) for cell in cells)
    assert [list(lines(whole / name / "metrics.jsonl"))[-1]["queries"] for name in NAMES] == [4] * 4


def test_the_page_holds_every_algorithm_and_is_self_contained(whole):
    text = (whole / "bench.html").read_text()
    assert "All 4 cells are finished." in text
    for algorithm in ("ddpo-is", "rwr"):
        assert f"</span>{algorithm}</h4>" in text
        assert f"`{algorithm}`" in (whole / "table.md").read_text()
    check_page(text)


def test_cells_of_one_seed_start_from_the_same_held_out_samples(whole):
    one, other = (RunFolder(whole / name).samples("held-out", 0) for name in NAMES[:2])
    for file in ("0000.png", "0001.png", "index.jsonl"):
        assert (one / file).read_bytes() == (other / file).read_bytes()


def test_only_what_is_not_finished_runs_again(whole, tmp_path, capsys):
    """A finished cell keeps its files; a deleted one comes back bit for bit."""
    out = tmp_path / "runs"
    shutil.copytree(whole, out)
    shutil.rmtree(out / NAMES[3])
    before = {name: (out / name / "report.html").stat().st_mtime_ns for name in NAMES[:3]}
    assert main(["bench", str(whole.parent / "mine.toml"), "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert re.findall(r"(\S+): began", printed) == NAMES[3:]
    assert before == {name: (out / name / "report.html").stat().st_mtime_ns for name in NAMES[:3]}
    again, first = (folder / NAMES[3] / "metrics.jsonl" for folder in (out, whole))
    assert again.read_bytes() == first.read_bytes()


def test_a_cell_that_fails_is_told_and_the_others_run(whole, tmp_path, capsys):
    """Of two cells that are left, one is of a model that is not there."""
    out = tmp_path / "runs"
    shutil.copytree(whole, out)
    shutil.rmtree(out / NAMES[0])
    text = GRID.replace("seeds = [0, 1]", "seeds = [0]")
    text += '[algorithms.nowhere]\nalgorithm.name = "ddpo-is"\nmodel.name = "./nowhere"\n'
    assert main(["bench", write(tmp_path, text), "--out", str(out)]) == 1
    printed = capsys.readouterr()
    failed = re.search(r"compressibility/nowhere/seed-0 failed: (.*)", printed.err)
    assert failed
    assert "nowhere" in failed[1]
    assert (out / NAMES[0] / "report.html").is_file()
    page = (out / "bench.html").read_text()
    assert "1 of 3 cells is missing" in page
    assert "<dt>compressibility/nowhere/seed-0</dt><dd>" in page


def test_the_folder_of_another_grid_is_refused_before_anything_runs(whole, tmp_path):
    _, cells = load_grid(write(tmp_path, GRID.replace("draws = 1", "draws = 2")))
    with pytest.raises(ConfigError, match="draws = 2"):
        check_folders(cells, whole)
    _, cells = load_grid(write(tmp_path, GRID.replace("queries = 4", "queries = 2")))
    with pytest.raises(ConfigError, match=r"has done 2 iterations, but training\.iterations = 1"):
        check_folders(cells, whole)


def _interrupt(metrics: Path, iterations: int) -> None:
    """Ctrl-C for this process once the run has got so far."""
    while len(list(lines(metrics))) <= iterations:
        time.sleep(0.02)
    os.kill(os.getpid(), signal.SIGINT)


def test_ctrl_c_stops_the_cells_at_a_safe_point_and_they_can_go_on(tmp_path):
    """Cells of a thousand iterations, stopped after a few; one is then given one more."""
    text = GRID.replace("queries = 4", "queries = 2000").replace("seeds = [0, 1]", "seeds = [0]")
    out = tmp_path / "runs"
    metrics = out / NAMES[0] / "metrics.jsonl"
    threading.Thread(target=_interrupt, args=(metrics, 1), daemon=True).start()
    assert main(["bench", write(tmp_path, text), "--out", str(out)]) == 130
    done = list(lines(metrics))[-1]["iteration"]
    assert (out / NAMES[0] / "checkpoints" / f"{done:06d}" / "manifest.json").is_file()
    assert "2 of 2 cells are missing" in (out / "bench.html").read_text()
    _, cells = load_grid(write(tmp_path, text.replace("2000", f"{2 * (done + 1)}")))
    assert not run_cells(cells[:1], out, jobs=1).faults
    assert list(lines(metrics))[-1]["iteration"] == done + 1
