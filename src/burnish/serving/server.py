"""A reward over HTTP, by the standard library alone (docs/rewards-remote.md).

What is asked of a server is one small page: `http.server` has it, and a framework would bring its own
queue, its own limits and a dozen packages.
"""

from __future__ import annotations

import ipaddress
import socket
import socketserver
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler
from typing import Any

import burnish
from burnish.reward import Reward, RewardError, name_of, score, unit_of
from burnish.serving import tokens, wire

MAX_BYTES = 128 * 2**20
"""Of a request, and of its images when decoded: 16 images of 512x512 go in as npz."""
MAX_CONNECTIONS = 256
"""At a time; further ones are closed unanswered, and the client comes again."""
IDLE_SECONDS = 60.0
"""That a connection may be silent."""
BODY_SECONDS = 60.0
"""That a request's body may take to arrive."""
LINGER_SECONDS = 2.0
"""That a refused client may go on sending, so that it comes to read why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """What a server offers, and to whom."""

    reward: Reward
    about: Mapping[str, Any]
    """The reward's `name` and settings; servers of one run must agree in it."""
    token: str | None = None
    """Every request must bring it; without one, the server stays on this machine."""
    max_bytes: int = MAX_BYTES
    """Of a request, and of its images when decoded to float32."""
    at_once: int = 1
    """Calls of the reward at a time; more than 1 only for a reward that several threads may call."""

    def __post_init__(self) -> None:
        for name in ("max_bytes", "at_once"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} = {getattr(self, name)}, expected at least 1")
        if unit_of(self.reward) != "sample":
            raise ValueError(
                f"reward {name_of(self.reward)!r} compares the samples of a prompt, but a server sees some "
                "of them at a time; let the run ask it itself"
            )


@contextmanager
def serving(offer: Offer, host: str = "127.0.0.1", port: int = 0) -> Iterator[RewardServer]:
    """A server in a thread of its own, until the block is left.

    port: 0 for any that is free
    Raises ValueError if the host is not this machine alone and the offer has no token, or for an address
    that cannot be had.
    """
    server = RewardServer(offer, host, port)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.daemon = True
    thread.start()
    try:
        yield server
    finally:
        server.close()
        thread.join()


class RewardServer(socketserver.ThreadingMixIn, socketserver.TCPServer):
    """A thread a connection; made by `serving`. (Inheritance is what `socketserver` asks for.)"""

    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 128

    def __init__(self, offer: Offer, host: str, port: int) -> None:
        _check_exposed(host, offer.token)
        self.offer = offer
        self.turn = threading.BoundedSemaphore(offer.at_once)
        self._places = threading.BoundedSemaphore(MAX_CONNECTIONS)
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._answered = 0
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            super().__init__((host, port), _Handler)
        except (OSError, OverflowError) as error:
            raise ValueError(f"cannot serve at host {host!r}, port {port}: {error}") from error

    @property
    def url(self) -> str:
        host, port = self.server_address[:2]
        return f"http://[{host}]:{port}" if ":" in str(host) else f"http://{host}:{port}"

    @property
    def answered(self) -> int:
        """Samples that it has given rewards of."""
        return self._answered

    def count(self, answered: int) -> None:
        with self._lock:
            self._answered += answered

    def wait(self) -> None:
        """Until it is closed."""
        self._closed.wait()

    def close(self) -> None:
        """Stop at once: connections are cut, and what was asked on them stays without an answer."""
        self._closed.set()
        self.shutdown()
        self.server_close()
        with self._lock:
            for connection in self._open:
                with suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)

    def verify_request(self, request: Any, client_address: Any) -> bool:
        del client_address
        taken = self._places.acquire(blocking=False)
        if taken:
            with self._lock:
                self._open.add(request)
        return taken

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            with self._lock:
                self._open.discard(request)
            self._places.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        del request
        error = sys.exception()
        if not isinstance(error, OSError):  # a client that went away is its own affair
            _say(f"{client_address}: {type(error).__name__}: {error}")


class _Refused(Exception):
    """A request's own fault."""

    def __init__(self, status: int, kind: str, message: str) -> None:
        super().__init__(message)
        self.status, self.kind = status, kind


class _Handler(BaseHTTPRequestHandler):
    server: RewardServer  # type: ignore[assignment]
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "burnish", ""
    disable_nagle_algorithm = True  # an answer is two packets, and the second must not wait
    timeout = IDLE_SECONDS

    def do_GET(self) -> None:
        self._respond({"/health": self._health})

    def do_POST(self) -> None:
        self._respond({"/score": self._score})

    def _health(self) -> bytes:
        offer = self.server.offer
        return wire.encode_table(
            {
                "burnish": burnish.__version__,
                "ready": True,  # the reward was built before the port was open
                "reward": dict(offer.about),
                "max_bytes": offer.max_bytes,
                "answered": self.server.answered,
            }
        )

    def _score(self) -> bytes:
        samples = wire.decode(self._body(), self.server.offer.max_bytes)
        with self.server.turn:
            if self._gone():  # it has asked another server by now, or will ask again
                raise ConnectionAbortedError("the client did not wait for its turn")
            rewards = score(self.server.offer.reward, samples)
        self.server.count(len(rewards))
        return wire.encode_rewards(rewards.tolist())

    def _respond(self, pages: Mapping[str, Callable[[], bytes]]) -> None:
        """Whatever is wrong with a request or with the reward becomes a typed answer."""
        try:
            self._check_token()
            if self.path not in pages:
                raise self._unknown()
            body = pages[self.path]()
        except _Refused as refused:
            self._refuse(refused.status, refused.kind, str(refused))
        except wire.WireError as error:
            self._refuse(413 if error.kind == "too-large" else 400, error.kind, str(error))
        except RewardError as error:
            _say(str(error))
            self._refuse(500, "reward", str(error))
        except ConnectionError:
            self.close_connection = True
        except Exception as error:  # noqa: BLE001  no request may take the server down
            _say(f"{type(error).__name__}: {error}")
            self._refuse(500, "internal", f"{type(error).__name__}: {error}")
        else:
            self._reply(200, body)

    def _check_token(self) -> None:
        token = self.server.offer.token
        if token is not None and not tokens.same(self.headers.get("Authorization", ""), token):
            raise _Refused(401, "token", "the token is missing or wrong")

    def _unknown(self) -> _Refused:
        if self.path in ("/health", "/score"):
            return _Refused(405, "method", "expected GET /health or POST /score")
        return _Refused(404, "path", "there is no such page; expected GET /health or POST /score")

    def _body(self) -> bytes:
        """The request's body. Its length is checked before any of it is read."""
        if self.headers.get_content_type() != "application/json":
            # A web page cannot send this type to another site unasked, so that no page that the user of this
            # machine looks at can talk to the server.
            raise _Refused(415, "media-type", "expected Content-Type: application/json")
        lengths = self.headers.get_all("Content-Length", [])
        text = lengths[0] if len(lengths) == 1 else ""
        if "Transfer-Encoding" in self.headers or not (text.isascii() and text.isdigit()):
            raise _Refused(411, "length", "expected one Content-Length, and no Transfer-Encoding")
        most = self.server.offer.max_bytes
        if len(text) > 18 or int(text) > most:
            raise _Refused(
                413, "too-large", f"a request of {text[:18]} bytes, expected at most {most}"
            )
        return self._read(int(text))

    def _read(self, length: int) -> bytes:
        body, until = bytearray(), time.monotonic() + BODY_SECONDS
        try:
            while len(body) < length:
                self.connection.settimeout(max(until - time.monotonic(), 1e-3))
                piece = self.rfile.read1(min(length - len(body), 2**20))
                if not piece:
                    raise _Refused(
                        400, "truncated", f"{len(body)} bytes came of {length} that were announced"
                    )
                body += piece
        except TimeoutError as error:
            raise _Refused(408, "slow", f"{len(body)} of {length} bytes came in time") from error
        self.connection.settimeout(IDLE_SECONDS)
        return bytes(body)

    def _gone(self) -> bool:
        self.connection.settimeout(0)
        try:
            return not self.connection.recv(1, socket.MSG_PEEK)
        except BlockingIOError:  # still there, and silent
            return False
        except OSError:
            return True
        finally:
            self.connection.settimeout(IDLE_SECONDS)

    def _refuse(self, status: int, kind: str, message: str) -> None:
        """The answer, and the end of the connection: part of the request may still be unread."""
        self.close_connection = True
        self._reply(status, wire.encode_table({"error": {"kind": kind, "message": message}}))
        until = time.monotonic() + LINGER_SECONDS
        with suppress(OSError):
            self.connection.shutdown(socket.SHUT_WR)
            while (left := until - time.monotonic()) > 0:
                self.connection.settimeout(left)
                if not self.connection.recv(2**16):
                    break

    def _reply(self, status: int, body: bytes) -> None:
        if status == 200 and self.command == "GET" and "Content-Length" in self.headers:
            self.close_connection = True  # a body that nobody reads
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        if status == 401:
            self.send_header("WWW-Authenticate", "Bearer")
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """What `http.server` itself refuses: a request that is no HTTP, or another method."""
        del explain
        self._refuse(code, "http", message or self.responses[code][0])

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: what a request holds is the client's affair."""


def _check_exposed(host: str, token: str | None) -> None:
    if token is None and not _is_loopback(host):
        raise ValueError(
            f"host = {host!r} can be reached from other machines, and there is no token: give one by "
            "--token-file or --token-variable, or serve at 127.0.0.1"
        )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _say(message: str) -> None:
    print(f"burnish: {message}", file=sys.stderr, flush=True)
