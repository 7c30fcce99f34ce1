"""Parts of one pass computed by one thread each, instead of every matrix product by all threads.

Between two products a pass does small things, in Python and in kernels too small to be shared; there all threads but
one wait. Two halves of a pass on two threads wait for each other only where one needs what the other has (measured on
two cores: a tenth less time). What they give is added in their order, so that a run is the same every time.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from functools import lru_cache
from typing import Any, TypeVar

import torch

T = TypeVar("T")
WAYS = 2
_one_pass = threading.Lock()
"""Works that meet must run at once; those of a second pass would take the threads that they wait for."""


class Meeting:
    """Where works that run at once show one another what they have, each as often as the others."""

    def __init__(self, works: int) -> None:
        self._barrier = threading.Barrier(works)
        self._shown: tuple[list[Any], list[Any]] = ([None] * works, [None] * works)
        self._turns = [0] * works

    def hand_round(self, number: int, own: T) -> list[T]:
        """What each work shows this time, in the order of their numbers. Waits for the last.

        Nobody may change what was shown before the next time.
        """
        shown = self._shown[self._turns[number] % 2]  # who is a turn ahead does not write over what others still read
        self._turns[number] += 1
        shown[number] = own
        self._barrier.wait()
        return list(shown)

    def end(self) -> None:
        """Let go of what was shown last."""
        for shown in self._shown:
            shown[:] = [None] * len(shown)

    def call_off(self) -> None:
        """Let those go who wait for a work that will not come: they get ``BrokenBarrierError``."""
        self._barrier.abort()


def side_by_side(works: Sequence[Callable[[], T]], meeting: Meeting | None = None) -> list[T]:
    """Do the works at once, without gradients, each with its share of the threads. Returns what they return, in order.

    All have ended when an error is raised: the first one's. ``meeting``: where they meet, if they do.
    """
    if len(works) == 1:
        return [works[0]()]
    threads = torch.get_num_threads()
    each = max(1, threads // len(works))
    mode = torch.inference_mode if torch.is_inference_mode_enabled() else torch.no_grad
    futures: list[Future[T]] = []
    with _one_pass:
        try:
            torch.set_num_threads(each)  # of the matrix library, which has one number for all
            futures.extend(_pool().submit(_as_here, work, each, mode, meeting) for work in works)
            wait(futures)
        except BaseException:  # a run that is cancelled, or no thread for the second work: the first would wait for it
            if meeting is not None:
                meeting.call_off()
            wait(futures)
            raise
        finally:
            torch.set_num_threads(threads)
            if meeting is not None:
                meeting.end()
    for one in futures:
        error = one.exception()
        if error is not None and not isinstance(error, threading.BrokenBarrierError):
            raise error
    return [one.result() for one in futures]


def _as_here(work: Callable[[], T], threads: int, mode: Callable[[], Any], meeting: Meeting | None) -> T:
    torch.set_num_threads(threads)  # of everything else, for which every thread has its own number
    try:
        with mode():
            return work()
    except BaseException:
        if meeting is not None:
            meeting.call_off()
        raise


@lru_cache(maxsize=1)
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(WAYS, thread_name_prefix="pass")
