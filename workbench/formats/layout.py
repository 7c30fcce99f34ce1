"""From a path to decoded rows: what the file is laid out as, and one stream for all layouts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from workbench.errors import UserError
from workbench.formats.arrays import elements
from workbench.formats.lines import Limits, Raw, lines, newline_of, read_head
from workbench.formats.parsed import Rejected, RowError, excerpt
from workbench.formats.tables import TableRow, header_of, table_rows
from workbench.formats.values import decode_strictly

Layout = Literal["lines", "array", "objects", "table", "text"]
LAYOUTS: dict[Layout, str] = {
    "lines": "JSON lines",
    "array": "a JSON array",
    "objects": "JSON objects over several lines",
    "table": "a table with a header",
    "text": "plain text",
}
_TABLE_COLUMNS = frozenset(
    {"prompt", "instruction", "input", "output", "completion", "response", "answer", "chosen", "rejected", "query"}
    | {"chosen_response", "rejected_response", "rejected_answer"}
)


@dataclass(frozen=True, slots=True)
class Row:
    """One decoded row: a JSON value, a table row as an object of texts, or a line of text."""

    line: int
    value: Any
    start: bytes = b""  # for an excerpt


def suffixes(path: Path) -> tuple[str, bool]:
    """Return the file's extension in lower case without ``.gz``, and whether ``.gz`` was there."""
    name = path.name.lower()
    packed = name.endswith(".gz")
    return Path(name.removesuffix(".gz")).suffix, packed


def layout_of(path: Path, limits: Limits | None = None) -> Layout:
    """Tell how a file is laid out by its extension and its first bytes. Raises UserError when it cannot be read."""
    suffix, _ = suffixes(path)
    head = read_head(path, limits=limits)
    body = head.lstrip(b" \t\r\n")
    first_line = body.split(newline_of(body), 1)[0]
    if suffix in (".csv", ".tsv"):
        return "table"
    if body.startswith(b"["):
        return "text" if suffix == ".txt" and not body[1:].lstrip().startswith((b"{", b'"', b"[")) else "array"
    if body.startswith(b"{"):
        if suffix == ".json" and first_line != body and not _is_json(first_line):
            return "objects"
        return "lines" if suffix != ".txt" or _is_json(first_line) else "text"
    if suffix in (".jsonl", ".json", ".ndjson"):
        return "lines"
    if body.startswith(b'"') and suffix != ".txt" and _is_json(first_line):
        return "lines"
    names, _ = header_of(first_line.decode("utf-8", "replace"))
    if suffix != ".txt" and len(names) > 1 and _TABLE_COLUMNS & set(names):
        return "table"
    if head.count(0) * 10 > len(head):  # a stray NUL is a row's fault; so many are another kind of file
        raise UserError(f"The file {path.name} cannot be imported", "it is no text", "choose a text, JSON or CSV file")
    return "text"


def rows(path: Path, layout: Layout, limits: Limits | None = None) -> Iterator[Row | Rejected]:
    """Yield every row of the file, or why it is none. Blank lines are not rows.

    Raises UserError when the file as a whole cannot be read.
    """
    limits = limits or Limits()
    if layout == "table":
        for found in table_rows(path, limits):
            yield Row(found.line, found.values, found.start) if isinstance(found, TableRow) else found
        return
    if layout in ("array", "objects"):
        stream: Iterator[Raw] = elements(path, limits, bare=layout == "objects")
    else:
        stream = lines(path, limits)
    decode = _text if layout == "text" else _json
    for raw in stream:
        if raw.problem:
            yield Rejected(raw.number, raw.problem, excerpt(raw.raw))
        elif raw.raw.strip(b" \t\r"):
            try:
                yield Row(raw.number, decode(raw), raw.raw[:400])
            except RowError as error:
                yield Rejected(raw.number, str(error), excerpt(raw.raw))


def _json(raw: Raw) -> Any:
    return decode_strictly(raw.raw, offset=raw.offset)


def _text(raw: Raw) -> str:
    try:
        text = raw.raw.removesuffix(b"\r").decode("utf-8")
    except UnicodeDecodeError as error:
        at = raw.offset + error.start
        raise RowError(f"not valid UTF-8: byte 0x{raw.raw[error.start]:02x} at byte {at} of the file") from None
    if "\0" in text:
        raise RowError(f"has a NUL byte at byte {raw.offset + raw.raw.index(0)} of the file")
    return text


def _is_json(line: bytes) -> bool:
    try:
        decode_strictly(line)
    except RowError:
        return False
    return True
