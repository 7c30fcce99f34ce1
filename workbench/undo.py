"""Undo and redo of labels: SQLite session changesets, kept in the database itself, so that they survive restarts.

An act's changeset is stored in the transaction of the act. Undo applies its inverse; redo applies it again. After a
new act, what was undone cannot be redone any more, yet its changeset stays: nothing that a person wrote is destroyed.
Old entries that can be undone are dropped beyond :data:`STEPS` or :data:`BYTES`, never the newest.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import apsw
import msgspec

from workbench.errors import NothingToDo, UserError
from workbench.store_rows import LABEL_TABLES

STEPS = 500
BYTES = 256 * 1024 * 1024
_SAME = apsw.no_change
BURST = timedelta(minutes=5)
_FORGOTTEN = 2  # of undo.undone: 0 can be undone, 1 redone, and this is only kept
_strings = msgspec.json.Decoder(tuple[str, ...])


@dataclass(frozen=True, slots=True)
class Entry:
    """What one step of undo or redo brought back."""

    label: str
    kinds: tuple[str, ...]
    ids: tuple[str, ...]  # () when there are many
    count: int
    batch_id: str = ""
    burst: str = ""  # acts in a row with the same name here are one step, if they follow within BURST


@dataclass(frozen=True, slots=True)
class TakenBack:
    """An act that was undone: its label, when it was done, and the values of the rows that it had written."""

    label: str
    at: str
    rows: tuple[tuple[str, dict[str, Any]], ...]  # table, values by column


def watch(db: apsw.Connection) -> apsw.Session:
    """Start recording changes of the label tables."""
    session = apsw.Session(db, "main")
    for table in LABEL_TABLES:  # in this order, so that parents are inserted before their children when applied
        session.attach(table)
    return session


def push(db: apsw.Connection, entry: Entry, session: apsw.Session, *, at: str) -> None:
    """Store an act's changeset as the next step to undo."""
    changeset = session.changeset()
    if entry.burst and _join_burst(db, entry, changeset, at):
        return
    db.execute("UPDATE undo SET undone = ? WHERE undone = 1", (_FORGOTTEN,))
    packed = zlib.compress(changeset, 1)
    db.execute(
        "INSERT INTO undo (label, kinds, ids, count, batch_id, burst, at, bytes, changeset) "
        "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            entry.label,
            _json(entry.kinds),
            _json(entry.ids),
            entry.count,
            entry.batch_id,
            entry.burst,
            at,
            len(packed),
            packed,
        ),
    )
    _prune(db)


def _join_burst(db: apsw.Connection, entry: Entry, changeset: bytes, at: str) -> bool:
    """Add an act to the newest step if that is of the same burst, so that typing is undone as a whole."""
    newest: Any = db.execute("SELECT seq, undone, burst, at, ids, changeset FROM undo ORDER BY seq DESC LIMIT 1").get
    if newest is None:
        return False
    seq, undone, burst, before, ids, packed = newest
    if undone or burst != entry.burst or not _follows(before, at):
        return False
    group = apsw.ChangesetBuilder()  # type: ignore[no-untyped-call]
    group.add(zlib.decompress(packed))
    group.add(changeset)
    packed = zlib.compress(group.output(), 1)
    group.close()
    joined = dict.fromkeys((*_strings.decode(ids), *entry.ids))
    db.execute(
        "UPDATE undo SET ids = ?, count = ?, at = ?, bytes = ?, changeset = ? WHERE seq = ?",
        (_json(tuple(joined)), len(joined), at, len(packed), packed, seq),
    )
    return True


def _follows(before: str, at: str) -> bool:
    return timedelta(0) <= datetime.fromisoformat(at) - datetime.fromisoformat(before) <= BURST


def undo(db: apsw.Connection) -> Entry:
    """Take back the newest act. Raises NothingToDo."""
    seq: int | None = db.execute("SELECT seq FROM undo WHERE undone = 0 ORDER BY seq DESC LIMIT 1").get
    if seq is None:
        raise NothingToDo("there is nothing to undo")
    return _step(db, seq, inverse=True)


def redo(db: apsw.Connection) -> Entry:
    """Do the act again that was undone last. Raises NothingToDo."""
    seq: int | None = db.execute("SELECT seq FROM undo WHERE undone = 1 ORDER BY seq LIMIT 1").get
    if seq is None:
        raise NothingToDo("there is nothing to redo")
    return _step(db, seq, inverse=False)


def labels(db: apsw.Connection) -> tuple[str, str]:
    """What undo and redo would say; "" where there is nothing to do."""
    undo_label = db.execute("SELECT label FROM undo WHERE undone = 0 ORDER BY seq DESC LIMIT 1").get
    redo_label = db.execute("SELECT label FROM undo WHERE undone = 1 ORDER BY seq LIMIT 1").get
    return undo_label or "", redo_label or ""


def taken_back(db: apsw.Connection, limit: int) -> list[TakenBack]:
    """The acts that were undone, also those that can be redone no more, the newest first."""
    names = {
        table: [name for (name,) in db.execute("SELECT name FROM pragma_table_info(?) ORDER BY cid", (table,))]
        for table in LABEL_TABLES
    }
    found = db.execute("SELECT label, at, changeset FROM undo WHERE undone <> 0 ORDER BY seq DESC LIMIT ?", (limit,))
    return [
        TakenBack(
            label,
            at,
            tuple(
                (change.name, {n: v for n, v in zip(names[change.name], change.new, strict=True) if v is not _SAME})
                for change in apsw.Changeset.iter(zlib.decompress(packed))
                if change.new is not None
            ),
        )
        for label, at, packed in found
    ]


def _step(db: apsw.Connection, seq: int, *, inverse: bool) -> Entry:
    step: Any = db.execute("SELECT label, kinds, ids, count, batch_id, changeset FROM undo WHERE seq = ?", (seq,)).get
    label, kinds, ids, count, batch_id, packed = step
    changeset = zlib.decompress(packed)
    try:
        apsw.Changeset.apply(apsw.Changeset.invert(changeset) if inverse else changeset, db, conflict=_refuse)
    except apsw.AbortError as error:
        raise UserError(
            f"{'undo' if inverse else 'redo'} is not possible: {label}",
            "the labels that it concerns have been changed since by something else",
            "nothing was changed; correct the label by hand",
        ) from error
    db.execute("UPDATE undo SET undone = ? WHERE seq = ?", (int(inverse), seq))
    return Entry(label, _strings.decode(kinds), _strings.decode(ids), count, batch_id)


def _refuse(_reason: int, _change: apsw.TableChange) -> int:
    return apsw.SQLITE_CHANGESET_ABORT


def _prune(db: apsw.Connection) -> None:
    db.execute(
        "DELETE FROM undo WHERE undone = 0 AND seq NOT IN ("
        " SELECT seq FROM (SELECT seq, row_number() OVER newest AS place, sum(bytes) OVER newest AS total FROM undo"
        "  WHERE undone = 0 WINDOW newest AS (ORDER BY seq DESC))"
        " WHERE place = 1 OR (place <= ? AND total <= ?))",
        (STEPS, BYTES),
    )


def _json(value: object) -> str:
    return msgspec.json.encode(value).decode()
