"""What goes over the wire arrives as it was, or is refused before it can do harm."""

from __future__ import annotations

import base64
import io
import json
import pickle
import struct
import zipfile
import zlib
from types import MappingProxyType

import numpy as np
import pytest
import torch
from servers import numbered

from burnish.rollout import Samples
from burnish.serving import wire

ROOM = 2**20
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


@pytest.mark.parametrize("known", [{"at": (1, 2)}, {"b": {1: "a"}}, {"a": {2}}, {"a": float("nan")}])
def test_metadata_that_would_arrive_changed_are_not_sent(known):
    samples = Samples(torch.rand(2, 3, 2, 2), ("a", "b"), ({}, known))
    with pytest.raises(wire.WireError, match="sample 1"):
        wire.encode(samples, "npz")


def test_png_is_for_images_of_three_channels():
    with pytest.raises(wire.WireError, match="2 channels.*'npz'"):
        wire.encode(Samples(torch.rand(1, 2, 4, 4), ("a",), ({},)), "png")


# --- what is refused -----------------------------------------------------------------------------


def zipped(content: bytes, name: str = "media.npy", method: int = zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        archive.writestr(name, content)
    return buffer.getvalue()


def npy(array: np.ndarray, **header: object) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, array)
    if header:
        described = {
            "descr": array.dtype.str,
            "fortran_order": False,
            "shape": array.shape,
            **header,
        }
        buffer = io.BytesIO()
        np.lib.format.write_array_header_1_0(buffer, described)
        buffer.write(array.tobytes())
    return buffer.getvalue()


def request(images: object, *, format: str = "npz", count: int = 2, **more: object) -> bytes:
    if isinstance(images, bytes):
        images = base64.b64encode(images).decode()
    if isinstance(images, list):
        images = [base64.b64encode(file).decode() for file in images]
    table = {
        "version": 1,
        "prompts": ["a"] * count,
        "metadata": [{}] * count,
        "format": format,
        "images": images,
        **more,
    }
    return json.dumps(table).encode()


class Exploding:
    exploded = False

    def __reduce__(self):
        return (setattr, (Exploding, "exploded", True))


def png(
    width: int,
    height: int,
    depth: int = 8,
    colours: int = 2,
    interlaced: int = 0,
    body: bytes = b"",
) -> bytes:
    def chunk(kind: bytes, content: bytes) -> bytes:
        checked = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + checked

    start = struct.pack(">IIBBBBB", width, height, depth, colours, 0, 0, interlaced)
    parts = chunk(b"IHDR", start) + chunk(b"IDAT", zlib.compress(body)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


GOOD = np.zeros((2, 3, 4, 4), "<f4")
BOMB = zipped(npy(np.zeros((2, 3, 512, 512), "<f4")))
SIZE = struct.pack("<I", 2 * 3 * 512 * 512 * 4 + 128)
LYING = BOMB.replace(SIZE, struct.pack("<I", 4096))
STORED = zipped(npy(GOOD), method=zipfile.ZIP_STORED)
ROW = b"\x00" + bytes(3 * 4)
HOSTILE = {
    "no JSON": (b"\x80\x04\x95", "json"),
    "not an object": (b"[1]", "json"),
    "nested": (b"[" * 200_000, "json"),
    "NaN": (request(zipped(npy(GOOD)), metadata=[{}, {"a": float("nan")}]), "json"),
    "a number of many digits": (b'{"version": ' + b"9" * 5000 + b"}", "json"),
    "no version": (b"{}", "version"),
    "another version": (request(zipped(npy(GOOD)), version=2), "version"),
    "no prompts": (request(zipped(npy(GOOD)), prompts=None), "request"),
    "prompts that are no text": (request(zipped(npy(GOOD)), prompts=[1, 2]), "request"),
    "empty": (request(zipped(npy(GOOD)), count=0), "request"),
    "more prompts than metadata": (request(zipped(npy(GOOD)), prompts=["a"] * 3), "request"),
    "metadata that are no tables": (request(zipped(npy(GOOD)), metadata=[1, 2]), "request"),
    "another format": (request(zipped(npy(GOOD)), format="pickle"), "request"),
    "no images": (request(None), "request"),
    "no base64": (request("%%%%"), "image"),
    "no zip": (request(b"hello"), "image"),
    "a cut zip": (request(zipped(npy(GOOD))[:-30]), "image"),
    "a damaged zip": (request(STORED[:200] + b"\x01" + STORED[201:]), "image"),
    "an array without zip": (request(npy(GOOD)), "image"),
    "a bare pickle": (request(pickle.dumps(Exploding())), "image"),
    "a zipped pickle": (request(zipped(pickle.dumps(Exploding()))), "image"),
    "an array of pickles": (request(zipped(npy(np.array([Exploding()] * 2)))), "image"),
    "another member": (request(zipped(npy(GOOD), name="../media.npy")), "image"),
    "another packing": (request(zipped(npy(GOOD), method=zipfile.ZIP_LZMA)), "image"),
    "doubles": (request(zipped(npy(GOOD.astype("<f8")))), "image"),
    "the other byte order": (request(zipped(npy(GOOD.astype(">f4")))), "image"),
    "by columns": (request(zipped(npy(np.asfortranarray(GOOD)))), "image"),
    "three dimensions": (request(zipped(npy(GOOD[0]))), "image"),
    "more images than prompts": (request(zipped(npy(GOOD)), count=3), "image"),
    "a shape that holds more": (request(zipped(npy(GOOD, shape=(2, 3, 4, 5)))), "image"),
    "a shape that holds less": (request(zipped(npy(GOOD, shape=(2, 3, 4, 3)))), "image"),
    "a shape beyond 64 bits": (request(zipped(npy(GOOD, shape=(2, 2**40, 2**40, 1)))), "image"),
    "no pixels": (request(zipped(npy(GOOD[:, :, :0]))), "image"),
    "a zip bomb": (request(BOMB), "too-large"),
    "a zip bomb that lies": (request(LYING), "image"),
    "a PNG bomb": (request([png(60_000, 60_000)] * 2, format="png"), "too-large"),
    "many PNGs": (request([png(300, 300)] * 2, format="png"), "too-large"),
    "no PNG": (request([b"GIF89a" + bytes(60)] * 2, format="png"), "image"),
    "a cut PNG": (request([png(4, 4, body=ROW * 4)[:50]] * 2, format="png"), "image"),
    "a PNG without its pixels": (request([png(4, 4, body=ROW)] * 2, format="png"), "image"),
    "a PNG with too many pixels": (request([png(4, 4, body=ROW * 5)] * 2, format="png"), "image"),
    "an interlaced PNG": (request([png(4, 4, interlaced=1)] * 2, format="png"), "image"),
    "a PNG without size": (request([png(0, 4)] * 2, format="png"), "image"),
    "a PNG with alpha": (request([png(4, 4, colours=6)] * 2, format="png"), "image"),
    "a PNG of 16 bits": (request([png(4, 4, depth=16)] * 2, format="png"), "image"),
    "PNGs of two sizes": (request([png(4, 4), png(4, 5)], format="png"), "image"),
    "too few PNGs": (request([png(4, 4)], format="png"), "request"),
}


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
