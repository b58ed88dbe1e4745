"""The Bradley-Terry model in a world whose weights are known, and the reward that is made of it."""

from __future__ import annotations

import json
import re
import shutil

import pytest
import torch
from PIL import Image

from burnish import content, image_list
from burnish.cli import main
from burnish.images import read_image
from burnish.preference import bradley_terry
from burnish.preference.fit import SIDES, fit, split_pairs
from burnish.preference.model import restore, store
from burnish.preference.settings import Fitting, Linear, Perceptron, Pixels, Statistics
from burnish.randomness import Randomness
from burnish.reward import check_differentiable, score
from burnish.reward_key import identity
from burnish.rewards import Preference
from burnish.rollout import Samples
from burnish.tables import ConfigError

TRUE = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
COUNT = 4_000


def world(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Pairs whose sides are exchanged by the chances that the true weights give."""
    generator = torch.Generator().manual_seed(seed)
    one, other = torch.randn(2, COUNT, 3, generator=generator, dtype=torch.float64)
    chance = torch.rand(COUNT, generator=generator, dtype=torch.float64)
    swapped = (chance > torch.sigmoid((one - other) @ TRUE))[:, None]
    return torch.where(swapped, other, one), torch.where(swapped, one, other)


def test_the_true_weights_are_found_within_the_information_in_the_pairs():
    """The maximum likelihood estimate has the inverse Fisher information as its covariance."""
    chosen, rejected = world()
    found = bradley_terry.linear(chosen, rejected, 1e-9)
    away = chosen - rejected
    chance = torch.sigmoid(away @ TRUE)
    information = away.T @ (away * (chance * (1 - chance))[:, None])
    error = information.inverse().diagonal().sqrt()
    assert (error < 0.07).all()  # sharp: a fifteenth of the weights at most
    assert ((found - TRUE).abs() < 5 * error).all()


def test_the_fit_is_where_the_objective_is_flat():
    chosen, rejected = world()
    w = bradley_terry.linear(chosen, rejected, 0.1).requires_grad_()
    loss = bradley_terry.log_loss(chosen @ w, rejected @ w).mean() + 0.05 * w @ w
    (slope,) = torch.autograd.grad(loss, w)
    assert slope.abs().max() < 1e-9  # ten times what the fit stops at


def test_exchanging_the_sides_negates_the_reward():
    chosen, rejected = world()
    found = bradley_terry.linear(chosen, rejected, 0.01)
    torch.testing.assert_close(bradley_terry.linear(rejected, chosen, 0.01), -found)


def test_loss_and_accuracy_by_hand():
    ones, others = torch.tensor([2.0, 0.0, 1.0]), torch.tensor([1.0, 0.0, 3.0])
    expected = [0.3132617, 0.6931472, 2.1269280]  # log(1 + e^-1), log 2, log(1 + e^2)
    assert bradley_terry.log_loss(ones, others).tolist() == pytest.approx(expected)
    assert bradley_terry.accuracy(ones, others) == 0.5


def test_a_hidden_layer_learns_what_no_weights_can_say():
    """Preferred is the side that is further from 0, whatever its sign."""
    generator = torch.Generator().manual_seed(0)
    one, other = torch.randn(2, 400, 2, generator=generator, dtype=torch.float64)
    swapped = (one.norm(dim=1) < other.norm(dim=1))[:, None]
    sides = torch.where(swapped, other, one), torch.where(swapped, one, other)
    straight, bent = (
        fit(*sides, Fitting(head=head)) for head in (Linear(l2=1e-3), Perceptron(l2=1e-3))
    )
    accuracy = [bradley_terry.accuracy(*(model.of(x) for x in sides)) for model in (straight, bent)]
    assert accuracy[0] < 0.65
    assert accuracy[1] > 0.95
    again = fit(*sides, Fitting(head=Perceptron(l2=1e-3)))
    assert all(torch.equal(a, b) for a, b in zip(bent.head, again.head, strict=True))


def test_the_mean_reward_of_the_images_that_were_learned_from_is_0():
    chosen, rejected = world()
    bent = Perceptron(updates=5)  # whose mean is not that of its inputs
    model = fit(3 * chosen + 7, 3 * rejected + 7, Fitting(head=bent))
    assert model.of(3 * torch.cat([chosen, rejected]) + 7).mean().abs() < 1e-9


# --- pairs of images -----------------------------------------------------------------------------


def test_pairs_that_share_an_image_are_not_parted(tmp_path):
    for name in "abcdefgh":
        Image.new("RGB", (8, 8)).save(tmp_path / f"{name}.png")
    pairs = ["ab", "cd", "be", "fg", "eh"]  # a-b-e-h hang together
    text = [
        json.dumps({"prompt": "", "chosen": f"{one}.png", "rejected": f"{other}.png"})
        for one, other in pairs
    ]
    (tmp_path / "metadata.jsonl").write_text("\n".join(text))
    entries = image_list.read(str(tmp_path), SIDES)
    together = {0, 2, 4}
    for seed in range(8):
        split = split_pairs(entries, 0.2, Randomness(seed))
        assert sorted([*split.learned, *split.held_out]) == [0, 1, 2, 3, 4]
        assert split.held_out
        assert together <= {*split.learned} or together <= {*split.held_out}
    with pytest.raises(ValueError, match="leaves none to learn from"):
        split_pairs(entries[:1], 0.2, Randomness(0))


@pytest.fixture(scope="module")
def learned(tmp_path_factory):
    """What the command learns from the shipped pairs, of which the smaller JPEG is preferred."""
    folder = tmp_path_factory.mktemp("reward")
    arguments = ["fit-preference", "burnish:portraits/pairs", "--out", str(folder)]
    assert main([*arguments, "--features.name", "statistics"]) == 0
    return folder


def shipped(side: str) -> Samples:
    pairs = image_list.read("burnish:portraits/pairs", SIDES)
    media = torch.stack([read_image(pair.images[side], 64, 64) for pair in pairs])
    return Samples(media, tuple(pair.prompt.text for pair in pairs), ({},) * len(pairs))


def test_the_command_tells_what_the_model_is_worth_on_pairs_that_it_has_not_seen(learned):
    report = json.loads((learned / "preference.json").read_text())["report"]
    assert report["learned"]["pairs"] + report["held_out"]["pairs"] == 96
    assert report["held_out"]["accuracy"] > 0.85  # contrast and sharpness say most of a JPEG's size
    assert report["held_out"]["log_loss"] < 0.5


def test_the_reward_prefers_what_was_preferred_and_its_gradient_reaches_the_image(learned):
    reward = Preference(folder=str(learned))
    margin = score(reward, shipped("chosen")) - score(reward, shipped("rejected"))
    assert (margin > 0).float().mean() > 0.9
    check_differentiable(reward, shipped("chosen")[:1])


@pytest.mark.parametrize("head", [Linear(), Perceptron(hidden=4, updates=5)])
def test_what_is_stored_is_restored(head, tmp_path):
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(2, 20, 3, 8, 8, generator=generator)
    features = Pixels(side=2)
    seen = [torch.nn.functional.adaptive_avg_pool2d(x, 2).flatten(1) for x in images]
    model = fit(*seen, Fitting(features=features, head=head))
    store(model, tmp_path, {})
    assert torch.equal(restore(tmp_path)(images[0]), model(images[0]))
    torch.testing.assert_close(model(images[0]), model.of(seen[0]))


def test_a_model_that_is_not_whole_is_told_by_its_file(learned, tmp_path):
    with pytest.raises(ValueError, match=r"has no preference\.json"):
        Preference(folder=str(tmp_path))
    broken = tmp_path / "broken"
    shutil.copytree(learned, broken)
    weights = broken / "preference.safetensors"
    weights.write_bytes(weights.read_bytes()[:40])
    with pytest.raises(ValueError, match=r"preference\.safetensors does not hold a reward model"):
        Preference(folder=str(broken)).prepare()
    other = tmp_path / "other"
    shutil.copytree(learned, other)
    about = json.loads((other / "preference.json").read_text())
    (other / "preference.json").write_text(json.dumps({**about, "format": 2}))
    with pytest.raises(ValueError, match=r"preference\.json is not that .* format = 1"):
        Preference(folder=str(other)).prepare()


def test_a_caches_key_knows_the_model_and_not_where_it_lies(learned, tmp_path):
    copied, changed = tmp_path / "copied", tmp_path / "changed"
    shutil.copytree(learned, copied)
    store(restore(learned), changed, {"another": "report"})
    keys = [
        identity(Preference(folder=str(path)))["content"] for path in (learned, copied, changed)
    ]
    assert keys[0] == keys[1] != keys[2]
    assert content.digest(str(learned)) == content.digest(str(copied))


@pytest.mark.parametrize(
    ("override", "said"),
    [
        (["--held_out", "1.0"], r"held_out = 1\.0, expected 0 to less than 1"),
        (["--features.name", "pixles"], r"features\.name = 'pixles'.*'pixels'"),
        (["--head.l2", "0.0"], r"head\.l2 = 0\.0, expected more than 0"),
    ],
)
def test_what_is_wrong_in_a_fit_is_named(override, said, tmp_path, capsys):
    assert (
        main(["fit-preference", "burnish:portraits/pairs", "--out", str(tmp_path), *override]) == 2
    )
    assert re.search(said, capsys.readouterr().err)


def test_statistics_are_those_of_the_rewards_of_their_names():
    from burnish.preference.features import features
    from burnish.rewards import Brightness, Colourfulness, Contrast, Sharpness

    samples = shipped("chosen")[:3]
    found = features(Statistics(), samples.media)
    for column, reward in enumerate((Brightness(), Contrast(), Colourfulness())):
        torch.testing.assert_close(found[:, column], score(reward, samples))
    torch.testing.assert_close(found[:, 3], (score(Sharpness(), samples) + 1e-6).log())
    assert isinstance(Fitting().features, Pixels)


def test_an_unknown_setting_is_refused():
    from burnish.config import load_fitting

    with pytest.raises(ConfigError, match="there is no such key"):
        load_fitting(["--featuers.name", "pixels"])
