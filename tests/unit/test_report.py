"""The report: a page of its own, whatever state the run is in. The runs here are made up."""

from __future__ import annotations

import base64
import io
import math
import random
import re
import subprocess
import sys

import numpy as np
import pytest
from made_up import COUNT, LIFT, check_page, make_run, rewrite, set_rewards, write_samples
from PIL import Image

from burnish.folder import RunFolder
from burnish.report import build, charts
from burnish.report.page import verdict
from burnish.report.record import read

# --- the verdict ---------------------------------------------------------------------------------


def test_verdict_gives_the_lift_in_standard_deviations_of_the_base_model(run):
    record = read(run)
    (_, first), *_, (_, last) = record.evaluated
    lift = (last.mean - first.mean) / first.std
    text = words(run)
    assert f"rose from −{-first.mean:.2f} to −{-last.mean:.2f}, by {lift:.1f} standard" in text
    seconds = 40 * (4.75 + 3.1) + 9 * 3.6
    assert f"40 iterations, 2,560 reward queries, 5 min {round(seconds) - 300} s" in text
    assert "no blank images" in text


def test_change_is_the_mean_of_pairs_with_its_standard_error(tmp_path):
    """Differences 1 and 2, twelve times each: their variance is 24 / 23 * 1 / 4."""
    folder = make_run(tmp_path, done=1, count=24)
    set_rewards(folder, 0, [1.0, 2.0] * 12)
    set_rewards(folder, 1, [2.0, 4.0] * 12)
    change = read(folder).change
    assert change is not None
    assert change.mean == pytest.approx(1.5)
    assert change.error == pytest.approx(math.sqrt(1 / 4 / 23))


def test_verdict_says_that_a_reward_fell(tmp_path):
    assert "fell from" in words(make_run(tmp_path, done=5, lift=-LIFT))


def test_verdict_calls_noise_no_change(tmp_path):
    """Paired differences of mean 0, although the metrics' means differ."""
    folder = make_run(tmp_path, done=5)
    set_rewards(folder, 0, [1.0, 2.0] * (COUNT // 2))
    set_rewards(folder, 5, [2.0, 1.0] * (COUNT // 2))
    assert "did not measurably change" in words(folder)


def test_verdict_points_at_blank_images(tmp_path):
    folder = make_run(tmp_path, done=5)
    rewrite(folder, lambda line: line.get("held_out", {}).update(blank=3 / COUNT))
    assert "3 of 48 images blank" in words(folder)


def test_an_interrupted_run_says_how_far_it_came(tmp_path):
    assert "Stopped after 12 of 40 iterations" in words(make_run(tmp_path, done=12))


# --- runs in every state -------------------------------------------------------------------------


@pytest.mark.parametrize("done", [0, 1, 130])
def test_any_number_of_iterations_is_reported(tmp_path, done):
    check_page(build(make_run(tmp_path, iterations=max(done, 1), done=done, count=2)).read_text())


def test_a_run_without_evaluation_is_reported(tmp_path):
    folder = make_run(tmp_path, done=3, count=2)
    rewrite(folder, lambda line: line.pop("held_out", None))
    for number in folder.sampled("held-out"):
        (folder.samples("held-out", number) / "index.jsonl").unlink()
    check_page(build(folder).read_text())
    assert "No held-out reward was measured" in words(folder)


def test_constant_rewards_are_reported(tmp_path):
    folder = make_run(tmp_path, done=3, count=2)
    flat = {"mean": 1.0, "std": 0.0, "min": 1.0, "max": 1.0, "count": 2}
    rewrite(folder, lambda line: line.update(reward=flat, held_out=flat, metrics={"loss": 0.0}))
    set_rewards(folder, 0, [1.0, 1.0])
    set_rewards(folder, 3, [1.0, 1.0])
    check_page(build(folder).read_text())
    assert "did not measurably change: 1.00 before, 1.00 after" in words(folder)


def test_a_run_without_timing_and_environment_is_reported(tmp_path):
    folder = make_run(tmp_path, done=2, count=2)
    folder.timing.unlink()
    folder.environment.unlink()
    check_page(build(folder).read_text())


def test_unforeseen_metrics_get_charts_of_their_own(tmp_path):
    folder = make_run(tmp_path, done=2, count=2)
    rewrite(folder, lambda line: line.update(metrics={"effective_rows": 7.0}))
    rewrite(folder, lambda line: line.update(by_step={"curvature": {"0": 1.0, "3": 2.0}}))
    text = build(folder).read_text()
    check_page(text)
    assert "<b>Effective rows</b>" in text
    assert "<b>Curvature</b>" in text


def test_steps_that_were_not_trained_stay_empty_in_the_heat_map():
    canvas = charts.Canvas(name="a", label="a", width=340, height=200)
    full = charts.heat_map(canvas, {1: {0: 1.0, 1: 2.0}, 2: {0: 3.0, 1: 4.0}}, "")
    holes = charts.heat_map(canvas, {1: {0: 1.0}, 2: {1: 4.0}}, "")
    assert full.count("<path") - holes.count("<path") == 2


@pytest.mark.parametrize(
    ("largest", "factor", "prefix"),
    [(0.0, 1, ""), (0.03, 1, ""), (1.7e-7, 1e-7, "×10⁻⁷ "), (-3e4, 1e4, "×10⁴ ")],
)
def test_scale_leaves_one_digit_before_the_point(largest, factor, prefix):
    assert charts.scale(np.array([0.0, largest, math.nan])) == (pytest.approx(factor), prefix)


def test_samples_beyond_the_last_line_are_left_out(tmp_path):
    """A kill between the writing of the samples and that of the line leaves samples too many."""
    folder = make_run(tmp_path, done=10, count=2)
    write_samples(folder, 15, [0.0] * 2, 64, random.Random(1))
    assert sorted(read(folder).held_out) == [0, 5, 10]


@pytest.mark.parametrize("missing", ["recipe.toml", "metrics.jsonl"])
def test_a_folder_without_a_run_is_refused_with_what_was_expected(tmp_path, missing):
    folder = make_run(tmp_path, done=1, count=2)
    (folder.path / missing).unlink()
    with pytest.raises(ValueError, match=rf"expected.*{re.escape(missing)}"):
        build(folder)


# --- the page ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> RunFolder:
    """A whole run, not to be changed."""
    return make_run(tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def whole(run) -> str:
    """The page of a whole run."""
    return build(run).read_text()


def test_the_page_is_well_formed_and_needs_nothing_else(whole):
    check_page(whole)


def test_the_page_is_a_function_of_the_folder(run, whole):
    assert build(run).read_text() == whole


def test_prompts_are_text_not_markup(whole):
    assert "<braids>" not in whole
    assert "pink &amp; green &lt;braids&gt;" in whole


def test_pixel_art_is_embedded_as_it_is(run, whole):
    assert whole.count("<img class=pixels") == whole.count("data:image/png") == 2 * 24
    first = (run.samples("held-out", 0) / "0000.png").read_bytes()
    assert base64.b64encode(first).decode() in whole


def test_large_images_are_embedded_as_small_jpegs(tmp_path):
    text = build(make_run(tmp_path, done=1, size=512, count=24)).read_text()
    found = re.findall(r"data:image/jpeg;base64,([^\"]*)", text)
    assert len(found) == 2 * 24
    assert "<img class=pixels" not in text
    assert Image.open(io.BytesIO(base64.b64decode(found[0]))).size == (256, 256)


def test_the_report_needs_no_torch():
    code = "import sys, burnish.report; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def words(folder: RunFolder) -> str:
    """The verdict without its tags."""
    return re.sub(r"<[^>]*>", "", verdict(read(folder)))
