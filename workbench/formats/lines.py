"""Foreign files as a stream of bytes and lines: bounded in memory, whatever the file holds.

Nothing here reads a file whole. A line over the limit is skipped without being kept; a gzip file is inflated
piece by piece and refused when it grows beyond reason; a truncated one gives what came before the cut.
"""

from __future__ import annotations

import contextlib
import stat
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from workbench.errors import UserError
from workbench.jsonl import LINE_LIMIT_BYTES
from workbench.terminal import in_bytes

BOM = b"\xef\xbb\xbf"
_CHUNK_BYTES = 1 << 20
_INFLATE_BYTES = 1 << 18
_KEPT_OF_LONG = 400  # bytes of an over-long row that are kept for its excerpt
_TEXT_WANTED = "choose a text, JSON or CSV file"
_FOREIGN = (
    (b"PK\x03\x04", "a zip archive", "unpack it and import the file inside"),
    (b"PK\x05\x06", "an empty zip archive", "choose another file"),
    (b"PAR1", "a Parquet file", "convert it to JSON lines, as `datasets` does with to_json"),
    (b"ARROW1", "an Arrow file", "convert it to JSON lines, as `datasets` does with to_json"),
    (b"SQLite format 3\0", "an SQLite database", "export it to JSON lines or CSV"),
    (b"\x28\xb5\x2f\xfd", "compressed with zstd", "unpack it, or pack it with gzip"),
    (b"\xfd7zXZ\0", "compressed with xz", "unpack it, or pack it with gzip"),
    (b"BZh", "compressed with bzip2", "unpack it, or pack it with gzip"),
    (b"\xff\xfe", "UTF-16 text", "save it as UTF-8"),
    (b"\xfe\xff", "UTF-16 text", "save it as UTF-8"),
    (b"\x89PNG", "a picture", _TEXT_WANTED),
    (b"\xff\xd8\xff", "a picture", _TEXT_WANTED),
    (b"GIF8", "a picture", _TEXT_WANTED),
    (b"%PDF-", "a PDF file", _TEXT_WANTED),
    (b"\x7fELF", "a program", _TEXT_WANTED),
)


@dataclass(frozen=True, slots=True)
class Limits:
    """How much of a foreign file we are ready to hold or to unpack."""

    row_bytes: int = LINE_LIMIT_BYTES
    total_bytes: int = 4 << 30  # unpacked
    ratio: int = 200  # unpacked to packed; text packs 3 to 10 times
    ratio_floor_bytes: int = 16 << 20  # small files may pack well


@dataclass(frozen=True, slots=True)
class Raw:
    """One line (or one element of a JSON array), undecoded. With a ``problem``, ``raw`` is only its start."""

    number: int
    raw: bytes
    offset: int = 0  # of its first byte in the unpacked file
    problem: str = ""


class StreamCutError(Exception):
    """A packed file ended early or is damaged; what was read until here is good."""


def check_file(path: Path) -> None:
    """Raise UserError unless ``path`` is a regular file that can be read and is not empty."""
    try:
        info = path.stat()
        if stat.S_ISDIR(info.st_mode):
            raise UserError(f"the file {path.name} cannot be imported", "it is a folder", "choose a file inside it")
        if not stat.S_ISREG(info.st_mode):
            raise UserError(
                f"the file {path.name} cannot be imported", "it is not a regular file", "choose a file on disk"
            )
        with path.open("rb") as file:
            head = file.read(32)
    except OSError as error:
        raise _unreadable(path, error) from error
    if not head:
        raise UserError(f"the file {path.name} cannot be imported", "it is empty", "choose another file")
    _refuse_foreign(path, head)


def read_head(path: Path, size: int = 1 << 16, limits: Limits | None = None) -> bytes:
    """Return the first ``size`` unpacked bytes without the byte-order mark."""
    found = bytearray()
    try:
        for chunk in chunks(path, limits or Limits()):
            found += chunk
            if len(found) >= size:
                break
    except StreamCutError:
        pass  # whoever reads the whole file reports it
    return bytes(found[:size]).removeprefix(BOM)


def chunks(path: Path, limits: Limits) -> Iterator[bytes]:
    """Yield the unpacked bytes of a file, gzip or not.

    Raises:
        UserError: unreadable, over ``total_bytes``, or packed beyond ``ratio``.
        StreamCutError: a gzip file that is truncated or damaged.
    """
    check_file(path)
    total = 0
    try:
        with path.open("rb") as file:
            packed = file.read(2) == b"\x1f\x8b"
            file.seek(0)
            plain = iter(lambda: file.read(_CHUNK_BYTES), b"")
            for chunk in _inflate(plain) if packed else plain:
                if total == 0:
                    _refuse_foreign(path, chunk)
                total += len(chunk)
                if total > limits.total_bytes:
                    raise UserError(
                        f"the file {path.name} cannot be imported",
                        f"unpacked it is larger than {in_bytes(limits.total_bytes)}",
                        "split it into smaller files",
                    )
                if packed and total > limits.ratio_floor_bytes and total > limits.ratio * max(1, file.tell()):
                    raise UserError(
                        f"the file {path.name} cannot be imported",
                        f"it unpacks to more than {limits.ratio} times its size, as no text does",
                        "unpack it yourself and look inside",
                    )
                yield chunk
    except OSError as error:
        raise _unreadable(path, error) from error


def lines(path: Path, limits: Limits) -> Iterator[Raw]:
    r"""Yield the lines of a file, split at ``\n`` alone and without it (a ``\r`` stays); numbers count from 1.

    A file that has ``\r`` and no ``\n``, as old Macs wrote it, is split at ``\r``. The byte-order mark is dropped. A
    line over ``row_bytes`` comes as its start with a problem, and memory stays flat. A gzip file that breaks off ends
    with a row that says so.
    """
    number, offset = 1, 0
    pending = _Pending(limits.row_bytes)
    first, newline = True, b"\n"
    try:
        for chunk in chunks(path, limits):
            if first:
                first, newline = False, newline_of(chunk)
                if chunk.startswith(BOM):
                    chunk = chunk[len(BOM) :]
                    offset = len(BOM)
            *whole, rest = chunk.split(newline)
            for piece in whole:
                size = pending.size + len(piece)
                if pending.size or size > limits.row_bytes:
                    pending.add(piece)
                    yield pending.take(number, offset)
                else:
                    yield Raw(number, piece, offset)
                number += 1
                offset += size + 1
            pending.add(rest)
    except StreamCutError as cut:
        start = pending.take(number, offset)
        yield Raw(number, start.raw[:_KEPT_OF_LONG], offset, str(cut))
        return
    if pending.size:
        yield pending.take(number, offset)


def newline_of(head: bytes) -> bytes:
    r"""What ends the lines of a file that begins so: ``\n``, or ``\r`` where there is no other."""
    return b"\r" if b"\r" in head.rstrip(b"\r") and b"\n" not in head else b"\n"


class _Pending:
    """The line that is not ended yet; beyond the limit only its length grows."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._parts: list[bytes] = []
        self.size = 0

    def add(self, piece: bytes) -> None:
        if not piece:
            return
        if self.size <= self._limit < self.size + len(piece):
            self._parts = [b"".join(self._parts)[:_KEPT_OF_LONG] or piece[:_KEPT_OF_LONG]]
        elif self.size <= self._limit:
            self._parts.append(piece)
        self.size += len(piece)

    def take(self, number: int, offset: int) -> Raw:
        raw = b"".join(self._parts)
        problem = too_long(self.size, self._limit) if self.size > self._limit else ""
        self._parts, self.size = [], 0
        return Raw(number, raw, offset, problem)


def too_long(size: int, limit: int) -> str:
    """Say that a row is over the limit."""
    return f"{in_bytes(size)} long; the limit for one row is {in_bytes(limit)}"


def _inflate(packed: Iterator[bytes]) -> Iterator[bytes]:
    stream = zlib.decompressobj(wbits=31)
    ended = False
    try:
        for data in packed:
            while data:
                if ended:
                    data = data.lstrip(b"\0")  # padding between members
                    if not data:
                        break
                    stream, ended = zlib.decompressobj(wbits=31), False
                before = stream.copy()
                try:
                    piece = stream.decompress(data, _INFLATE_BYTES)
                except zlib.error:
                    yield from _until_damage(before, data)
                    raise
                yield piece
                ended = stream.eof
                data = stream.unused_data if ended else stream.unconsumed_tail
        yield stream.flush()
    except zlib.error as error:
        raise StreamCutError(f"the gzip file is damaged here ({error}); what follows was not read") from None
    if not (ended or stream.eof):
        raise StreamCutError("the gzip file breaks off here; what follows is missing")


def _until_damage(stream: zlib._Decompress, data: bytes) -> Iterator[bytes]:
    """A failed call gives nothing back: go byte by byte to get at what was good."""
    with contextlib.suppress(zlib.error):
        for place in range(len(data)):  # pragma: no branch - the same bytes fail again
            yield stream.decompress(data[place : place + 1])


def _refuse_foreign(path: Path, head: bytes) -> None:
    for magic, what, remedy in _FOREIGN:
        if head.startswith(magic):
            raise UserError(f"the file {path.name} cannot be imported", f"it is {what}", remedy)


def _unreadable(path: Path, error: OSError) -> UserError:
    if isinstance(error, FileNotFoundError):
        return UserError(f"the file {path.name} cannot be imported", "there is no such file", "check the path")
    if isinstance(error, PermissionError):
        return UserError(
            f"the file {path.name} cannot be read", "you have no permission to", "change its permissions or copy it"
        )
    return UserError(
        f"the file {path.name} cannot be read", error.strerror or str(error), "copy it to another disk and retry"
    )
