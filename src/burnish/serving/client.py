"""Asking reward servers: the load spread, failures retried, each reward once and in its place.

All that is kept (connections, which server failed when) lasts for one call. So there is nothing to close,
and several threads may ask at once.
"""

from __future__ import annotations

import http.client
import random
import socket
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol
from urllib.parse import urlsplit

from torch import Tensor

import burnish
from burnish.reward import RewardError, Unanswered, name_of
from burnish.rollout import Samples
from burnish.serving import tokens, wire

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


class _Failure(Exception):
    """An attempt that may be made again.

    of_server: the server should rest; else it is well, and it is this request that it cannot answer
    """

    def __init__(self, message: str, *, of_server: bool = True) -> None:
        super().__init__(message)
        self.of_server = of_server


class _Refusal(Exception):
    """An answer that another attempt will not change."""


class _Stopped(Exception):
    """The call is over; nobody waits for this part."""


@dataclass(slots=True, eq=False)
class _Server:
    """under_way, served: requests. failures: in a row; why: the last. rests_until: by the monotonic clock.
    greeted: its health was asked, in this call and since it failed last. idle: connections, open and free."""

    url: str
    under_way: int = 0
    served: int = 0
    failures: int = 0
    rests_until: float = 0.0
    why: str = ""
    greeted: bool = False
    idle: list[http.client.HTTPConnection] = field(default_factory=list)


class _Fleet:
    """The servers of one call, shared by its threads."""

    def __init__(self, settings: Settings, token: str | None) -> None:
        self._settings = settings
        self._servers = [_Server(url.rstrip("/")) for url in settings.servers]
        self._headers = {
            "Content-Type": "application/json",
            "User-Agent": f"burnish/{burnish.__version__}",
        }
        if token is not None:
            self._headers["Authorization"] = tokens.header(token)
        self._offered: tuple[str, Any] | None = None
        self._changed = threading.Condition()
        self._sockets: set[socket.socket] = set()
        self._over = False
        self._random = random.Random()  # of its own: the run's randomness stays as it is

    def stop(self) -> None:
        """End all that is under way, and close what is open."""
        with self._changed:
            self._over = True
            for each in self._sockets:
                _cut(each)
            self._changed.notify_all()
            for server in self._servers:
                while server.idle:
                    server.idle.pop().close()

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
        except (_Refusal, wire.WireError) as error:
            raise RewardError(f"{whose}: {error}") from error
        except _Failure as failure:
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
            except _Refusal as refusal:
                raise _Refusal(f"{server.url}: {refusal}") from refusal
            except _Failure as failure:
                if attempt > self._settings.retries:
                    raise _Failure(f"attempt {attempt}, at {server.url}: {failure}") from failure
                if not failure.of_server:
                    self._pause(self._rest(attempt))

    def _tried(self, server: _Server, body: bytes, count: int) -> list[float]:
        began = time.monotonic()
        try:
            rewards = self._scored(server, body, count)
        except _Failure as failure:
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

        One that has failed is tried by one request at a time, while others are well. Raises _Failure once
        each has failed more often in a row than there are retries.
        """

        def order(server: _Server) -> tuple[bool, int, int]:
            tried = server.failures > 0 and server.under_way > 0
            return tried, server.under_way, server.served

        with self._changed:
            while not self._over:
                if all(server.failures > self._settings.retries for server in self._servers):
                    server = self._servers[0]
                    raise _Failure(
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
        raise _Stopped

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
        answer = self._exchange(server, "POST", "/score", body, most)
        try:
            return wire.decode_rewards(answer, count)
        except wire.WireError as error:
            raise _Failure(f"the answer is wrong: {error}") from error

    def _greet(self, server: _Server) -> None:
        """See that the server is well, and that it offers what the others do."""
        answer = self._exchange(server, "GET", "/health", None, MAX_ANSWER)
        try:
            health = wire.decode_table(answer)
        except wire.WireError as error:
            if error.kind == "version":
                raise _Refusal(f"it speaks {error}") from error
            raise _Failure(f"its health is {error}") from error
        if health.get("ready") is not True:
            raise _Failure("it is not ready")
        offered = health.get("reward")
        with self._changed:
            server.greeted = True
            url, first = self._offered = self._offered or (server.url, offered)
        if offered != first:
            raise _Refusal(f"it offers the reward {offered}, but {url} offers {first}")

    def _exchange(
        self, server: _Server, method: str, path: str, body: bytes | None, most: int
    ) -> bytes:
        """The body of an answer of success. Raises _Failure, and _Refusal."""
        began = time.monotonic()
        connection = self._connection(server)
        late = threading.Event()
        try:
            if connection.sock is None:
                connection.connect()
            assert isinstance(connection.sock, socket.socket)
            left = self._settings.timeout - (time.monotonic() - began)
            with self._watched(connection.sock, left, late):
                status, answer = self._said(connection, method, path, body, most, server)
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            if self._over:
                raise _Stopped from error
            if late.is_set() or isinstance(error, TimeoutError):
                raise _Failure(f"no answer within {self._settings.timeout:g} s") from error
            raise _Failure(f"{type(error).__name__}: {error}") from error
        if late.is_set():
            raise _Failure(f"no whole answer within {self._settings.timeout:g} s")
        if len(answer) > most:
            raise _Failure(f"an answer of more than {most} bytes")
        if status != 200:
            raise _wrong(status, answer)
        return answer

    def _connection(self, server: _Server) -> http.client.HTTPConnection:
        with self._changed:
            if server.idle:
                return server.idle.pop()
        parts = urlsplit(server.url)
        assert parts.hostname is not None
        kinds = {"http": http.client.HTTPConnection, "https": http.client.HTTPSConnection}
        return kinds[parts.scheme](parts.hostname, parts.port, timeout=self._settings.timeout)

    @contextmanager
    def _watched(
        self, watched: socket.socket, seconds: float, late: threading.Event
    ) -> Iterator[None]:
        """Within the block the connection is cut when its time is over, however slowly bytes trickle in,
        and when the call is over."""

        def end() -> None:
            late.set()
            _cut(watched)

        timer = threading.Timer(max(seconds, 0), end)
        timer.daemon = True
        with self._changed:
            if self._over:
                raise _Stopped
            self._sockets.add(watched)
        timer.start()
        try:
            yield
        finally:
            timer.cancel()
            with self._changed:
                self._sockets.discard(watched)

    def _said(
        self,
        connection: http.client.HTTPConnection,
        method: str,
        path: str,
        body: bytes | None,
        most: int,
        server: _Server,
    ) -> tuple[int, bytes]:
        # A server may refuse before it has all; then it has said why, and is no longer listening.
        with suppress(BrokenPipeError, ConnectionResetError):
            connection.request(method, path, body, self._headers)
        response = connection.getresponse()
        answer = response.read(most + 1)
        with self._changed:
            if response.isclosed() and not response.will_close and not self._over:
                server.idle.append(connection)
            else:
                connection.close()
        return response.status, answer


def _wrong(status: int, answer: bytes) -> Exception:
    """What an answer of no success comes to."""
    kind, message = "", ""
    with suppress(wire.WireError):
        error = wire.decode_table(answer).get("error")
        if isinstance(error, Mapping):
            kind, message = str(error.get("kind", "")), str(error.get("message", ""))[:2000]
    said = f"HTTP {status}" + (f", {kind}: {message}" if kind else "")
    if 400 <= status < 500 and status not in (408, 429):
        return _Refusal(f"{said}{_ADVICE.get(status, '')}")
    return _Failure(said, of_server=kind != "reward")


_ADVICE = {
    401: " (reward.token_variable names the variable with the server's token)",
    413: " (lower reward.batch, or raise the server's --max-bytes)",
}


def _cut(connection: socket.socket) -> None:
    with suppress(OSError):
        socket.socket.shutdown(connection, socket.SHUT_RDWR)
