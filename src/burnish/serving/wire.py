"""What goes over the wire between a run and a reward server (docs/rewards-remote.md).

JSON, with images as PNG or as npz; nothing is ever pickled or unpickled. What comes in is checked before
it is decoded, so that no memory is taken on a sender's word.
"""

from __future__ import annotations

import base64
import io
import json
import math
import reprlib
import struct
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, TypeGuard

import numpy as np
import torch
from jaxtyping import Float
from numpy.lib import format as npy
from PIL import Image
from torch import Tensor

from burnish.images import from_pil, to_pil
from burnish.rollout import Samples

VERSION = 1
"""Of the wire; both ends refuse another one."""

Format = Literal["npz", "png"]
"""npz: float32, exact. png: 8 bit, within 1/510 of values in [0, 1]."""

_MEMBER = "media.npy"
_NPY_HEADER = 4096
"""Bytes that the array's own header may add."""
_BROKEN = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    OSError,
    EOFError,
    ValueError,
    RuntimeError,
    LookupError,
)
"""What reading a damaged file raises."""
_PNG = b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR"
_IHDR = struct.Struct(">II5B")
"""Width, height, bits, kind of colour, compression, filter, interlacing."""


class WireError(ValueError):
    """What came, or was to go, over the wire is not what was agreed.

    kind: a word for a program: "json", "version", "request", "image", "too-large", "answer"
    """

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


def encode(samples: Samples, format: Format) -> bytes:
    """A request for the rewards of `samples`. Raises WireError for what cannot be sent as it is."""
    images = _npz(samples.media) if format == "npz" else [png(each) for each in samples.media]
    return _dump(
        {
            "prompts": list(samples.prompts),
            "metadata": [_portable(known, at) for at, known in enumerate(samples.metadata)],
            "format": format,
            "images": images,
        }
    )


def decode(body: bytes, max_bytes: int) -> Samples:
    """The samples of a request; their media are float32 on the CPU, `max_bytes` of it at most.

    Raises WireError.
    """
    table = _load(body)
    prompts = _listed(table, "prompts", str)
    metadata = _listed(table, "metadata", dict)
    if not 0 < len(prompts) == len(metadata):
        raise WireError(
            "request",
            f"{len(prompts)} prompts and {len(metadata)} entries of metadata, expected as many, and at "
            "least one",
        )
    if table.get("format") == "npz":
        media = _from_npz(table.get("images"), len(prompts), max_bytes)
    elif table.get("format") == "png":
        media = _from_pngs(_listed(table, "images", str), len(prompts), max_bytes)
    else:
        given = reprlib.repr(table.get("format"))
        raise WireError("request", f"format = {given}, expected 'npz' or 'png'")
    return Samples(media, tuple(prompts), tuple(metadata))


def encode_rewards(rewards: Sequence[float]) -> bytes:
    return _dump({"rewards": list(rewards)})


def decode_rewards(body: bytes, count: int) -> list[float]:
    """Raises WireError unless the answer holds `count` finite numbers."""
    rewards = _load(body).get("rewards")
    if not isinstance(rewards, list) or len(rewards) != count:
        held = len(rewards) if isinstance(rewards, list) else reprlib.repr(rewards)
        raise WireError("answer", f"rewards: {held}, expected a list of {count} numbers")
    for at, value in enumerate(rewards):
        if not is_number(value):
            raise WireError(
                "answer", f"reward {at} is {reprlib.repr(value)}, expected a finite number"
            )
    return [float(value) for value in rewards]


def encode_table(table: Mapping[str, Any]) -> bytes:
    """An answer of another kind: a server's health, or an error."""
    return _dump(table)


def decode_table(body: bytes) -> dict[str, Any]:
    """Raises WireError for what is no table of our version."""
    return _load(body)


def _dump(table: Mapping[str, Any]) -> bytes:
    return json.dumps({"version": VERSION, **table}, allow_nan=False).encode()


def _load(body: bytes) -> dict[str, Any]:
    table = decode_json(body)
    if table.get("version") != VERSION:
        raise WireError(
            "version", f"version {reprlib.repr(table.get('version'))}, expected {VERSION}"
        )
    return table


def decode_json(body: bytes) -> dict[str, Any]:
    """A JSON object of no version, without NaN or infinity. Raises WireError."""
    try:
        table = json.loads(body, parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        raise WireError("json", f"not JSON: {error}") from error
    if not isinstance(table, dict):
        raise WireError("json", f"a JSON {type(table).__name__}, expected an object")
    return table


def _no_number(word: str) -> float:
    raise ValueError(f"{word} is not JSON")


def is_number(value: object) -> TypeGuard[int | float]:
    """Whether it is a finite one."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer beyond the floats
        return False


def _listed(table: Mapping[str, Any], key: str, kind: type) -> list[Any]:
    found = table.get(key)
    if not isinstance(found, list) or not all(isinstance(each, kind) for each in found):
        raise WireError("request", f"{key}: expected a list of {kind.__name__}")
    return found


def _portable(known: Mapping[str, Any], at: int) -> dict[str, Any]:
    """Metadata as they are, if JSON can hold them so: a tuple, for one, would arrive as a list."""
    table = dict(known)
    try:
        same = json.loads(json.dumps(table, allow_nan=False)) == table
    except (TypeError, ValueError, RecursionError):
        same = False
    if not same:
        raise WireError(
            "request",
            f"the metadata of sample {at} would not arrive as they are: {reprlib.repr(table)}; expected "
            "what JSON holds (text keys; text, finite numbers, true, false, null, lists, tables)",
        )
    return table


def _base64(file: bytes) -> str:
    return base64.b64encode(file).decode("ascii")


def _from_base64(text: object) -> bytes:
    if not isinstance(text, str):
        raise WireError("request", "images: expected text in base64")
    try:
        return base64.b64decode(text, validate=True)
    except ValueError as error:
        raise WireError("image", f"images: not base64: {error}") from error


# --- npz -----------------------------------------------------------------------------------------


def _npz(media: Float[Tensor, "batch channels height width"]) -> str:
    buffer = io.BytesIO()
    array = media.detach().float().cpu().contiguous().numpy().astype("<f4", copy=False)
    with zipfile.ZipFile(buffer, "w") as archive, archive.open(_MEMBER, "w") as file:
        npy.write_array(file, array, version=(1, 0), allow_pickle=False)
    return _base64(buffer.getvalue())


def _from_npz(
    text: object, count: int, max_bytes: int
) -> Float[Tensor, "batch channels height width"]:
    content = _unzipped(_from_base64(text), max_bytes)
    stream = io.BytesIO(content)
    try:
        version = npy.read_magic(stream)
        if version != (1, 0):
            raise WireError("image", f"{_MEMBER} has version {version}, expected (1, 0)")
        shape, by_columns, dtype = npy.read_array_header_1_0(stream)
    except WireError:
        raise
    except (ValueError, RecursionError, MemoryError) as error:
        raise WireError("image", f"{_MEMBER} is not an array: {error}") from error
    if dtype != np.dtype("<f4") or by_columns:
        raise WireError("image", f"{_MEMBER} holds {dtype}, expected <f4 in C order")
    if len(shape) != 4 or shape[0] != count or min(shape) < 1:
        raise WireError(
            "image", f"{_MEMBER} has shape {shape}, expected ({count}, channels, height, width)"
        )
    held = len(content) - stream.tell()
    if 4 * math.prod(shape) != held:
        raise WireError("image", f"{_MEMBER} holds {held} bytes, not what its shape {shape} takes")
    array = np.frombuffer(content, dtype, offset=stream.tell()).reshape(shape)
    return torch.from_numpy(array.astype(np.float32))  # a copy, which torch may write to


def _unzipped(packed: bytes, max_bytes: int) -> bytes:
    """The one member of an archive, no larger than its directory says, nor than is allowed."""
    try:
        with zipfile.ZipFile(io.BytesIO(packed)) as archive:
            members = archive.infolist()
            names = [each.filename for each in members]
            if names != [_MEMBER]:
                raise WireError(
                    "image", f"the npz holds {reprlib.repr(names)}, expected {[_MEMBER]}"
                )
            (member,) = members
            if member.file_size > max_bytes + _NPY_HEADER:
                raise _too_large(member.file_size, max_bytes)
            if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise WireError("image", f"the npz is compressed by {member.compress_type}")
            with archive.open(member) as file:
                # Asked for a number, it inflates no more than that; asked for all, it inflates all.
                content = file.read(member.file_size)
    except WireError:
        raise
    except _BROKEN as error:
        raise WireError("image", f"the npz cannot be read: {error}") from error
    if len(content) != member.file_size:
        raise WireError("image", "the npz holds less than its directory says")
    return content


def _too_large(size: int, max_bytes: int) -> WireError:
    return WireError(
        "too-large", f"images of {size} bytes when decoded, expected at most {max_bytes}"
    )


# --- PNG -----------------------------------------------------------------------------------------


def png(image: Float[Tensor, "channels height width"]) -> str:
    """The file in base64, 8-bit RGB. Raises WireError for an image of other than three channels."""
    if len(image) != 3:
        raise WireError(
            "image",
            f"an image has {len(image)} channels, but a PNG of colours has 3 (the format 'npz' takes any)",
        )
    buffer = io.BytesIO()
    to_pil(image).save(buffer, format="PNG", compress_level=1)
    return _base64(buffer.getvalue())


def _from_pngs(
    texts: Sequence[str], count: int, max_bytes: int
) -> Float[Tensor, "batch channels height width"]:
    if len(texts) != count:
        raise WireError("request", f"{len(texts)} images for {count} prompts")
    files = [_from_base64(text) for text in texts]
    sizes = [_declared(file, at) for at, file in enumerate(files)]
    if len(set(sizes)) > 1:
        raise WireError(
            "image", f"images of the sizes {reprlib.repr(sorted(set(sizes)))}, expected one"
        )
    width, height = sizes[0]
    decoded = 4 * 3 * width * height * count
    if decoded > max_bytes:
        raise _too_large(decoded, max_bytes)
    return torch.stack([_decoded(file, at) for at, file in enumerate(files)])


def _declared(file: bytes, at: int) -> tuple[int, int]:
    """Width and height by the file's first chunk, before anything is decoded."""
    if not file.startswith(_PNG) or len(file) < len(_PNG) + _IHDR.size:
        raise WireError("image", f"image {at} is not a PNG")
    width, height, *kind = _IHDR.unpack_from(file, len(_PNG))
    if kind != [8, 2, 0, 0, 0] or not width or not height:
        raise WireError("image", f"image {at} is not a PNG of 8-bit RGB without interlacing")
    return width, height


def _decoded(file: bytes, at: int) -> Float[Tensor, "3 height width"]:
    """The pixels, all of them: decoders take a stream that ends early for an image with black rows."""
    width, height = _declared(file, at)
    try:
        packed = b"".join(content for kind, content in _chunks(file) if kind == b"IDAT")
        size = height * (1 + 3 * width)
        inflater = zlib.decompressobj()
        if len(inflater.decompress(packed, size + 1)) != size or not inflater.eof:
            raise ValueError("it has not the pixels that its size takes")
        # Nothing else that the file may hold (texts, profiles, animation) comes to the decoder.
        header = file[len(_PNG) : len(_PNG) + _IHDR.size]
        plain = _chunk(b"IHDR", header) + _chunk(b"IDAT", packed) + _chunk(b"IEND", b"")
        with Image.open(io.BytesIO(_PNG[:8] + plain), formats=["PNG"]) as image:
            return from_pil(image)
    except (SyntaxError, Image.DecompressionBombError, *_BROKEN) as error:
        raise WireError("image", f"image {at} cannot be read: {error}") from error


def _chunks(file: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Kind and content of each chunk. Raises ValueError where one is cut."""
    at = 8
    while at + 8 <= len(file):
        length, kind = struct.unpack_from(">I4s", file, at)
        content = file[at + 8 : at + 8 + length]
        if len(content) < length:
            raise ValueError("it is cut")
        yield kind, content
        at += 12 + length


def _chunk(kind: bytes, content: bytes) -> bytes:
    checked = struct.pack(">I", zlib.crc32(kind + content))
    return struct.pack(">I", len(content)) + kind + content + checked
