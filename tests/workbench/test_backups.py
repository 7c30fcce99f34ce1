from __future__ import annotations

import contextlib
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import apsw
import pytest
from hypothesis import given
from hypothesis import strategies as st

from workbench import backups
from workbench.backups import Backup, back_up, newest_good, restore, thinned
from workbench.errors import UserError
from workbench.project import Project
from workbench.store_check import faults_of_file

NOON = datetime(2026, 6, 15, 12, tzinfo=UTC)


def backup(number: int, at: datetime) -> Backup:
    return Backup(Path(f"{number:06d}.db"), number, at)


def every(step: timedelta, count: int, until: datetime = NOON) -> list[Backup]:
    return [backup(number, until - step * (count - number)) for number in range(1, count + 1)]


def kept_of(all_: list[Backup]) -> list[Backup]:
    removed = set(thinned(all_))
    return [b for b in all_ if b not in removed]


def fill(disk: Path) -> None:
    """Leave not a page free."""
    with (disk / "ballast").open("wb", buffering=0) as out, contextlib.suppress(OSError):
        while True:
            out.write(bytes(4096))


def test_all_of_two_days_are_kept_then_days_weeks_and_months():
    all_ = every(timedelta(hours=1), 24 * 400)
    kept = kept_of(all_)
    ages = [(NOON - b.at).total_seconds() / 86400 for b in kept]
    assert sum(age < 2 for age in ages) == 48
    assert sum(2 <= age < 14 for age in ages) == 12
    assert len(kept) == 48 + 12 + 10 + 9
    assert 280 < max(ages) < 400


def test_within_a_day_that_is_thinned_the_newest_remains():
    all_ = every(timedelta(hours=6), 4 * 10)
    kept = kept_of(all_)
    days = [b.at.date() for b in kept if b.at <= NOON - timedelta(days=2)]
    assert len(days) == len(set(days))
    for b in kept:
        later = [x for x in all_ if x.at.date() == b.at.date() and x.number > b.number]
        assert b.at > NOON - timedelta(days=2) or not [x for x in later if x.at <= NOON - timedelta(days=2)]


def test_thinning_again_removes_nothing_more():
    all_ = every(timedelta(hours=3), 1000)
    kept = kept_of(all_)
    assert thinned(kept) == []
    assert thinned([]) == []


@given(st.lists(st.integers(-1000, 1000), min_size=1, max_size=60))
def test_whatever_the_clock_said_the_newest_ones_stay(hours):
    all_ = [backup(number, NOON + timedelta(hours=h)) for number, h in enumerate(hours)]
    removed = thinned(all_)
    assert not set(removed) & set(all_[-backups.KEEP_NEWEST :])
    assert not set(removed) & {b for b in all_ if b.at > all_[-1].at}


@pytest.fixture
def closed(project, make) -> Path:
    """The database of a closed project with one prompt and no backup."""
    project.store.add_prompts([make.prompt()]).result()
    project._changed_since_backup = False
    project.close()
    assert project.backups() == []
    return project.path / "project.db"


def test_backups_are_numbered_and_read_back_newest_first(closed, tmp_path):
    folder = tmp_path / "b"
    first, second = back_up(closed, folder, at=NOON), back_up(closed, folder, at=NOON - timedelta(days=9))
    (folder / "000003-20269999T000000Z.db").write_text("a name that only looks like a date")
    (folder / "mine.db").write_text("")
    assert backups.backups(folder) == [second, first]
    assert first.path.name == "000001-20260615T120000Z.db"
    assert first.when == "2026-06-15 12:00 UTC"
    assert faults_of_file(first.path) == []
    assert newest_good(folder) == second
    assert sorted(p.name for p in folder.iterdir() if p.name.startswith(".")) == []


def test_old_backups_are_thinned_as_a_new_one_is_made(closed, tmp_path):
    folder = tmp_path / "b"
    for number in range(8):
        back_up(closed, folder, at=NOON + timedelta(minutes=number))
    back_up(closed, folder, at=NOON + timedelta(days=30))
    assert [b.number for b in backups.backups(folder)] == [9, 8, 7]


def test_a_backup_of_a_project_in_use_holds_what_was_saved(project, make):
    for number in range(50):
        project.store.add_prompts([make.prompt(str(number))]).result()
    made = project.back_up()
    project.store.add_prompts([make.prompt("after")]).result()
    with apsw.Connection(str(made.path), flags=apsw.SQLITE_OPEN_READONLY) as db:
        assert db.execute("SELECT count(*) FROM prompts").get == 50
        assert db.pragma("journal_mode") == "delete"
    db.close()


def test_damaged_records_do_not_end_backups_but_mark_them_and_thin_no_good_one(closed, tmp_path):
    folder = tmp_path / "b"
    good = [back_up(closed, folder, at=NOON + timedelta(minutes=n)) for n in range(2)]
    raw = closed.read_bytes()
    closed.write_bytes(raw.replace(b"What is rain?", b"What is pain?"))
    for day in range(30, 36):
        made = back_up(closed, folder, at=NOON + timedelta(days=day))
        assert (made.damaged, made.path.name.endswith("Z-damaged.db")) == (True, True)
    assert "Some records of the project are damaged" in made.problem
    assert [b.number for b in backups.backups(folder)] == [8, 7, 6, 2, 1]
    assert newest_good(folder) == good[1]
    assert good[1].problem == ""
    many = replace(made, faults=("a", "b", "c", "d", "e"))
    assert "(a; b; c and 2 more)" in many.problem


def test_no_backup_of_a_damaged_database_is_made_and_none_is_thinned(closed, tmp_path):
    folder = tmp_path / "b"
    good = [back_up(closed, folder, at=NOON + timedelta(minutes=n)) for n in range(2)]
    raw = closed.read_bytes()
    with contextlib.closing(apsw.Connection(str(closed))) as db:
        db.execute("UPDATE tallies SET pairs = 7")
    with pytest.raises(UserError, match=good[1].path.name):
        back_up(closed, folder, at=NOON + timedelta(days=30))
    closed.write_bytes(raw[:4096] + b"\xff" * (len(raw) - 4096))
    with pytest.raises(backups.ProjectDamaged, match="No backup was made"):
        back_up(closed, folder)
    assert backups.backups(folder) == good[::-1]
    assert len(list(folder.iterdir())) == 2


def test_a_full_disk_leaves_no_half_backup(closed, small_disk):
    back_up(closed, small_disk / "b")
    fill(small_disk)
    with pytest.raises(UserError, match=f"The disk is full: no backup was made. 0 bytes are free at {small_disk}"):
        back_up(closed, small_disk / "b")
    assert len(list((small_disk / "b").iterdir())) == 1
    for path in (small_disk / "b").iterdir():
        assert faults_of_file(path) == []
    assert newest_good(small_disk / "b")


def test_a_backup_folder_that_cannot_be_made_says_so(closed, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="No backup was made"):
        back_up(closed, tmp_path / "file")


def test_restoring_sets_the_old_file_aside_and_brings_the_backup(closed, tmp_path):
    made = back_up(closed, closed.parent / "backups")
    with Project.open(closed.parent) as project:
        project.store.archive_prompts([project.store.prompts()[0].id]).result()
        project._changed_since_backup = False
    aside = restore(closed, made.path)
    assert aside
    assert (aside / "project.db").is_file()
    with Project.open(closed.parent) as project:
        assert len(project.store.prompts()) == 1


def test_a_bad_backup_is_never_restored(closed, tmp_path):
    before = closed.read_bytes()
    (tmp_path / "bad.db").write_bytes(b"not a database at all" * 500)
    (tmp_path / "empty.db").write_bytes(b"")
    for name, why in (("bad.db", "not a database"), ("empty.db", "not a Tastemaker"), ("none.db", "unable to open")):
        with pytest.raises(UserError, match=why):
            restore(closed, tmp_path / name)
    assert closed.read_bytes() == before


def test_a_restore_that_has_no_room_leaves_the_old_file(closed, small_disk):
    made = back_up(closed, small_disk / "b")
    target = small_disk / "project.db"
    target.write_bytes(closed.read_bytes())
    fill(small_disk)
    with pytest.raises(UserError, match="The backup was not restored"):
        restore(target, made.path)
    assert faults_of_file(target) == []
    assert not (small_disk / ".restoring.db").exists()


def test_names_with_odd_characters_are_checked_too(closed, tmp_path):
    odd = tmp_path / "50%20?#.db"
    odd.write_bytes(closed.read_bytes())
    assert faults_of_file(odd) == []
