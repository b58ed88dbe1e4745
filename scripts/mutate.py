"""Mutation test of the mathematics: every bug of scripts/mutations.toml must be found by a fast test.

    python scripts/mutate.py [WORD ...]      only the mutants whose name or file contains a WORD

Each mutant is one edit of a temporary copy of src; the working tree is never touched. This process imports
the heavy libraries once, and forks for every mutant; two run at a time. A mutant's own test files run
first, and the rest of the suite only if these let it live.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import os
import shutil
import signal
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
JOBS = 2
SECONDS = 300
"""Time limit of one mutant; one that exceeds it has not been killed by a test."""
HEAVY = (
    "torch",
    "torch._dynamo",
    "diffusers.schedulers.scheduling_ddim",
    "diffusers.schedulers.scheduling_ddpm",
    "diffusers.schedulers.scheduling_flow_match_euler_discrete",
    "hypothesis.strategies",
    "beartype",
    "jaxtyping",
)
BROKEN = 3
"""Exit status of a child in which the tests could not be run at all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Mutant:
    """One bug: `old` occurs exactly once in `file` and becomes `new`."""

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]

    def source(self) -> str:
        text = (ROOT / "src/burnish" / self.file).read_text(encoding="utf-8")
        found = text.count(self.old)
        if found != 1:
            raise SystemExit(
                f"mutant {self.name!r}: its text occurs {found} times in {self.file}, expected once; "
                f"write it anew in scripts/mutations.toml:\n{self.old}"
            )
        mutated = text.replace(self.old, self.new)
        compile(mutated, self.file, "exec")
        return mutated


@dataclass(frozen=True, slots=True)
class Verdict:
    """killer: the test that failed, or None. fault: why there is no verdict, or None."""

    killer: str | None
    fault: str | None
    seconds: float


class FirstFailure:
    """A pytest plugin that remembers which test failed first."""

    def __init__(self) -> None:
        self.test: str | None = None

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed and self.test is None:
            self.test = report.nodeid


def main(words: Sequence[str]) -> int:
    began = time.perf_counter()
    settings = tomllib.loads((ROOT / "scripts/mutations.toml").read_text(encoding="utf-8"))
    suite = [f"tests/{name}" for name in settings["suite"]]
    mutants = [
        Mutant(**{**entry, "tests": tuple(f"tests/{name}" for name in entry["tests"])})
        for entry in settings["mutant"]
    ]
    for mutant in mutants:
        mutant.source()
    mutants = [m for m in mutants if not words or any(w in f"{m.name} {m.file}" for w in words)]
    for name in HEAVY:
        importlib.import_module(name)
    gc.freeze()  # else every child walks over all that was imported here
    with tempfile.TemporaryDirectory(prefix="burnish-mutants-") as folder:
        if not _sound(suite, Path(folder)):
            return 1
        print(f"the unmutated copy passes ({time.perf_counter() - began:.0f} s)", flush=True)
        alive = _judge(mutants, suite, Path(folder))
    print(f"{time.perf_counter() - began:.0f} s")
    print(f"{len(mutants) - alive} passed, {alive} failed")
    return 1 if alive else 0


def _sound(suite: Sequence[str], folder: Path) -> bool:
    """Whether the tests pass on an unmutated copy, a share of them in each process."""
    jobs = [(str(i), None, [suite[i::JOBS]]) for i in range(JOBS)]
    for _, verdict in _run(jobs, folder):
        if verdict.killer or verdict.fault:
            print(f"the unmutated copy fails: {verdict.killer or verdict.fault}")
            return False
    return True


def _judge(mutants: Sequence[Mutant], suite: Sequence[str], folder: Path) -> int:
    """Print a line a mutant; return how many no test has killed."""
    jobs = [
        (m.name, m, [m.tests, [name for name in suite if name not in m.tests]]) for m in mutants
    ]
    files = {m.name: m.file for m in mutants}
    alive = 0
    print(f"{'mutant':58} {'file':20} {'s':>4}  killed by")
    for name, verdict in _run(jobs, folder):
        alive += verdict.killer is None
        outcome = verdict.killer or f"!! {verdict.fault or 'SURVIVED'}"
        outcome = outcome.removeprefix("tests/")
        print(f"{name:58} {files[name]:20} {verdict.seconds:4.0f}  {outcome}", flush=True)
    return alive


Job = tuple[str, Mutant | None, Sequence[Sequence[str]]]


def _run(jobs: Sequence[Job], folder: Path) -> Iterator[tuple[str, Verdict]]:
    """Run the jobs in forked children, `JOBS` at a time; verdicts in the order in which they come."""
    waiting = list(reversed(jobs))
    running: dict[int, tuple[str, Path, float]] = {}
    while waiting or running:
        while waiting and len(running) < JOBS:
            name, mutant, batches = waiting.pop()
            home = Path(tempfile.mkdtemp(dir=folder))
            _copy(mutant, home)
            running[_fork(home, batches)] = (name, home, time.perf_counter())
        process, status = os.wait()
        name, home, began = running.pop(process)
        yield name, _verdict(status, home, time.perf_counter() - began)
        shutil.rmtree(home)


def _copy(mutant: Mutant | None, home: Path) -> None:
    """The source under `home`: Python files are copied, all others linked to."""

    def copy(source: str, target: str) -> None:
        if source.endswith(".py"):
            shutil.copyfile(source, target)
        else:
            os.symlink(source, target)

    ignore = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "src", home / "src", copy_function=copy, ignore=ignore)
    if mutant is not None:
        (home / "src/burnish" / mutant.file).write_text(mutant.source(), encoding="utf-8")


def _fork(home: Path, batches: Sequence[Sequence[str]]) -> int:
    sys.stdout.flush()
    process = os.fork()
    if process:
        return process
    status = BROKEN
    try:
        signal.alarm(SECONDS)
        with (home / "log").open("w") as log:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
            status = _test(home, batches)
    finally:
        os._exit(status)


def _test(home: Path, batches: Sequence[Sequence[str]]) -> int:
    """In the child: run the batches of test files until a test fails."""
    os.chdir(ROOT)
    sys.dont_write_bytecode = True
    sys.path.insert(0, str(home / "src"))
    os.environ |= {"PYTHONPATH": str(home / "src"), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    plugins = ["-p", "no:cacheprovider", "-p", "_hypothesis_pytestplugin"]
    options = ["-x", "-q", "--tb=short", *plugins, "--hypothesis-profile=mutants"]
    for batch in batches:
        first = FirstFailure()
        code = pytest.main([*options, *batch], plugins=[first]) if batch else 0
        loaded = sys.modules["burnish"].__file__ or ""
        if not loaded.startswith(str(home)):
            print(f"the tests imported {loaded}, not the copy under {home}")
            return BROKEN
        if first.test is not None:
            (home / "killer").write_text(first.test, encoding="utf-8")
            return 1
        if code != 0:
            return BROKEN
    return 0


def _verdict(status: int, home: Path, seconds: float) -> Verdict:
    if os.WIFSIGNALED(status):
        name = signal.Signals(os.WTERMSIG(status)).name
        return Verdict(None, f"ended by {name} after {seconds:.0f} s", seconds)
    if os.WEXITSTATUS(status) == 0:
        return Verdict(None, None, seconds)
    with contextlib.suppress(FileNotFoundError):
        return Verdict((home / "killer").read_text(encoding="utf-8"), None, seconds)
    log = (home / "log").read_text(encoding="utf-8")[-2000:]
    return Verdict(None, f"the tests could not be run:\n{log}", seconds)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
