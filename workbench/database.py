"""Opening a project's SQLite database: settings, schema versions, and faults in plain words."""

from __future__ import annotations

import os
import shutil
import urllib.parse
from collections.abc import Callable
from pathlib import Path

import apsw

from workbench.errors import UserError

APPLICATION_ID = 0x54535444  # "TSTD"
SCHEMA_FOLDER = Path(__file__).parent / "schema"
BUSY_TIMEOUT_MS = 5000
WRITER_SETTINGS = {
    "journal_mode": "wal",
    "synchronous": "full",  # a label is on the disk before it is called saved
    "foreign_keys": "on",
    "trusted_schema": "off",
    "cache_size": -64 * 1024,  # KiB: a large import stays in memory until its commit
    "journal_size_limit": 16 * 1024 * 1024,
}


def connect(path: Path, *, read_only: bool = False, create: bool = False) -> apsw.Connection:
    """Open the database file at ``path``.

    A read-only connection to a file on a medium that cannot be written (where even the WAL's index has no place)
    falls back to an immutable one.

    Raises:
        apsw.Error: it cannot be opened.
        UserError: it lies on such a medium and its newest labels are still in the WAL, which an immutable
            connection would leave out without a word.
    """
    if not read_only:
        flags = apsw.SQLITE_OPEN_READWRITE | (apsw.SQLITE_OPEN_CREATE if create else 0)
        db = apsw.Connection(str(path), flags=flags)
        try:
            db.set_busy_timeout(BUSY_TIMEOUT_MS)
            if create:
                db.pragma("application_id", APPLICATION_ID)
            for name, value in WRITER_SETTINGS.items():  # one by one: a row left unread would end a script early
                db.pragma(name, value)
        except apsw.Error:
            db.close()
            raise
        return db
    db = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY)
    try:
        db.set_busy_timeout(BUSY_TIMEOUT_MS)
        db.execute("SELECT count(*) FROM sqlite_schema").get  # noqa: B018 (the read is the point)
    except (apsw.CantOpenError, apsw.ReadOnlyError):
        db.close()
        if os.access(path.parent, os.W_OK):
            raise
        if has_wal(path):
            raise UserError(
                "the project cannot be read where it is",
                f"its newest labels are in {path.name}-wal, and SQLite needs to write beside it to read them",
                "copy the whole project folder to a place where you can write, and open the copy",
            ) from None
        uri = f"file:{urllib.parse.quote(str(path))}?immutable=1"
        return apsw.Connection(uri, flags=apsw.SQLITE_OPEN_READONLY | apsw.SQLITE_OPEN_URI)
    except apsw.Error:
        db.close()
        raise
    return db


def has_wal(path: Path) -> bool:
    """Whether labels of a database are still in its write-ahead log alone."""
    wal = path.with_name(path.name + "-wal")
    return wal.exists() and wal.stat().st_size > 0


def migrations(folder: Path = SCHEMA_FOLDER) -> dict[int, str]:
    """The SQL of every schema version, in order: ``0001.sql``, ``0002.sql``, ..."""
    found = {int(file.stem): file.read_text(encoding="utf-8") for file in sorted(folder.glob("[0-9]*.sql"))}
    if list(found) != list(range(1, len(found) + 1)):
        raise RuntimeError(f"the schema versions in {folder} have gaps: {list(found)}")
    return found


def schema_version(db: apsw.Connection) -> int:
    """The version of an open database's schema; 0 when it is new."""
    return int(db.pragma("user_version"))


def migrate(db: apsw.Connection, *, backup: Callable[[], object], steps: dict[int, str] | None = None) -> int:
    """Bring the schema to the newest version in one transaction, after a backup. Returns how many steps it took.

    Raises:
        UserError: the file was made by a newer version (it is left unchanged).
    """
    steps = migrations() if steps is None else steps
    version, newest = schema_version(db), max(steps)
    refuse_newer(version, newest)
    todo = [number for number in steps if number > version]
    if not todo:
        return 0
    if version:
        backup()
    db.execute("BEGIN EXCLUSIVE")
    try:
        for number in todo:
            db.execute(steps[number]).fetchall()  # to the end: a row left unread would stop the script there
        db.pragma("user_version", newest)
        violations = db.execute("PRAGMA foreign_key_check").fetchall()
        if violations:
            raise RuntimeError(f"the migration to version {newest} broke references: {violations[:3]}")
        db.execute("COMMIT")
    except BaseException:
        if db.in_transaction:
            db.execute("ROLLBACK")
        raise
    return len(todo)


def refuse_newer(version: int, newest: int) -> None:
    """Raise UserError for a schema version that this program does not know."""
    if version > newest:
        raise UserError(
            "this project was made by a newer version of Tastemaker",
            f"its format is {version}, and this version reads up to {newest}",
            "update Tastemaker; the project was not changed",
        )


def problem_of(error: apsw.Error, path: Path, *, doing: str) -> UserError:
    """Turn a database error into what the user can do about it."""
    if isinstance(error, apsw.FullError):
        free = shutil.disk_usage(path.parent).free
        return UserError(
            f"the disk is full: {doing}",
            f"{free:,} bytes are free at {path.parent}",
            "free some space (runs and checkpoints are the largest) and try again; nothing that was saved is lost",
        )
    if isinstance(error, apsw.BusyError | apsw.LockedError):
        return UserError(
            f"the project is locked by another program: {doing}",
            f"something else has held {path} for {BUSY_TIMEOUT_MS / 1000:.0f} seconds",
            "close the other program (a database viewer, a backup), then try again",
        )
    if isinstance(error, apsw.ReadOnlyError | apsw.PermissionsError | apsw.AuthError):
        return UserError(f"the project cannot be written: {doing}", f"{path}: {error}", "check its permissions")
    if isinstance(error, apsw.CantOpenError):
        return UserError(f"the database cannot be opened: {doing}", f"{path}: {error}", _remedy(path))
    if isinstance(error, apsw.IOError):
        return UserError(
            f"the disk reported an error: {doing}", f"{path}: {error}", "check the disk and its free space"
        )
    return UserError(f"the database refused: {doing}", str(error), "please report this")


def _remedy(path: Path) -> str:
    return "check its permissions and those of its folder" if path.exists() else "check that it is still there"
