"""What memory a run holds in each of its phases; and when it runs out: take smaller bites, keep the batch, say so."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import resource
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import torch

from workbench.machine_memory import available_bytes
from workbench.memory_plan import CUDA_CONTEXT_BYTES, PHASE_OF

if TYPE_CHECKING:
    from engine.session import Session

_M_ARENA_MAX = -8  # of glibc's mallopt
_OUT_OF_MEMORY_WORDS = ("out of memory", "can't allocate memory", "alloc_failed")
T = TypeVar("T")
R = TypeVar("R")


def run_micro_batched(
    session: Session,
    rows: Sequence[T],
    micro_batch: int,
    work: Callable[[Sequence[T]], R],
    *,
    reset: Callable[[], None] = lambda: None,
    cut: Callable[[Sequence[T], int], Sequence[Sequence[T]]] | None = None,
    learns: bool = True,
) -> tuple[list[R], int]:
    """Do ``work`` (forward and backward) on the rows in micro-batches; when memory runs out, halve and start again.

    ``cut`` says which rows make a micro-batch; by default as many neighbours as it holds. ``learns`` is False where
    the rows are only measured: it chooses the words of the notice.

    The effective batch stays: all rows are accumulated before the caller's optimiser step. A micro-batch that ran
    out of memory in its backward pass leaves some gradients added and others not, so the whole batch starts again:
    ``reset`` must set the gradients (and whatever the caller sums) back to where they were before the batch, and
    the random numbers are put back here.

    Returns the results in the order of the rows, and the micro-batch that fitted: hand it in the next time. What is
    halved is the largest part that was cut, so that every new try is smaller. A single row is tried once more when
    ``reset`` and caches may have let go of something; that leaves the micro-batch as it was.
    Raises the out-of-memory error when not even one row fits.
    """
    released = False
    before = torch.get_rng_state()
    before_cuda = torch.cuda.get_rng_state() if session.device.type == "cuda" else None
    while True:
        results: list[R] = []
        failed = False
        parts = (cut or _neighbours)(rows, micro_batch)
        tried = min(micro_batch, max((len(part) for part in parts), default=0))
        try:
            results.extend(work(part) for part in parts)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error) or (tried <= 1 and released):
                raise
            failed = True  # leave the except block first: its traceback holds the tensors
        if not failed:
            return results, micro_batch
        results.clear()
        reset()
        free_memory()
        torch.set_rng_state(before)
        if before_cuda is not None:
            torch.cuda.set_rng_state(before_cuda)
        _warn_of_smaller_bites(session, tried, len(rows), learns=learns)
        if tried > 1:
            micro_batch = tried // 2
        else:
            released = True  # a row alone, once more with what was let go of: nothing became smaller


def run_batches(
    session: Session,
    batches: Sequence[Sequence[T]],
    micro_batch: int,
    work: Callable[[Sequence[T]], R],
    *,
    cut: Callable[[Sequence[T], int], Sequence[Sequence[T]]],
    reset: Callable[[], None] = lambda: None,
) -> tuple[list[R], int]:
    """Measure the rows of several batches as one sum: :func:`run_micro_batched`, with each batch cut by itself.

    Then the rows pass in the very parts that they would have batch by batch, as a reference's did.
    """
    rows = [row for batch in batches for row in batch]

    def parts(_: Sequence[T], most: int) -> list[Sequence[T]]:
        return [part for batch in batches for part in cut(batch, most)]

    return run_micro_batched(session, rows, micro_batch, work, reset=reset, cut=parts, learns=False)


def _warn_of_smaller_bites(session: Session, tried: int, rows: int, *, learns: bool) -> None:
    ran_out = f"Memory ran out in the {phase_in_words(session.phase_name)} phase with"
    if tried <= 1:
        going_on = f"{ran_out} a single row; what could be let go was, and it is tried once more"
    else:
        kept = f"the batch of {rows} stays" if learns else f"all {rows} are measured"
        going_on = f"{ran_out} {tried} rows at once; going on with {tried // 2}, {kept}"
    remedy = "leave micro_batch at 0 next time, so that the memory plan chooses it, or turn gradient checkpointing on"
    session.warn("oom", going_on, remedy)


@dataclass
class MicroBatch:
    """Rows that pass at once, and the phase in which more of them ran out of memory; a checkpoint keeps both.

    So a resumed run goes on with what fitted: it neither runs out again nor sums in another order.
    """

    rows: int
    ran_out_in: str = ""  # the plan's name of the phase; "" while the micro-batch is the recipe's

    def run(
        self,
        session: Session,
        rows: Sequence[T],
        work: Callable[[Sequence[T]], R],
        *,
        reset: Callable[[], None] = lambda: None,
        cut: Callable[[Sequence[T], int], Sequence[Sequence[T]]] | None = None,
        learns: bool = True,
    ) -> list[R]:
        """:func:`run_micro_batched` with so many rows at once; from then on with what fitted."""
        results, fitted = run_micro_batched(session, rows, self.rows, work, reset=reset, cut=cut, learns=learns)
        self.take(session, fitted)
        return results

    def take(self, session: Session, fitted: int, phase: str = "") -> None:
        """Go on with what fitted in a phase of the engine; by default in the session's present one."""
        if fitted < self.rows:
            self.rows, self.ran_out_in = fitted, phase_in_words(phase or session.phase_name)

    def state(self) -> dict[str, int | str]:
        """What a checkpoint keeps."""
        return {"rows": self.rows, "ran_out_in": self.ran_out_in}

    def restore(self, session: Session, state: Mapping[str, int | str]) -> None:
        """Go on as a checkpoint has it, and say so where that is not what the recipe asks for."""
        self.rows, self.ran_out_in = int(state["rows"]), str(state["ran_out_in"])
        if self.ran_out_in:
            session.note(
                "micro-batch",
                f"Going on with {self.rows} rows at once, as before: more ran out of memory in the {self.ran_out_in} "
                "phase",
            )


def warn_of_less_room(session: Session, tried: int, room: int) -> None:
    """Say that sampling ran out of memory and goes on with fewer rows at once; nothing that was drawn is lost."""
    session.warn(
        "oom",
        f"Memory ran out in the {phase_in_words(session.phase_name)} phase with {tried} responses sampled at once; "
        f"going on with {room} at once, all are drawn",
        "shorten responses or prompts, or hold the base in nf4",
    )


def phase_in_words(name: str) -> str:
    """The memory plan's name of one of the engine's phases (rollout, score, update); its own where it has none."""
    return PHASE_OF.get(name, name) or "starting"


def _neighbours(rows: Sequence[T], micro_batch: int) -> list[Sequence[T]]:
    return [rows[start : start + micro_batch] for start in range(0, len(rows), micro_batch)]


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether an error means that memory ran out, on the GPU or on the machine."""
    if isinstance(error, MemoryError | torch.cuda.OutOfMemoryError):
        return True
    words = str(error).lower()
    return isinstance(error, RuntimeError) and any(one in words for one in _OUT_OF_MEMORY_WORDS)


def one_heap() -> None:
    """Let all threads that come allocate from one heap, where the C library is glibc.

    Of its own accord each has one, and what a thread frees no other can use: with the many sizes of a bf16 pass that is
    an eighth of a run's memory, and one heap takes no more time. (In fp32 it takes some 2 % more, and is left alone.)
    """
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, 1)


def free_memory() -> None:
    """Give back what nobody uses any more."""
    gc.collect()
    free_unused()


def free_unused() -> None:
    """Give back what a GPU's allocator keeps and nobody uses; other programs have no other way to it."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def free_bytes(device: torch.device) -> int:
    """Memory that may still be taken. What a GPU's allocator keeps and nobody uses is free too."""
    if device.type == "cuda":
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0] + kept)
    return available_bytes()


def bytes_for_run(device: torch.device) -> int:
    """What this process may hold in all, as the plan counts it: what is free, and the libraries that it holds."""
    return free_bytes(device) + (CUDA_CONTEXT_BYTES if device.type == "cuda" else memory_bytes(device)[0])


def memory_bytes(device: torch.device) -> tuple[int, int]:
    """Return memory in use and its peak: allocated on the GPU, or the resident set of this process."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device), torch.cuda.max_memory_allocated(device)
    scale = 1 if sys.platform == "darwin" else 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale
    try:
        with open("/proc/self/statm", "rb") as source:
            now = int(source.read().split()[1]) * resource.getpagesize()
    except OSError:
        now = peak
    return now, max(now, peak)


class PhasePeaks:
    """The most memory that was held in each phase: tensors on a GPU, the resident set of this process on a CPU.

    Linux sets a process's high-water mark back on request. Elsewhere the mark only rises, and a phase that did not
    raise it counts with what it held when it ended.
    """

    def __init__(self, device: torch.device) -> None:
        self.peaks: dict[str, int] = {}
        self._device = device
        self._phase = ""
        self._resets = True
        self._mark = 0  # the high-water mark as this phase began

    def enter(self, name: str) -> None:
        """Another phase begins."""
        self.read()
        self._phase = name
        self._resets = _reset_high_water(self._device)
        self._mark = _high_water(self._device)

    def read(self) -> dict[str, int]:
        """The peaks so far, the present phase's among them."""
        mark = _high_water(self._device)
        held = mark if self._resets or mark > self._mark else memory_bytes(self._device)[0]
        if self._phase:
            self.peaks[self._phase] = max(held, self.peaks.get(self._phase, 0))
        return dict(self.peaks)


def _high_water(device: torch.device) -> int:
    return memory_bytes(device)[1]


def _reset_high_water(device: torch.device) -> bool:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return True
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return False
    return True
