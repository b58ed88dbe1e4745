"""Reward servers in the test's own process, and what can be said to them byte by byte."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any
from urllib.parse import urlsplit

import torch

from burnish.reward import Reward
from burnish.rewards.remote import Remote
from burnish.rollout import Samples
from burnish.serving.server import Offer, RewardServer, serving


def numbered(count: int, side: int = 4) -> Samples:
    """Samples with random pixels, each of which knows its place."""
    media = torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(0))
    prompts = tuple(f"prompt {i}" for i in range(count))
    return Samples(media, prompts, tuple({"place": i} for i in range(count)))


def place(samples: Samples) -> list[float]:
    """What each sample's place makes of its first pixel: right for no other sample."""
    pixels = samples.media[:, 0, 0, 0].tolist()
    return [known["place"] + pixel for known, pixel in zip(samples.metadata, pixels, strict=True)]


@contextmanager
def offered(reward: Reward = place, *, port: int = 0, **offer: Any) -> Iterator[RewardServer]:
    about = offer.pop("about", {"name": "place"})
    with serving(Offer(reward=reward, about=about, **offer), port=port) as server:
        yield server


def remote(*servers: str, **settings: Any) -> Remote:
    return Remote(servers=servers, **{"batch": 3, "timeout": 5.0, "backoff": 0.01, **settings})


def said(url: str, *pieces: bytes, shut: bool = False) -> tuple[int, dict[str, Any]]:
    """The status and the body that a server answers these bytes with.

    shut: say after them that no more will come
    """
    address = urlsplit(url)
    with socket.create_connection((address.hostname, address.port), timeout=5) as connection:
        for piece in pieces:
            connection.sendall(piece)
        if shut:
            connection.shutdown(socket.SHUT_WR)
        answer = b""
        while not _whole(answer):
            received = connection.recv(2**16)
            if not received:
                break
            answer += received
    head, _, body = answer.partition(b"\r\n\r\n")
    return int(head.split()[1]), json.loads(body)


def _whole(answer: bytes) -> bool:
    head, _, body = answer.partition(b"\r\n\r\n")
    lengths = [line for line in head.split(b"\r\n") if line.startswith(b"Content-Length: ")]
    return bool(lengths) and len(body) >= int(lengths[0].split()[1])


def head(length: int | None, *more: str, line: str = "POST /score HTTP/1.1") -> bytes:
    lines = [line, "Host: here", "Content-Type: application/json", *more]
    if length is not None:
        lines.append(f"Content-Length: {length}")
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


def posted(url: str, body: bytes) -> tuple[int, dict[str, Any]]:
    return said(url, head(len(body)), body)


@contextmanager
def odd(answer: Callable[[str], bytes | None]) -> Iterator[str]:
    """The address of a server that says to each request, by its path, whatever it is told to.

    None: it says nothing, and keeps the connection open
    """
    listener = socket.create_server(("127.0.0.1", 0))
    held: list[socket.socket] = []

    def speak(connection: socket.socket) -> None:
        with suppress(OSError):
            converse(connection)

    def converse(connection: socket.socket) -> None:
        file = connection.makefile("rb")
        while words := file.readline().split():
            length = 0
            while (line := file.readline()) not in (b"\r\n", b""):
                if line.lower().startswith(b"content-length:"):
                    length = int(line.split(b":")[1])
            file.read(length)
            reply = answer(words[1].decode())
            if reply is None:
                return
            connection.sendall(reply)

    def listen() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            held.append(connection)
            threading.Thread(target=speak, args=(connection,), daemon=True).start()

    threading.Thread(target=listen, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        for connection in held:
            connection.close()


def ok(table: dict[str, Any] | str, status: int = 200) -> bytes:
    body = (table if isinstance(table, str) else json.dumps({"version": 1, **table})).encode()
    return f"HTTP/1.1 {status} X\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


HEALTHY = ok({"ready": True, "reward": {"name": "place"}})
