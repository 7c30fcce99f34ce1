"""Work off the window's thread, and its outcome back on it.

``run_task`` runs a function on a worker thread; ``bind_future`` follows a future of the store. Both call ``done`` or
``failed`` on the window's thread, and neither when the widget that asked is gone by then.
"""

from __future__ import annotations

import gc
import itertools
import logging
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, TypeVar

import shiboken6
from PySide6.QtCore import QCoreApplication, QObject, Qt, QTimer, Signal, SignalInstance

T = TypeVar("T")
_NAME = "tastemaker.operations"
_log = logging.getLogger("tastemaker.ui")
Failure = Callable[[BaseException], object]
JOIN_S = 5.0
COLLECT_MS = 1000
WHOLE_EVERY_S = 300.0


class Worker(Protocol):
    """A thread of its own, such as one that follows a run."""

    def stop(self) -> None:
        """Ask it to end; returns at once."""

    def is_alive(self) -> bool:
        """Whether it still runs."""

    def join(self, timeout: float | None = None) -> None:
        """Wait for its end."""


@dataclass(slots=True)
class _Wish:
    """Who is told of an outcome. It stays on the window's thread: the future knows only its number."""

    work: Any
    done: Callable[[Any], object] | None
    failed: Failure | None
    owner: QObject | None
    write: bool


class _Work:
    """A function to run once, forgotten by the worker as soon as it returns: what it holds dies elsewhere."""

    __slots__ = ("_work",)

    def __init__(self, work: Callable[[], Any]) -> None:
        self._work: Callable[[], Any] | None = work

    def __call__(self) -> Any:
        work, self._work = self._work, None
        assert work is not None
        try:
            return work()
        finally:
            del work


class Operations(QObject):
    """Worker threads and the way back to the window's thread; one for each application, made on first use."""

    writes_changed: SignalInstance = Signal(int)  # type: ignore[assignment]  # store writes that are not yet on disk
    write_failed: SignalInstance = Signal(object)  # type: ignore[assignment]
    _call: SignalInstance = Signal(object)  # type: ignore[assignment]

    def __init__(self, parent: QObject | None) -> None:
        super().__init__(parent)
        self.setObjectName(_NAME)
        self.pool = ThreadPoolExecutor(max_workers=4, thread_name_prefix="task")
        self.pending = 0
        self.writes = 0
        self._holding: list[QObject] = []  # whose newest write failed
        self._workers: list[Worker] = []
        self._wishes: dict[int, _Wish] = {}
        self._numbers = itertools.count()
        self._call.connect(self._on_call, Qt.ConnectionType.QueuedConnection)

    def post(self, call: Callable[[], None]) -> None:
        """Run ``call`` on the window's thread, soon. May be called from any thread."""
        if not shiboken6.isValid(self):
            return
        try:
            self._call.emit(call)
        except RuntimeError:  # the application went while we asked
            _log.debug("the window was gone before an outcome reached it")

    @property
    def unsaved(self) -> bool:
        """Whether somebody who keeps what could not be written (and has ``unsaved`` to tell it) still holds some."""
        self._holding = [one for one in self._holding if _alive(one)]
        return bool(self._holding)

    def count_write(self, step: int) -> None:
        """Note that a write began (1) or ended (-1)."""
        self.writes += step
        self.writes_changed.emit(self.writes)

    def adopt(self, worker: Worker) -> None:
        """Take charge of a thread that has begun: it is ended with the project, and waited for at the end."""
        self._workers = [one for one in self._workers if one.is_alive()] + [worker]

    def stop_workers(self, *, wait: bool = False) -> None:
        """Ask the adopted threads to end, and wait for them if asked."""
        for one in self._workers:
            one.stop()
        if wait:
            for one in self._workers:
                one.join(JOIN_S)

    def follow(self, future: Future[T], wish: _Wish) -> Future[T]:
        """Fulfil a wish on the window's thread once the future has ended."""
        number = next(self._numbers)
        self._wishes[number] = wish
        self.pending += 1
        if wish.write:
            self.count_write(1)
        future.add_done_callback(partial(self._ended, number))
        return future

    def _ended(self, number: int, future: Future[Any]) -> None:
        self.post(partial(self._fulfil, number, future))

    def _fulfil(self, number: int, future: Future[Any]) -> None:
        wish = self._wishes.pop(number)
        self.pending -= 1
        error = None if future.cancelled() else future.exception()
        if wish.write:
            self._note_write(wish.owner, error)
        if error is not None:
            if reaches(wish.owner, wish.failed):
                (wish.failed or show_failure)(error)
        elif wish.done is not None and not future.cancelled() and reaches(wish.owner, wish.done):
            wish.done(future.result())

    def _note_write(self, owner: QObject | None, error: BaseException | None) -> None:
        self._holding = [one for one in self._holding if one is not owner]
        if error is not None and owner is not None and hasattr(type(owner), "unsaved"):
            self._holding.append(owner)
        self.count_write(-1)
        if error is not None:
            self.write_failed.emit(error)

    def _on_call(self, call: Callable[[], None]) -> None:
        call()


class Collector(QObject):
    """Collects garbage on the window's thread alone.

    A cycle may hold widgets, and Python collects on whichever thread happens to allocate; a widget that is destroyed
    on a worker thread takes the window down. What is young is collected as often as Python would, which takes no time;
    all of it, which takes longer than a frame, every few minutes at most.
    """

    def __init__(self, parent: QObject | None = None) -> None:
        super().__init__(parent)
        gc.disable()
        self._whole_at = time.monotonic()
        self._timer = QTimer(self)
        self._timer.timeout.connect(self.collect)
        self._timer.start(COLLECT_MS)

    def collect(self) -> None:
        """Collect the generations that are due."""
        young, middle, old = (count > most for count, most in zip(gc.get_count(), gc.get_threshold(), strict=True))
        if old and time.monotonic() - self._whole_at >= WHOLE_EVERY_S:
            self._whole_at = time.monotonic()
            gc.collect()
        elif middle:
            gc.collect(1)
        elif young:
            gc.collect(0)

    def stop(self) -> None:
        """Leave it to Python again."""
        self._timer.stop()
        gc.enable()


def operations() -> Operations:
    """Return the application's operations. The first call must come from the window's thread."""
    app = QCoreApplication.instance()
    if app is None:
        raise RuntimeError("operations need an application")
    found = app.findChild(Operations, _NAME, Qt.FindChildOption.FindDirectChildrenOnly)
    return found if isinstance(found, Operations) else Operations(app)


def post(call: Callable[[], None]) -> None:
    """Run ``call`` on the window's thread, after what is queued there now."""
    operations().post(call)


def run_task(
    work: Callable[[], T],
    done: Callable[[T], None] | None = None,
    failed: Failure | None = None,
    *,
    owner: QObject | None = None,
    pool: ThreadPoolExecutor | None = None,
) -> Future[T]:
    """Run ``work`` on a worker thread, then ``done(result)`` or ``failed(error)`` on the window's.

    Without ``failed`` the error is shown as a card. Nothing is called when ``owner`` (or the object whose bound
    method ``done`` is) has been deleted meanwhile. ``pool`` is for work so long that it would hold up all other.
    """
    ops = operations()
    return ops.follow((pool or ops.pool).submit(_Work(work)), _Wish(work, done, failed, owner, write=False))


def bind_future(
    future: Future[T],
    done: Callable[[T], None] | None = None,
    failed: Failure | None = None,
    *,
    owner: QObject | None = None,
) -> Future[T]:
    """Follow a future (a write of the store) as :func:`run_task` follows its work."""
    return operations().follow(future, _Wish(None, done, failed, owner, write=True))


def show_failure(error: BaseException) -> None:
    """Show an error as a card over the active window: what happened, why, and what to do."""
    from ui.error_card import show_error  # late: most starts never need the dialog

    show_error(error)


def shutdown() -> None:
    """Wait for the work that has begun and drop what has not; call before the application ends."""
    ops = operations()
    ops.stop_workers(wait=True)
    ops.pool.shutdown(wait=True, cancel_futures=True)


def reaches(owner: QObject | None, called: Callable[..., object] | None) -> bool:
    """Whether who asked, and the object whose bound method is to be called, are still there."""
    return _alive(owner) and _alive(getattr(called, "__self__", None))


def _alive(owner: Any) -> bool:
    return not isinstance(owner, QObject) or shiboken6.isValid(owner)
