"""HTTP exchanges with servers within a time limit, over connections that are kept, by `http.client`.

It follows no redirects and asks no proxy: what is named in the recipe is what is asked.
"""

from __future__ import annotations

import http.client
import json
import socket
import threading
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from email.utils import parsedate_to_datetime
from types import MappingProxyType
from urllib.parse import urlsplit

import burnish
from burnish.serving import tokens

_KINDS = {"http": http.client.HTTPConnection, "https": http.client.HTTPSConnection}
_ADVICE = {401: " (reward.token_variable names the variable with the server's token)"}
LONGEST_MESSAGE = 2000
"""Characters of a server's message that are shown."""
LONGEST_WAIT = 300.0
"""Seconds that a server may ask to be left alone for; more than that is taken for this."""


class Failure(Exception):
    """An exchange that may go well another time.

    of_server: the server should rest; else it is well, and it is this request that it cannot answer
    after: seconds that the server asks to be left alone for
    """

    def __init__(self, message: str, *, of_server: bool = True, after: float = 0.0) -> None:
        super().__init__(message)
        self.of_server, self.after = of_server, after


class Refusal(Exception):
    """An answer that another attempt will not change."""


class Stopped(Exception):
    """It is over; nobody waits for this answer."""


class Exchange:
    """Connections that several threads share, one at a time each."""

    def __init__(
        self, timeout: float, token: str | None, advice: Mapping[int, str] | None = None
    ) -> None:
        """timeout: seconds of an exchange, from connecting to the last byte
        advice: what to say to a status besides what the server says"""
        self._timeout = timeout
        self._advice = MappingProxyType({**_ADVICE, **(advice or {})})
        self._headers = {
            "Content-Type": "application/json",
            "User-Agent": f"burnish/{burnish.__version__}",
        }
        if token is not None:
            self._headers["Authorization"] = tokens.header(token)
        self._lock = threading.Lock()
        self._idle: defaultdict[str, list[http.client.HTTPConnection]] = defaultdict(list)
        self._under_way: set[socket.socket] = set()
        self._over = False

    def stop(self) -> None:
        """End what is under way, and close what is open."""
        with self._lock:
            self._over = True
            for each in self._under_way:
                _cut(each)
            for connections in self._idle.values():
                while connections:
                    connections.pop().close()

    def ask(self, url: str, method: str, path: str, body: bytes | None, most: int) -> bytes:
        """The body, of `most` bytes at most, of an answer of success.

        path: below the address's own
        Raises Failure, Refusal; Stopped after `stop`.
        """
        connection, late, whole = self._connection(url), threading.Event(), False
        try:
            with self._watched(connection, late):
                # A server may refuse before it has all; then it has said why, and listens no longer.
                with suppress(BrokenPipeError, ConnectionResetError):
                    whole_path = urlsplit(url).path + path
                    connection.request(method, whole_path, body, self._headers)
                response = connection.getresponse()
                answer = response.read(most + 1)
                whole = response.isclosed() and not response.will_close
        except (OSError, http.client.HTTPException) as error:
            if self._over:
                raise Stopped from error
            if late.is_set() or isinstance(error, TimeoutError):
                raise self._too_late() from error
            raise Failure(f"{type(error).__name__}: {error}") from error
        finally:
            self._put_back(url, connection, whole=whole and not late.is_set())
        if late.is_set():
            raise self._too_late()
        if len(answer) > most:
            raise Failure(f"an answer of more than {most} bytes")
        if response.status != 200:
            raise self._wrong(response, answer)
        return answer

    def _wrong(self, response: http.client.HTTPResponse, answer: bytes) -> Exception:
        """What an answer of no success comes to."""
        status, (kind, message) = response.status, _told(answer)
        told = ": ".join(part for part in (kind, message) if part)
        said = f"HTTP {status}, {told}" if told else f"HTTP {status}"
        if 400 <= status < 500 and status not in (408, 429):
            return Refusal(f"{said}{self._advice.get(status, '')}")
        after = asked_for(response.headers["Retry-After"])
        return Failure(said, of_server=kind != "reward", after=after)

    def _too_late(self) -> Failure:
        return Failure(f"no whole answer within {self._timeout:g} s")

    def _connection(self, url: str) -> http.client.HTTPConnection:
        with self._lock:
            if self._idle[url]:
                return self._idle[url].pop()
        parts = urlsplit(url)
        assert parts.hostname is not None
        return _KINDS[parts.scheme](parts.hostname, parts.port, timeout=self._timeout)

    def _put_back(self, url: str, connection: http.client.HTTPConnection, *, whole: bool) -> None:
        with self._lock:
            if whole and not self._over:
                self._idle[url].append(connection)
            else:
                connection.close()

    @contextmanager
    def _watched(
        self, connection: http.client.HTTPConnection, late: threading.Event
    ) -> Iterator[None]:
        """Within the block there is a connection, which is cut when its time is over, however slowly bytes
        trickle in, and when all is over."""
        began = time.monotonic()
        if connection.sock is None:
            connection.connect()
        watched = connection.sock
        assert isinstance(watched, socket.socket)

        def end() -> None:
            late.set()
            _cut(watched)

        timer = threading.Timer(max(0, began + self._timeout - time.monotonic()), end)
        timer.daemon = True
        with self._lock:
            if self._over:
                raise Stopped
            self._under_way.add(watched)
        timer.start()
        try:
            yield
        finally:
            timer.cancel()
            with self._lock:
                self._under_way.discard(watched)


def _told(answer: bytes) -> tuple[str, str]:
    """The kind and the message of an error, as reward servers and language models' servers put them."""
    try:
        table = json.loads(answer)
    except (ValueError, RecursionError):
        return "", ""
    error = table.get("error", table) if isinstance(table, dict) else None
    if not isinstance(error, dict):
        return "", str(error or "")[:LONGEST_MESSAGE]
    kind = error.get("kind") or error.get("type") or ""
    message = error.get("message") or error.get("detail") or ""
    return str(kind)[:LONGEST_MESSAGE], str(message)[:LONGEST_MESSAGE]


def asked_for(retry_after: str | None) -> float:
    """Seconds that a `Retry-After` asks for (RFC 9110, 10.2.3: a number of them, or a date); 0 for none, and
    for one that says neither."""
    if retry_after is None:
        return 0.0
    try:
        seconds = float(retry_after)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(retry_after).timestamp() - time.time()
        except (ValueError, OverflowError):
            return 0.0
    return min(seconds, LONGEST_WAIT) if seconds > 0 else 0.0


def _cut(connection: socket.socket) -> None:
    with suppress(OSError):
        socket.socket.shutdown(connection, socket.SHUT_RDWR)
