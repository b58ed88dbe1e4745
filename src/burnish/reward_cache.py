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
    gradient is asked for, the reward itself is. Only finite answers are kept, also where the reward leaves
    other samples `Unanswered`, which this passes on. A damaged file or entry is never believed: there is a
    warning, and the reward is asked. Several may share a folder.

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
        reward = self.reward
        if isinstance(reward, Prepares):
            reward.prepare()
        reward_key.identity(self.reward)

    def __call__(self, samples: Samples) -> Tensor:
        if samples.media.requires_grad:
            return self.reward(samples)
        keys = reward_key.keys(self.reward, samples)
        known = _read(self.folder, list(dict.fromkeys(keys)))
        asked = {key: place for place, key in reversed(list(enumerate(keys))) if key not in known}
        missing = None
        if asked:
            try:
                values, places, missing = self._asked(samples, sorted(asked.values()))
                fresh = checked(values, self.reward, samples.pick(places)).detach().tolist()
            except Unanswered:
                raise
            except RewardError:
                return self.reward(samples)  # its error names the place in this batch
            computed = {keys[place]: value for place, value in zip(places, fresh, strict=True)}
            _write(self.folder, computed)
            known = {**known, **computed}
        self.counts.add(len(asked), len(keys) - len(asked))
        if missing is not None:
            rewards = {place: known[key] for place, key in enumerate(keys) if key in known}
            raise Unanswered(str(missing), self, rewards)
        return torch.tensor([known[key] for key in keys], dtype=torch.float32)

    def _asked(
        self, samples: Samples, places: list[int]
    ) -> tuple[object, list[int], Unanswered | None]:
        """What the reward says of the samples at `places`, of which of these, and why not of all."""
        try:
            return self.reward(samples.pick(places)), places, None
        except Unanswered as error:
            if error.reward is not self.reward:
                raise
            answered = sorted(error.rewards)
            return [error.rewards[i] for i in answered], [places[i] for i in answered], error


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
