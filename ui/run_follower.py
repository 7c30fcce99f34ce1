"""Follows a run from a thread of its own: new events as digested batches, and its state, on the window's thread.

The thread reads the run's files (they are the truth) and listens for the engine's heartbeat; the window only adds
arrays. A vanished process is seen within half a second: its lock is free. Silence is reported, never acted upon.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import shiboken6
from PySide6.QtCore import QObject, Signal, SignalInstance

from ui.operations import operations
from ui.run_history import Batch, digest
from workbench.run_folder import EventTail, RunFolder, RunStatus
from workbench.supervisor import NOT_RESPONDING_AFTER_S, EngineConnection

EVENTS_S = 0.1
STATUS_S = 0.4
RESTING_S = 1.0
"""An ended run is looked at this often: somebody may resume it."""
CHUNK_BYTES = 512 * 1024
_log = logging.getLogger("tastemaker.ui")


@dataclass(frozen=True, slots=True)
class Seen:
    """A run's state, and how long its engine has been silent."""

    status: RunStatus
    silent_s: float = 0.0

    @property
    def not_responding(self) -> bool:
        """Whether a living engine has said nothing for so long that the researcher should know."""
        return self.silent_s >= NOT_RESPONDING_AFTER_S and self.status.state in ("running", "stopping", "paused")


@dataclass(frozen=True, slots=True)
class Stopped:
    """Following ended by a fault: ours, or a folder that cannot be read."""

    error: Exception


Found = Batch | Seen | Stopped | None


class Reader(threading.Thread):
    """Reads one run and hands what it finds to ``tell``, on this thread.

    It knows no object of Qt, so that none can be destroyed here: whatever it holds may be let go of on its thread.
    """

    def __init__(self, run_dir: Path, tell: Callable[[Found], None], *, listen: bool) -> None:
        super().__init__(name=f"follow-{run_dir.name[:8]}", daemon=True)
        self._run_dir = run_dir
        self._tell = tell
        self._listen = listen
        self._stopped = threading.Event()
        self._wake = threading.Event()

    def stop(self) -> None:
        """Ask it to end; returns at once."""
        self._stopped.set()
        self._wake.set()

    def look_now(self) -> None:
        """Look again at once."""
        self._wake.set()

    def run(self) -> None:
        """Read until :meth:`stop`; a fault is told, and ends it."""
        connection: EngineConnection | None = None
        try:
            if self._listen:
                connection = EngineConnection(self._run_dir, lambda _pong: None)
            self._follow(connection)
        except Exception as error:
            self._tell(Stopped(error))
        finally:
            if connection is not None:
                connection.close()

    def _follow(self, connection: EngineConnection | None) -> None:
        folder = RunFolder(self._run_dir)
        tail = EventTail(folder.events_path)
        looked, caught_up, told = -STATUS_S, False, Seen(RunStatus("queued"), -1.0)
        while not self._stopped.is_set():
            events = tail.read_new(CHUNK_BYTES)
            if events:
                self._tell(digest(events))
            elif not caught_up:
                caught_up = True
                self._tell(None)
            now = time.monotonic()
            if now - looked >= STATUS_S or self._wake.is_set():
                self._wake.clear()
                looked = now
                with contextlib.suppress(OSError):
                    status = folder.state()
                    silent = round(connection.silent_s, 1) if connection is not None and status.alive else 0.0
                    found = Seen(status, silent if silent >= 3 else 0.0)
                    if found != told:
                        told = found
                        self._tell(found)
            if not events:
                self._wake.wait(EVENTS_S if told.status.alive or not caught_up else RESTING_S)


class RunFollower(QObject):
    """Delivers ``batch(Batch)`` and ``seen(Seen)`` of one run on the thread that made it, until :meth:`stop`.

    ``caught_up`` is sent once, when everything that was in the file at the start has been delivered;
    ``failed(Exception)`` when it cannot follow any further.
    """

    batch: SignalInstance = Signal(object)  # type: ignore[assignment]
    seen: SignalInstance = Signal(object)  # type: ignore[assignment]
    caught_up: SignalInstance = Signal()  # type: ignore[assignment]
    failed: SignalInstance = Signal(object)  # type: ignore[assignment]

    def __init__(self, run_dir: Path, parent: QObject | None = None, *, listen: bool = True) -> None:
        super().__init__(parent)
        me, ops = weakref.ref(self), operations()

        def tell(found: Found) -> None:
            ops.post(lambda: _deliver(me, found))

        self.run_dir = run_dir
        self._stopped = False
        self._reader = Reader(run_dir, tell, listen=listen)
        weakref.finalize(self, self._reader.stop)

    def start(self) -> RunFollower:
        """Begin to follow."""
        self._reader.start()
        operations().adopt(self._reader)
        return self

    def stop(self, *, wait: bool = False) -> None:
        """Stop following; nothing is delivered after this returns."""
        self._stopped = True
        self._reader.stop()
        if wait and self._reader.is_alive():
            self._reader.join(2.0)

    def look_now(self) -> None:
        """Look again at once (a command was just given)."""
        self._reader.look_now()

    def _take(self, found: Found) -> None:
        if self._stopped:
            return
        if isinstance(found, Batch):
            self.batch.emit(found)
        elif isinstance(found, Seen):
            self.seen.emit(found)
        elif isinstance(found, Stopped):
            _log.error("the run in %s is followed no further", self.run_dir, exc_info=found.error)
            self.failed.emit(found.error)
        else:
            self.caught_up.emit()


def _deliver(follower: weakref.ref[RunFollower], found: Found) -> None:
    """Hand over on the window's thread, to a follower that is still there."""
    receiver = follower()
    if receiver is None:
        return
    if shiboken6.isValid(receiver):
        receiver._take(found)
    else:
        receiver.stop()
