"""Grids are refused by cell and key; intervals are Student's; the page says what the runs say."""

from __future__ import annotations

import base64
import json
import math
import re
import statistics
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
from made_up import check_page, make_run, rewrite

import burnish
from burnish.bench import settings
from burnish.bench.grid import Cell, load_grid
from burnish.bench.intervals import first_reached, interval, t_quantile
from burnish.bench.page import page, verdict
from burnish.bench.summary import Summary, compare, path, summarise
from burnish.bench.tables import markdown
from burnish.config import dump
from burnish.folder import RunFolder
from burnish.report.record import Record, read
from burnish.tables import ConfigError

# --- intervals -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("degrees", "confidence", "known"),
    [
        (1, 0.95, 12.7062),
        (2, 0.95, 4.30265),
        (3, 0.95, 3.18245),
        (4, 0.95, 2.77645),
        (9, 0.95, 2.26216),
        (30, 0.95, 2.04227),
        (2, 0.99, 9.92484),
        (5, 0.90, 2.01505),
    ],
)
def test_t_quantiles_are_those_of_the_tables(degrees, confidence, known):
    """Printed to six digits."""
    assert t_quantile(degrees, confidence) == pytest.approx(known, rel=5e-6)


def test_one_degree_of_freedom_is_cauchy():
    """Its quantile is tan(pi/2 * confidence)."""
    assert t_quantile(1) == pytest.approx(math.tan(math.pi / 2 * 0.95), rel=1e-9)


def test_many_degrees_of_freedom_are_normal():
    """t = z + (z^3 + z) / 4n + O(n^-2): 6e-4 at n = 4000."""
    z = statistics.NormalDist().inv_cdf(0.975)
    assert t_quantile(4000) == pytest.approx(z + (z**3 + z) / 16_000, abs=1e-5)


def test_an_interval_by_hand():
    """Of 1, 2, 6: mean 3, variance (4 + 1 + 9) / 2 = 7, half width 4.30265 sqrt(7 / 3)."""
    found = interval([1.0, 2.0, 6.0])
    assert (found.mean, found.count) == (3.0, 3)
    assert found.half == pytest.approx(4.30265 * math.sqrt(7 / 3), rel=5e-6)
    assert not found.above_zero
    assert interval([2.9, 3.0, 3.1]).above_zero
    assert not interval([-2.9, -3.0, -3.1]).above_zero


def test_one_seed_has_no_interval_and_is_sure_of_nothing():
    found = interval([5.0])
    assert found.half is None
    assert not found.above_zero


@pytest.mark.parametrize(
    ("level", "x"),
    [(0.5, 5.0), (1.0, 10.0), (2.0, 17.5), (3.0, 20.0), (-1.0, 0.0), (9.0, math.inf)],
)
def test_a_level_is_reached_where_the_line_first_crosses_it(level, x):
    assert first_reached([0, 10, 15, 20, 30], [0.0, 1.0, 1.0, 3.0, 3.0], level) == x


def test_a_level_is_reached_at_its_first_crossing_though_the_line_falls_again():
    assert first_reached([0, 10, 20, 30], [0.0, 2.0, 0.0, 2.0], 1.0) == 5.0


# --- grids ---------------------------------------------------------------------------------------

GRID = """
seeds = [0, 1]
queries = 512
[base.sampler]
num_steps = 8
[base.algorithm]
name = "ddpo-is"
clip = 0.01
[base.training]
samples = 64
[rewards.compressibility.prompts]
count = 3
[rewards.small]
reward = { name = "compressibility", quality = 50 }
[rewards.small.algorithms.rwr.algorithm]
over = "collection"
[algorithms.ddpo-is.algorithm]
train_steps = 3
[algorithms.rwr.training]
samples = 256
"""


def write(folder: Path, text: str) -> str:
    file = folder / "mine.toml"
    file.write_text(text)
    return str(file)


def cell(cells: list[Cell], name: str) -> Cell:
    return next(each for each in cells if str(each) == name)


def test_a_cell_is_base_then_reward_then_algorithm_then_both(tmp_path):
    grid, cells = load_grid(write(tmp_path, GRID))
    assert len(cells) == 2 * 2 * 2
    ddpo = cell(cells, "compressibility/ddpo-is/seed-1").recipe
    assert (ddpo.seed, ddpo.prompts.count, ddpo.sampler.num_steps) == (1, 3, 8)
    assert (ddpo.algorithm.clip, ddpo.algorithm.train_steps) == (0.01, 3)
    rwr = cell(cells, "small/rwr/seed-0").recipe
    assert (rwr.reward.quality, rwr.algorithm.over) == (50, "collection")
    assert cell(cells, "compressibility/rwr/seed-0").recipe.algorithm.over == "prompt"
    assert grid.level == 1.0


def test_every_cell_asks_for_the_same_number_of_rewards(tmp_path):
    _, cells = load_grid(write(tmp_path, GRID))
    training = [each.recipe.training for each in cells]
    assert {each.iterations * each.samples for each in training} == {512}
    assert {each.iterations for each in training} == {2, 8}


def test_cells_come_seed_by_seed_so_that_what_is_done_first_compares_all(tmp_path):
    _, cells = load_grid(write(tmp_path, GRID))
    assert [each.seed for each in cells] == [0] * 4 + [1] * 4


@pytest.mark.parametrize("path", sorted((Path(burnish.__file__).parent / "grids").glob("*.toml")))
def test_a_shipped_grid_is_valid(path):
    grid, cells = load_grid(path.stem)
    assert len(cells) == len(grid.rewards) * len(grid.algorithms) * len(grid.seeds)


def test_the_papers_comparison_is_whole():
    grids = [load_grid(name)[0] for name in ("paper", "alignment")]
    rewards = {name for grid in grids for name in grid.rewards}
    assert rewards == {"compressibility", "incompressibility", "portrait-likelihood"}
    papers = {"ddpo-is", "ddpo-sf", "rwr", "rwr-sparse"}
    for grid in grids:
        assert papers | {"grpo", "nft", "awm", "dpo", "best-of"} == set(grid.algorithms)
        assert len(grid.seeds) >= 3


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("train_steps = 3", "train_stps = 3", "compressibility/ddpo-is: algorithm.train_stps"),
        ("train_steps = 3", "train_steps = 9", "small/ddpo-is: algorithm.train_steps = 9"),
        ("samples = 256", "samples = 100", "small/rwr: training.samples = 100 does not divide"),
        (
            "samples = 256",
            "iterations = 3",
            "compressibility/rwr: algorithms.rwr.training.iterations",
        ),
        ("count = 3", "cont = 3", "compressibility/rwr: prompts.cont"),
        ('over = "collection"', 'over = "all"', "small/rwr: algorithm.over = 'all'"),
        (
            "small.algorithms.rwr.",
            "small.algorithms.rvr.",
            "small/rwr: rewards.small.algorithms.rvr",
        ),
        (
            "[algorithms.rwr.training]",
            "[algorithms.rwr.prompts]",
            "algorithms.rwr.prompts: algorithms",
        ),
        (
            "[algorithms.rwr.training]",
            "[algorithms.rwr.reward]",
            "algorithms.rwr.reward: algorithms",
        ),
        (
            "samples = 64",
            "samples = 64\n[base.evaluation]\nevry = 1",
            "every cell: evaluation.evry",
        ),
        ("[base.sampler]", "[base]\nseed = 3\n[base.sampler]", "every cell: base.seed"),
        ("[algorithms.rwr.training]", "[algorithms.rvr.training]", "rvr: algorithm.name = 'rvr'"),
        ("queries = 512", "queries = 0", "queries = 0"),
        ("queries = 512", "queres = 512", "did you mean 'queries'"),
        ("seeds = [0, 1]", "seeds = [1, 1]", "a seed is there twice"),
        ("seeds = [0, 1]", "seeds = []", "seeds is empty"),
        ("[rewards.small]", '[rewards."../small"]', "cannot name a folder"),
    ],
)
def test_a_bad_grid_is_refused_by_cell_and_key(tmp_path, old, new, said):
    assert old in GRID
    with pytest.raises(ConfigError) as error:
        load_grid(write(tmp_path, GRID.replace(old, new)))
    assert said in str(error.value)


def test_all_bad_cells_are_told_at_once(tmp_path):
    text = GRID.replace("train_steps = 3", "train_steps = 9").replace(
        "samples = 256", "samples = 100"
    )
    with pytest.raises(ConfigError) as error:
        load_grid(write(tmp_path, text))
    told = str(error.value).splitlines()[1:]
    names = [f"{r}/{a}" for r in ("compressibility", "small") for a in ("ddpo-is", "rwr")]
    assert sorted(line.strip().partition(":")[0] for line in told) == names


def test_a_grid_is_checked_without_loading_torch():
    code = "import sys, burnish.bench.grid as g; g.load_grid('paper'); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# --- what the runs say ---------------------------------------------------------------------------

LIFTS = {"ddpo-is": (0.6, 0.7), "rwr": (0.1, 0.2)}
"""Of the held-out reward, by algorithm and seed."""


@pytest.fixture(scope="module")
def summary(tmp_path_factory) -> Summary:
    """A grid of which every cell ran but one."""
    out = tmp_path_factory.mktemp("bench")
    grid, cells = load_grid(write(out, GRID))
    for each in cells:
        if str(each) != "small/rwr/seed-1":
            make_cell(out, each, LIFTS[each.algorithm][each.seed])
    return summarise("mine", grid, cells, out)


def make_cell(out: Path, cell: Cell, lift: float) -> RunFolder:
    """A finished run of the cell whose reward rises by `lift`, evaluated every five iterations."""
    training = cell.recipe.training
    folder = make_run(
        out / cell.reward / cell.algorithm,
        iterations=training.iterations,
        lift=lift,
        count=4,
        name=f"seed-{cell.seed}",
    )
    folder.recipe.write_text(dump(cell.recipe))
    rewrite(folder, lambda line: line.update(queries=training.samples * line["iteration"]))
    return folder


def record(folder: Path, means: Mapping[int, float]) -> Record:
    """A run of four iterations of 64 queries whose held-out means after some of them are these; the base
    model's std is 0.5, later ones are 0.1."""
    run = make_run(folder, iterations=4, done=4, count=2)

    def change(line: dict) -> None:
        number = line["iteration"]
        line.pop("held_out", None)
        if number in means:
            mean = means[number]
            spread = {
                "mean": mean,
                "std": 0.5 if number == 0 else 0.1,
                "min": mean,
                "max": mean,
                "count": 2,
            }
            line["held_out"] = {**spread, "diversity": mean, "blank": 0.0}

    rewrite(run, change)
    seconds = [
        {"iteration": i, "collect": 2.0, "update": 1.0, "evaluate": 7.0} for i in range(1, 5)
    ]
    lines = [{"iteration": 0, "evaluate": 7.0}, *seconds]
    run.timing.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return read(run)


def test_a_path_counts_queries_and_seconds_of_training_only(tmp_path):
    points = path(record(tmp_path, {0: 0.0, 2: 1.0, 4: 2.0}))
    assert [point.queries for point in points] == [0, 128, 256]
    assert [point.seconds for point in points] == [0.0, 6.0, 12.0]


def test_a_comparison_by_hand(tmp_path):
    """Base 0 and 1 with std 0.5. The level, 1 std up, is crossed at half of the first 128 queries by seed 0,
    and at 3/4 of the way from 128 to 256 by seed 1."""
    a = {
        0: record(tmp_path / "a0", {0: 0.0, 2: 1.0, 4: 2.0}),
        1: record(tmp_path / "a1", {0: 1.0, 2: 1.2, 4: 1.6}),
    }
    b = {0: record(tmp_path / "b0", {0: 0.0, 4: 0.1}), 1: record(tmp_path / "b1", {0: 1.0, 4: 1.1})}
    found = compare("r", {"b": b, "a": a}, level=1.0)
    assert [each.algorithm for each in found.standings] == ["a", "b"]
    first, second = found.standings
    assert first.held_out == interval([2.0, 1.6])
    assert first.rise == interval([4.0, 1.2])
    assert first.queries_to_level == pytest.approx(statistics.mean([64, 128 + 128 * 0.75]))
    assert first.seconds_to_level == pytest.approx(statistics.mean([3, 6 + 6 * 0.75]))
    assert (first.reached, second.reached) == (2, 0)
    assert second.queries_to_level == math.inf
    assert first.curve.queries == (0, 128, 256)
    assert first.curve.held_out[1] == interval([1.0, 1.2])
    assert first.guards["diversity"] == pytest.approx(1.8)
    assert found.base == interval([0.0, 1.0])
    assert found.base_std == 0.5
    assert found.own_base == ()


def test_a_seed_that_never_came_up_to_the_level_counts_as_never(tmp_path):
    """Of three seeds the median is that of the slower one that did; of two it is never."""
    ends = (1.0, 2.0, 0.1)
    runs = {s: record(tmp_path / str(s), {0: 0.0, 4: y}) for s, y in enumerate(ends)}
    (three,) = compare("r", {"a": runs}, level=1.0).standings
    assert (three.reached, three.queries_to_level) == (2, 128)
    del runs[1]
    (two,) = compare("r", {"a": runs}, level=1.0).standings
    assert (two.reached, two.queries_to_level) == (1, math.inf)


def test_the_first_is_told_apart_by_the_differences_of_seeds_not_by_their_spread(tmp_path):
    """Seeds differ by 1, which both algorithms share; the differences are 1.0, 1.1 and 0.9."""
    ends = {"a": (1.0, 2.1, 2.9), "b": (0.0, 1.0, 2.0), "c": (0.9, 2.2, 2.8)}
    runs = {
        name: {s: record(tmp_path / f"{name}{s}", {0: 0.0, 4: y}) for s, y in enumerate(values)}
        for name, values in ends.items()
    }
    found = compare("r", runs, level=1.0)
    assert found.first.algorithm == "a"
    assert found.level_with == ("c",)
    assert "does not tell it apart from c." in verdict(found, 256)
    del runs["c"]
    assert "ahead of every other" in verdict(compare("r", runs, level=1.0), 256)


def test_evaluations_that_only_one_seed_has_are_left_out_of_the_curve(tmp_path):
    runs = {
        0: record(tmp_path / "0", {0: 0.0, 1: 3.0, 4: 1.0}),
        1: record(tmp_path / "1", {0: 0.0, 4: 2.0}),
    }
    (found,) = compare("r", {"a": runs}, level=1.0).standings
    assert found.curve.queries == (0, 256)


def test_an_algorithm_that_starts_from_another_base_is_named(tmp_path):
    runs = {
        "a": {0: record(tmp_path / "a", {0: 0.0, 4: 1.0})},
        "b": {0: record(tmp_path / "b", {0: 0.2, 4: 1.0})},
    }
    assert compare("r", runs, level=1.0).own_base == ("b",)


def test_unfinished_cells_are_missing(summary):
    assert [str(each) for each in summary.missing] == ["small/rwr/seed-1"]
    assert [each.reward for each in summary.comparisons] == ["compressibility", "small"]


def test_a_run_that_stopped_early_counts_as_missing(tmp_path):
    grid, cells = load_grid(write(tmp_path, GRID))
    folder = make_cell(tmp_path, cells[0], 0.5)
    assert len(summarise("m", grid, cells, tmp_path).missing) == len(cells) - 1
    kept = folder.metrics.read_text().splitlines(keepends=True)[:-1]
    for text in ("".join(kept), ""):
        folder.metrics.write_text(text)
        assert len(summarise("m", grid, cells, tmp_path).missing) == len(cells)


# --- the page ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def text(summary) -> str:
    return page(summary, {"small/rwr/seed-1": "RewardError: it broke"})


def test_the_page_is_well_formed_and_needs_nothing_else(text):
    check_page(text)


def test_the_page_holds_every_algorithm_under_every_reward(text, summary):
    for comparison in summary.comparisons:
        start = text.index(f'<h2 id="{comparison.reward}">')
        part = text[start : text.index("</section>", start)]
        for algorithm in summary.grid.algorithms:
            assert f"</span>{algorithm}<td>" in part
            assert f"</span>{algorithm}</h4>" in part
        assert part.count("<svg") == 2
        assert part.count("<img") == 4 * (1 + len(comparison.standings))


def test_the_page_says_what_is_missing_and_why(text):
    assert "1 of 8 cells is missing" in text
    assert "<dt>small/rwr/seed-1</dt><dd>RewardError: it broke</dd>" in text
    assert "Fewer than 2 seeds are finished of rwr." in text


def test_an_empty_grid_has_a_page(tmp_path):
    grid, cells = load_grid(write(tmp_path, GRID))
    empty = page(summarise("mine", grid, cells, tmp_path), {})
    check_page(empty)
    assert "No cell of the grid is finished." in empty


def test_samples_are_the_base_models_and_then_the_newest_of_each_algorithm(summary, text):
    (first, *_) = summary.comparisons
    shown = re.findall(r"data:image/png;base64,([^\"]*)", text)[: 4 * (1 + len(first.standings))]
    rows = [first.first.records[0].held_out[0]]
    rows += [each.records[0].held_out[each.records[0].done] for each in first.standings]
    files = [base64.b64encode(sample.image.read_bytes()).decode() for row in rows for sample in row]
    assert shown == files


def test_every_setting_is_said_once(summary):
    found = settings.sort(summary.cells)
    assert found.common["sampler.num_steps"] == "8"
    assert "seed" not in found.common
    assert found.by_reward["small"]["reward.quality"] == "50"
    assert found.by_reward["compressibility"]["prompts.count"] == "3"
    assert found.by_algorithm["ddpo-is"]["algorithm.clip"] == "0.01"
    assert "algorithm.clip" not in found.by_algorithm["rwr"]
    assert found.by_algorithm["rwr"]["algorithm.over (small)"] == "collection"
    assert found.by_algorithm["rwr"]["training.iterations"] == "2"


def test_the_markdown_table_has_a_row_an_algorithm_and_one_of_the_base(summary):
    lines = markdown(summary).splitlines()
    assert lines[0] == "## compressibility"
    table = lines[2 : lines.index("", 2)]
    assert [line.split(" | ")[0] for line in table[2:]] == [
        "| `ddpo-is`",
        "| `rwr`",
        "| base model",
    ]
    assert len({line.count("|") for line in table}) == 1
    assert lines[-1] == "1 of 8 cells are missing."
