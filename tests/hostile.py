"""Requests to a reward server that are damaged or mean harm, by the kind of error that each must get."""

from __future__ import annotations

import base64
import io
import json
import pickle
import struct
import zipfile
import zlib

import numpy as np

ROOM = 2**20
"""Bytes that a server allows; what is too large is larger than this."""


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
    "PNGs that are too much together": (request([png(250, 250)] * 2, format="png"), "too-large"),
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
