"""CSV and TSV files as a stream of rows; a quoted text may run over lines."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from workbench.errors import UserError
from workbench.formats.lines import Limits, lines, too_long
from workbench.formats.parsed import Rejected, RowError, excerpt

_DELIMITERS = ",;\t"


@dataclass(frozen=True, slots=True)
class TableRow:
    """One row by column name; ``line`` is where it begins."""

    line: int
    values: dict[str, str]
    start: bytes = b""


def header_of(first_line: str) -> tuple[list[str], str]:
    """Return the column names of a table's first line, and what separates them (comma, semicolon or tab)."""
    delimiter = max(_DELIMITERS, key=first_line.count)
    try:
        names = next(csv.reader([first_line], delimiter=delimiter, strict=True), [])
    except csv.Error:
        names = []
    return [name.strip().lower() for name in names], delimiter


def table_rows(path: Path, limits: Limits) -> Iterator[TableRow | Rejected]:
    """Yield the rows under the header. Raises UserError for a header that cannot be used."""
    csv.field_size_limit(max(csv.field_size_limit(), limits.row_bytes))  # the process's own limit is 128 KiB
    feed = _Feed(path, limits)
    try:
        first = next((line for line in feed if line.strip()), "")
    except RowError as error:
        raise UserError(
            f"the file {path.name} cannot be imported", f"its first line {error}", "mend the header"
        ) from error
    names, delimiter = header_of(first)
    twice = sorted({name for name in names if name and names.count(name) > 1})
    if twice:
        raise UserError(
            f"the file {path.name} cannot be imported", f'two columns are called "{twice[0]}"', "rename one of them"
        )
    reader = csv.reader(feed, delimiter=delimiter, strict=True)
    while True:
        feed.begin()
        try:
            cells = next(reader)
            if not cells:
                continue
            yield TableRow(feed.began, _by_name(names, cells), feed.start)
        except StopIteration:
            return
        except csv.Error as error:
            yield Rejected(feed.began, _plain(error, feed.began, feed.line), excerpt(feed.start))
        except RowError as error:
            yield Rejected(feed.began, str(error), excerpt(feed.start))


def _by_name(names: list[str], cells: list[str]) -> dict[str, str]:
    if len(cells) != len(names):
        raise RowError(f"has {_cells(len(cells))} where the header has {_cells(len(names))}")
    return dict(zip(names, cells, strict=True))


def _cells(count: int) -> str:
    return "1 cell" if count == 1 else f"{count} cells"


def _plain(error: csv.Error, began: int, ended: int) -> str:
    if "unexpected end of data" in str(error):
        lost = f" (lines {began} to {ended} were taken for one text)" if ended > began else ""
        return f"a quote is opened and never closed{lost}"
    return f"not valid CSV: {error}"


class _Feed:
    """The decoded lines of a table, for csv.reader; remembers where the present row began and bounds its size."""

    def __init__(self, path: Path, limits: Limits) -> None:
        self._lines = lines(path, limits)
        self._limit = limits.row_bytes
        self._size = 0
        self._quotes = 0
        self._fresh = True
        self.line = 0
        self.began = 0
        self.start = b""

    def begin(self) -> None:
        """The next line begins a row."""
        self._fresh = True
        self._size = self._quotes = 0

    def _skip_to_closing_quote(self) -> None:
        for raw in self._lines:
            self.line = raw.number
            self._size += len(raw.raw) + 1
            self._quotes += raw.raw.count(b'"')
            if self._quotes % 2 == 0 or raw.problem:
                return

    def __iter__(self) -> _Feed:
        return self

    def __next__(self) -> str:
        raw = next(self._lines)
        self.line = raw.number
        if self._fresh:
            self._fresh = False
            self.began = raw.number
            self.start = raw.raw[:400]
        if raw.problem:
            raise RowError(raw.problem)
        self._size += len(raw.raw) + 1
        self._quotes += raw.raw.count(b'"')
        if self._size > self._limit:
            self._skip_to_closing_quote()
            raise RowError(f"{too_long(self._size, self._limit)}; is a quote opened and never closed?")
        try:
            text = raw.raw.decode("utf-8")
        except UnicodeDecodeError as error:
            at = raw.offset + error.start
            raise RowError(f"not valid UTF-8: byte 0x{raw.raw[error.start]:02x} at byte {at} of the file") from None
        if "\0" in text:
            raise RowError(f"has a NUL byte at byte {raw.offset + raw.raw.index(0)} of the file")
        return text + "\n"
