"""Independent pieces of work side by side on a CPU.

A small network is faster on two cores as two batches of one thread each than as one batch of two
threads: no operation waits for the other core. On an accelerator the pieces run one after another.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch

Piece = TypeVar("Piece")
Result = TypeVar("Result")


def side_by_side(
    work: Callable[[Piece], Result], pieces: Sequence[Piece], device: torch.device
) -> Iterator[Result]:
    """`work` of each piece, in the order of the pieces.

    On a CPU as many run at once as torch has threads (`torch.set_num_threads`), each with an equal
    share of them; no more results than that are held. `work` must not change anything shared.
    """
    threads = torch.get_num_threads()
    lanes = min(threads, len(pieces)) if device.type == "cpu" else 1
    if lanes <= 1:
        yield from map(work, pieces)
        return
    share = threads // lanes
    with ThreadPoolExecutor(lanes, initializer=torch.set_num_threads, initargs=(share,)) as pool:
        under_way: deque[Future[Result]] = deque()
        for piece in pieces:
            if len(under_way) == lanes:
                yield under_way.popleft().result()
            under_way.append(pool.submit(work, piece))
        while under_way:
            yield under_way.popleft().result()
    torch.set_num_threads(threads)
