"""Follows a run from a thread of its own: new events as digested batches, and its state, on the window's thread.

The thread reads the run's files (they are the truth) and listens for the engine's heartbeat; the window only adds
arrays. A vanished process is seen within half a second: its lock is free. Silence is reported, never acted upon.
"""

from __future__ import annotations

import contextlib
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from PySide6.QtCore import QObject, Qt, Signal, SignalInstance

from ui.run_history import Batch, digest
from workbench.run_folder import EventTail, RunFolder, RunStatus
from workbench.supervisor import NOT_RESPONDING_AFTER_S, EngineConnection

EVENTS_S = 0.1
STATUS_S = 0.4
RESTING_S = 1.0
"""An ended run is looked at this often: somebody may resume it."""
CHUNK_BYTES = 512 * 1024


@dataclass(frozen=True, slots=True)
class Seen:
    """A run's state, and how long its engine has been silent."""

    status: RunStatus
    silent_s: float = 0.0

    @property
    def not_responding(self) -> bool:
        """Whether a living engine has said nothing for so long that the researcher should know."""
        return self.silent_s >= NOT_RESPONDING_AFTER_S and self.status.state in ("running", "stopping", "paused")


class RunFollower(QObject):
    """Delivers ``batch(Batch)`` and ``seen(Seen)`` of one run on the thread that made it, until :meth:`stop`.

    ``caught_up`` is sent once, when everything that was in the file at the start has been delivered.
    """

    batch: SignalInstance = Signal(object)  # type: ignore[assignment]
    seen: SignalInstance = Signal(object)  # type: ignore[assignment]
    caught_up: SignalInstance = Signal()  # type: ignore[assignment]
    _from_thread: SignalInstance = Signal(object)  # type: ignore[assignment]

    def __init__(self, run_dir: Path, *, listen: bool = True) -> None:
        super().__init__()
        self.run_dir = run_dir
        self._listen = listen
        self._stop = threading.Event()
        self._wake = threading.Event()
        self._from_thread.connect(self._on_thread, Qt.ConnectionType.QueuedConnection)
        self._thread = threading.Thread(target=self._run, name=f"follow-{run_dir.name[:8]}", daemon=True)

    def start(self) -> RunFollower:
        """Begin to follow."""
        self._thread.start()
        return self

    def stop(self, *, wait: bool = False) -> None:
        """Stop following; nothing is delivered after this returns."""
        self._stop.set()
        self._wake.set()
        if wait and self._thread.is_alive():
            self._thread.join(2.0)

    def look_now(self) -> None:
        """Look again at once (a command was just given)."""
        self._wake.set()

    # ---- on the window's thread ----

    def _on_thread(self, found: Batch | Seen | None) -> None:
        if self._stop.is_set():
            return
        if isinstance(found, Batch):
            self.batch.emit(found)
        elif isinstance(found, Seen):
            self.seen.emit(found)
        else:
            self.caught_up.emit()

    # ---- on the follower's thread ----

    def _run(self) -> None:
        connection: EngineConnection | None = None
        try:
            if self._listen:
                connection = EngineConnection(self.run_dir, lambda _pong: None)
            self._follow(connection)
        except RuntimeError:  # the window went, and this object with it
            return
        finally:
            if connection is not None:
                connection.close()

    def _follow(self, connection: EngineConnection | None) -> None:
        folder = RunFolder(self.run_dir)
        tail = EventTail(folder.events_path)
        looked, caught_up, told = -STATUS_S, False, Seen(RunStatus("queued"), -1.0)
        while not self._stop.is_set():
            events = tail.read_new(CHUNK_BYTES)
            if events:
                self._from_thread.emit(digest(events))
            elif not caught_up:
                caught_up = True
                self._from_thread.emit(None)
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
                        self._from_thread.emit(found)
            if not events:
                self._wake.wait(EVENTS_S if told.status.alive or not caught_up else RESTING_S)
