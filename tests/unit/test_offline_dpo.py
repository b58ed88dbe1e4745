"""Offline DPO: pairs of images from files, told apart before any weight is loaded, and learnt from."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import tiny
import torch
from PIL import Image
from torch import Tensor
from worlds import PROMPTS, Network

import burnish
from burnish import image_list, rows
from burnish.algorithms import endpoints
from burnish.algorithms.dpo import OfflineDPO
from burnish.config import load_recipe
from burnish.experience import Task
from burnish.images import from_pil, read_image, to_pil
from burnish.policy import MediaEncoder, Policy, snapshot
from burnish.prompts import Prompt
from burnish.randomness import Randomness
from burnish.reward import score
from burnish.rewards import Compressibility
from burnish.rollout import Samples
from burnish.samplers.ddim import DDIM
from burnish.tables import ConfigError
from burnish.train import checkpoint
from burnish.train.loop import train
from burnish.train.settings import AdamW, Training
from burnish.train.state import start

SIDES = ("chosen", "rejected")
TEXTS = ("a portrait of a person", "red hair", "a person with blue hair")


def picture(seed: int, side: int = 16) -> Tensor:
    """8-bit colours, so that a PNG holds them exactly."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (3, side, side), generator=generator) / 255


@pytest.fixture
def folder(tmp_path) -> Path:
    """Three pairs; pictures 0, 1, 2 are chosen, and 10, 11, 12 rejected."""
    (tmp_path / "images").mkdir()
    entries = []
    for i, text in enumerate(TEXTS):
        for seed in (i, 10 + i):
            to_pil(picture(seed)).save(tmp_path / "images" / f"{seed}.png")
        files = {"chosen": f"images/{i}.png", "rejected": f"images/{10 + i}.png"}
        entries.append({"prompt": text, **files, "votes": i})
    write(tmp_path, *map(json.dumps, entries))
    return tmp_path


def write(folder: Path, *lines: str) -> None:
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(tiny.stable_diffusion(tmp_path_factory.mktemp("tiny")))


@pytest.fixture
def policy(model) -> Policy:
    return Policy(burnish.load(model, guidance=1.0, device="cpu"), DDIM(num_steps=2))


def brightness(samples: Samples) -> Tensor:
    return samples.media.flatten(1).mean(1)


def collected(
    policy: Policy, pairs: Path, *, samples: int = 6, batch: int = 6, seed: int = 0, **settings
):
    algorithm = OfflineDPO(pairs=str(pairs), **settings)
    task = Task(policy, PROMPTS, brightness, samples=samples, batch=batch)
    return algorithm.collect(task, memory={}, randomness=Randomness(seed))


def test_a_list_is_read_from_its_file_and_from_its_folder(folder):
    found = image_list.read(str(folder / "metadata.jsonl"), SIDES)
    assert found == image_list.read(str(folder), SIDES)
    assert [pair.prompt for pair in found] == [Prompt(t, {"votes": i}) for i, t in enumerate(TEXTS)]
    assert found[1].images["chosen"] == folder / "images/1.png"
    assert found[1].images["rejected"] == folder / "images/11.png"


PAIR = '{"prompt": "red hair", "chosen": "images/0.png", "rejected": "images/1.png"}'


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("{", "line 3 is not JSON"),
        ("[1]", r"line 3 is '\[1\]', expected"),
        (PAIR.replace("chosen", "choosen", 1), "line 3: key 'chosen' is missing"),
        (PAIR.replace('"red hair"', "3"), "line 3, key 'prompt': 3 is not a text"),
        (PAIR.replace("1.png", "9.png"), "line 3, key 'rejected': .*9.png' does not exist"),
        (PAIR.replace("0.png", ""), "line 3, key 'chosen': .*images' cannot be read"),
    ],
)
def test_what_is_wrong_with_a_list_is_told_with_its_line_and_key(folder, line, told):
    write(folder, PAIR, "", line)
    with pytest.raises(ValueError, match=told):
        OfflineDPO(pairs=str(folder))


def test_a_list_that_is_missing_or_empty_is_told(folder):
    with pytest.raises(ValueError, match=r"nowhere.jsonl' cannot be read"):
        OfflineDPO(pairs=str(folder / "nowhere.jsonl"))
    with pytest.raises(ValueError, match=r"images/metadata.jsonl' cannot be read"):
        OfflineDPO(pairs=str(folder / "images"))
    write(folder, "", " ")
    with pytest.raises(ValueError, match=r"metadata.jsonl' has no lines"):
        OfflineDPO(pairs=str(folder))


@pytest.mark.parametrize("settings", [{"beta": 0.0}, {"draws": 0}])
def test_settings_that_cannot_be_are_refused_by_name(folder, settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        OfflineDPO(pairs=str(folder), **settings)


def test_a_recipe_names_the_key_and_the_line_without_loading_a_weight(folder):
    overrides = ["--algorithm.name", "offline-dpo", "--algorithm.pairs", str(folder)]
    assert load_recipe("compressibility", overrides).algorithm == OfflineDPO(pairs=str(folder))
    write(folder, PAIR.replace("rejected", "worse"))
    with pytest.raises(ConfigError, match=r"line 1: key 'rejected' is missing"):
        load_recipe("compressibility", overrides)


def test_an_image_is_read_as_it_was_written(tmp_path):
    image = picture(3)
    to_pil(image).save(tmp_path / "3.png")
    assert torch.equal(read_image(tmp_path / "3.png", 16, 16), image)
    assert torch.equal(from_pil(to_pil(image)), image)


def test_an_image_of_another_size_is_covered_and_cropped_at_its_centre(tmp_path):
    """A wide image, red but for a blue square in its middle, fits a square as that blue."""
    image = torch.zeros(3, 20, 60)
    image[0], image[2, :, 20:40], image[0, :, 20:40] = 1, 1, 0
    to_pil(image).save(tmp_path / "wide.png")
    found = read_image(tmp_path / "wide.png", 10, 10)
    assert found.shape == (3, 10, 10)
    assert found[2, :, 1:-1].min() > 0.9  # resampling mixes the border
    assert found[0, :, 1:-1].max() < 0.1


@pytest.mark.parametrize("mode", ["L", "RGBA", "P"])
def test_an_image_that_is_not_rgb_becomes_so(mode, tmp_path):
    Image.new("RGB", (4, 4), (0, 0, 0)).convert(mode).save(tmp_path / "black.png")
    assert torch.equal(read_image(tmp_path / "black.png", 4, 4), torch.zeros(3, 4, 4))


def test_a_file_that_is_no_image_is_named(folder, policy):
    (folder / "images/0.png").write_text("not an image")
    with pytest.raises(ValueError, match=r"images/0.png' is not an image"):
        collected(policy, folder)


def test_the_samples_are_the_chosen_images_with_their_rewards(folder, policy):
    found = collected(policy, folder)
    numbers = [TEXTS.index(prompt) for prompt in found.samples.prompts]
    assert torch.equal(found.samples.media, torch.stack([picture(i) for i in numbers]))
    assert torch.equal(found.rewards, brightness(found.samples))
    assert [known["votes"] for known in found.samples.metadata] == numbers
    assert found.queries == len(found.rewards) == 6


def test_each_side_is_its_own_image_and_both_have_the_same_text_level_and_noise(folder, policy):
    found = collected(policy, folder, draws=2)
    numbers = [TEXTS.index(prompt) for prompt in found.samples.prompts]
    encode = policy.denoiser.encode_media
    for side, first in ((found.rows.chosen, 0), (found.rows.rejected, 10)):
        expected = encode(torch.stack([picture(first + i) for i in numbers]))
        assert torch.equal(side.x0, expected)
        assert torch.equal(
            side.cond["embedding"], policy.denoiser.encode(found.samples.prompts)["embedding"]
        )
    chosen, rejected = (rows.noised(policy, s) for s in (found.rows.chosen, found.rows.rejected))
    assert len(chosen.x) == 12
    assert torch.equal(chosen.time, rejected.time)
    assert torch.equal(chosen.target, rejected.target)


def test_pairs_are_drawn_one_by_one_and_anew_each_iteration(folder, policy):
    few, many = (collected(policy, folder, samples=n).samples.prompts for n in (4, 12))
    assert many[:4] == few
    assert set(many) == set(TEXTS)
    assert collected(policy, folder, samples=12, seed=1).samples.prompts != many


def test_the_batch_changes_rounding_only(folder, policy):
    one, other = (collected(policy, folder, batch=size).rows for size in (6, 4))
    torch.testing.assert_close(one.chosen.x0, other.chosen.x0, rtol=1e-4, atol=1e-5)
    for side, same in ((one.chosen, other.chosen), (one.rejected, other.rejected)):
        torch.testing.assert_close(
            side.recorded["reference_error"], same.recorded["reference_error"], rtol=1e-4, atol=1e-5
        )


def test_the_latents_are_the_posterior_mean_in_the_units_that_decode_takes(policy):
    denoiser = policy.denoiser
    assert isinstance(denoiser, MediaEncoder)
    assert denoiser.media_shape == (3, 16, 16)
    media = torch.stack([picture(0), picture(1)])
    encoded = denoiser.encode_media(media)
    assert encoded.shape == (2, *denoiser.event_shape)
    assert not encoded.requires_grad
    moments = denoiser.vae.quant_conv(denoiser.vae.encoder(2 * media - 1))
    mean = moments[:, :4] * denoiser.vae.config["scaling_factor"]  # the other half is log-variances
    torch.testing.assert_close(encoded, mean, rtol=1e-5, atol=1e-6)
    straight = denoiser.vae.decode(moments[:, :4]).sample
    torch.testing.assert_close(
        denoiser.decode(encoded), (straight / 2 + 0.5).clamp(0, 1), rtol=1e-4, atol=1e-5
    )


def test_a_model_without_an_encoder_is_told_before_anything_is_drawn(folder):
    with pytest.raises(ValueError, match=r"Network cannot learn from images .* `encode_media`"):
        collected(Policy(Network(), DDIM(num_steps=2)), folder)


OPTIMIZER = AdamW(learning_rate=1e-2)


class Run:
    def __init__(self, model: str, folder: Path, seed: int = 0) -> None:
        denoiser = burnish.load(model, guidance=1.0, device="cpu", seed=seed)
        self.policy = Policy(denoiser, DDIM(num_steps=2))
        self.algorithm = OfflineDPO(pairs=str(folder), draws=2)
        self.state = start(denoiser, OPTIMIZER, averaged=False)

    def until(self, iterations: int) -> list:
        reports = train(
            self.policy,
            self.algorithm,
            PROMPTS,
            brightness,
            training=Training(iterations=iterations, samples=6, updates=2, microbatch=5),
            optimizer=OPTIMIZER,
            state=self.state,
        )
        return [(report.metrics, report.queries) for report in reports]


def test_a_run_goes_on_from_a_checkpoint_bitwise(folder, model, tmp_path):
    whole, stopped, resumed = Run(model, folder), Run(model, folder), Run(model, folder, seed=7)
    metrics = whole.until(3)
    stopped.until(1)
    checkpoint.save(stopped.state, tmp_path / "saved", keep=1)
    checkpoint.restore(resumed.state, tmp_path / "saved")
    assert resumed.until(3) == metrics[1:]
    for a, b in zip(
        snapshot(whole.policy.denoiser), snapshot(resumed.policy.denoiser), strict=True
    ):
        assert torch.equal(a, b)
    assert metrics[-1][1] == 3 * 6


def test_descent_on_the_loss_lowers_the_error_of_the_chosen_against_that_of_the_rejected(
    folder, policy
):
    algorithm = OfflineDPO(pairs=str(folder), draws=2)
    pairs = collected(policy, folder, draws=2).rows
    parameters = list(policy.denoiser.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=1e-2)
    losses = []
    for _ in range(10):
        loss = algorithm.loss(policy, pairs)[0].mean()
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    def falls(side: rows.Endpoints) -> Tensor:
        with torch.no_grad():
            return side.recorded["reference_error"] - endpoints.error(policy, side)

    assert losses[0] == pytest.approx(math.log(2), abs=1e-6)
    assert losses[-1] < math.log(2) / 2
    assert (falls(pairs.chosen) > falls(pairs.rejected)).all()


def test_pairs_may_lie_in_an_installed_package_and_the_shipped_ones_are_in_order():
    pairs = image_list.read("burnish:portraits/pairs", ("chosen", "rejected"))
    assert len(pairs) == 96

    def rewards(key):
        media = torch.stack([read_image(pair.images[key], 64, 64) for pair in pairs])
        return score(Compressibility(), Samples(media, ("",) * 96, ({},) * 96))

    assert (rewards("chosen") > rewards("rejected")).all()
    chosen = image_list.read("burnish:portraits/pairs/chosen.jsonl", ("image",))
    assert [each.images["image"] for each in chosen] == [each.images["chosen"] for each in pairs]
    for nowhere in ("burnish:portraits/none", "no_such_package:pairs", ".bad:pairs"):
        with pytest.raises(ValueError, match=f"'{nowhere}.*' cannot be read|none' cannot be read"):
            image_list.read(nowhere, ("image",))
