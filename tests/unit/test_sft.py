"""Supervised fine-tuning: what a data set is, what is drawn of it, and what is learned."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor
from worlds import PROMPTS, Network, linear

from burnish import image_list, rows
from burnish.algorithms.sft import SFT
from burnish.config import load_recipe
from burnish.experience import Task
from burnish.images import read_image
from burnish.policy import MediaEncoder, Policy
from burnish.randomness import Randomness
from burnish.samplers.ddim import DDIM
from burnish.tables import ConfigError
from burnish.train import checkpoint
from burnish.train.loop import train
from burnish.train.settings import AdamW, Training
from burnish.train.state import start

COLOURS = [(255, 0, 51), (0, 102, 255), (204, 51, 0), (153, 153, 153)]
OPTIMIZER = AdamW(learning_rate=0.02)


def written(folder: Path, colours: Sequence[tuple[int, int, int]] = COLOURS) -> str:
    """One image of one pixel a colour, in a folder beside the file."""
    (folder / "images").mkdir()
    lines = []
    for i, colour in enumerate(colours):
        Image.new("RGB", (1, 1), colour).save(folder / f"images/{i}.png")
        lines.append({"image": f"images/{i}.png", "prompt": f"colour {i}", "red": colour[0]})
    path = folder / "set.jsonl"
    path.write_text("\n".join(json.dumps(line) for line in lines) + "\n\n")
    return str(path)


def redness(samples) -> Tensor:
    return samples.media[:, 0].flatten(1).mean(1)


def world() -> Policy:
    """The linear model of one pixel's three colours; its states are its media."""
    return Policy(linear((0.0, 0.0, 0.0)), DDIM(num_steps=2, eta=0.0))


def collected(algorithm: SFT, policy: Policy | None = None, count: int = 6):
    task = Task(policy or world(), PROMPTS, redness, samples=count, batch=4)
    return algorithm.collect(task, memory={"kept": 1}, randomness=Randomness(0))


def test_the_file_is_read_with_prompts_paths_and_metadata(tmp_path):
    entries = image_list.read(written(tmp_path), ("image",))
    assert [entry.prompt.text for entry in entries] == [f"colour {i}" for i in range(4)]
    assert entries[2].prompt.metadata == {"red": 204}
    image = read_image(entries[1].images["image"], 1, 1)
    assert image.shape == (3, 1, 1)
    assert image.flatten().tolist() == pytest.approx([0, 0.4, 1])


def test_what_is_collected_are_the_images_their_prompts_and_their_rewards(tmp_path):
    found = collected(SFT(data=written(tmp_path), draws=2))
    numbers = [int(prompt.removeprefix("colour ")) for prompt in found.samples.prompts]
    assert len(set(numbers)) > 1
    pixels = torch.tensor([COLOURS[i] for i in numbers]) / 255
    torch.testing.assert_close(found.samples.media.flatten(1), pixels)
    assert torch.equal(found.rows.x0, found.samples.media)
    assert torch.equal(found.rewards, found.samples.media[:, 0].flatten())
    assert [known["red"] for known in found.samples.metadata] == [COLOURS[i][0] for i in numbers]
    assert found.queries == 6
    assert found.memory == {"kept": 1}
    assert found.rows.sample.tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5]


def test_the_prompt_of_an_image_conditions_its_rows(tmp_path):
    shifts = {f"colour {i}": float(i) for i in range(4)}
    policy = Policy(linear((0.0, 0.0, 0.0), shifts=shifts), DDIM(num_steps=2))
    found = collected(SFT(data=written(tmp_path)), policy)
    expected = [shifts[prompt] for prompt in found.samples.prompts]
    assert rows.noised(policy, found.rows).cond["shift"].tolist() == expected


def test_draws_are_addressed_and_even():
    many = Randomness(3).choices(range(4), 800)
    assert many[:10] == Randomness(3).choices(range(4), 10)
    assert many != Randomness(4).choices(range(4), 800)
    counts = torch.tensor(many).bincount(minlength=4)
    # each line is drawn with chance 1/4: 200 +- 5 standard deviations
    assert ((counts - 200).abs() < 5 * (800 * 3 / 16) ** 0.5).all()


def test_the_loss_is_the_denoising_error(tmp_path):
    policy, algorithm = world(), SFT(data=written(tmp_path), draws=3)
    found = collected(algorithm, policy)
    at = rows.noised(policy, found.rows)
    x0 = found.samples.media[found.rows.sample]
    e = (at.x - at.signal.reshape(-1, 1, 1, 1) * x0) / at.sigma.reshape(-1, 1, 1, 1)
    expected = (rows.predict(policy, at) - e).square().flatten(1).mean(1)
    torch.testing.assert_close(
        algorithm.loss(policy, found.rows)[0], expected, rtol=1e-3, atol=1e-4
    )


def run(data: str, iterations: int, state=None, policy=None):
    policy = policy or world()
    reports = train(
        policy,
        SFT(data=data, draws=4),
        PROMPTS,
        redness,
        training=Training(iterations=iterations, samples=16, updates=4),
        optimizer=OPTIMIZER,
        state=state,
    )
    return list(reports), policy.denoiser


def test_the_model_learns_the_law_of_the_data(tmp_path):
    """The linear model's optimum is the data's mean and standard deviation, over pixels and colours."""
    _, model = run(written(tmp_path), iterations=30)
    pixels = torch.tensor(COLOURS) / 255
    spread = (pixels - pixels.mean(0)).square().mean().sqrt()
    # the last 16 of 30 iterations saw 256 images: 5 standard errors of their mean
    tolerance = 5 * spread.item() / 256**0.5
    torch.testing.assert_close(
        model.mean.detach().flatten(), pixels.mean(0), rtol=0, atol=tolerance
    )
    assert model.log_std.exp().item() == pytest.approx(spread.item(), rel=0.25)


def test_a_run_goes_on_bitwise_from_a_checkpoint(tmp_path):
    data = written(tmp_path)
    whole, model = run(data, 4)
    policy = world()
    state = start(policy.denoiser, OPTIMIZER, averaged=False)
    run(data, 2, state, policy)
    checkpoint.save(state, tmp_path / "kept", keep=1)
    resumed = world()
    state = start(resumed.denoiser, OPTIMIZER, averaged=False)
    checkpoint.restore(state, tmp_path / "kept")
    then, _ = run(data, 4, state, resumed)
    assert [report.metrics for report in then] == [report.metrics for report in whole[2:]]
    assert torch.equal(model.mean, resumed.denoiser.mean)


def line(**keys: object) -> str:
    return json.dumps(keys)


GOOD = line(image="images/0.png", prompt="a")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (f"{GOOD}\n{line(prompt='b')}", r"line 2: key 'image' is missing"),
        (f"{GOOD}\n\n{line(image='images/0.png')}", r"line 3: key 'prompt' is missing"),
        (line(image="images/0.png", prompt=7), r"line 1, key 'prompt': 7 is not a text"),
        (line(image=None, prompt="a"), r"line 1, key 'image': None is not a text"),
        (f"{GOOD}\n{{", r"line 2 is not JSON"),
        ("[1]", r"line 1 is '\[1\]', expected"),
        (line(image="gone.png", prompt="a"), r"line 1, key 'image': .*gone\.png' does not exist"),
        (line(image="set.jsonl", prompt="a"), r"line 1, key 'image': .* is not an image"),
        (line(image="images", prompt="a"), r"line 1, key 'image': .* cannot be read"),
        ("\n", r"has no lines"),
    ],
)
def test_a_fault_of_the_data_is_told_by_line_and_key_before_anything_is_loaded(
    content, said, tmp_path
):
    written(tmp_path)
    path = tmp_path / "set.jsonl"
    path.write_text(content)
    with pytest.raises(ValueError, match=said):
        SFT(data=str(path))
    overrides = ["--algorithm.name", "sft", "--algorithm.data", str(path)]
    with pytest.raises(ConfigError, match=said):
        load_recipe("compressibility", overrides)


def test_a_file_that_is_not_there_is_named():
    with pytest.raises(ValueError, match=r"'nowhere\.jsonl' cannot be read"):
        SFT(data="nowhere.jsonl")


def test_an_image_that_is_cut_short_is_told_by_its_file(tmp_path):
    noise = torch.randint(0, 256, (64, 64, 3), dtype=torch.uint8).numpy()
    Image.fromarray(noise).save(tmp_path / "cut.png")
    whole = (tmp_path / "cut.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "set.jsonl").write_text(line(image="cut.png", prompt="a"))
    algorithm = SFT(data=str(tmp_path / "set.jsonl"))  # its header is whole
    with pytest.raises(ValueError, match=r"cut\.png is not an image that can be read"):
        collected(algorithm)


def test_a_recipe_names_the_data(tmp_path):
    data = written(tmp_path)
    recipe = load_recipe(
        "compressibility",
        ["--algorithm.name", "sft", "--algorithm.data", data, "--sampler.eta", "0"],
    )
    assert recipe.algorithm == SFT(data=data)
    with pytest.raises(ConfigError, match=r"algorithm\.data is missing"):
        load_recipe("compressibility", ["--algorithm.name", "sft"])


def test_a_denoiser_that_cannot_encode_media_is_refused(tmp_path):
    policy = Policy(Network(), DDIM(num_steps=2))
    assert not isinstance(policy.denoiser, MediaEncoder)
    with pytest.raises(ValueError, match="Network cannot learn from images"):
        collected(SFT(data=written(tmp_path)), policy)
