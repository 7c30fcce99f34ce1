"""What to do when memory runs out: take smaller bites, keep the batch, and say so."""

from __future__ import annotations

import gc
import resource
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeVar

import torch

if TYPE_CHECKING:
    from engine.session import Session

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
) -> tuple[list[R], int]:
    """Do ``work`` (forward and backward) on the rows in micro-batches; when memory runs out, halve and start again.

    ``cut`` says which rows make a micro-batch; by default as many neighbours as it holds.

    The effective batch stays: all rows are accumulated before the caller's optimiser step. A micro-batch that ran
    out of memory in its backward pass leaves some gradients added and others not, so the whole batch starts again:
    ``reset`` must set the gradients (and whatever the caller sums) back to where they were before the batch, and
    the random numbers are put back here.

    Returns the results in the order of the rows, and the micro-batch that fitted: hand it in the next time.
    Raises the out-of-memory error when not even one row fits.
    """
    before = torch.get_rng_state()
    before_cuda = torch.cuda.get_rng_state() if session.device.type == "cuda" else None
    while True:
        results: list[R] = []
        failed = False
        try:
            results.extend(work(part) for part in (cut or _neighbours)(rows, micro_batch))
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error) or micro_batch == 1:
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
        smaller = max(1, micro_batch // 2)
        session.warn(
            "oom",
            f"Memory ran out with {micro_batch} rows at once{_in_phase(session)}; going on with {smaller}, "
            f"the batch of {len(rows)} stays",
            "set micro_batch lower next time, or turn gradient checkpointing on",
        )
        micro_batch = smaller


def _in_phase(session: Session) -> str:
    name = getattr(session, "phase_name", "")
    return f" (phase: {name})" if name else ""


def _neighbours(rows: Sequence[T], micro_batch: int) -> list[Sequence[T]]:
    return [rows[start : start + micro_batch] for start in range(0, len(rows), micro_batch)]


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether an error means that memory ran out, on the GPU or on the machine."""
    if isinstance(error, MemoryError | torch.cuda.OutOfMemoryError):
        return True
    words = str(error).lower()
    return isinstance(error, RuntimeError) and any(one in words for one in _OUT_OF_MEMORY_WORDS)


def free_memory() -> None:
    """Give back what nobody uses any more."""
    gc.collect()
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.empty_cache()


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
