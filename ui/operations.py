"""Work off the window's thread, and its outcome back on it.

``run_task`` runs a function on a worker thread; ``bind_future`` follows a future of the store. Both call ``done`` or
``failed`` on the window's thread, and neither when the widget that asked is gone by then.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from typing import Any, TypeVar

import shiboken6
from PySide6.QtCore import QCoreApplication, QObject, Qt, Signal, SignalInstance

T = TypeVar("T")
_NAME = "tastemaker.operations"
_log = logging.getLogger("tastemaker.ui")
Failure = Callable[[BaseException], object]


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
        self._call.connect(self._on_call, Qt.ConnectionType.QueuedConnection)

    def post(self, call: Callable[[], None]) -> None:
        """Run ``call`` on the window's thread, soon. May be called from any thread."""
        if not shiboken6.isValid(self):
            return
        try:
            self._call.emit(call)
        except RuntimeError:  # the application went while we asked
            _log.debug("the window was gone before an outcome reached it")

    def count_write(self, step: int) -> None:
        """Note that a write began (1) or ended (-1)."""
        self.writes += step
        self.writes_changed.emit(self.writes)

    def _on_call(self, call: Callable[[], None]) -> None:
        call()


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
) -> Future[T]:
    """Run ``work`` on a worker thread, then ``done(result)`` or ``failed(error)`` on the window's.

    Without ``failed`` the error is shown as a card. Nothing is called when ``owner`` (or the object whose bound
    method ``done`` is) has been deleted meanwhile.
    """
    return _follow(operations().pool.submit(work), done, failed, owner, write=False)


def bind_future(
    future: Future[T],
    done: Callable[[T], None] | None = None,
    failed: Failure | None = None,
    *,
    owner: QObject | None = None,
) -> Future[T]:
    """Follow a future (a write of the store) as :func:`run_task` follows its work."""
    return _follow(future, done, failed, owner, write=True)


def _follow(
    future: Future[T], done: Callable[[T], None] | None, failed: Failure | None, owner: QObject | None, *, write: bool
) -> Future[T]:
    ops = operations()
    ops.pending += 1
    if write:
        ops.count_write(1)

    def deliver() -> None:
        ops.pending -= 1
        if write:
            ops.count_write(-1)
        try:
            result = future.result()
        except CancelledError:
            return
        except Exception as error:
            if write:
                ops.write_failed.emit(error)
            if _alive(owner) and _alive(getattr(failed, "__self__", None)):
                (failed or show_failure)(error)
            return
        if done is not None and _alive(owner) and _alive(getattr(done, "__self__", None)):
            done(result)

    future.add_done_callback(lambda _: ops.post(deliver))
    return future


def show_failure(error: BaseException) -> None:
    """Show an error as a card over the active window: what happened, why, and what to do."""
    from ui.error_card import show_error  # late: most starts never need the dialog

    show_error(error)


def shutdown() -> None:
    """Wait for the work that has begun and drop what has not; call before the application ends."""
    operations().pool.shutdown(wait=True, cancel_futures=True)


def _alive(owner: Any) -> bool:
    return not isinstance(owner, QObject) or shiboken6.isValid(owner)
