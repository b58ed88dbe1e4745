"""Rewards that are kept on disk, by the content of what is judged."""

from __future__ import annotations

import hashlib
import sqlite3
import struct
import threading
import warnings
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from burnish import reward_key
from burnish.reward import Prepares, Reward, RewardError, Unanswered, checked, name_of
from burnish.rollout import Samples

FILE = "rewards.sqlite"
PATIENCE = 60.0
"""Seconds to wait for another process that writes."""


@dataclass(slots=True)
class Counts:
    """Samples since they were last taken.

    computed: that the reward was asked about
    answered: whose reward was known, or that are the same as another of their batch
    """

    computed: int = 0
    answered: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock, repr=False, compare=False)

    def add(self, computed: int, answered: int) -> None:
        with self.lock:
            self.computed += computed
            self.answered += answered

    def take(self) -> dict[str, int]:
        """The counts, which begin again at 0."""
        with self.lock:
            taken = {"computed": self.computed, "answered": self.answered}
            self.computed = self.answered = 0
        return taken


@dataclass(frozen=True, slots=True, kw_only=True)
class Cached:
    """A reward whose values are kept on disk: it is asked once about each sample, by any process.

    It answers what the reward does, exactly, if the reward of a sample depends on that sample alone. Where a
    gradient is asked for, the reward itself is. Only whole, finite answers are kept. A damaged file or entry
    is never believed: there is a warning, and the reward is asked. Several may share a folder.

    Raises ValueError for a reward that cannot be cached (see `reward_key.check`).
    """

    reward: Reward
    folder: str
    counts: Counts = field(default_factory=Counts, compare=False)

    def __post_init__(self) -> None:
        reward_key.check(self.reward)

    @property
    def __name__(self) -> str:
        """What errors call it."""
        return name_of(self.reward)

    def prepare(self) -> None:
        """Make the reward ready, if it `Prepares`, and look at what it holds: what it lacks is told before
        anything is drawn."""
        if isinstance(self.reward, Prepares):
            self.reward.prepare()
        reward_key.identity(self.reward)

    def __call__(self, samples: Samples) -> Tensor:
        if samples.media.requires_grad:
            return self.reward(samples)
        keys = reward_key.keys(self.reward, samples)
        known = _read(self.folder, list(dict.fromkeys(keys)))
        asked = {key: place for place, key in reversed(list(enumerate(keys))) if key not in known}
        if asked:
            places = sorted(asked.values())
            part = samples.pick(places)
            try:
                values = self.reward(part)
                fresh = checked(values, self.reward, part).detach().tolist()
            except Unanswered:
                raise
            except RewardError:
                return self.reward(
                    samples
                )  # whoever asks finds what is wrong, and of which of these
            computed = {keys[place]: value for place, value in zip(places, fresh, strict=True)}
            _write(self.folder, computed)
            known = {**known, **computed}
        self.counts.add(len(asked), len(keys) - len(asked))
        return torch.tensor([known[key] for key in keys], dtype=torch.float32)


def _read(folder: str, keys: Sequence[bytes]) -> dict[bytes, float]:
    """The values that are kept under these keys, and whole."""
    found, damaged = {}, 0
    try:
        with closing(_opened(folder)) as database:
            for key in keys:
                row = database.execute(
                    "SELECT value, seal FROM rewards WHERE key = ?", (key,)
                ).fetchone()
                if row is None:
                    continue
                value, seal = row
                if isinstance(value, float) and seal == _seal(key, value):
                    found[key] = value
                else:
                    damaged += 1
    except sqlite3.DatabaseError as error:
        _warn(
            folder,
            f"cannot be read ({error}); rewards are computed. If this stays, delete the file",
        )
    if damaged:
        _warn(folder, f"has {damaged} damaged entries, whose rewards are computed anew")
    return found


def _write(folder: str, values: Mapping[bytes, float]) -> None:
    """Keep the values, all or none of them whatever happens meanwhile."""
    rows = [(key, value, _seal(key, value)) for key, value in values.items()]
    try:
        with closing(_opened(folder)) as database, database:
            database.executemany("INSERT OR REPLACE INTO rewards VALUES (?, ?, ?)", rows)
    except sqlite3.DatabaseError as error:
        _warn(folder, f"cannot be written ({error}); {len(rows)} rewards are not kept")


def _opened(folder: str) -> sqlite3.Connection:
    """The file of the folder, made if there is none.

    For each use anew: so no connection is shared between threads or inherited by a forked process.
    """
    path = Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    database = sqlite3.connect(path / FILE, timeout=PATIENCE, isolation_level="IMMEDIATE")
    try:
        database.execute(
            "CREATE TABLE IF NOT EXISTS rewards "
            "(key BLOB PRIMARY KEY, value REAL NOT NULL, seal BLOB NOT NULL) WITHOUT ROWID"
        )
    except sqlite3.DatabaseError:
        database.close()
        raise
    return database


def _seal(key: bytes, value: float) -> bytes:
    """A checksum of an entry."""
    return hashlib.blake2b(key + struct.pack("<d", value), digest_size=8).digest()


def _warn(folder: str, what: str) -> None:
    warnings.warn(f"the reward cache {Path(folder) / FILE} {what}", RuntimeWarning, stacklevel=2)
