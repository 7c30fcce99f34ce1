"""What the command line prints: lines and progress bars for people, JSON lines for programs."""

from __future__ import annotations

import io
import json
import re
import shutil
import sys
import time
from datetime import UTC, datetime
from typing import Any, TextIO

import msgspec

from workbench.jsonl import encode

_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
"""What a terminal obeys instead of showing it, but tab and newline. The last two ranges turn the text's direction."""


class Terminal:
    """Prints to one stream, in one of two ways.

    People get sentences and, on a terminal, a progress bar that redraws in place; with ``json`` every call is one
    JSON object a line, so that a program can follow. What a model said or a file is called is only ever shown:
    control characters are written as escapes, and so is what the stream's encoding lacks.
    """

    def __init__(self, *, json: bool = False, stream: TextIO | None = None) -> None:
        self.json = json
        self._stream = stream or sys.stdout
        if isinstance(self._stream, io.TextIOWrapper):
            self._stream.reconfigure(errors="backslashreplace")
        self._live = not json and self._stream.isatty()
        self._bar_width = 0
        self._last_plain = -60.0

    def say(self, text: str, **data: Any) -> None:
        """Print a sentence; with JSON, ``{"message": text, **data}``."""
        self._clear()
        self._write(self._line({"message": text, **data}) if self.json else text)

    def result(self, data: dict[str, Any], text: str = "") -> None:
        """Print a result: ``text`` for people, ``data`` for programs."""
        self._clear()
        self._write(self._line(data) if self.json else text)

    def progress(self, what: str, fraction: float, note: str = "") -> None:
        """Redraw the bar; where the output is no terminal, a line at most every 15 s. ``fraction`` < 0: unknown."""
        if self.json:
            self._write(self._line({"progress": what, "fraction": round(fraction, 4), "note": note}))
            return
        if not self._live:
            if time.monotonic() - self._last_plain >= 15 or fraction >= 1:
                self._last_plain = time.monotonic()
                share = f"{fraction:4.0%} " if fraction >= 0 else ""
                self._write(f"  {what}: {share}{note}".rstrip())
            return
        width = shutil.get_terminal_size().columns
        line = _bar(what, fraction, _visible(note), width)
        self._stream.write("\r" + line.ljust(self._bar_width))
        self._stream.flush()
        self._bar_width = len(line)

    def done(self) -> None:
        """End a progress bar's line."""
        if self._live and self._bar_width:
            self._stream.write("\n")
            self._bar_width = 0
        self._last_plain = -60.0

    def _clear(self) -> None:
        if self._live and self._bar_width:
            self._stream.write("\r" + " " * self._bar_width + "\r")
            self._bar_width = 0

    def _write(self, line: str) -> None:
        self._stream.write((line if self.json else _visible(line)) + "\n")
        self._stream.flush()

    def _line(self, data: dict[str, Any]) -> str:
        try:
            line = encode(data).decode()
            line.encode(self._stream.encoding or "utf-8")
        except UnicodeEncodeError:  # a file's name that is no UTF-8, or a stream that is none
            line = json.dumps(msgspec.to_builtins(data), separators=(",", ":"))
        return _CONTROLS.sub(lambda found: f"\\u{ord(found[0]):04x}", line)


def _bar(what: str, fraction: float, note: str, width: int) -> str:
    if fraction < 0:
        return f"  {what} ... {note}"[: width - 1]
    cells = 24
    full = round(cells * min(1.0, fraction))
    return f"  {what:<14} [{'#' * full}{'.' * (cells - full)}] {fraction:4.0%}  {note}"[: width - 1]


def _visible(text: str) -> str:
    """Write control characters as escapes."""
    return _CONTROLS.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def byte_unit(count: float) -> tuple[int, str]:
    """Return the power of 1024 in which a number of bytes is written, and its name: a plot's axis has one for all."""
    power = next((power for power in range(3) if not abs(count) >= 1024 ** (power + 1)), 3)
    return 1024**power, ("B", "KiB", "MiB", "GiB")[power]


def in_bytes(count: float) -> str:
    """Write a number of bytes for people, in powers of 1024: everything that says a size says it so."""
    factor, unit = byte_unit(count)
    return f"{count / factor:.{1 if factor > 1024 else 0}f} {unit}"


def in_age(at: str) -> str:
    """Say how long ago a moment (ISO 8601, with its zone) was."""
    seconds = (datetime.now(UTC) - datetime.fromisoformat(at)).total_seconds() if at else 0.0
    return f"{in_time(max(0.0, seconds))} ago"


def in_time(seconds: float) -> str:
    """Write a duration for people: ``42 s``, ``3 min 20 s``, ``2 h 5 min``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s" if whole % 60 else f"{whole // 60} min"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
