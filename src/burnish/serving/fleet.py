"""Asking servers whatever it is: the load spread, failures retried, each answer once and in its place.

All that is kept (connections, which server failed when) lasts for one call. So there is nothing to close,
and several threads may ask at once.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import Generic, Literal, Protocol, TypeVar

from torch import Tensor

from burnish.reward import RewardError, Unanswered, name_of
from burnish.rollout import Samples
from burnish.serving import tokens
from burnish.serving.answers import Missing
from burnish.serving.exchange import Exchange, Failure, Refusal, Stopped
from burnish.serving.pace import UNHURRIED, Pace
from burnish.serving.wire import WireError

T = TypeVar("T")

LONGEST_REST = 30.0
"""Seconds that a server rests at most of its own failures, however many; it may ask for more itself."""
MAX_ANSWER = 2**20
"""Bytes of an answer that are always read."""

Greet = Callable[[Exchange, str], None]
"""Sees, before a server is asked anything else, that it is well. Raises Failure, Refusal."""


class Settings(Protocol):
    """What is asked of a reward that servers compute; `rewards.remote.Remote` says what each means."""

    @property
    def servers(self) -> tuple[str, ...]: ...
    @property
    def timeout(self) -> float: ...
    @property
    def retries(self) -> int: ...
    @property
    def backoff(self) -> float: ...
    @property
    def concurrency(self) -> int: ...
    @property
    def token_variable(self) -> str | None: ...
    @property
    def on_failure(self) -> Literal["stop", "drop"]: ...
    def __call__(self, samples: Samples) -> Tensor: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Request(Generic[T]):
    """One question, which may be put to any of the servers.

    whose: what it is about, for messages
    body: makes what is sent. Raises WireError
    most: bytes of the answer
    read: makes something of the answer. Raises WireError if it is wrong
    """

    whose: str
    path: str
    body: Callable[[], bytes]
    most: int = MAX_ANSWER
    read: Callable[[bytes], T]


def ask(
    settings: Settings,
    requests: Sequence[Request[T]],
    *,
    greet: Greet | None = None,
    pace: Pace = UNHURRIED,
    advice: Mapping[int, str] | None = None,
) -> list[T | Missing]:
    """The answers in order; where there is none, why, if the settings say `drop`. Raises RewardError.

    pace: how often the servers are asked, all together, retries included
    advice: what to say to a status besides what the server says
    """
    fleet = _Fleet(settings, Exchange(settings.timeout, _token(settings), advice), greet, pace)
    with ThreadPoolExecutor(max(1, min(settings.concurrency, len(requests)))) as pool:
        parts = [pool.submit(fleet.ask, request) for request in requests]
        try:
            done, _ = wait(parts, return_when=FIRST_EXCEPTION)
            failed = [error for part in done if (error := part.exception()) is not None]
        finally:
            fleet.stop()  # where the user has interrupted, too: no thread is waited for any longer
            for part in parts:
                part.cancel()
    if failed:
        raise failed[0]
    return [part.result() for part in parts]


def whole(
    settings: Settings, count: int, rewards: Mapping[int, float], missing: Sequence[Missing]
) -> list[float]:
    """The rewards of `count` samples in order. Raises Unanswered if some are missing.

    rewards: of those that were answered, by their place
    missing: why others were not
    """
    lacking = count - len(rewards)
    if lacking:
        raise Unanswered(
            f"{lacking} of {count} samples have no reward; {missing[0].why}", settings, rewards
        )
    return [rewards[place] for place in range(count)]


def _token(settings: Settings) -> str | None:
    if settings.token_variable is None:
        return None
    try:
        return tokens.from_variable(settings.token_variable)
    except ValueError as error:
        raise RewardError(f"reward {name_of(settings)!r}: {error}") from error


@dataclass(slots=True, eq=False)
class _Server:
    """under_way, served: requests. failures: in a row; of: whose these were; why: the last. rests_until: by
    the monotonic clock. greeted: it was greeted, in this call and since it failed last."""

    url: str
    under_way: int = 0
    served: int = 0
    failures: int = 0
    of: set[str] = field(default_factory=set)
    rests_until: float = 0.0
    why: str = ""
    greeted: bool = False

    def is_given_up(self, retries: int) -> bool:
        """One request alone may fail for ever by its own fault; a server that is well answers others."""
        return self.failures > retries and len(self.of) > 1


class _Fleet:
    """The servers of one call, shared by its threads."""

    def __init__(
        self, settings: Settings, exchange: Exchange, greet: Greet | None, pace: Pace
    ) -> None:
        self._settings = settings
        self._servers = [_Server(url.rstrip("/")) for url in settings.servers]
        self._exchange = exchange
        self._greet = greet
        self._pace = pace
        self._changed = threading.Condition()
        self._over = False
        self._random = random.Random()  # of its own: the run's randomness stays as it is

    def stop(self) -> None:
        """End all that is under way or waits, and close what is open."""
        with self._changed:
            self._over = True
            self._changed.notify_all()
        self._exchange.stop()

    def ask(self, request: Request[T]) -> T | Missing:
        """The answer; why there is none, if the settings say `drop`. Raises RewardError."""
        try:
            return self._attempts(request, request.body())
        except (Refusal, WireError) as error:
            raise RewardError(f"{request.whose}: {error}") from error
        except Failure as failure:
            why = f"{request.whose}: {failure}"
            if self._settings.on_failure == "drop":
                return Missing(why)
            raise RewardError(
                f"{why}. Nothing that was written is lost: the run goes on with --resume"
            ) from failure

    def _attempts(self, request: Request[T], body: bytes) -> T:
        attempt = 0
        while True:
            attempt += 1
            server = self._taken()
            try:
                return self._tried(server, request, body)
            except Refusal as refusal:
                raise Refusal(f"{server.url}: {refusal}") from refusal
            except Failure as failure:
                if attempt > self._settings.retries:
                    raise Failure(f"attempt {attempt}, at {server.url}: {failure}") from failure
                if not failure.of_server:
                    self._pause(self._rest(attempt))

    def _tried(self, server: _Server, request: Request[T], body: bytes) -> T:
        began = time.monotonic()
        try:
            answer = self._answered(server, request, body)
        except Failure as failure:
            if failure.of_server:
                self._failed(server, request.whose, began, failure)
            raise
        finally:
            with self._changed:
                server.under_way -= 1
                self._changed.notify_all()
        with self._changed:
            server.served += 1
            server.failures = 0
            server.of.clear()
        return answer

    def _answered(self, server: _Server, request: Request[T], body: bytes) -> T:
        if self._greet is not None and not server.greeted:
            self._greet(self._exchange, server.url)
            with self._changed:
                server.greeted = True
        answer = self._exchange.ask(server.url, "POST", request.path, body, request.most)
        try:
            return request.read(answer)
        except WireError as error:
            raise Failure(f"the answer is wrong: {error}") from error

    # --- which server ----------------------------------------------------------------------------

    def _taken(self) -> _Server:
        """The least busy of the servers that do not rest; waits while all do, and for a turn.

        One that has failed is tried by one request at a time, while others are well. Raises Failure once
        each has failed more often in a row than there are retries, several requests.
        """

        def order(server: _Server) -> tuple[bool, int, int]:
            tried = server.failures > 0 and server.under_way > 0
            return tried, server.under_way, server.served

        with self._changed:
            while not self._over:
                retries = self._settings.retries
                if all(server.is_given_up(retries) for server in self._servers):
                    server = self._servers[0]
                    raise Failure(
                        f"every server has failed {1 + retries} times in a row; "
                        f"{server.url}: {server.why}"
                    )
                now = time.monotonic()
                rested = [server for server in self._servers if server.rests_until <= now]
                if not rested:
                    self._changed.wait(min(server.rests_until for server in self._servers) - now)
                elif (early := self._pace.wait()) > 0:
                    self._changed.wait(early)
                else:
                    chosen = min(rested, key=order)
                    chosen.under_way += 1
                    return chosen
        raise Stopped

    def _failed(self, server: _Server, whose: str, began: float, failure: Failure) -> None:
        """Requests that were under way when it failed all fail with it, and count once."""
        with self._changed:
            server.of.add(whose)
            if began >= server.rests_until:
                server.failures += 1
                server.why = str(failure)
                server.greeted = False
                rest = max(self._rest(server.failures), failure.after)
                server.rests_until = time.monotonic() + rest

    def _rest(self, failures: int) -> float:
        """Seconds to wait after so many failures in a row."""
        longest = min(self._settings.backoff * 2.0 ** min(failures - 1, 60), LONGEST_REST)
        return longest * self._random.uniform(0.5, 1)

    def _pause(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        with self._changed:
            while not self._over and (left := until - time.monotonic()) > 0:
                self._changed.wait(left)
