"""One JSON codec for every file and socket, and JSON-lines files that survive a crash at any byte."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from workbench.errors import UserError

T = TypeVar("T")
LINE_LIMIT_BYTES = 32 * 1024 * 1024
_encoder = msgspec.json.Encoder()


def encode(value: Any) -> bytes:
    """Encode to JSON bytes. Raises ValueError for NaN or infinity, which JSON does not have."""
    raw = _encoder.encode(value)
    if b"null" in raw:  # msgspec writes NaN as null: refuse instead of losing it
        _refuse_nan(value)
    return raw


def decode(raw: bytes | str, type_: type[T]) -> T:
    """Decode JSON into ``type_``; unknown fields are ignored. Raises msgspec.ValidationError / DecodeError."""
    return msgspec.json.decode(raw, type=type_, strict=False)


def _refuse_nan(value: Any) -> None:
    stack = [msgspec.to_builtins(value)]
    while stack:
        item = stack.pop()
        if isinstance(item, float) and not math.isfinite(item):
            raise ValueError(f"JSON has no {item!r}")
        if isinstance(item, dict):
            stack.extend(item.values())
        elif isinstance(item, list):
            stack.extend(item)


def write_jsonl(path: Path, rows: Iterable[Any]) -> int:
    """Write rows to a new file atomically (temporary file, fsync, rename). Returns how many."""
    count = 0
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("wb") as out:
        for row in rows:
            out.write(encode(row) + b"\n")
            count += 1
        out.flush()
        os.fsync(out.fileno())
    temporary.replace(path)
    return count


def read_jsonl(path: Path, type_: type[T]) -> Iterator[T]:
    """Read a file that we wrote ourselves. Raises UserError naming the damaged line."""
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                yield decode(line, type_)
            except (msgspec.DecodeError, msgspec.ValidationError) as error:
                raise UserError(
                    f"{path.name}, line {number}, cannot be read",
                    str(error),
                    "restore the file or make a new run",
                ) from error


def write_atomic(path: Path, content: bytes) -> None:
    """Replace a file as one act: a temporary beside it, fsync, rename, fsync of the folder."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with temporary.open("wb") as out:
        out.write(content)
        out.flush()
        os.fsync(out.fileno())
    temporary.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
