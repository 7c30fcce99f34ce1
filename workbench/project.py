"""A project: a folder with its database, backups, runs and models, opened by one program at a time."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import threading
import time
from pathlib import Path

import apsw

from workbench import backups, database, folders, store_check
from workbench.errors import UserError
from workbench.ids import new_id, now
from workbench.jsonl import write_atomic
from workbench.model_folders import refuse_changed
from workbench.protocol import ModelRef
from workbench.records import Change, ModelRecord
from workbench.store import Store

log = logging.getLogger(__name__)
DATABASE = "project.db"
LOCK = "project.lock"
_LAST_FAILURE = "last-failure.txt"  # beside the backups: what was wrong with the newest attempt
_NEW_DATABASE = ".new-project.db"
BACKUP_EVERY_S = 30 * 60
_FOLDERS = ("backups", "runs", "models")
_LABELS = frozenset({"prompts", "demonstrations", "responses", "rankings", "raters"})


class ProjectInUse(UserError):
    """Another program has the project open; it can still be opened for reading only."""


class Project:
    """An open project. Use :meth:`create` or :meth:`open`, and close it (or use it in a ``with``)."""

    def __init__(self, path: Path, lock: int | None, *, read_only: bool) -> None:
        self.path = path
        self.read_only = read_only
        self._lock = lock
        self.store = Store(path / DATABASE, read_only=read_only)
        self.backup_problem = _last_failure(path)
        self._changed_since_backup = False
        self._backup_due_at = time.monotonic() + BACKUP_EVERY_S
        self._backing_up = threading.Lock()
        self._backup_thread: threading.Thread | None = None
        self._unsubscribe = self.store.subscribe(self._on_changed)

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.path.name

    @property
    def warning(self) -> str:
        """What was wrong with the last backup; why the project should not live where it is (a synced folder); or ''."""
        return " ".join(filter(None, (self.backup_problem, folders.folder_warning(self.path))))

    @classmethod
    def create(cls, path: Path | str) -> Project:
        """Make a new project in a new or empty folder and open it."""
        path = _usable(path)
        try:
            if path.exists() and not _is_free(path):
                raise UserError(
                    f"no project can be made at {path}",
                    "it is not an empty folder",
                    "choose a new folder" if not (path / DATABASE).exists() else "open the project that is there",
                )
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
            for name in _FOLDERS:
                (path / name).mkdir(mode=0o700, exist_ok=True)
            lock = _take_lock(path)
            try:
                _make_database(path / DATABASE)
                return cls(path, lock, read_only=False)
            except BaseException:
                os.close(lock)
                raise
        except OSError as error:
            raise UserError(
                f"no project can be made at {path}", error.strerror or "", "choose another folder"
            ) from error
        except apsw.Error as error:
            raise database.problem_of(error, path / DATABASE, doing="the project was not made") from error

    @classmethod
    def open(cls, path: Path | str, *, read_only: bool = False) -> Project:
        """Open a project.

        Raises:
            ProjectInUse: another program has it open for writing.
            UserError: it is missing, damaged (the newest good backup is named) or of a newer version.
        """
        path = _usable(path)
        file = path / DATABASE
        try:
            project = cls._opened(path, read_only=read_only)
        except apsw.Error as error:
            raise backups.problem_of(error, file, doing="the project was not opened") from error
        except OSError as error:
            raise UserError(
                f"the project at {path} cannot be opened",
                error.strerror or str(error),
                "check the path, and the permissions of the folder and its files",
            ) from error
        if not read_only:
            for name in _FOLDERS:
                with contextlib.suppress(OSError):  # its absence is told where it matters
                    (path / name).mkdir(mode=0o700, exist_ok=True)
        if project.backup_problem:
            log.warning("%s", project.backup_problem)
        return project

    @classmethod
    def _opened(cls, path: Path, *, read_only: bool) -> Project:
        file = path / DATABASE
        if not file.is_file():
            if backups.backups(path / "backups"):
                raise backups.ProjectDamaged(file, "the file is missing")
            raise UserError(f"there is no project at {path}", f"it has no {DATABASE}", "choose a project's folder")
        with contextlib.ExitStack() as on_failure:
            lock = None if read_only else _take_lock(path)
            if lock is not None:
                on_failure.callback(os.close, lock)
            _check_file(file)
            _migrate(file, read_only=read_only)
            project = cls(path, lock, read_only=read_only)
            on_failure.pop_all()
        return project

    def close(self) -> None:
        """Finish all writes, make a backup if one is due, and let go of the folder. May be called twice."""
        if self._lock is None and not self.read_only:
            return
        self.store.close()
        self._unsubscribe()
        if self._backup_thread:
            self._backup_thread.join()
        if self._changed_since_backup and self._is_backup_due():
            self._back_up_quietly()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def __enter__(self) -> Project:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # ---- folders and models --------------------------------------------------------------------------------

    @property
    def runs_dir(self) -> Path:
        """Where run folders are."""
        return self.path / "runs"

    @property
    def models_dir(self) -> Path:
        """Where imported adapters are."""
        return self.path / "models"

    @property
    def backups_dir(self) -> Path:
        """Where backups are."""
        return self.path / "backups"

    def run_dir(self, run_id: str) -> Path:
        """The folder of one run."""
        if not run_id or run_id != Path(run_id).name or run_id in (".", ".."):
            raise UserError(f"there is no run {run_id!r}", "that is not a run's id", "choose a run from the list")
        return self.runs_dir / run_id

    def resolve(self, model: ModelRecord) -> ModelRef:
        """Name a model's folders for the engine. Raises UserError if files are missing, changed or not its own."""
        if model.role == "base":
            base, adapter = model, None
        else:
            found = self.store.model(model.base_id)
            if found is None:
                raise UserError(
                    f"the model {model.name} cannot be used",
                    "its base model is not in the project",
                    "add the base again",
                )
            base, adapter = found, self.adapter_folder(model)
        base_path = Path(base.path)
        _need_files(base, base_path, "config.json", weights="*.safetensors")
        if adapter is not None:
            _need_files(model, adapter, "adapter_config.json", "adapter_model.safetensors")
            refuse_changed(adapter, model.sha256, f"The adapter of {model.name}")
        refuse_changed(base_path, base.sha256, f"The base of {model.name}" if adapter else f"The model {base.name}")
        return ModelRef(
            model_id=model.id,
            name=model.name,
            base=str(base_path),
            adapter=str(adapter) if adapter else "",
            base_sha256=base.sha256,
            adapter_sha256=model.sha256 if adapter else "",
        )

    def adapter_folder(self, model: ModelRecord) -> Path:
        """The folder of an adapter. Raises UserError where its path leads out of ``runs`` and ``models``."""
        path = Path(model.path)
        if path.is_absolute() or ".." in path.parts or path.parts[:1] not in (("runs",), ("models",)):
            raise UserError(
                f"the model {model.name} cannot be used",
                f"its path {model.path!r} leads out of the project",
                "remove it from the list",
            )
        return self.path / path

    def lineage(self, model_id: str) -> list[ModelRecord]:
        """A model, the one it was trained from, and so on down to its base."""
        known = {model.id: model for model in self.store.models()}
        chain: dict[str, ModelRecord] = {}
        model = known.get(model_id)
        while model and model.id not in chain:
            chain[model.id] = model
            model = known.get(model.parent_id) or known.get(model.base_id)
        return list(chain.values())

    # ---- safety --------------------------------------------------------------------------------------------

    def check(self) -> list[str]:
        """Check the whole database: SQLite's integrity check, and the sha256 of every label row. [] when sound."""
        self.store.wait()
        with self.store.reading() as db:
            return store_check.faults(db)

    def back_up(self) -> backups.Backup:
        """Back up now. Raises UserError when the database is damaged or the disk full.

        What was wrong is kept beside the backups and told at the next opening too, until a backup is good.
        """
        with self._backing_up:
            self._changed_since_backup = False
            self._backup_due_at = time.monotonic() + BACKUP_EVERY_S
            try:
                made = backups.back_up(self.path / DATABASE, self.backups_dir)
            except UserError as error:
                self._changed_since_backup = True
                self._note_backup(str(error))
                raise
            self._note_backup(made.problem)
            return made

    def backups(self) -> list[backups.Backup]:
        """The project's backups, newest first."""
        return backups.backups(self.backups_dir)

    def _note_backup(self, problem: str) -> None:
        self.backup_problem = problem
        file = self.backups_dir / _LAST_FAILURE
        with contextlib.suppress(OSError, UserError):  # on a full disk it is told at least now
            if problem:
                log.warning("%s", problem)
                write_atomic(file, problem.encode())
            else:
                file.unlink(missing_ok=True)

    def _is_backup_due(self) -> bool:
        newest = self.backups()
        if not newest:
            return True
        age = time.time() - newest[0].at.timestamp()
        return age < 0 or age >= BACKUP_EVERY_S  # in the future: the clock was set back

    def _on_changed(self, change: Change) -> None:
        if not change.kinds & _LABELS:
            return
        self._changed_since_backup = True
        if time.monotonic() >= self._backup_due_at and not self._backing_up.locked():
            self._backup_due_at = time.monotonic() + BACKUP_EVERY_S
            self._backup_thread = threading.Thread(target=self._back_up_quietly, name="backup")
            self._backup_thread.start()

    def _back_up_quietly(self) -> None:
        with contextlib.suppress(UserError):  # back_up has told of it
            self.back_up()


def restore_backup(path: Path | str, backup: Path | str) -> Path | None:
    """Put a backup in the place of a closed project's database; the old file is set aside under ``backups/``.

    Args:
        path: the project's folder.
        backup: the backup's file, or its name in the project's backups folder.

    Returns:
        The folder with the old files, or None when there were none.
    """
    path = Path(path).absolute()
    lock = _take_lock(path)
    try:
        inside = path / "backups" / backup
        return backups.restore(path / DATABASE, inside if inside.exists() else Path(backup).absolute())
    finally:
        os.close(lock)


def _usable(path: Path | str) -> Path:
    """Make a path absolute. Raises UserError where its name is no text, which SQLite cannot open."""
    path = Path(path).absolute()
    try:
        str(path).encode()
    except UnicodeEncodeError as error:
        shown = str(path).encode(errors="backslashreplace").decode()
        raise UserError(f"no project can be at {shown}", "its name is not valid UTF-8", "rename the folder") from error
    return path


def _last_failure(path: Path) -> str:
    try:
        return (path / "backups" / _LAST_FAILURE).read_text(encoding="utf-8", errors="replace").strip()[:2000]
    except OSError:
        return ""


def _is_free(path: Path) -> bool:
    """Whether a project can be made here: an empty folder, or what an interrupted creation left."""
    return path.is_dir() and all(
        entry.name == LOCK
        or entry.name.startswith(_NEW_DATABASE)
        or (entry.name in _FOLDERS and entry.is_dir() and not any(entry.iterdir()))
        for entry in path.iterdir()
    )


def _make_database(file: Path) -> None:
    """Make the database under another name and rename it, so that a project either exists or does not."""
    draft = file.with_name(_NEW_DATABASE)
    for leftover in file.parent.glob(f"{_NEW_DATABASE}*"):
        leftover.unlink()
    os.close(os.open(draft, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))  # SQLite keeps the mode
    with contextlib.closing(database.connect(draft, create=True)) as db:
        database.migrate(db, backup=lambda: None)
        db.executemany("INSERT INTO meta (key, value) VALUES (?, ?)", [("project_id", new_id()), ("created_at", now())])
    draft.replace(file)
    backups.sync(file.parent)


def _check_file(file: Path) -> None:
    """Refuse at once what is plainly not a whole database, before anything could be written to it."""
    with file.open("rb") as opened:
        header = opened.read(100)
    size = file.stat().st_size
    if len(header) < 100 or not header.startswith(b"SQLite format 3\x00"):
        raise backups.ProjectDamaged(file, f"it is not a database ({size:,} bytes)")
    page_size = int.from_bytes(header[16:18], "big")
    page_size = 65536 if page_size == 1 else page_size
    pages = int.from_bytes(header[28:32], "big")
    if size < pages * page_size and not database.has_wal(file):
        raise backups.ProjectDamaged(file, f"it was cut off: {size:,} of {pages * page_size:,} bytes are there")
    if int.from_bytes(header[68:72], "big") != database.APPLICATION_ID:
        raise UserError(
            f"{file} is not a Tastemaker project", "its database belongs to another program", "choose another"
        )
    database.refuse_newer(int.from_bytes(header[60:64], "big"), max(database.migrations()))


def _migrate(file: Path, *, read_only: bool) -> None:
    with contextlib.closing(database.connect(file, read_only=read_only)) as db:
        newest = max(database.migrations())
        if read_only and database.schema_version(db) < newest:
            raise UserError(
                "this project was made by an older version of Tastemaker",
                "it is open for reading only, so it cannot be brought up to date",
                "open it once for writing",
            )
        database.migrate(db, backup=lambda: backups.back_up(file, file.parent / "backups"))
        db.execute("SELECT count(*) FROM meta").get  # noqa: B018 (damage shows here, not at the first label)


def _take_lock(path: Path) -> int:
    try:
        handle = os.open(path / LOCK, os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise UserError(
            f"the project at {path} cannot be written", error.strerror or "", "open it for reading only"
        ) from error
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        holder = os.read(handle, 32).decode("ascii", "replace").strip()
        os.close(handle)
        raise ProjectInUse(
            f"the project {path.name} is open already",
            f"process {holder} has it" if holder else "another program has it",
            "use that window, or open the project for reading only",
        ) from error
    os.ftruncate(handle, 0)
    os.pwrite(handle, f"{os.getpid()}\n".encode(), 0)
    return handle


def _need_files(model: ModelRecord, folder: Path, *names: str, weights: str = "") -> None:
    missing = [name for name in names if not (folder / name).is_file()]
    if weights and not any(folder.glob(weights)):
        missing.append(weights)
    if missing:
        raise UserError(
            f"the model {model.name} cannot be used",
            f"{', '.join(missing)} is missing in {folder}" if folder.is_dir() else f"the folder {folder} is not there",
            "put the folder back, or show where it is now: Locate… in Models, or `tastemaker model locate`"
            if model.role == "base"
            else "put the folder back, or train it again",
        )
