"""Tokens of reward servers: read from a file or the environment, never from a recipe or a command line."""

from __future__ import annotations

import hmac
import os
from pathlib import Path


def from_file(path: Path) -> str:
    """The token in a file, without the white space around it. Raises ValueError."""
    if not path.is_file():
        raise ValueError(f"token file {str(path)!r}: there is no such file")
    return _checked(path.read_text(encoding="utf-8").strip(), f"token file {str(path)!r}")


def from_variable(name: str) -> str:
    """The token in an environment variable. Raises ValueError."""
    if name not in os.environ:
        raise ValueError(f"the environment variable {name} is not set, expected a token in it")
    return _checked(os.environ[name].strip(), f"the environment variable {name}")


def header(token: str) -> str:
    """What `Authorization` says."""
    return f"Bearer {token}"


def same(given: str, token: str) -> bool:
    """Whether an `Authorization` header holds the token; the time it takes tells nothing about the token."""
    return hmac.compare_digest(given.encode("utf-8"), header(token).encode("utf-8"))


def _checked(token: str, source: str) -> str:
    """The token must go into a header as it stands; it is never shown."""
    if not token or not token.isascii() or not token.isprintable() or " " in token:
        raise ValueError(f"{source} holds no token, expected printable ASCII without spaces")
    return token
