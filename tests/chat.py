"""A server in the test's own process that answers questions about images as OpenAI's API does."""

from __future__ import annotations

import base64
import io
import json
import random
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from burnish.images import from_pil
from burnish.portraits.attributes import decode
from burnish.portraits.captions import describe, describe_tersely
from burnish.portraits.judge import Judge, load_judge


@dataclass(frozen=True)
class Question:
    """A request as it came. image: (3, height, width), in [0, 1]"""

    path: str
    headers: dict[str, str]
    body: dict[str, Any]
    at: float
    text: str
    image: Tensor

    @property
    def prompt(self) -> str:
        """What stands in quotation marks in the question."""
        return self.text.split('"')[1]


@dataclass(frozen=True)
class Raw:
    """An answer of another status, or that is not what it should be."""

    body: bytes
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)


@dataclass
class Talk:
    url: str
    questions: list[Question] = field(default_factory=list)


def said(text: Any, *, finish: str = "stop", first: dict[str, float] | None = None) -> Raw:
    """The model's answer. first: log-probabilities of the first token's candidates"""
    choice: dict[str, Any] = {
        "index": 0,
        "message": {"role": "assistant", "content": text},
        "finish_reason": finish,
        "logprobs": None,
    }
    if first is not None:
        listed = [
            {"token": token, "logprob": value, "bytes": None} for token, value in first.items()
        ]
        choice["logprobs"] = {"content": [{**listed[0], "top_logprobs": listed}]}
    return Raw(json.dumps({"object": "chat.completion", "choices": [choice]}).encode())


def question(path: str, headers: dict[str, str], body: bytes) -> Question:
    table = json.loads(body)
    (message,) = table["messages"]
    image, text = message["content"]
    start, _, packed = image["image_url"]["url"].partition(",")
    assert (message["role"], start) == ("user", "data:image/png;base64")
    with Image.open(io.BytesIO(base64.b64decode(packed)), formats=["PNG"]) as shown:
        seen = from_pil(shown)
    return Question(path, headers, table, time.monotonic(), text["text"], seen)


@contextmanager
def talking(answer: Callable[[Question], Raw]) -> Iterator[Talk]:
    """A server that answers so, each request in a thread of its own."""
    talk, lock = Talk(""), threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def do_POST(self) -> None:
            sent = self.rfile.read(int(self.headers["Content-Length"]))
            asked = question(self.path, dict(self.headers), sent)
            with lock:
                talk.questions.append(asked)
            reply = answer(asked)
            self.send_response(reply.status)
            headers = {"Content-Length": str(len(reply.body)), **reply.headers}
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(reply.body)
            self.close_connection = len(reply.body) != int(headers["Content-Length"])

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    talk.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    try:
        yield talk
    finally:
        server.shutdown()
        server.server_close()


# --- a model that sees ---------------------------------------------------------------------------


def description(image: Tensor, *, terse: bool = False) -> str:
    """The portrait in the captions' words, as the judge sees it: always in the same ones."""
    with torch.no_grad():
        codes = [int(logits.argmax()) for logits in _judge()(image[None])]
    attributes = decode(codes)
    return (describe_tersely if terse else describe)(attributes, random.Random(0))


def likelihood(image: Tensor, attributes: Mapping[str, str]) -> float:
    """The probability that the judge gives to an attribute, their geometric mean; not 0 or 1."""
    with torch.no_grad():
        value = _judge().log_likelihood(image[None], [dict(attributes)]).exp().item()
    return min(max(value, 1e-6), 1 - 1e-6)


@cache
def _judge() -> Judge:
    return load_judge()
