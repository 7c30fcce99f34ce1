"""The engine's own pen: appends whole numbered lines to ``events.jsonl`` and ``samples.jsonl``."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from typing import TypeVar

import msgspec

from workbench.ids import now
from workbench.jsonl import encode
from workbench.protocol import AnyEvent, Event
from workbench.reaper import trim_torn_line
from workbench.run_folder import parse_event

E = TypeVar("E", bound=Event)
BACKLOG_LINES = 100_000


class Appender:
    """Appends lines that are whole or absent, even on a full disk.

    What does not fit is cut off again and kept in memory for the next try, in order.
    """

    def __init__(self, path: Path) -> None:
        trim_torn_line(path)
        self._handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self.backlog: list[bytes] = []

    @property
    def size(self) -> int:
        """Bytes in the file."""
        return os.fstat(self._handle).st_size

    def append(self, lines: bytes) -> bool:
        """Append whole lines; False when the disk is full and they wait in memory."""
        if len(self.backlog) < BACKLOG_LINES:
            self.backlog.append(lines)
        while self.backlog:
            before = self.size
            try:
                written = os.write(self._handle, self.backlog[0])
            except OSError:
                written = -1
            if written != len(self.backlog[0]):
                os.ftruncate(self._handle, before)
                return False
            self.backlog.pop(0)
        return True

    def sync(self) -> None:
        """Make what was appended durable."""
        os.fsync(self._handle)

    def close(self) -> None:
        """Close the file."""
        os.close(self._handle)


class EventLog:
    """Numbers events and appends them; safe from any thread. Numbers and elapsed time go on across resumes."""

    def __init__(self, run_dir: Path) -> None:
        path = run_dir / "events.jsonl"
        self._file = Appender(path)
        self._lock = threading.Lock()
        last = _last_event(path)
        self.seq = last.seq if last else -1  # number of the newest event
        self._elapsed_before = last.elapsed_s if last else 0.0
        self._began = time.monotonic()

    def emit(self, event: E) -> E:
        """Append the event with its number and time. Raises ValueError for a NaN: JSON has none."""
        with self._lock:
            elapsed = self._elapsed_before + time.monotonic() - self._began
            whole = msgspec.structs.replace(event, seq=self.seq + 1, at=now(), elapsed_s=round(elapsed, 3))
            line = encode(whole) + b"\n"
            self.seq += 1
            self._file.append(line)
            return whole

    def sync(self) -> None:
        """Make the events durable."""
        self._file.sync()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class SampleFile:
    """Appends to ``samples.jsonl``."""

    def __init__(self, run_dir: Path) -> None:
        self._file = Appender(run_dir / "samples.jsonl")

    def append(self, rows: Iterable[object]) -> tuple[int, bool]:
        """Append rows; return the byte offset of the first, and whether they are on disk (else the disk is full)."""
        offset = self._file.size
        content = b"".join(encode(row) + b"\n" for row in rows)
        kept = self._file.append(content)
        if not kept:
            self._file.backlog.clear()  # samples are large: a full disk costs them, not the memory
        return offset, kept

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _last_event(path: Path) -> AnyEvent | None:
    size = path.stat().st_size
    reach = 65536
    while True:
        start = max(0, size - reach)
        with path.open("rb") as source:
            source.seek(start)
            lines = source.read().split(b"\n")
        for line in reversed(lines if start == 0 else lines[1:]):
            event = parse_event(line) if line else None
            if event is not None:
                return event
        if start == 0:
            return None
        reach *= 8
