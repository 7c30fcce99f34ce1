"""Parts of one pass computed by one thread each, instead of every matrix product by all threads.

Between two products a pass does small things, in Python and in kernels too small to be shared; there all threads but
one wait. Two halves of a pass on two threads wait for nothing but each other's end (measured on two cores: a tenth
less time). What they give is added in their order, so that a run is the same every time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from functools import lru_cache
from typing import TypeVar

import torch

T = TypeVar("T")
WAYS = 2
_EVEN = 0.56
"""The larger part's share of the work at most: two threads gain an eighth, and the smaller part's thread waits."""


def side_by_side(works: Sequence[Callable[[], T]]) -> list[T]:
    """Do the works at once, without gradients, each with its share of the threads. Returns what they return, in order.

    All have ended when an error is raised: the first one's.
    """
    if len(works) == 1:
        return [works[0]()]
    threads = torch.get_num_threads()
    each = max(1, threads // len(works))
    torch.set_num_threads(each)  # of the matrix library, which has one number for all
    try:
        futures = [_pool().submit(_without_gradients, work, each) for work in works]
        wait(futures)
    finally:
        torch.set_num_threads(threads)
    return [one.result() for one in futures]


def _without_gradients(work: Callable[[], T], threads: int) -> T:
    torch.set_num_threads(threads)  # of everything else, for which every thread has its own number
    with torch.no_grad():
        return work()


@lru_cache(maxsize=1)
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(WAYS, thread_name_prefix="pass")


def shares(costs: Sequence[float]) -> list[list[int]]:
    """Deal pieces of work out to the threads: the dearest first, each to whom has least (Graham 1969).

    Returns the pieces of each part, in order; one part with all where two would be too uneven.
    """
    every = [list(range(len(costs)))]
    if torch.get_num_threads() < WAYS:
        return every
    parts: list[list[int]] = [[] for _ in range(WAYS)]
    sums = [0.0] * WAYS
    for piece in sorted(range(len(costs)), key=lambda one: -costs[one]):
        least = sums.index(min(sums))
        parts[least].append(piece)
        sums[least] += costs[piece]
    if max(sums) > _EVEN * sum(sums):
        return every
    return [sorted(part) for part in parts]
