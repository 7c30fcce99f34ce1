"""The one writer of a project: a thread that turns each act into one durable transaction."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import apsw

from workbench import backups, journal, undo
from workbench.errors import UserError
from workbench.ids import now
from workbench.records import Change
from workbench.store_rows import Cleaner

log = logging.getLogger(__name__)
CHANGE_IDS = 1000


@dataclass(slots=True)
class Act:
    """What a piece of work did inside its transaction; without ``kinds`` it did nothing."""

    name: str
    kinds: frozenset[str] = frozenset()
    ids: tuple[str, ...] = ()
    label: str = ""
    author: str = ""
    batch_id: str = ""
    duplicates: int = 0
    notes: tuple[str, ...] = ()
    burst: str = ""  # see undo.Entry
    count: int = 0  # of records, where ids does not name them all
    logged: bool = True
    at: str = field(default_factory=now)

    def entry(self) -> undo.Entry:
        """What the undo list keeps of it."""
        ids = self.ids if len(self.ids) <= journal.KEPT_IDS else ()
        return undo.Entry(self.label, tuple(sorted(self.kinds)), ids, len(self.ids), self.batch_id, self.burst)

    def change(self, *, undoable: bool) -> Change:
        """What the views are told."""
        ids = self.ids if len(self.ids) <= CHANGE_IDS else ()
        label = self.label if undoable else ""
        return Change(self.kinds, ids, label, self.batch_id, self.duplicates, self.notes)


Work = Callable[[apsw.Connection], Act]


class Writer:
    """Runs acts one after another on its own thread; queued acts are finished before the program ends."""

    def __init__(self, path: Path, db: apsw.Connection) -> None:
        self._path = path
        self._db = db
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="store-writer")
        self._lock = threading.Lock()
        self._callbacks: list[Callable[[Change], None]] = []

    def subscribe(self, callback: Callable[[Change], None]) -> Callable[[], None]:
        """Call ``callback`` on the writer's thread after each commit. Returns how to stop that."""
        with self._lock:
            self._callbacks.append(callback)

        def unsubscribe() -> None:
            with self._lock:
                if callback in self._callbacks:
                    self._callbacks.remove(callback)

        return unsubscribe

    def submit(self, work: Work, *, undoable: bool) -> Future[Change]:
        """Queue an act. The future completes after the commit and after the subscribers were told."""
        try:
            return self._thread.submit(self._run, work, undoable)
        except RuntimeError:  # shut down
            refused: Future[Change] = Future()
            refused.set_exception(UserError("the project is closed", "", "open it again"))
            return refused

    def wait(self) -> None:
        """Return when everything queued so far is done."""
        with contextlib.suppress(RuntimeError):  # shut down: nothing is queued
            self._thread.submit(lambda: None).result()

    def close(self) -> None:
        """Finish the queue, then close the connection. May be called twice."""
        self._thread.shutdown(wait=True)
        self._db.close()

    def _run(self, work: Work, undoable: bool) -> Change:
        try:
            act = self._transact(work, undoable)
        except apsw.Error as error:
            raise backups.problem_of(error, self._path, doing="this was not saved") from error
        change = act.change(undoable=undoable)
        if change.kinds:
            self._tell(change)
        return change

    def _transact(self, work: Work, undoable: bool) -> Act:
        db = self._db
        db.execute("BEGIN IMMEDIATE")
        try:
            session = undo.watch(db) if undoable else None
            act = work(db)
            clean = Cleaner()
            act.label, act.author = clean(act.label), clean(act.author)
            if act.kinds:
                if session is not None:
                    undo.push(db, act.entry(), session, at=act.at)
                if act.logged:
                    journal.write(
                        db,
                        at=act.at,
                        act=act.name,
                        author=act.author,
                        kinds=act.kinds,
                        ids=act.ids,
                        count=act.count or len(act.ids),
                        label=act.label,
                        batch_id=act.batch_id,
                    )
            if session is not None:
                session.close()
            db.execute("COMMIT")
        except BaseException:
            if db.in_transaction:  # SQLite has rolled back by itself when the disk is full
                db.execute("ROLLBACK")
            raise
        return act

    def _tell(self, change: Change) -> None:
        with self._lock:
            callbacks = tuple(self._callbacks)
        for callback in callbacks:
            try:
                callback(change)
            except Exception:
                log.exception("a view failed on %s", change)
