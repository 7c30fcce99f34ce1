"""Reading a run's ``events.jsonl`` while it grows, and its metrics as one line across resumes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import cast

import msgspec

from workbench.protocol import AnyEvent, Metrics, Started

CHUNK_BYTES = 4 * 1024 * 1024
_decoder = msgspec.json.Decoder(AnyEvent, strict=False)


def parse_event(line: bytes) -> AnyEvent | None:
    """Read one event line; None for a damaged line or a type that only a newer engine speaks."""
    try:
        return cast(AnyEvent, _decoder.decode(line))
    except (msgspec.DecodeError, msgspec.ValidationError):
        return None


class EventTail:
    """Follows ``events.jsonl`` (of a run's folder, or the file itself): each call returns what is new.

    A torn last line waits for its end.
    """

    def __init__(self, path: Path, offset: int = 0) -> None:
        self._path = path if path.suffix == ".jsonl" else path / "events.jsonl"
        self.offset = offset

    def read_new(self, limit_bytes: int = 0) -> list[AnyEvent]:
        """Return the events since the last call (of at most about ``limit_bytes``; 0: all)."""
        found: list[AnyEvent] = []
        read = 0
        try:
            source = self._path.open("rb")
        except FileNotFoundError:
            return found
        with source:
            source.seek(self.offset)
            rest = b""
            while chunk := source.read(CHUNK_BYTES):
                lines = (rest + chunk).split(b"\n")
                rest = lines.pop()
                for line in lines:
                    self.offset += len(line) + 1
                    event = parse_event(line) if line else None
                    if event is not None:
                        found.append(event)
                read += len(chunk)
                if limit_bytes and read >= limit_bytes and found:
                    break
        return found


def join_segments(events: Iterable[AnyEvent]) -> Iterator[Metrics]:
    """Yield the metric history as one line: what a resumed process repeats replaces what was there before.

    A process that resumes from the checkpoint of step k does steps k+1... again, so points after k that an earlier
    process left are dropped; a restart from the beginning drops all.
    """
    history: list[Metrics] = []
    for event in events:
        if isinstance(event, Started):
            while history and history[-1].step > event.resumed_from:
                history.pop()
        elif isinstance(event, Metrics):
            history.append(event)
    yield from history
