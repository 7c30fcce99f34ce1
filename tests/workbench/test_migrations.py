"""Every schema version has a test here; a released one never changes; an interrupted one leaves the old version."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import apsw
import pytest

from workbench import backups, database
from workbench.database import migrate, migrations
from workbench.errors import UserError
from workbench.ids import new_id
from workbench.project import Project
from workbench.records import Message, Prompt, Ranking
from workbench.thumbs import current_thumbs

FIXTURES = Path(__file__).parent / "fixtures"
FROZEN = {
    1: "50f2e6aa6ec00d78800e98c105a3dde4a4d76c261de6246a11e19657d60feaef",
    2: "1b0d1ec94c30928a2cdf9c58ed3dc51913f534ad6c64519c8122404d4d59c98e",
    3: "0edaaf695848eb9773f47319de09d177224370c1c28ce306db9958c5cbe4997b",
}
"""sha256 of each version's SQL. Never change a line: write the next version instead."""
NEWEST = max(FROZEN)


def test_every_version_has_a_fixture_and_a_test_and_its_sql_is_frozen():
    steps = migrations()
    assert {number: hashlib.sha256(sql.encode()).hexdigest() for number, sql in steps.items()} == FROZEN
    for number in steps:
        assert (FIXTURES / f"rows_{number:04d}.sql").is_file(), f"write rows as version {number} stores them"
        assert f"test_version_{number}_opens_with_its_labels" in globals(), f"write a test of version {number}"


def project_of_version(folder: Path, number: int, labels: int = 0) -> Path:
    """A project as version ``number`` would have left it, with its labels or those that a later version stored."""
    folder.mkdir()
    steps = {n: sql for n, sql in migrations().items() if n <= number}
    db = database.connect(folder / "project.db", create=True)
    migrate(db, backup=lambda: None, steps=steps)
    with db:
        db.pragma("defer_foreign_keys", "on")
        db.execute((FIXTURES / f"rows_{labels or number:04d}.sql").read_text(encoding="utf-8"))
    db.close()
    return folder


def test_version_1_opens_with_its_labels(tmp_path):
    with Project.open(project_of_version(tmp_path / "p", 1)) as project:
        store = project.store
        assert project.check() == []
        (prompt,) = store.prompts()
        assert prompt.title == "What is rain?"
        assert prompt.tags == ("weather",)
        assert store.demonstration_for(prompt.id).text == "Water that falls."
        assert [r.text for r in store.responses(prompt.id)] == ["Water.", "Fire."]
        assert store.rankings()[0].note == "clear"
        counts = store.counts()
        assert (counts.prompts, counts.demonstrations_final, counts.rankings, counts.pairs) == (1, 1, 1, 1)
        assert [r.name for r in store.raters()] == ["Ann"]


@pytest.mark.parametrize("version", [1, 2])
def test_version_2_opens_with_its_labels(tmp_path, version):
    """Version 1 stored the same thumbs and counted none of them: they are counted as it is brought forward."""
    with Project.open(project_of_version(tmp_path / "p", version, labels=2)) as project:
        assert project.check() == []
        judged = [(row.completion, row.desirable) for row in current_thumbs(project.store).rows]
        assert judged == [("Frozen water.", True), ("Cold.", False), ("Salt.", False)]  # " " is empty
        counts = project.store.counts()
        assert (counts.thumbs_up, counts.thumbs_down) == (1, 2)
        first, second = project.store.rankings(include_superseded=True)  # a thumb down that was taken back
        assert second.supersedes == first.id
    backup = backups.newest_good(tmp_path / "p" / "backups")
    assert (backup is not None) == (
        version < NEWEST
    )  # brought forward only after a backup, which its own rules call sound


@pytest.mark.parametrize("version", [1, 2, 3])
def test_version_3_opens_with_its_labels(tmp_path, version):
    """Older versions stored the same judgements and knew only whom nobody had judged: what waits is counted anew."""
    with Project.open(project_of_version(tmp_path / "p", version, labels=3)) as project:
        assert project.check() == []
        assert (backups.newest_good(tmp_path / "p" / "backups") is not None) == (version < NEWEST)
        store = project.store
        hail, fog = store.prompts()
        assert [r.text for r in store.responses(hail.id)] == ["Ice that falls.", "Cold.", "Round rain."]
        assert store.next_to_rank(rater_id="ann") == [hail.id, fog.id]  # one response more; skipped
        assert store.next_to_rank(rater_id="ann", passed_over=[fog.id]) == [hail.id]
        assert store.next_to_rank(rater_id="bob") == [hail.id]  # of fog nothing can be ranked, he said
        assert [store.counts(one).prompts_with_responses for one in ("ann", "bob", "")] == [2, 1, 2]
        ranking, skip, _ = store.rankings()
        again = Ranking(new_id(), fog.id, "ann", tuple((id_,) for id_ in skip.shown_order))
        store.save_ranking(again).result()
        assert store.next_to_rank(rater_id="ann") == [hail.id]
        assert store.rankings()[0] == ranking
        assert project.check() == []


# ---- the mechanism, with versions that do not exist yet ----------------------------------------------------

NEXT = "ALTER TABLE prompts ADD COLUMN mood TEXT NOT NULL DEFAULT 'calm'; CREATE TABLE moods (mood TEXT) STRICT;"


@pytest.fixture
def newer(tmp_path, monkeypatch) -> Path:
    """A schema folder with a version more."""
    folder = tmp_path / "schema"
    shutil.copytree(database.SCHEMA_FOLDER, folder)
    number = max(migrations()) + 1
    (folder / f"{number:04d}.sql").write_text(NEXT)
    monkeypatch.setattr(database.migrations, "__defaults__", (folder,))
    return folder


@pytest.fixture
def old(tmp_path) -> Path:
    """A project of today's version with a prompt."""
    with Project.create(tmp_path / "old") as project:
        project.store.add_prompts([Prompt(new_id(), (Message("user", "Hi"),))]).result()
        project._changed_since_backup = False
    return project.path


def version(path: Path) -> int:
    db = apsw.Connection(str(path / "project.db"), flags=apsw.SQLITE_OPEN_READONLY)
    try:
        return database.schema_version(db)
    finally:
        db.close()


def test_an_older_project_is_backed_up_and_brought_forward(old, newer):
    before = version(old)
    with Project.open(old) as project:
        assert len(project.store.prompts()) == 1
        with project.store.reading() as db:
            assert db.execute("SELECT mood FROM prompts").get == "calm"
    assert version(old) == before + 1
    (backup,) = backups.backups(old / "backups")
    db = apsw.Connection(str(backup.path), flags=apsw.SQLITE_OPEN_READONLY)
    assert database.schema_version(db) == before
    db.close()


def test_a_project_that_is_up_to_date_is_not_backed_up_again(old, newer):
    Project.open(old).close()
    Project.open(old).close()
    assert len(backups.backups(old / "backups")) == 1


def test_a_newer_project_is_refused_and_not_a_byte_of_it_changes(old, newer, monkeypatch):
    Project.open(old).close()
    before = (old / "project.db").read_bytes()
    monkeypatch.undo()
    for read_only in (False, True):
        with pytest.raises(UserError, match="newer version of Tastemaker"):
            Project.open(old, read_only=read_only)
    assert (old / "project.db").read_bytes() == before
    assert len(backups.backups(old / "backups")) == 1


def test_a_newer_project_is_left_alone_also_where_its_journal_is_not_ours(old):
    file = old / "project.db"
    with contextlib.closing(apsw.Connection(str(file))) as db:
        db.pragma("journal_mode", "delete")
        db.pragma("user_version", 99)
    before = file.read_bytes()
    with pytest.raises(UserError, match="newer version of Tastemaker"):
        Project.open(old)
    assert file.read_bytes() == before


def test_an_older_project_cannot_be_opened_for_reading_only(old, newer):
    with pytest.raises(UserError, match="older version"):
        Project.open(old, read_only=True)


def test_a_failed_migration_leaves_the_old_version_and_a_backup(old, newer):
    number = max(migrations())
    (newer / f"{number:04d}.sql").write_text(NEXT + "INSERT INTO no_such_table VALUES (1);")
    with pytest.raises(UserError, match="The database refused"):
        Project.open(old)
    assert version(old) == number - 1
    assert len(backups.backups(old / "backups")) == 1
    (newer / f"{number:04d}.sql").write_text(NEXT)
    with Project.open(old) as project:
        assert project.check() == []


def test_a_migration_that_breaks_a_reference_is_taken_back(old, newer):
    number = max(migrations())
    (newer / f"{number:04d}.sql").write_text(
        "PRAGMA defer_foreign_keys = 1; CREATE TABLE child (id TEXT REFERENCES prompts (id)) STRICT;"
        "INSERT INTO child VALUES ('nobody');"
    )
    with pytest.raises(RuntimeError, match="broke references"):
        Project.open(old)
    assert version(old) == number - 1


def test_no_migration_without_a_backup(old, newer, monkeypatch):
    def full(*_args, **_kwargs):
        raise UserError("the disk is full")

    monkeypatch.setattr(backups, "back_up", full)
    with pytest.raises(UserError, match="disk is full"):
        Project.open(old)
    assert version(old) == max(migrations()) - 1


def test_a_migration_for_which_the_disk_has_no_room_leaves_the_old_version(old, newer, small_disk):
    number = max(migrations())
    (newer / f"{number:04d}.sql").write_text(NEXT + "INSERT INTO moods VALUES (hex(zeroblob(4000000)));")
    shutil.copytree(old, small_disk / "p")
    with pytest.raises(UserError, match="disk is full: the project was not opened"):
        Project.open(small_disk / "p")
    assert version(small_disk / "p") == number - 1
    (newer / f"{number:04d}.sql").write_text(NEXT)
    with Project.open(small_disk / "p") as project:
        assert project.check() == []


def test_a_migration_killed_in_the_middle_leaves_the_old_version_whole(old, newer):
    number = max(migrations())
    (newer / f"{number:04d}.sql").write_text(NEXT + "SELECT die();")
    code = (
        "import os, sys, signal, apsw\n"
        "from pathlib import Path\n"
        "from workbench import database\n"
        "db = database.connect(Path(sys.argv[1]))\n"
        "db.create_scalar_function('die', lambda: os.kill(os.getpid(), signal.SIGKILL))\n"
        "database.migrate(db, backup=lambda: None, steps=database.migrations(Path(sys.argv[2])))\n"
    )
    ended = subprocess.run([sys.executable, "-c", code, str(old / "project.db"), str(newer)], env=os.environ)
    assert ended.returncode == -9
    (newer / f"{number:04d}.sql").write_text(NEXT)
    assert version(old) == number - 1
    with Project.open(old) as project:
        assert project.check() == []
        assert len(project.store.prompts()) == 1
    assert version(old) == number


def test_versions_with_a_gap_are_our_bug(newer):
    (newer / "0009.sql").write_text("")
    with pytest.raises(RuntimeError, match="gaps"):
        migrations(newer)
