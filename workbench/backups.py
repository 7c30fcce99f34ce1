"""Backups of a project's database: rotating, by SQLite's backup API, and never of a file that cannot be read.

Named ``NUMBER-TIME.db``. The number only grows, so a clock that was set back neither hides nor thins a newer backup.
Where single records are damaged the rest is still worth keeping: such a backup is named ``NUMBER-TIME-damaged.db``,
never counts as good, and never thins one that is.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import apsw

from workbench import database, store_check
from workbench.errors import UserError

KEEP_ALL = timedelta(days=2)
_PERIODS = {"%Y-%m-%d": 12, "%G-%V": 10, "%Y-%m": 9}  # one a day, then a week, then a month: Anki's defaults
KEEP_NEWEST = 3
_NAME = re.compile(r"(\d{6,})-(\d{8}T\d{6})Z(-damaged)?\.db")


@dataclass(frozen=True, slots=True)
class Backup:
    """One backup file."""

    path: Path
    number: int
    at: datetime
    damaged: bool = False  # single records do not match their sha256
    faults: tuple[str, ...] = ()  # of a damaged one that was just made

    @property
    def when(self) -> str:
        """Its time in words, and what is wrong with it."""
        return self.at.strftime("%Y-%m-%d %H:%M UTC") + (", with damaged records" if self.damaged else "")

    @property
    def problem(self) -> str:
        """What to tell of the damage that was found as it was made; '' without."""
        if not self.faults:
            return ""
        more = f" and {len(self.faults) - 3} more" if len(self.faults) > 3 else ""
        return (
            f"Some records of the project are damaged ({'; '.join(self.faults[:3])}{more}). The backup "
            f"{self.path.name} has them as they are; earlier backups are kept, and may have them whole."
        )


def backups(folder: Path) -> list[Backup]:
    """All backups in a folder, newest first."""
    found = []
    for path in folder.glob("*.db"):
        if match := _NAME.fullmatch(path.name):
            with contextlib.suppress(ValueError):  # a name that only looks like ours
                at = datetime.strptime(match[2], "%Y%m%dT%H%M%S").replace(tzinfo=UTC)
                found.append(Backup(path, int(match[1]), at, bool(match[3])))
    return sorted(found, key=lambda backup: backup.number, reverse=True)


def back_up(database_path: Path, folder: Path, *, at: datetime | None = None) -> Backup:
    """Copy the database as it stands into ``folder``, check the copy, then thin out old ones.

    Damage that is limited to single records is kept too, and marked.

    Raises:
        UserError: the database is damaged beyond that (nothing is kept or thinned then), or the disk is full.
    """
    at = at or datetime.now(UTC)
    existing = backups(folder)
    number = existing[0].number + 1 if existing else 1
    path = folder / f"{number:06d}-{at:%Y%m%dT%H%M%S}Z.db"
    temporary = folder / f".{path.name}.tmp"
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        _copy(database_path, temporary)
        faults = store_check.faults_of_file(temporary)
        if faults and not store_check.only_rows(faults):
            raise UserError(
                "no backup was made, because the database is damaged",
                "; ".join(faults[:3]),
                _advice(newest_good(folder)),
            )
        if faults:
            path = path.with_name(path.stem + "-damaged.db")
        sync(temporary)
        temporary.replace(path)
        sync(folder)
    except apsw.FullError as error:
        raise database.problem_of(error, temporary, doing="no backup was made") from error
    except apsw.Error as error:
        raise problem_of(error, database_path, doing="no backup was made") from error
    except OSError as error:
        raise UserError("no backup was made", f"{folder}: {error.strerror}", "check the disk") from error
    finally:
        for leftover in folder.glob(f"{temporary.name}*"):
            leftover.unlink()
    made = Backup(path, number, at, bool(faults), tuple(faults))
    for old in thinned([made, *existing]):
        old.path.unlink(missing_ok=True)
    return made


def thinned(all_: Iterable[Backup]) -> list[Backup]:
    """Which backups to remove: Anki's scheme, measured from the newest by number, not from the clock."""
    sorted_ = sorted(all_, key=lambda backup: backup.number, reverse=True)
    removed = [backup for backup in sorted_ if backup.damaged][KEEP_NEWEST:]
    newest_first = [backup for backup in sorted_ if not backup.damaged]
    room = dict(_PERIODS)
    kept: Backup | None = None
    for place, backup in enumerate(newest_first):
        if kept is None or place < KEEP_NEWEST or backup.at > newest_first[0].at - KEEP_ALL:
            kept = backup
            continue
        form = next((form for form in room if room[form] and f"{backup.at:{form}}" != f"{kept.at:{form}}"), None)
        if form is None:
            removed.append(backup)
        else:
            room[form] -= 1
            kept = backup
    return removed


def newest_good(folder: Path) -> Backup | None:
    """The newest backup that passes its checks."""
    return next((backup for backup in backups(folder) if not store_check.faults_of_file(backup.path)), None)


def restore(database_path: Path, backup: Path) -> Path | None:
    """Put a backup in the database's place. The damaged file is set aside, never overwritten.

    Returns the folder into which the old files went, or None when there were none.
    """
    faults = store_check.faults_of_file(backup)
    if not store_check.only_rows(faults):
        raise UserError(f"the backup {backup.name} cannot be restored", "; ".join(faults[:3]), "choose another one")
    temporary = database_path.with_name(".restoring.db")
    try:
        shutil.copyfile(backup, temporary)
        sync(temporary)
        aside = _set_aside(database_path)
        temporary.replace(database_path)
        sync(database_path.parent)
    except OSError as error:
        raise UserError("the backup was not restored", f"{error}", "check the disk and its free space") from error
    finally:
        temporary.unlink(missing_ok=True)
    return aside


class ProjectDamaged(UserError):
    """The database cannot be used; ``backup`` is the newest good one, if there is any."""

    def __init__(self, database_path: Path, cause: str) -> None:
        self.backup = newest_good(database_path.parent / "backups")
        super().__init__(f"the project's database {database_path} is damaged", cause, _advice(self.backup))


def problem_of(error: apsw.Error, database_path: Path, *, doing: str) -> UserError:
    """Turn a database error into what the user can do about it; for damage that is a backup, by name."""
    if isinstance(error, apsw.CorruptError | apsw.NotADBError):
        return ProjectDamaged(database_path, f"{doing}: {error}")
    return database.problem_of(error, database_path, doing=doing)


def _advice(backup: Backup | None) -> str:
    if backup is None:
        return "there is no good backup in its backups folder: restore the project folder from a copy of your own"
    return f"restore the backup {backup.path.name} of {backup.when}, the newest good one; the damaged file is kept"


def _copy(source: Path, target: Path) -> None:
    # not read-only: such a connection could not tidy the WAL away when it is the last to close
    with contextlib.closing(apsw.Connection(str(source), flags=apsw.SQLITE_OPEN_READWRITE)) as from_:
        from_.set_busy_timeout(database.BUSY_TIMEOUT_MS)
        to = apsw.Connection(str(target))
        try:
            with to.backup("main", from_, "main") as copying:
                while not copying.done:
                    copying.step(4096)
            to.pragma("journal_mode", "delete")  # one file, no WAL beside it
        finally:
            to.close()


def _set_aside(database_path: Path) -> Path | None:
    old = [
        path
        for path in (database_path.with_name(database_path.name + end) for end in ("", "-wal", "-shm"))
        if path.exists()
    ]
    if not old:
        return None
    stem = f"replaced-{datetime.now(UTC):%Y%m%dT%H%M%SZ}"
    aside, count = database_path.parent / "backups" / stem, 1
    while aside.exists():
        count += 1
        aside = aside.with_name(f"{stem}-{count}")
    aside.mkdir(parents=True)
    for path in old:
        path.replace(aside / path.name)
    sync(aside)
    return aside


def sync(path: Path) -> None:
    """Make a file, or the entries of a folder, durable."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
