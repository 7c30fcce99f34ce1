"""A JSON array of any length as a stream of its elements, and how to go on after a damaged one.

Elements are found by their brackets and quotes alone and handed on undecoded, so that memory holds one element
at a time and a malformed element does not take the rest of the file with it. After a quote or a bracket that is
never closed, reading goes on at the next line that begins as the elements of this file begin, where there is one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from workbench.formats.lines import BOM, Limits, Raw, StreamCutError, chunks, too_long

_OUTSIDE = re.compile(rb'["\[\]{},]')
_INSIDE = re.compile(rb'["\\\n]')
_TEXT = re.compile(rb"[^ \t\r\n]")
_SPACE = b" \t\r\n"
_KEPT = 400
_RECOVERIES = 1000


def elements(path: Path, limits: Limits, *, bare: bool = False) -> Iterator[Raw]:
    """Yield each element of the JSON array in ``path``; numbers count elements from 1.

    Args:
        path: the file.
        limits: as for lines; ``row_bytes`` bounds one element.
        bare: the file is not an array but objects one after the other, laid out over any number of lines.
    """
    splitter = _Splitter(limits.row_bytes, bare)
    first = True
    try:
        for chunk in chunks(path, limits):
            if first and chunk.startswith(BOM):
                splitter.base = len(BOM)
                chunk = chunk[len(BOM) :]
            first = False
            yield from splitter.feed(chunk)
            if splitter.given_up:
                return
    except StreamCutError as cut:
        yield splitter.problem(str(cut))
        return
    yield from splitter.end()


class _Splitter:
    """Where one element ends and the next begins. ``buffer[0]`` is byte ``base`` of the file."""

    def __init__(self, limit: int, bare: bool) -> None:
        self.base = 0
        self.given_up = False
        self._limit = limit
        self._bare = bare
        self._buffer = bytearray()
        self._at = 0  # scanned until here
        self._depth = 0
        self._in_string = False
        self._opened = bare
        self._closed = False
        self._number = 1
        self._skipped = 0  # bytes of an over-long element already thrown away
        self._head = b""  # its start
        self._line_start = b""  # how an element's line begins: newline, indent, first byte
        self._searching = False  # after damage: for the next line that begins so
        self._recoveries = 0

    def feed(self, chunk: bytes) -> Iterator[Raw]:
        self._buffer += chunk
        yield from self._scan()
        if len(self._buffer) > self._limit and not self._closed:
            yield from self._overflow()

    def end(self) -> Iterator[Raw]:
        """Say what the end of the file leaves open; go back to the next element where one can be told."""
        while not (self._closed or self.given_up or self._searching):
            rest = bytes(self._buffer).strip(_SPACE)
            if not self._opened:
                yield self.problem("the file ends before the list begins")
                return
            if not rest and not self._skipped:
                if not self._bare:
                    yield self.problem("the file ends before the list is closed")
                return
            yield from self._damaged("it is not closed before the end of the file")
            yield from self._scan()

    def problem(self, text: str) -> Raw:
        """The row where reading is, as one that cannot be taken."""
        start = self._begin()
        raw = self._head or bytes(self._buffer[start : start + _KEPT])
        return Raw(self._number, raw[:_KEPT], self.base + start, text)

    def _scan(self) -> Iterator[Raw]:
        buffer = self._buffer
        while not (self._closed or self.given_up):
            if self._searching and not self._find_line(0):
                return
            pattern = _INSIDE if self._in_string else _OUTSIDE
            found = pattern.search(buffer, self._at)
            if found is None:
                self._at = len(buffer)
                return
            self._at = found.end()
            sign = found.group()
            if not self._in_string:
                if sign == b'"':
                    self._in_string = True
                else:
                    yield from self._structure(sign, found.start())
            elif sign == b'"':
                self._in_string = False
            elif sign == b"\\":
                if self._at == len(buffer):
                    self._at -= 1  # its second half comes with the next chunk
                    return
                self._at += 1
            else:
                yield from self._damaged("a text runs over the end of its line: a quote is missing or one too many")
        if self._closed:
            yield from self._after()

    def _structure(self, sign: bytes, start: int) -> Iterator[Raw]:
        if not self._opened:
            if sign == b"[":
                self._opened = True
                self._drop(self._at)
        elif sign in b"[{":
            if self._depth == 0 and not self._line_start:
                self._line_start = self._how_it_begins(start)
            self._depth += 1
        elif sign in b"]}" and self._depth > 0:
            self._depth -= 1
            if self._bare and self._depth == 0:
                yield from self._element(self._at)
        elif self._depth == 0 and not self._bare:
            if sign == b",":
                yield from self._element(start)
            elif sign == b"]":
                yield from self._element(start, last=True)
                self._closed = True

    def _element(self, end: int, *, last: bool = False) -> Iterator[Raw]:
        """The element ends before ``end``; drop it and the separator from the buffer."""
        raw = bytes(self._buffer[:end])
        size = self._skipped + end
        offset = self.base + self._begin()
        raw = raw.strip(_SPACE)
        if size > self._limit:
            yield Raw(self._number, self._head or raw[:_KEPT], offset, too_long(size, self._limit))
        elif raw:
            yield Raw(self._number, raw, offset)
        elif not last:
            yield Raw(self._number, b"", offset, "there is nothing between two commas")
        self._drop(max(self._at, end))
        self._number += 1

    def _begin(self) -> int:
        found = _TEXT.search(self._buffer)
        return found.start() if found else len(self._buffer)

    def _drop(self, end: int) -> None:
        del self._buffer[:end]
        self.base += end
        self._at = 0
        self._depth = 0
        self._in_string = False
        self._skipped = 0
        self._head = b""

    def _overflow(self) -> Iterator[Raw]:
        """Over the limit: an element that was never closed, or one that is too long. Keep its start alone."""
        if not self._skipped and self._next_line(self._begin()) >= 0:
            yield from self._damaged(f"it is not closed within {self._limit} bytes")
            yield from self._scan()
            return
        begin = self._begin()
        self._head = self._head or bytes(self._buffer[begin : begin + _KEPT])
        self._skipped += self._at
        del self._buffer[: self._at]
        self.base += self._at
        self._at = 0

    def _how_it_begins(self, start: int) -> bytes:
        indent = bytes(self._buffer[:start])
        newline = indent.rfind(b"\n")
        return b"" if newline < 0 or indent.strip(_SPACE) else indent[newline:] + bytes(self._buffer[start : start + 1])

    def _damaged(self, why: str) -> Iterator[Raw]:
        """Give the element up, and look for the next one where there is a way to tell it."""
        self._recoveries += 1
        if not self._line_start or self._bare or self._recoveries > _RECOVERIES:
            yield self.problem(f"{why}; the rest of the file was not read")
            self.given_up = True
            return
        yield self.problem(f"{why}; reading went on at the next line that begins like a row")
        self._number += 1
        self._searching = True
        self._find_line(self._begin())

    def _next_line(self, begin: int) -> int:
        """Where in the buffer the next element seems to begin; -1 where none does."""
        return self._buffer.find(self._line_start, begin) if self._line_start else -1

    def _find_line(self, begin: int) -> bool:
        at = self._next_line(begin)
        if at < 0:
            self._drop(max(begin, len(self._buffer) - len(self._line_start)))  # it may lie across two chunks
            return False
        self._searching = False
        self._drop(at)
        return True

    def _after(self) -> Iterator[Raw]:
        rest = bytes(self._buffer).strip(_SPACE)
        if rest:
            yield Raw(self._number, rest[:_KEPT], self.base, "there is more after the end of the list; it was not read")
            self.given_up = True
        self._drop(len(self._buffer))
