"""What a vision-language model says about the image."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from functools import cache
from typing import TYPE_CHECKING, ClassVar, Literal

from burnish.rewards import servers as given
from burnish.rewards.readings import AnswerSimilarity, Grade, YesNo
from burnish.serving.answers import Answer, Missing

if TYPE_CHECKING:
    from torch import Tensor

    from burnish.rollout import Samples

CHAT = "/chat/completions"


@dataclass(frozen=True, slots=True, kw_only=True)
class VLM:
    """A vision-language model is asked about each image, and its answer read as a number (Black et al. 2023,
    sec. 5.2; docs/rewards-vlm.md).

    It is asked by the chat completions of OpenAI's API, which vLLM, SGLang, Ollama, llama.cpp and hosted
    services offer.
    """

    differentiable: ClassVar[bool] = False
    version: ClassVar[int] = 1
    transport: ClassVar[frozenset[str]] = frozenset(
        {
            "requests_per_minute",
            "timeout",
            "retries",
            "backoff",
            "concurrency",
            "token_variable",
            "on_failure",
        }
    )
    """Settings that do not change what the model says; a cache keeps its answers over them."""

    servers: tuple[str, ...]
    """Addresses of the API, such as `http://127.0.0.1:8000/v1`; all must serve the same model."""
    model: str
    """What the servers call the model."""
    reading: AnswerSimilarity | Grade | YesNo = field(default_factory=AnswerSimilarity)
    """What is asked, and how the answer is read."""
    temperature: float = 0.0
    """Of the answer. Above 0 the same image may get another reward, which no cache keeps."""
    requests_per_minute: float | None = None
    """How often the servers are asked, all together; evenly spaced, retries included. None: without limit."""
    timeout: float = 60.0
    """Seconds that a request may take, from connecting to the last byte of the answer."""
    retries: int = 5
    """How often a request that failed is sent again, to whichever server is well."""
    backoff: float = 0.5
    """Seconds that a server rests after a failure; twice as long after each further one in a row, up to 30,
    times a random number from 0.5 to 1; longer if the server says so (`Retry-After`), up to 300."""
    concurrency: int = 8
    """Requests under way at a time, over all servers."""
    token_variable: str | None = None
    """The name of an environment variable that holds the API's token."""
    on_failure: Literal["stop", "drop"] = "stop"
    """When a request's retries are spent, or its answer cannot be read: stop the run, or leave the sample out
    of the batch, and count it. An evaluation stops in either case."""

    def __post_init__(self) -> None:
        given.check(self, with_paths=True)
        for server in self.servers:
            if server.rstrip("/").endswith(CHAT):
                raise ValueError(f"servers: {server!r}, expected the address without {CHAT}")
        if not self.model:
            raise ValueError("model is empty, expected what the servers call it")
        if not 0 <= self.temperature < math.inf:
            raise ValueError(f"temperature = {self.temperature}, expected 0 or more")
        if self.requests_per_minute is not None and not 0 < self.requests_per_minute < math.inf:
            raise ValueError(
                f"requests_per_minute = {self.requests_per_minute}, expected more than 0"
            )

    @property
    def deterministic(self) -> bool:
        return self.temperature == 0

    def prepare(self) -> None:
        """Load what answers are read with, and put a question about a grey image to the servers.

        Raises ValueError if a question cannot be answered: no server, no token, no such model, or one that
        sees no images.
        """
        self.reading.prepare()
        _greet(self)

    def __call__(self, samples: Samples) -> Tensor:
        import torch

        from burnish.reward import RewardError
        from burnish.serving import chat, fleet

        found = self.answers(samples)
        held = {place: each for place, each in enumerate(found) if isinstance(each, Answer)}
        prompts = [samples.prompts[place] for place in held]
        read = dict(zip(held, self.reading.read(list(held.values()), prompts), strict=True))
        rewards = {place: each for place, each in read.items() if not isinstance(each, Missing)}
        unread = [
            Missing(f"{chat.whose(self, samples, place)}: {each.why}")
            for place, each in read.items()
            if isinstance(each, Missing)
        ]
        if unread and self.on_failure == "stop":
            raise RewardError(unread[0].why)
        unanswered = [each for each in found if isinstance(each, Missing)]
        every = fleet.whole(self, len(samples), rewards, [*unanswered, *unread])
        return torch.tensor(every, dtype=torch.float32)

    def answers(self, samples: Samples) -> list[Answer | Missing]:
        """What the model says to each sample's question; why it says nothing, if samples may be dropped."""
        from burnish.serving import chat

        questions = [self.reading.ask(prompt) for prompt in samples.prompts]
        return chat.ask(self, samples, questions, self.reading.wanted)


@cache
def _greet(reward: VLM) -> None:
    """Once in a process, and again only after it went wrong."""
    import torch

    from burnish.rollout import Samples

    grey = Samples(torch.full((1, 3, 64, 64), 0.5), ("a grey square",), ({},))
    replace(reward, on_failure="stop").answers(grey)
