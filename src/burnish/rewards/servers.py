"""What the settings of all rewards that servers compute must be."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from burnish.serving.fleet import Settings


def check(settings: Settings, *, with_paths: bool = False) -> None:
    """Raises ValueError.

    with_paths: addresses may say where on the server the API begins
    """
    if not settings.servers:
        raise ValueError("servers is empty, expected at least one address")
    for server in settings.servers:
        _check_address(server, with_paths=with_paths)
    if len({*settings.servers}) < len(settings.servers):
        raise ValueError(f"servers = {list(settings.servers)}: one of them is there twice")
    if settings.concurrency < 1:
        raise ValueError(f"concurrency = {settings.concurrency}, expected at least 1")
    if settings.timeout <= 0:
        raise ValueError(f"timeout = {settings.timeout}, expected a positive number of seconds")
    for name in ("retries", "backoff"):
        if getattr(settings, name) < 0:
            raise ValueError(f"{name} = {getattr(settings, name)}, expected 0 or more")


def _check_address(server: str, *, with_paths: bool) -> None:
    example = "http://127.0.0.1:8000" + ("/v1" if with_paths else "")
    expected = f"servers: {server!r}, expected an address such as {example}"
    try:
        parts = urlsplit(server)
        port = parts.port
    except ValueError as error:
        raise ValueError(f"{expected}: {error}") from error
    del port  # read, since that is what checks it
    if parts.username is not None or parts.password is not None:
        raise ValueError(  # and the message must not show it either
            "servers: an address holds a name or a password; tokens go into reward.token_variable"
        )
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(expected)
    if parts.query or parts.fragment or not server.isascii() or not server.isprintable():
        raise ValueError(f"{expected}, without anything after its path")
    if not with_paths and parts.path not in ("", "/"):
        raise ValueError(f"{expected}, without a path")
