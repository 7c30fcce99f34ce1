"""Strict JSON for files that others wrote: what a lenient parser would change in silence is refused with a reason."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from typing import Any, NoReturn

from workbench.formats.parsed import RowError

NESTING_LIMIT = 64
INTEGER_DIGITS_LIMIT = 300
_STRUCTURE = re.compile(rb'["\[\]{}]')
_STRING_END = re.compile(rb'["\\]')
_SUSPECT_ESCAPE = re.compile(rb"\\u(?:[dD][89a-fA-F]|0000)")


def decode_strictly(raw: bytes, *, offset: int = 0) -> Any:
    """Decode one JSON value of a foreign file.

    Args:
        raw: the value's bytes.
        offset: where in the file they begin, for messages that name a byte.

    Raises:
        RowError: with the plain reason: malformed, NaN or infinity, a key given twice, a number of absurd
            length, a lone surrogate, invalid UTF-8, a NUL byte, nesting beyond 64 levels.
    """
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        byte = raw[error.start]
        raise RowError(f"not valid UTF-8: byte 0x{byte:02x} at byte {offset + error.start} of the file") from None
    if "\0" in text:
        raise RowError(f"has a NUL byte at byte {offset + raw.index(0)} of the file")
    if raw.count(b"[") + raw.count(b"{") > NESTING_LIMIT and _too_deep(raw):
        raise RowError(f"nested deeper than {NESTING_LIMIT} levels")
    try:
        value = _decoder.decode(text)
    except json.JSONDecodeError as error:
        raise RowError(f"not valid JSON: {_plain(error)}") from None
    if _SUSPECT_ESCAPE.search(raw):
        _refuse_what_is_no_text(value)
    return value


def kind(value: Any) -> str:
    """Name the JSON type of a decoded value, for messages."""
    names = {dict: "an object", list: "a list", str: "text", bool: "true or false", int: "a number", float: "a number"}
    return names.get(type(value), "null")


def _plain(error: json.JSONDecodeError) -> str:
    message = error.msg[0].lower() + error.msg[1:]
    where = f"at character {error.pos + 1}"
    return f"{message} {where}" if error.pos < len(error.doc) else f"{message}: it ends too early, {where}"


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        counts = Counter(key for key, _ in pairs)
        twice = max(counts, key=lambda key: counts[key])
        raise RowError(f'the key "{twice[:60]}" is given twice')
    return found


def _refuse_constant(name: str) -> NoReturn:
    raise RowError(f"has {name}, which is not JSON")


def _finite(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise RowError(f"has the number {digits[:20]}, which is too large")
    return value


def _bounded(digits: str) -> int:
    if len(digits) > INTEGER_DIGITS_LIMIT:
        raise RowError(f"has a whole number of {len(digits)} digits")
    return int(digits)


def _refuse_what_is_no_text(value: Any) -> None:
    stack = [value]
    while stack:
        item = stack.pop()
        if isinstance(item, str):
            if "\0" in item:
                raise RowError("has a NUL character (\\u0000), which is not text")
            try:
                item.encode("utf-8")
            except UnicodeEncodeError as error:
                code = ord(item[error.start])
                raise RowError(f"has half of a surrogate pair (\\u{code:04x}), which is not text") from None
        elif isinstance(item, dict):
            stack.extend(item)
            stack.extend(item.values())
        elif isinstance(item, list):
            stack.extend(item)


def _too_deep(raw: bytes) -> bool:
    depth = at = 0
    while found := _STRUCTURE.search(raw, at):
        at = found.end()
        sign = found.group()
        if sign == b'"':
            while end := _STRING_END.search(raw, at):
                at = end.end()
                if end.group() == b'"':
                    break
                at += 1
            else:
                return False  # an unclosed string: the decoder says so
        elif sign in b"[{":
            depth += 1
            if depth > NESTING_LIMIT:
                return True
        else:
            depth -= 1
    return False


_decoder = json.JSONDecoder(  # one for all rows: making one costs more than a short row
    object_pairs_hook=_without_duplicates, parse_constant=_refuse_constant, parse_float=_finite, parse_int=_bounded
)
