"""Asking reward servers: the load spread, failures retried, each reward once and in its place.

All that is kept (connections, which server failed when) lasts for one call. So there is nothing to close,
and several threads may ask at once.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from torch import Tensor

from burnish.reward import RewardError, Unanswered, name_of
from burnish.rollout import Samples
from burnish.serving import tokens, wire
from burnish.serving.exchange import Exchange, Failure, Refusal, Stopped

LONGEST_REST = 30.0
"""Seconds that a server rests at most, however often it has failed."""
MAX_ANSWER = 2**20
"""Bytes of an answer, and `BYTES_A_REWARD` besides for each reward."""
BYTES_A_REWARD = 64


class Settings(Protocol):
    """What `ask` asks of a reward; `rewards.remote.Remote` says what each means."""

    @property
    def servers(self) -> tuple[str, ...]: ...
    @property
    def batch(self) -> int: ...
    @property
    def timeout(self) -> float: ...
    @property
    def retries(self) -> int: ...
    @property
    def backoff(self) -> float: ...
    @property
    def concurrency(self) -> int: ...
    @property
    def format(self) -> wire.Format: ...
    @property
    def token_variable(self) -> str | None: ...
    @property
    def on_failure(self) -> Literal["stop", "drop"]: ...
    def __call__(self, samples: Samples) -> Tensor: ...


def ask(settings: Settings, samples: Samples) -> list[float]:
    """One reward a sample, in order. Raises RewardError; `Unanswered` if the settings say `drop`."""
    fleet = _Fleet(settings, _token(settings))
    starts = range(0, len(samples), settings.batch)
    with ThreadPoolExecutor(max(1, min(settings.concurrency, len(starts)))) as pool:
        parts = [
            pool.submit(fleet.ask, start, samples[start : start + settings.batch])
            for start in starts
        ]
        try:
            done, _ = wait(parts, return_when=FIRST_EXCEPTION)
            failed = [error for part in done if (error := part.exception()) is not None]
        finally:
            fleet.stop()  # where the user has interrupted, too: no thread is waited for any longer
            for part in parts:
                part.cancel()
    if failed:
        raise failed[0]
    return _together(settings, samples, [part.result() for part in parts])


def _together(
    settings: Settings, samples: Samples, parts: Sequence[Sequence[float] | str]
) -> list[float]:
    """The rewards of all parts; in the place of one that was not answered stands why."""
    rewards: dict[int, float] = {}
    for number, part in enumerate(parts):
        if not isinstance(part, str):
            rewards |= dict(enumerate(part, number * settings.batch))
    missing = [place for place in range(len(samples)) if place not in rewards]
    if missing:
        why = next(part for part in parts if isinstance(part, str))
        raise Unanswered(
            f"{len(missing)} of {len(samples)} samples have no reward; {why}", settings, rewards
        )
    return [rewards[place] for place in range(len(samples))]


def _token(settings: Settings) -> str | None:
    if settings.token_variable is None:
        return None
    try:
        return tokens.from_variable(settings.token_variable)
    except ValueError as error:
        raise RewardError(f"reward {name_of(settings)!r}: {error}") from error


@dataclass(slots=True, eq=False)
class _Server:
    """under_way, served: requests. failures: in a row; why: the last. rests_until: by the monotonic clock.
    greeted: its health was asked, in this call and since it failed last."""

    url: str
    under_way: int = 0
    served: int = 0
    failures: int = 0
    rests_until: float = 0.0
    why: str = ""
    greeted: bool = False


class _Fleet:
    """The servers of one call, shared by its threads."""

    def __init__(self, settings: Settings, token: str | None) -> None:
        self._settings = settings
        self._servers = [_Server(url.rstrip("/")) for url in settings.servers]
        self._exchange = Exchange(settings.timeout, token)
        self._offered: tuple[str, Any] | None = None
        self._changed = threading.Condition()
        self._over = False
        self._random = random.Random()  # of its own: the run's randomness stays as it is

    def stop(self) -> None:
        """End all that is under way or waits, and close what is open."""
        with self._changed:
            self._over = True
            self._changed.notify_all()
        self._exchange.stop()

    def ask(self, start: int, part: Samples) -> list[float] | str:
        """The rewards of a part, in order; a text that says why there are none, if the settings say `drop`.

        start: the place of its first sample
        """
        whose = (
            f"reward {name_of(self._settings)!r}, samples {start} to {start + len(part) - 1} (first "
            f"prompt: {part.prompts[0]!r})"
        )
        try:
            body = wire.encode(part, self._settings.format)
            return self._attempts(body, len(part))
        except (Refusal, wire.WireError) as error:
            raise RewardError(f"{whose}: {error}") from error
        except Failure as failure:
            why = f"{whose}: {failure}"
            if self._settings.on_failure == "drop":
                return why
            raise RewardError(
                f"{why}. Nothing that was written is lost: the run goes on with --resume"
            ) from failure

    def _attempts(self, body: bytes, count: int) -> list[float]:
        attempt = 0
        while True:
            attempt += 1
            server = self._taken()
            try:
                return self._tried(server, body, count)
            except Refusal as refusal:
                raise Refusal(f"{server.url}: {refusal}") from refusal
            except Failure as failure:
                if attempt > self._settings.retries:
                    raise Failure(f"attempt {attempt}, at {server.url}: {failure}") from failure
                if not failure.of_server:
                    self._pause(self._rest(attempt))

    def _tried(self, server: _Server, body: bytes, count: int) -> list[float]:
        began = time.monotonic()
        try:
            rewards = self._scored(server, body, count)
        except Failure as failure:
            if failure.of_server:
                self._failed(server, began, str(failure))
            raise
        finally:
            with self._changed:
                server.under_way -= 1
                self._changed.notify_all()
        with self._changed:
            server.served += 1
            server.failures = 0
        return rewards

    # --- which server ----------------------------------------------------------------------------

    def _taken(self) -> _Server:
        """The least busy of the servers that do not rest; waits while all do.

        One that has failed is tried by one request at a time, while others are well. Raises Failure once
        each has failed more often in a row than there are retries.
        """

        def order(server: _Server) -> tuple[bool, int, int]:
            tried = server.failures > 0 and server.under_way > 0
            return tried, server.under_way, server.served

        with self._changed:
            while not self._over:
                if all(server.failures > self._settings.retries for server in self._servers):
                    server = self._servers[0]
                    raise Failure(
                        f"every server has failed {1 + self._settings.retries} times in a row; "
                        f"{server.url}: {server.why}"
                    )
                now = time.monotonic()
                rested = [server for server in self._servers if server.rests_until <= now]
                if rested:
                    chosen = min(rested, key=order)
                    chosen.under_way += 1
                    return chosen
                self._changed.wait(min(server.rests_until for server in self._servers) - now)
        raise Stopped

    def _failed(self, server: _Server, began: float, why: str) -> None:
        """Requests that were under way when it failed all fail with it, and count once."""
        with self._changed:
            if began >= server.rests_until:
                server.failures += 1
                server.why = why
                server.greeted = False
                server.rests_until = time.monotonic() + self._rest(server.failures)

    def _rest(self, failures: int) -> float:
        """Seconds to wait after so many failures in a row."""
        longest = min(self._settings.backoff * 2.0 ** min(failures - 1, 60), LONGEST_REST)
        return longest * self._random.uniform(0.5, 1)

    def _pause(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        with self._changed:
            while not self._over and (left := until - time.monotonic()) > 0:
                self._changed.wait(left)

    # --- what it is asked ------------------------------------------------------------------------

    def _scored(self, server: _Server, body: bytes, count: int) -> list[float]:
        if not server.greeted:
            self._greet(server)
        most = MAX_ANSWER + BYTES_A_REWARD * count
        answer = self._exchange.ask(server.url, "POST", "/score", body, most)
        try:
            return wire.decode_rewards(answer, count)
        except wire.WireError as error:
            raise Failure(f"the answer is wrong: {error}") from error

    def _greet(self, server: _Server) -> None:
        """See that the server is well, and that it offers what the others do."""
        answer = self._exchange.ask(server.url, "GET", "/health", None, MAX_ANSWER)
        try:
            health = wire.decode_table(answer)
        except wire.WireError as error:
            if error.kind == "version":
                raise Refusal(f"it speaks {error}") from error
            raise Failure(f"its health is {error}") from error
        if health.get("ready") is not True:
            raise Failure("it is not ready")
        offered = health.get("reward")
        with self._changed:
            server.greeted = True
            url, first = self._offered = self._offered or (server.url, offered)
        if offered != first:
            raise Refusal(f"it offers the reward {offered}, but {url} offers {first}")
