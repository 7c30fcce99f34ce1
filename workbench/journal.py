"""The log of acts: append-only, written in the same transaction as the act, and never undone."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import apsw
import msgspec

KEPT_IDS = 100
_strings = msgspec.json.Decoder(tuple[str, ...])


@dataclass(frozen=True, slots=True)
class JournalEntry:
    """One act: what was done, when, by whom, to which records."""

    seq: int
    at: str
    act: str  # "save_ranking", "add_batch", "undo", ...
    author: str  # a rater's id or an author's name; "" when nobody's
    kinds: tuple[str, ...]
    ids: tuple[str, ...]  # the first hundred; a batch's records carry its batch id
    count: int
    label: str
    batch_id: str


def write(
    db: apsw.Connection,
    *,
    at: str,
    act: str,
    author: str,
    kinds: Iterable[str],
    ids: tuple[str, ...],
    count: int,
    label: str,
    batch_id: str,
) -> None:
    """Append an entry."""
    db.execute(
        "INSERT INTO journal (at, act, author, kinds, ids, count, label, batch_id) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        (at, act, author, _json(sorted(kinds)), _json(ids[:KEPT_IDS]), count, label, batch_id),
    )


def read(db: apsw.Connection, limit: int, before: int | None) -> list[JournalEntry]:
    """The newest entries first; ``before`` is the ``seq`` of the last one already seen."""
    rows = db.execute(
        "SELECT seq, at, act, author, kinds, ids, count, label, batch_id FROM journal "
        "WHERE ?1 IS NULL OR seq < ?1 ORDER BY seq DESC LIMIT ?2",
        (before, limit),
    )
    return [
        JournalEntry(seq, at, act, author, _strings.decode(kinds), _strings.decode(ids), count, label, batch)
        for seq, at, act, author, kinds, ids, count, label, batch in rows
    ]


def _json(value: object) -> str:
    return msgspec.json.encode(value).decode()
