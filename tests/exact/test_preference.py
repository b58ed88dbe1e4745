"""The Bradley-Terry fit at values known in closed form, and the reward model from its pairs to its folder."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import drawings
import pytest
import tiny_rewards
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import burnish
from burnish.cli import main
from burnish.config import load_fitting, load_recipe
from burnish.image_list import Entry
from burnish.images import from_pil, to_pil
from burnish.preference.bradley_terry import accuracy, linear, log_loss, perceptron, rewarded
from burnish.preference.features import features
from burnish.preference.fit import SIDES, fit, fit_preference, split_pairs
from burnish.preference.model import restore, store
from burnish.preference.settings import (
    CLIPFeatures,
    Fitting,
    Linear,
    Perceptron,
    Pixels,
    Statistics,
)
from burnish.prompts import Prompt
from burnish.randomness import Randomness
from burnish.reward import RewardError, check_differentiable, prepare, score
from burnish.reward_cache import Cached
from burnish.reward_key import keys
from burnish.rewards import Brightness, Colourfulness, Contrast, Preference, Sharpness
from burnish.rewards.learned import fetch
from burnish.rewards.preference import _loaded
from burnish.tables import ConfigError


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# --- the fit


def test_the_loss_is_that_of_the_odds_and_a_coins_is_log_2():
    chosen, rejected = torch.tensor([0.0, math.log(3)]), torch.tensor([0.0, 0.0])
    assert log_loss(chosen, rejected).tolist() == pytest.approx([math.log(2), math.log(4 / 3)])
    assert accuracy(chosen, rejected) == 0.75
    assert accuracy(rejected, chosen) == 0.25


@pytest.mark.parametrize(("won", "of"), [(3, 4), (1, 5), (1, 2)])
def test_one_feature_has_the_log_odds_of_its_share_of_wins(won, of):
    distance = 0.5
    chosen = torch.tensor([distance] * won + [0.0] * (of - won))[:, None]
    rejected = distance - chosen
    # with l2 w^2 / 2 the fit is off by l2 w over the curvature, which is p (1 - p) distance^2
    (w,) = linear(chosen, rejected, 1e-9)
    share = won / of
    assert w.item() == pytest.approx(math.log(share / (1 - share)) / distance, abs=1e-6)


def test_the_penalty_is_half_the_square_beside_the_mean():
    # one pair at distance 1: the slope is l2 w - (1 - sigmoid(w)), which is 0 at w = 1 for this l2
    l2 = 1 - 1 / (1 + math.exp(-1))
    assert linear(torch.ones(1, 1), torch.zeros(1, 1), l2).item() == pytest.approx(1, abs=1e-8)
    many = linear(torch.ones(7, 1), torch.zeros(7, 1), l2).item()
    assert many == pytest.approx(1, abs=1e-8)  # a mean: as many as there are


def test_known_weights_are_recovered_within_their_errors():
    count, true = 20_000, torch.tensor([1.0, -0.5, 0.0, 2.0], dtype=torch.float64)
    chosen, rejected = normal(count, 4, seed=1), normal(count, 4, seed=2)
    wins = torch.rand(count, generator=torch.Generator().manual_seed(3)).double()
    lost = wins > torch.sigmoid((chosen - rejected) @ true)
    chosen[lost], rejected[lost] = rejected[lost], chosen[lost]
    found = linear(chosen, rejected, 1e-8)
    away = chosen - rejected
    p = torch.sigmoid(away @ true)
    information = away.T @ (away * (p * (1 - p))[:, None])
    error = torch.linalg.inv(information).diagonal().sqrt()
    assert ((found - true).abs() < 5 * error).all()
    assert (error < 0.05).all()


def test_the_fit_is_where_the_gradient_is_0_whatever_the_units():
    for scale in (1e-2, 1.0, 30.0):  # at 30 a whole step of Newton's goes too far
        chosen, rejected = scale * normal(50, 8, seed=4), scale * normal(50, 8, seed=5)
        w = linear(chosen, rejected, 1e-3).requires_grad_()
        loss = log_loss(chosen @ w, rejected @ w).mean() + 1e-3 * w @ w / 2
        (slope,) = torch.autograd.grad(loss, w)
        assert slope.abs().max() < 1e-9 * max(1.0, scale)


def test_pairs_that_can_be_told_apart_whole_have_finite_weights():
    w = linear(torch.ones(5, 1), torch.zeros(5, 1), 1e-6).item()
    assert w == pytest.approx(1 / (1e-6 * (1 + math.exp(w))), rel=1e-6)


def test_exchanging_the_sides_negates_the_weights():
    chosen, rejected = normal(40, 5, seed=6), normal(40, 5, seed=7)
    there, back = linear(chosen, rejected, 0.1), linear(rejected, chosen, 0.1)
    torch.testing.assert_close(there, -back, rtol=1e-12, atol=1e-12)
    model, turned = fit(chosen, rejected, Fitting()), fit(rejected, chosen, Fitting())
    torch.testing.assert_close(model.of(chosen), -turned.of(chosen), rtol=1e-9, atol=1e-9)


def test_a_perceptron_learns_what_no_linear_head_can():
    x, y = normal(400, 1, seed=8), normal(400, 1, seed=9)
    first = x.abs() > y.abs()  # the larger one is preferred, on either side of 0
    chosen, rejected = torch.where(first, x, y), torch.where(first, y, x)
    settings = {"hidden": 8, "updates": 100}
    generators = [torch.Generator().manual_seed(seed) for seed in (0, 0, 1)]
    found = [perceptron(chosen, rejected, 1e-4, **settings, generator=each) for each in generators]
    one, other = rewarded(found[0], chosen), rewarded(found[0], rejected)
    assert accuracy(one, other) > 0.95
    straight = linear(chosen, rejected, 1e-4)
    assert accuracy(chosen @ straight, rejected @ straight) < 0.6
    assert all(torch.equal(*pair) for pair in zip(found[0], found[1], strict=True))
    assert not torch.equal(found[0][0], found[2][0])


def test_a_perceptron_ends_where_its_objective_is_flat():
    chosen, rejected = normal(60, 3, seed=10) + 1, normal(60, 3, seed=11)
    generator = torch.Generator().manual_seed(0)
    weights = perceptron(chosen, rejected, 0.02, hidden=4, updates=500, generator=generator)
    assert min(each.abs().max().item() for each in weights) > 0.1  # at 0 all is flat
    for each in weights:
        each.requires_grad_()
    squares = sum(each.square().sum() for each in weights)
    loss = log_loss(rewarded(weights, chosen), rewarded(weights, rejected)).mean()
    slopes = torch.autograd.grad(loss + 0.01 * squares, weights)
    assert (
        max(slope.abs().max().item() for slope in slopes) < 1e-4
    )  # L-BFGS stops at 1e-7 or 1e-9 of change


# --- features and the model


def test_pixels_are_the_means_of_cells():
    media = torch.rand(2, 3, 8, 12, generator=torch.Generator().manual_seed(0))
    found = features(Pixels(side=2), media)
    assert found.shape == (2, 12)
    assert found[1, 1].item() == pytest.approx(
        media[1, 0, :4, 6:].mean().item()
    )  # red, above right
    assert found[1, 6].item() == pytest.approx(
        media[1, 1, 4:, :6].mean().item()
    )  # green, below left


def test_statistics_are_those_of_the_rewards():
    samples = drawings.samples(torch.rand(3, 3, 9, 9, generator=torch.Generator().manual_seed(0)))
    rewards = (Brightness(), Contrast(), Colourfulness(), Sharpness())
    found = features(Statistics(), samples.media)
    for i, reward in enumerate(rewards):
        value = score(reward, samples)
        expected = value if i < 3 else (value + 1e-6).log()
        torch.testing.assert_close(found[:, i], expected)
    plain = features(Statistics(), torch.full((1, 3, 9, 9), 0.5))
    assert plain.isfinite().all()


def test_a_reward_is_the_log_odds_against_the_mean_of_what_it_was_learned_from():
    chosen, rejected = normal(30, 3, seed=12) * torch.tensor([1, 5, 0.1]), normal(30, 3, seed=13)
    rejected[:, 2] = chosen[:, 2] = 4.0  # does not vary
    for head in (Linear(), Perceptron(hidden=4, updates=20)):
        model = fit(chosen, rejected, Fitting(head=head))
        both = torch.cat([chosen, rejected])
        assert model.of(both).mean().item() == pytest.approx(0, abs=1e-12)
        assert model.deviation[2] == 1
    # by hand, of the linear one
    model = fit(chosen, rejected, Fitting())
    mean, deviation = both.mean(0), both.std(0, correction=0)
    deviation[2] = 1
    w = linear((chosen - mean) / deviation, (rejected - mean) / deviation, 0.01)
    torch.testing.assert_close(model.of(chosen), (chosen - mean) / deviation @ w)


# --- from files to a reward

COUNT = 24


@pytest.fixture(scope="module")
def pairs(tmp_path_factory) -> Path:
    """Of two noisy images the one with more red is preferred; sizes differ, and the last two share one."""
    folder = tmp_path_factory.mktemp("pairs")
    generator = torch.Generator().manual_seed(0)
    lines = []
    for i in range(COUNT):
        for side, red in (("chosen", 0.6), ("rejected", 0.4)):
            image = 0.5 * torch.rand(3, 12 + i % 2, 16, generator=generator)
            image[0] += red + 0.05 * torch.randn((), generator=generator) - 0.25
            to_pil(image).save(folder / f"{side}{i}.png")
        lines.append({"prompt": "x", "chosen": f"chosen{i}.png", "rejected": f"rejected{i}.png"})
    lines[-1]["rejected"] = lines[-2]["rejected"]
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    return folder


@pytest.fixture
def images():
    media = 0.5 * torch.rand(4, 3, 12, 16, generator=torch.Generator().manual_seed(1))
    media[:, 0] += torch.tensor([0.0, 0.2, 0.3, 0.4]).reshape(4, 1, 1)
    return drawings.samples(media)


EVERY = [
    Fitting(),
    Fitting(features=Pixels(side=1), head=Perceptron(hidden=4, updates=50)),
    Fitting(features=Statistics()),
]


@pytest.mark.parametrize("fitting", EVERY, ids=repr)
def test_a_model_from_files_prefers_what_was_preferred_and_has_its_gradient(
    fitting, pairs, images, tmp_path
):
    report = burnish.fit_preference(str(pairs), tmp_path / "model", fitting)
    reward = Preference(folder=str(tmp_path / "model"))
    prepare(reward)
    if fitting.features != Statistics():  # luma and colourfulness say less of red
        assert report["held_out"]["accuracy"] > 0.9
        values = score(reward, images).tolist()
        assert values == sorted(values)
    assert reward.differentiable
    check_differentiable(reward, images)
    media = images.media.double().requires_grad_()
    model = restore(tmp_path / "model")
    (slope,) = torch.autograd.grad(model(media).sum(), media)
    risen = (model(media + 0.01 * slope) - model(media - 0.01 * slope)).detach() / 0.02
    # features are float32: 1e-7 of values about 1, over the step times the slope's square
    torch.testing.assert_close(risen, slope.square().sum((1, 2, 3)), rtol=0.02, atol=1e-3)


def test_what_is_written_is_read_back_whole(pairs, images, tmp_path):
    for fitting in EVERY:
        fit_preference(str(pairs), tmp_path, fitting)
        model = restore(tmp_path)
        assert model.features == fitting.features
        store(model, tmp_path / "again", {})
        assert torch.equal(restore(tmp_path / "again")(images.media), model(images.media))


def test_the_report_is_of_pairs_that_were_not_learned_from(pairs, tmp_path):
    report = fit_preference(str(pairs), tmp_path, Fitting(held_out=0.5))
    entries = burnish.image_list.read(str(pairs), SIDES)
    split = split_pairs(entries, 0.5, Randomness(0).at("split"))
    assert sorted(split.learned + split.held_out) == list(range(COUNT))
    assert json.loads((tmp_path / "preference.json").read_text())["report"] == report
    model = restore(tmp_path)

    def rewards(places, side):
        return torch.cat([model(from_pil_file(entries[i].images[side])[None]) for i in places])

    for name, places in (("learned", split.learned), ("held_out", split.held_out)):
        chosen, rejected = (rewards(places, side) for side in SIDES)
        share = accuracy(chosen, rejected)
        assert report[name]["pairs"] == len(places)
        assert report[name]["accuracy"] == share
        error = math.sqrt(share * (1 - share) / len(places))
        assert report[name]["accuracy_error"] == pytest.approx(error)
        expected = log_loss(chosen, rejected).mean().item()
        assert report[name]["log_loss"] == pytest.approx(expected, rel=1e-5)
    assert split.learned != split_pairs(entries, 0.5, Randomness(1).at("split")).learned
    # those held out do not move the weights
    seen = [
        torch.stack(
            [
                features(Pixels(), from_pil_file(entries[i].images[side])[None])[0]
                for i in split.learned
            ]
        )
        for side in SIDES
    ]
    torch.testing.assert_close(fit(*seen, Fitting()).head[0], model.head[0], rtol=1e-6, atol=1e-8)


def from_pil_file(path: Path) -> Tensor:
    from PIL import Image

    return from_pil(Image.open(path))


def edges(*names: str) -> list[Entry]:
    prompt = Prompt("", {})
    return [Entry({"chosen": Path(one), "rejected": Path(other)}, prompt) for one, other in names]


def test_pairs_with_an_image_in_common_stay_on_one_side():
    entries = edges("ab", "cd", "be", "fg", "ah", "ij", "dk")
    sets = [{0, 2, 4}, {1, 6}, {3}, {5}]
    for seed in range(20):
        split = split_pairs(entries, 0.4, Randomness(seed))
        assert all({*split.held_out} >= each or not {*split.held_out} & each for each in sets)
        assert 0.4 * 7 <= len(split.held_out) <= 5
    assert split_pairs(entries, 0.0, Randomness(0)).held_out == []


def test_pairs_that_cannot_be_split_are_told():
    with pytest.raises(ValueError, match="3 pairs fall into 1 sets without an image in common"):
        split_pairs(edges("ab", "bc", "cd"), 0.2, Randomness(0))


def test_a_fit_is_the_same_each_time_and_not_of_another_seed(pairs, tmp_path):
    def written(name, seed):
        head = Perceptron(hidden=3, updates=10)
        fit_preference(str(pairs), tmp_path / name, Fitting(seed=seed, head=head, held_out=0))
        return (tmp_path / name / "preference.safetensors").read_bytes()

    assert written("a", 0) == written("b", 0) != written("c", 1)


def test_clip_features_are_its_embedding_and_their_weights_are_in_the_key(pairs, images, tmp_path):
    clip = tiny_rewards.clip(tmp_path / "clip")
    settings = CLIPFeatures(model=clip, device="cpu", batch=3)
    fit_preference(str(pairs), tmp_path / "model", Fitting(features=settings))
    reward = Preference(folder=str(tmp_path / "model"))
    found = features(settings, images.media)
    torch.testing.assert_close(found.norm(dim=1), torch.ones(4))
    check_differentiable(reward, images)
    before = keys(reward, images)
    (tmp_path / "clip/note").write_text("other")
    fetch.content.cache_clear()
    assert keys(reward, images)[0] != before[0]
    shutil.rmtree(clip)
    fetch.content.cache_clear()
    with pytest.raises(RewardError, match=r"'Preference' cannot be .*hf auth login"):
        prepare(Cached(reward=reward, folder=str(tmp_path)))


def test_other_weights_are_another_key_and_another_place_is_not(pairs, images, tmp_path):
    found = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        fit_preference(str(pairs), tmp_path / name, Fitting(seed=seed))
        found.append(Preference(folder=str(tmp_path / name)).content())
    assert found[0] == found[1] != found[2]
    reward = Preference(folder=str(tmp_path / "a"))
    cached = Cached(reward=reward, folder=str(tmp_path / "kept"))
    prepare(cached)
    before = score(cached, images)
    assert torch.equal(before, score(reward, images))
    shutil.copy(tmp_path / "c/preference.safetensors", tmp_path / "a")
    _loaded.cache_clear()  # as another process would
    after = score(cached, images)
    assert torch.equal(after, score(reward, images))
    assert not torch.equal(after, before)
    assert cached.counts.take() == {"computed": 8, "answered": 0}


# --- the command, and what goes wrong


def test_the_command_says_what_the_model_is_worth(pairs, tmp_path, capsys):
    out = tmp_path / "model"
    assert main(["fit-preference", str(pairs), "--out", str(out), "--features.side", "2"]) == 0
    learned, held_out, last = capsys.readouterr().out.splitlines()
    assert "held out        5 pairs   accuracy 1.000 +- 0.000   log-loss 0." in held_out
    assert learned.startswith("learned        19 pairs")
    assert str(out) in last
    assert restore(out).features == Pixels(side=2)
    recipe = load_recipe("compressibility", ["--reward.name=preference", f"--reward.folder={out}"])
    assert recipe.reward == Preference(folder=str(out))


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["--features.nam", "clip"], "features.nam: there is no such key"),
        (["--head.l2", "0"], r"head\.l2 = "),
        (["--head.l2", "0.0"], r"head\.l2 = 0\.0, expected more than 0"),
        (["--held_out", "1.0"], "held_out = 1.0, expected 0 to less than 1"),
        (
            ["--head.name", "perceptron", "--head.hidden", "0"],
            r"head\.hidden = 0, expected at least 1",
        ),
        (["--features.side", "0"], r"features\.side = 0, expected at least 1"),
    ],
)
def test_settings_that_cannot_be_are_refused_by_name(overrides, told):
    with pytest.raises(ConfigError, match=told):
        load_fitting(overrides)


def test_a_list_of_pairs_at_fault_is_told_with_its_line(tmp_path, capsys):
    (tmp_path / "pairs.jsonl").write_text('{"prompt": "x", "chosen": "none.png"}\n')
    assert main(["fit-preference", str(tmp_path / "pairs.jsonl"), "--out", str(tmp_path)]) == 2
    assert "line 1: key 'rejected' is missing" in capsys.readouterr().err


def test_a_folder_without_a_model_is_told_when_the_recipe_is_read(tmp_path):
    with pytest.raises(ConfigError, match=r"reward\.folder = .* has no preference\.json"):
        load_recipe("compressibility", ["--reward.name=preference", f"--reward.folder={tmp_path}"])


def spoil_about(folder: Path, **changes) -> None:
    about = json.loads((folder / "preference.json").read_text())
    (folder / "preference.json").write_text(json.dumps(about | changes))


def spoil_weights(folder: Path, **changes) -> None:
    path = folder / "preference.safetensors"
    save_file({**load_file(path), **changes}, path)


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda f: spoil_about(f, format=2), r"preference\.json .*format = 1"),
        (
            lambda f: spoil_about(f, features={"name": "smell"}),
            r"\.json .*pixels, statistics, clip",
        ),
        (lambda f: spoil_about(f, features={"name": "pixels", "size": 3}), r"\.json .*\['size'\]"),
        (lambda f: spoil_about(f, features={"name": "pixels", "side": "8"}), r"\.json .*integer"),
        (lambda f: (f / "preference.json").write_text("{"), r"preference\.json"),
        (lambda f: (f / "preference.safetensors").write_bytes(b"no"), r"preference\.safetensors"),
        (lambda f: (f / "preference.safetensors").unlink(), r"preference\.safetensors"),
        (lambda f: spoil_weights(f, weight=torch.zeros(3)), r"preference\.safetensors"),
        (lambda f: spoil_weights(f, mean=torch.zeros(3)), r"preference\.safetensors"),
    ],
)
def test_a_damaged_model_is_told_with_its_file_before_anything_is_drawn(
    spoil, told, pairs, tmp_path
):
    fit_preference(str(pairs), tmp_path)
    spoil(tmp_path)
    with pytest.raises(RewardError, match=rf"'Preference' cannot be made ready: .*{told}"):
        prepare(Preference(folder=str(tmp_path)))


def test_the_shipped_pairs_teach_what_a_small_jpeg_looks_like(tmp_path):
    """Contrast and sharpness say most of a JPEG's size."""
    fitting = Fitting(features=Statistics())
    report = fit_preference("burnish:portraits/pairs", tmp_path, fitting)
    assert report["learned"]["pairs"] + report["held_out"]["pairs"] == 96
    assert report["held_out"]["accuracy"] > 0.85
    assert report["held_out"]["log_loss"] < 0.5
