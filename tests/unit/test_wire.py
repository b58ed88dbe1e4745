"""What goes over the wire arrives as it was, or is refused before it can do harm."""

from __future__ import annotations

import json
import struct
import zipfile
import zlib
from types import MappingProxyType

import pytest
import torch
from hostile import (
    BOMB,
    GOOD,
    HOSTILE,
    LYING,
    ROOM,
    ROW,
    SIZE,
    STORED,
    Exploding,
    npy,
    png,
    request,
    zipped,
)
from servers import numbered

from burnish.rollout import Samples
from burnish.serving import wire

EVERY_FLOAT = torch.tensor([0.1, -0.0, 1e-45, 3.4e38, -2.5, float("inf"), 1 / 3, 1.0])


def test_npz_brings_every_bit_across():
    samples = Samples(
        EVERY_FLOAT.reshape(2, 1, 2, 2),
        ("ünï 猫\n\x00\ud800", ""),
        (MappingProxyType({"a": [1, 0.1, None, True, {"b": "c"}]}), {}),
    )
    arrived = wire.decode(wire.encode(samples, "npz"), ROOM)
    assert arrived.media.view(torch.int32).tolist() == samples.media.view(torch.int32).tolist()
    assert arrived.media.dtype == torch.float32
    assert arrived.prompts == samples.prompts
    assert list(arrived.metadata) == [dict(known) for known in samples.metadata]


def test_png_rounds_to_the_nearest_of_256_levels():
    samples = numbered(3, side=16)
    arrived = wire.decode(wire.encode(samples, "png"), ROOM)
    difference = (arrived.media - samples.media).abs().max().item()
    assert 1 / 1020 < difference <= 1 / 510 + 1e-7  # float32's own rounding
    assert torch.equal(arrived.media, (samples.media * 255).round() / 255)
    assert (arrived.prompts, arrived.metadata) == (samples.prompts, samples.metadata)


def test_rewards_bring_every_bit_of_a_float32_across():
    rewards = torch.rand(100, generator=torch.Generator().manual_seed(0)).sub(0.5).exp()
    sent = wire.encode_rewards(rewards.tolist())
    assert torch.equal(torch.tensor(wire.decode_rewards(sent, 100)), rewards)


@pytest.mark.parametrize(
    "known", [{"at": (1, 2)}, {"b": {1: "a"}}, {"a": {2}}, {"a": float("nan")}]
)
def test_metadata_that_would_arrive_changed_are_not_sent(known):
    samples = Samples(torch.rand(2, 3, 2, 2), ("a", "b"), ({}, known))
    with pytest.raises(wire.WireError, match="sample 1"):
        wire.encode(samples, "npz")


def test_png_is_for_images_of_three_channels():
    with pytest.raises(wire.WireError, match=r"2 channels.*'npz'"):
        wire.encode(Samples(torch.rand(1, 2, 4, 4), ("a",), ({},)), "png")


# --- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_request_is_refused_by_kind(name):
    body, kind = HOSTILE[name]
    with pytest.raises(wire.WireError) as caught:
        wire.decode(body, ROOM)
    assert caught.value.kind == kind
    assert len(str(caught.value)) < 500
    assert not Exploding.exploded


def test_the_hostile_requests_differ_from_good_ones_in_what_they_are_named_for():
    assert len(LYING) == len(BOMB)
    assert BOMB.count(SIZE) == LYING.count(struct.pack("<I", 4096)) == 2
    assert len(BOMB) < 10_000
    assert wire.decode(request(zipped(npy(GOOD))), ROOM).media.shape == (2, 3, 4, 4)
    assert wire.decode(request(STORED), ROOM).media.shape == (2, 3, 4, 4)
    good = png(4, 4, body=ROW * 4)
    assert wire.decode(request([good] * 2, format="png"), ROOM).media.shape == (2, 3, 4, 4)


def test_a_zip_that_lies_is_inflated_no_further_than_it_says(monkeypatch):
    inflated = []
    decompress = zipfile._get_decompressor(zipfile.ZIP_DEFLATED).__class__

    class Counting:
        def __init__(self) -> None:
            self.real = zlib.decompressobj(-15)

        def decompress(self, content, most=0):
            found = self.real.decompress(content, most)
            inflated.append(len(found))
            return found

        def __getattr__(self, name):
            return getattr(self.real, name)

    assert decompress is type(zlib.decompressobj(-15))
    monkeypatch.setattr(zipfile, "_get_decompressor", lambda method: Counting())
    with pytest.raises(wire.WireError):
        wire.decode(request(LYING), ROOM)
    assert 0 < sum(inflated) <= 2 * 4096


@pytest.mark.parametrize(
    "answer",
    [
        {"rewards": [1.0]},
        {"rewards": [1.0, 2.0, 3.0]},
        {"rewards": [1.0, None]},
        {"rewards": [1.0, "2"]},
        {"rewards": [1.0, True]},
        {"rewards": [1.0, 10**400]},
        {"rewards": 2},
        {},
    ],
)
def test_an_answer_holds_one_finite_number_a_sample(answer):
    with pytest.raises(wire.WireError):
        wire.decode_rewards(json.dumps({"version": 1, **answer}).encode(), 2)


@pytest.mark.parametrize("word", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_an_answer_without_end_or_number_is_none(word):
    with pytest.raises(wire.WireError):
        wire.decode_rewards(b'{"version": 1, "rewards": [%s]}' % word.encode(), 1)
