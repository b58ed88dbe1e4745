"""What is in files, as a digest."""

from __future__ import annotations

import hashlib
from pathlib import Path


def digest(path: str) -> str:
    """Of a file's bytes; of a folder, of the names and bytes of all files below it. 32 hexadecimal digits.

    Where it lies and when it was written do not count.
    """
    root = Path(path)
    if not root.is_dir():
        with root.open("rb") as file:
            return hashlib.file_digest(file, _hash).hexdigest()
    whole = _hash()
    for inner in sorted(each for each in root.rglob("*") if each.is_file()):
        whole.update(f"{inner.relative_to(root).as_posix()}\0{digest(str(inner))}\0".encode())
    return whole.hexdigest()


def _hash() -> hashlib.blake2b:
    return hashlib.blake2b(digest_size=16)
