"""A cached reward answers what the reward does, asks once, and believes nothing that is damaged."""

from __future__ import annotations

import functools
import hashlib
import os
import select
import signal
import sqlite3
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import pytest
import tiny
import torch
from hypothesis import given
from hypothesis import strategies as st

from burnish import experiment
from burnish.config import load_recipe
from burnish.content import digest
from burnish.folder import RunFolder, lines
from burnish.images import to_pil
from burnish.report import record
from burnish.reward import (
    RewardError,
    Unanswered,
    differentiable,
    prepare,
    score,
    score_answered,
)
from burnish.reward_cache import FILE, Cached
from burnish.reward_key import keys
from burnish.rewards import Brightness, Compressibility, Incompressibility, Similarity
from burnish.rollout import Samples
from burnish.tables import ConfigError

MANY = 40
SAMPLES = Samples(
    torch.rand(MANY, 3, 2, 2, generator=torch.Generator().manual_seed(0)),
    tuple(f"a cat, {i % 3}" for i in range(MANY)),
    tuple({"hat": i % 2 == 0, "hair": {"colours": ["red", i]}} for i in range(MANY)),
)


def redness(samples):
    """A sum that float32 rounds, so that an answer that is rounded otherwise shows."""
    return samples.media[:, 0].sum((1, 2)) / 3


redness.version = 1


class Asked:
    """A reward that remembers what it was asked about, for the test's eyes."""

    version = 1

    def __init__(self, factor=1.0):
        self.factor = factor
        self._places = []

    def __call__(self, samples):
        self._places += [known["hair"]["colours"][1] for known in samples.metadata]
        return self.factor * redness(samples)


@given(st.lists(st.lists(st.integers(0, MANY - 1), min_size=1, max_size=12), max_size=4))
def test_cached_and_uncached_agree_for_any_batches_and_each_sample_is_asked_about_once(batches):
    reward = Asked()
    with tempfile.TemporaryDirectory() as folder:
        cached = Cached(reward=reward, folder=folder)
        for batch in batches:
            part = SAMPLES.pick(batch)
            assert torch.equal(score(cached, part), score(redness, part))
    assert sorted(reward._places) == sorted({place for batch in batches for place in batch})
    total = sum(len(batch) for batch in batches)
    assert cached.counts.computed == len(reward._places)
    assert cached.counts.computed + cached.counts.answered == total


def test_what_one_has_kept_another_answers(tmp_path):
    folder = str(tmp_path / "not" / "yet")
    first = Cached(reward=redness, folder=folder)
    assert torch.equal(score(first, SAMPLES), score(redness, SAMPLES))
    assert first.counts.take() == {"computed": MANY, "answered": 0}
    assert first.counts.take() == {"computed": 0, "answered": 0}
    second = Cached(reward=redness, folder=folder)
    assert torch.equal(score(second, SAMPLES), score(redness, SAMPLES))
    assert second.counts.take() == {"computed": 0, "answered": MANY}


def test_what_is_left_unanswered_is_passed_on_and_what_was_answered_is_kept(tmp_path):
    """Of samples 0 to 5, 2 is known already; of the others, 1 and 4 are left unanswered, and asked again."""

    def partly(samples):
        places = [known["hair"]["colours"][1] for known in samples.metadata]
        asked.append(places)
        values = redness(samples).tolist()
        answered = {i: values[i] for i, place in enumerate(places) if place not in bad}
        if len(answered) < len(places):
            raise Unanswered("two are missing", partly, answered)
        return redness(samples)

    partly.version = 1
    asked: list[list[int]] = []
    bad = {1, 4}
    # a function inside another has no place to be told by
    partly.__qualname__ = "partly"
    samples = SAMPLES[:6]
    cached = Cached(reward=partly, folder=str(tmp_path))
    score(cached, samples[2:3])
    rewards, places = score_answered(cached, samples)
    assert places == [0, 2, 3, 5]
    assert torch.equal(rewards, score(redness, samples.pick(places)))
    with pytest.raises(Unanswered, match="two are missing"):
        score(cached, samples)
    bad.clear()
    assert torch.equal(score(cached, samples), score(redness, samples))
    assert asked == [[2], [0, 1, 3, 4, 5], [1, 4], [1, 4]]


# --- the key


@dataclass(frozen=True)
class Twin:
    """`Compressibility` by its fields, and another reward."""

    version: ClassVar[int] = 1
    quality: int = 95


ONE = SAMPLES[:1]
NEAR = ONE.media.clone()
NEAR[0, 1, 0, 1] = torch.nextafter(NEAR[0, 1, 0, 1], torch.tensor(2.0))  # one bit of one number


@pytest.mark.parametrize(
    "other",
    [
        replace(ONE, media=NEAR),
        replace(ONE, media=ONE.media.reshape(1, 3, 1, 4)),
        replace(ONE, media=ONE.media.double()),
        replace(ONE, prompts=("a cat,  0",)),
        replace(ONE, metadata=({"hat": 1, "hair": {"colours": ["red", 0]}},)),
        replace(ONE, metadata=({"hat": True, "hair": {"colours": ["red", "0"]}},)),
        replace(ONE, metadata=({"hat": True, "hair": {"colours": ["red", 0.0]}},)),
        replace(ONE, metadata=({"hat": True},)),
    ],
)
def test_another_sample_has_another_key(other):
    assert keys(redness, other) != keys(redness, ONE)


def test_a_key_does_not_depend_on_the_order_of_metadata_or_on_the_batch():
    (known,) = ONE.metadata
    turned = replace(ONE, metadata=(dict(reversed(known.items())),))
    assert keys(redness, turned) == keys(redness, ONE) == keys(redness, SAMPLES)[:1]
    assert len(set(keys(redness, SAMPLES))) == MANY


def test_rewards_are_told_apart_by_where_they_are_defined_and_their_settings():
    rewards = [
        redness,
        Asked(),
        Asked(2.0),
        Brightness(),
        Compressibility(),
        Incompressibility(),
        Compressibility(quality=80),
        Twin(),
    ]
    found = [keys(reward, ONE)[0] for reward in rewards]
    assert len(set(found)) == len(rewards)
    assert found == [keys(reward, ONE)[0] for reward in rewards]


def test_a_reward_of_another_version_is_another_reward(monkeypatch):
    before = [keys(reward, ONE) for reward in (redness, Twin())]
    monkeypatch.setattr(redness, "version", 2)
    monkeypatch.setattr(Twin, "version", "1b")
    after = [keys(reward, ONE) for reward in (redness, Twin())]
    assert before[0] != after[0]
    assert before[1] != after[1]


def test_a_reference_image_is_known_by_its_content(tmp_path):
    found = []
    for i, level in enumerate((0.2, 0.8)):
        (tmp_path / str(i)).mkdir()
        to_pil(torch.full((3, 4, 4), level)).save(tmp_path / str(i) / "image.png")
        found.append(Similarity(path=str(tmp_path / str(i) / "image.png")).version)
    assert found[0] != found[1]


class Weighted:
    """It judges by a number in a file."""

    version = 1

    def __init__(self, path):
        self.path = str(path)

    def content(self):
        return digest(self.path)

    def __call__(self, samples):
        return redness(samples) * float(Path(self.path).read_text())


@dataclass(frozen=True, kw_only=True)
class Within:
    """A reward that holds another."""

    version: ClassVar[int] = 1
    part: Weighted

    def __call__(self, samples):
        return self.part(samples)


def test_what_was_kept_of_other_weights_is_not_answered(tmp_path):
    path = tmp_path / "weight"
    for wrapped in (Weighted(path), Within(part=Weighted(path))):
        cached = Cached(reward=wrapped, folder=str(tmp_path / "kept"))  # looks at no file yet
        for weight in ("2", "3", "2"):
            path.write_text(weight)
            assert torch.equal(score(cached, SAMPLES), score(redness, SAMPLES) * float(weight))
        assert cached.counts.take() == {"computed": 2 * MANY, "answered": MANY}
        path.unlink()


def test_weights_that_are_not_there_are_told_with_the_reward_before_anything_is_drawn(tmp_path):
    cached = Cached(reward=Weighted(tmp_path / "none"), folder=str(tmp_path))
    with pytest.raises(RewardError, match=r"reward 'Weighted' cannot be told .*No such file"):
        prepare(cached)


def test_a_folder_is_known_by_the_names_and_bytes_of_its_files_and_not_by_its_place(tmp_path):
    def made(name, **files):
        for each, text in files.items():
            path = tmp_path / name / each.replace("_", "/")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return digest(str(tmp_path / name))

    same = [made("a", x="1", in_y="2"), made("b", in_y="2", x="1")]
    others = [made("c", x="1", in_y="3"), made("d", x="1", in_z="2"), made("e", x="1", y="2")]
    assert same[0] == same[1]
    assert len({same[0], *others}) == 4
    assert digest(str(tmp_path / "a" / "x")) == hashlib.blake2b(b"1", digest_size=16).hexdigest()


class Blaming:
    """It names the sample at fault itself."""

    version = 1

    def __call__(self, samples):
        for place, known in enumerate(samples.metadata):
            if known["hair"]["colours"][1] == 7:
                raise RewardError(f"sample {place} is number 7")
        return redness(samples)


def test_a_sample_at_fault_has_its_place_among_those_that_were_asked_about(tmp_path):
    cached = Cached(reward=Blaming(), folder=str(tmp_path))
    score(cached, SAMPLES[:5])
    with pytest.raises(RewardError, match="sample 7 is number 7"):
        score(cached, SAMPLES)


class Chance:
    deterministic = False
    version = 1

    def __call__(self, samples):
        return torch.rand(len(samples))


class Network:
    version = 1

    def __init__(self):
        self.model = torch.nn.Linear(2, 2)

    def __call__(self, samples):
        return samples.media.mean((1, 2, 3))


def unversioned(samples):
    return samples.media.mean((1, 2, 3))


def made():
    def inner(samples):
        return samples.media.mean((1, 2, 3))

    inner.version = 1
    return inner


partial = functools.partial(redness)
partial.version = 1


@pytest.mark.parametrize(
    ("reward", "message"),
    [
        (Chance(), "'Chance' is not deterministic"),
        (unversioned, "'unversioned' has no `version`"),
        (made(), "'inner' is .*a function at the top of a module"),
        (partial, "'partial' is "),
        (Network(), r"'Network'\.model is Linear.*begins with an underscore"),
    ],
)
def test_a_reward_that_cannot_be_told_from_others_is_not_cached(reward, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        Cached(reward=reward, folder=str(tmp_path))


def test_metadata_that_are_no_plain_values_are_named(tmp_path):
    odd = replace(ONE, metadata=({"hair": [torch.zeros(1)]},))
    with pytest.raises(RewardError, match=r"'redness' raised ValueError: metadata\.hair is tensor"):
        score(Cached(reward=redness, folder=str(tmp_path)), odd)


# --- what is passed on, and what is not kept


def test_a_gradient_is_the_rewards_own_and_nothing_is_kept(tmp_path):
    media = SAMPLES.media.clone().requires_grad_()
    moving = replace(SAMPLES, media=media)
    cached = Cached(reward=redness, folder=str(tmp_path))
    rewards = [differentiable(reward, moving) for reward in (cached, redness)]
    slopes = [torch.autograd.grad(each.square().sum(), media)[0] for each in rewards]
    assert torch.equal(*slopes)
    assert cached.counts.take() == {"computed": 0, "answered": 0}
    assert not list(tmp_path.iterdir())


class Fragile:
    """Wrong about the samples from the given one on."""

    version = 1

    def __init__(self, start, wrong):
        self.start = start
        self._wrong = wrong

    def __call__(self, samples):
        places = torch.tensor([known["hair"]["colours"][1] for known in samples.metadata])
        return self._wrong(samples, places >= self.start)


def infinite(samples, bad):
    return torch.where(bad, torch.inf, redness(samples))


def shapeless(samples, bad):
    return redness(samples)[:, None] if bad.any() else redness(samples)


def raising(samples, bad):
    if bad.any():
        raise KeyError("no foxes")
    return redness(samples)


@pytest.mark.parametrize("wrong", [infinite, shapeless, raising])
def test_a_wrong_answer_is_blamed_as_without_a_cache_and_not_kept(wrong, tmp_path):
    reward = Fragile(7, wrong)
    cached = Cached(reward=reward, folder=str(tmp_path))
    score(cached, SAMPLES[:5])
    messages = []
    for each in (cached, reward):
        with pytest.raises(RewardError) as caught:
            score(each, SAMPLES[3:10])
        messages.append(str(caught.value))
    assert messages[0] == messages[1]
    assert "'Fragile'" in messages[0]
    assert torch.equal(score(cached, SAMPLES[:7]), score(redness, SAMPLES[:7]))
    for place in range(7, 10):
        with pytest.raises(RewardError):
            score(cached, SAMPLES[place : place + 1])


# --- damage, and several at once


def kept(folder: Path) -> sqlite3.Connection:
    return sqlite3.connect(folder / FILE)


DAMAGES = {
    "another number": "UPDATE rewards SET value = value + 1",
    "the number of another": "UPDATE rewards SET (value, seal) = (SELECT value, seal FROM rewards LIMIT 1)",
    "no number": "UPDATE rewards SET value = 'much'",
    "not a number": "UPDATE rewards SET value = 9e999",
    "no seal": "UPDATE rewards SET seal = x''",
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_entry_is_computed_anew_with_a_warning(damage, tmp_path):
    cached = Cached(reward=redness, folder=str(tmp_path))
    score(cached, SAMPLES)
    with kept(tmp_path) as database:
        database.execute(DAMAGES[damage])
    cached.counts.take()
    with pytest.warns(RuntimeWarning, match=r"has (39|40) damaged entries"):  # one may be itself
        assert torch.equal(score(cached, SAMPLES), score(redness, SAMPLES))
    assert cached.counts.take()["computed"] >= MANY - 1
    assert torch.equal(score(cached, SAMPLES), score(redness, SAMPLES))
    assert cached.counts.take() == {"computed": 0, "answered": MANY}


def test_a_file_that_is_no_cache_is_left_alone_with_a_warning(tmp_path):
    (tmp_path / FILE).write_bytes(b"what somebody else has written" * 100)
    cached = Cached(reward=redness, folder=str(tmp_path))
    with (
        pytest.warns(RuntimeWarning, match="cannot be read.*delete the file"),
        pytest.warns(RuntimeWarning, match="cannot be written.*40 rewards are not kept"),
    ):
        assert torch.equal(score(cached, SAMPLES), score(redness, SAMPLES))
    assert (tmp_path / FILE).read_bytes().startswith(b"what somebody else has written")


@pytest.mark.filterwarnings("ignore:the reward cache")
def test_a_file_with_holes_never_gives_a_wrong_reward(tmp_path):
    cached = Cached(reward=redness, folder=str(tmp_path))
    score(cached, SAMPLES)
    whole = bytearray((tmp_path / FILE).read_bytes())
    for start in range(100, len(whole), 509):
        holed = bytearray(whole)
        holed[start : start + 64] = b"\xff" * 64
        (tmp_path / FILE).write_bytes(holed)
        assert torch.equal(score(cached, SAMPLES), score(redness, SAMPLES))


def forked(work) -> int:
    """A process that does the work and ends; its id."""
    process = os.fork()
    if process:
        return process
    status = 1
    signal.alarm(60)  # whatever happens, no test waits for it for ever
    try:
        work()
        status = 0
    finally:
        os._exit(status)


def test_two_processes_write_at_once_and_nothing_is_lost(tmp_path):
    def write(order):
        cached = Cached(reward=redness, folder=str(tmp_path))
        for start in range(0, MANY, 5):
            part = SAMPLES.pick(order[start : start + 5])
            assert torch.equal(score(cached, part), score(redness, part))

    forward = list(range(MANY))
    writers = [forked(lambda o=order: write(o)) for order in (forward, forward[::-1])]
    assert [os.waitpid(writer, 0)[1] for writer in writers] == [0, 0]
    cached = Cached(reward=redness, folder=str(tmp_path))
    assert torch.equal(score(cached, SAMPLES), score(redness, SAMPLES))
    assert cached.counts.take() == {"computed": 0, "answered": MANY}


def test_a_writer_that_is_killed_leaves_whole_entries_or_none(tmp_path):
    """Each writer is killed at once after its third round, so somewhere in its fourth."""
    heard, told = os.pipe()

    def write():
        cached = Cached(reward=redness, folder=str(tmp_path))
        for i in range(100_000):
            score(cached, replace(SAMPLES, prompts=(f"round {i}",) * MANY))
            if cached.counts.take()["computed"]:
                os.write(told, b".")

    for _ in range(2):  # the second goes on from what the first has left
        writer = forked(write)
        for _ in range(3):
            assert select.select([heard], [], [], 60)[0]  # else it has died
            os.read(heard, 1)
        os.kill(writer, signal.SIGKILL)
        os.waitpid(writer, 0)
        while select.select([heard], [], [], 0)[0]:
            os.read(heard, 1)
    with kept(tmp_path) as database:
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        count = database.execute("SELECT count(*) FROM rewards").fetchone()[0]
    assert count % MANY == 0
    assert count >= 6 * MANY
    cached = Cached(reward=redness, folder=str(tmp_path))
    for i in range(count // MANY):
        asked = replace(SAMPLES, prompts=(f"round {i}",) * MANY)
        assert torch.equal(score(cached, asked), score(redness, SAMPLES))
    assert cached.counts.take() == {"computed": 0, "answered": count}


# --- in a recipe

SMALL = [
    "--model.device=cpu",
    "--reward.name=brightness",
    "--evaluation.watched.name=contrast",
    "--prompts.name=list",
    "--prompts.train=['a red cat', 'a blue cat']",
    "--prompts.test=['a cat']",
    "--sampler.num_steps=2",
    "--algorithm.train_steps=2",
    "--training.iterations=1",
    "--training.samples=2",
    "--training.updates=1",
    "--evaluation.prompts=1",
]


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return tiny.stable_diffusion(tmp_path_factory.mktemp("tiny"))


def loaded(model: Path, cache: Path | None, *more: str):
    kept = [] if cache is None else [f"--cache.folder={cache}"]
    return load_recipe("compressibility", [*SMALL, f"--model.name={model}", *kept, *more])


def test_a_run_is_the_same_without_a_cache_with_an_empty_one_and_with_a_full_one(model, tmp_path):
    folders = [RunFolder(tmp_path / name) for name in ("without", "empty", "full")]
    for folder, cache in zip(folders, (None, tmp_path / "kept", tmp_path / "kept"), strict=True):
        assert experiment.run(loaded(model, cache), folder, resume=False)
    assert len({folder.metrics.read_bytes() for folder in folders}) == 1
    counts = [[line.get("cache") for line in lines(folder.timing)] for folder in folders]
    # the base model: one held-out sample, by two rewards; then two samples, and the held-out one again
    assert counts[0] == [None, None]
    assert counts[1] == [{"computed": 2, "answered": 0}, {"computed": 4, "answered": 0}]
    assert counts[2] == [{"computed": 0, "answered": 2}, {"computed": 0, "answered": 4}]
    for seconds in record.read(folders[2]).seconds.values():
        assert set(seconds) <= {"collect", "update", "evaluate"}
    longer = loaded(model, tmp_path / "elsewhere", "--training.iterations=2")
    experiment.check_same(longer, folders[2])


def test_a_reward_that_is_not_deterministic_is_asked_anew_with_a_warning(model, tmp_path):
    recipe = loaded(model, tmp_path, "--reward.name", f"{__name__}:chance")
    with pytest.warns(UserWarning, match="'Chance' is not deterministic; it is asked anew"):
        built = experiment.assemble(recipe)
    assert isinstance(built.reward, Chance)
    assert isinstance(built.watched, Cached)


def test_a_reward_without_a_version_does_not_go_with_a_cache(model, tmp_path):
    recipe = loaded(model, tmp_path, "--reward.name", f"{__name__}:unversioned")
    with pytest.raises(ValueError, match="'unversioned' has no `version`"):
        experiment.assemble(recipe)


def test_a_cache_in_a_file_is_refused_when_the_recipe_is_read(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"cache\.folder = .* is a file, expected a folder"):
        load_recipe("compressibility", [f"--cache.folder={tmp_path / 'file'}"])


chance = Chance()


class Lacking:
    """It cannot be made ready."""

    version = 1

    def prepare(self):
        raise ValueError("there are no weights")

    def __call__(self, samples):
        raise AssertionError(f"asked about {len(samples)} samples before it was ready")


def test_a_cached_reward_is_made_ready_like_the_reward_itself(tmp_path):
    with pytest.raises(RewardError, match=r"Lacking.*there are no weights"):
        prepare(Cached(reward=Lacking(), folder=str(tmp_path)))
