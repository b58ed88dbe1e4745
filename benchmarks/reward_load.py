"""Reward servers under load, one of which is killed and comes back.

    python benchmarks/reward_load.py [--clients 64] [--images 2000] [--side 64] [--format npz]

Two servers, processes of their own, offer `compressibility`. Clients, each a thread with connections of its
own, ask for one image at a time. When a third of the images is answered, one server is killed (SIGKILL) and
started again on its port; when two thirds are, the clients pause until it is ready, so that the last third
meets both. Every reward must come once, in its place, and be that of the reward itself, bit for bit; if not,
the exit status is 1.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

import torch

from burnish.reward import score
from burnish.rewards import Compressibility, Remote
from burnish.rollout import Samples

SERVE = "import sys; from burnish.cli import main; sys.exit(main(sys.argv[1:]))"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--side", type=int, default=64)
    parser.add_argument("--format", choices=("npz", "png"), default="npz")
    asked = parser.parse_args()
    samples = drawn(asked.images, asked.side)
    expected = score(Compressibility(), samples)
    steady, mortal = start(0), start(0)
    servers = {"steady": steady, "mortal": mortal}
    urls = [address(each) for each in (steady, mortal)]
    remote = Remote(
        servers=tuple(urls), batch=1, concurrency=1, format=asked.format, retries=10, timeout=30.0
    )
    counter = Counter(pause_at=2 * asked.images // 3)
    began = time.perf_counter()

    def tell(what: str) -> None:
        print(
            f"{time.perf_counter() - began:5.1f} s  {counter.count:5} answered: {what}", flush=True
        )

    try:
        with ThreadPoolExecutor(asked.clients) as pool:
            shares = torch.arange(asked.images).tensor_split(asked.clients)
            parts = [pool.submit(ask, remote, samples, s.tolist(), counter) for s in shares]
            counter.wait(asked.images // 3)
            servers["mortal"].kill()
            servers["mortal"].wait()
            tell("one server is killed")
            servers["mortal"] = start(urlsplit(urls[1]).port or 0)
            counter.wait(2 * asked.images // 3)
            tell("the clients pause")
            paused = time.perf_counter()
            address(servers["mortal"])
            paused = time.perf_counter() - paused
            tell("it is back, and they go on")
            counter.go_on()
            found = torch.cat([part.result() for part in parts])
        seconds = time.perf_counter() - began - paused
        tell(f"the end; the server that came back gave {answered(urls[1])} of them")
    finally:
        for each in servers.values():
            each.kill()
    right = torch.equal(found, expected)
    print(
        f"{asked.images} images, {asked.clients} clients, {asked.format}: {asked.images / seconds:.0f} "
        f"rewards a second without the pause; all right: {right}"
    )
    return 0 if right else 1


def ask(remote: Remote, samples: Samples, places: Sequence[int], counter: Counter) -> torch.Tensor:
    """A client's share, in calls of eight samples."""
    found = []
    for start in range(0, len(places), 8):
        counter.pause()
        found.append(score(remote, samples.pick(places[start : start + 8])))
        counter.add(len(found[-1]))
    return torch.cat(found)


class Counter:
    """How many are answered; waiting for it, and a pause at a number."""

    def __init__(self, pause_at: int) -> None:
        self.count, self._pause_at, self._changed = 0, pause_at, threading.Condition()
        self._back = threading.Event()

    def add(self, number: int) -> None:
        with self._changed:
            self.count += number
            self._changed.notify_all()

    def wait(self, number: int) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self.count >= number)

    def pause(self) -> None:
        if self.count >= self._pause_at:
            self._back.wait()

    def go_on(self) -> None:
        self._back.set()


def drawn(count: int, side: int) -> Samples:
    """Random images of different smoothness, so that their rewards differ."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(count, 3, 8, 8, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, (side, side), mode="bilinear")
    noise = torch.rand(count, 3, side, side, generator=generator)
    share = torch.rand(count, 1, 1, 1, generator=generator)
    media = (1 - share) * smooth + share * noise
    return Samples(media, tuple(f"image {i}" for i in range(count)), ({},) * count)


def start(port: int) -> subprocess.Popen[str]:
    words = ["serve-reward", "compressibility", "--port", str(port)]
    return subprocess.Popen(
        [sys.executable, "-c", SERVE, *words], stdout=subprocess.PIPE, text=True
    )


def address(server: subprocess.Popen[str]) -> str:
    """As the server says it when it is ready."""
    assert server.stdout is not None
    return server.stdout.readline().split(" at ")[1].split(";")[0]


def answered(url: str) -> int:
    with urllib.request.urlopen(f"{url}/health") as health:
        return json.load(health)["answered"]


if __name__ == "__main__":
    sys.exit(main())
