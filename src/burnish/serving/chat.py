"""Putting questions about images to vision-language models, by the chat completions of OpenAI's API.

vLLM, SGLang, Ollama, llama.cpp and hosted services speak it. An image travels inside the question, as PNG.
"""

from __future__ import annotations

import json
import reprlib
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from jaxtyping import Float
from torch import Tensor

from burnish.reward import name_of
from burnish.rollout import Samples
from burnish.serving import fleet, wire
from burnish.serving.answers import Answer, Missing
from burnish.serving.pace import pace_of

PATH = "/chat/completions"
ADVICE = {
    404: " (an address in reward.servers ends where the API begins, mostly in /v1, and reward.model must be "
    "served there)"
}
SLACK = 1e-3
"""Nats by which a log-probability may exceed 0: servers round."""


class Settings(fleet.Settings, Protocol):
    """`rewards.vlm.VLM` says what each means."""

    @property
    def model(self) -> str: ...
    @property
    def temperature(self) -> float: ...
    @property
    def requests_per_minute(self) -> float | None: ...


def ask(
    settings: Settings, samples: Samples, questions: Sequence[str], wanted: Mapping[str, Any]
) -> list[Answer | Missing]:
    """What the model says to each sample's question, in order; why there is no answer, if the settings say
    `drop`. Raises RewardError.

    wanted: fields of the request besides the model, the question and the temperature
    """
    requests = [
        fleet.Request(
            whose=whose(settings, samples, place),
            path=PATH,
            body=lambda place=place: encode(
                {"model": settings.model, "temperature": settings.temperature, **wanted},
                questions[place],
                samples.media[place],
            ),
            read=decode,
        )
        for place in range(len(samples))
    ]
    pace = pace_of(settings.servers, settings.requests_per_minute)
    return fleet.ask(settings, requests, pace=pace, advice=ADVICE)


def whose(settings: Settings, samples: Samples, place: int) -> str:
    """What a message says of a sample."""
    return f"reward {name_of(settings)!r}, sample {place} (prompt: {samples.prompts[place]!r})"


def encode(
    fields: Mapping[str, Any], question: str, image: Float[Tensor, "3 height width"]
) -> bytes:
    """A question about an image, float in [0, 1], as PNG of 8 bits. Raises WireError.

    fields: of the request, besides its message
    """
    content = [
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{wire.png(image)}"}},
        {"type": "text", "text": question},
    ]
    message = {"role": "user", "content": content}
    return json.dumps({**fields, "messages": [message]}, allow_nan=False).encode()


def decode(body: bytes) -> Answer:
    """The first of the answer's choices. Raises WireError."""
    table = wire.decode_json(body)
    choice = _first_of(table.get("choices"), f"choices, in {reprlib.repr(table)}")
    message = choice.get("message")
    text = message.get("content") if isinstance(message, dict) else None
    if not isinstance(text, str):
        raise wire.WireError("answer", f"message: {reprlib.repr(message)}, expected its content")
    cut = choice.get("finish_reason") == "length"
    return Answer(text=text, cut=cut, first=_first_token(choice.get("logprobs")))


def _first_token(logprobs: object) -> dict[str, float] | None:
    """Log-probabilities, in nats, of the likeliest first tokens; None where there are none."""
    content = logprobs.get("content") if isinstance(logprobs, dict) else None
    if not content:
        return None
    listed = _first_of(content, "logprobs.content").get("top_logprobs")
    if not isinstance(listed, list):
        raise wire.WireError("answer", f"top_logprobs: {reprlib.repr(listed)}, expected a list")
    found: dict[str, float] = {}
    for each in listed:
        token, value = (each.get(key) if isinstance(each, dict) else None for key in _PAIR)
        if not isinstance(token, str) or not wire.is_number(value) or value > SLACK:
            raise wire.WireError(
                "answer",
                f"top_logprobs: {reprlib.repr(each)}, expected a token and its log-probability",
            )
        found[token] = float(value)
    return found


_PAIR = ("token", "logprob")


def _first_of(listed: object, what: str) -> dict[str, Any]:
    if not isinstance(listed, list) or not listed or not isinstance(listed[0], dict):
        raise wire.WireError("answer", f"expected a list of objects as {what}")
    return listed[0]
