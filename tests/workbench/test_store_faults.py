"""Faults really caused: a writer killed at any moment, a full disk, a locked file."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import apsw
import pytest

from workbench import database
from workbench.errors import UserError
from workbench.pairs import current_pairs
from workbench.project import Project
from workbench.store_writer import Act

WRITER = """
import itertools, sys
from workbench.ids import new_id
from workbench.project import Project
from workbench.records import Demonstration, Message, Prompt, Ranking, Rater, Response

project = Project.open(sys.argv[1])
store = project.store
store.save_rater(Rater("ann", "Ann")).result()
for number in itertools.count():
    prompt = Prompt(new_id(), (Message("user", f"number {number} of {sys.argv[2]}"),))
    responses = [Response(new_id(), prompt.id, text) for text in ("good", "bad", "ugly")]
    ranking = Ranking(new_id(), prompt.id, "ann", tuple((r.id,) for r in responses))
    if number % 3:  # three acts, or one batch
        store.add_prompts([prompt]).result()
        print("prompt", prompt.id, flush=True)
        store.add_responses(responses).result()
        print("responses", prompt.id, flush=True)
        store.save_ranking(ranking).result()
    else:
        store.add_batch(prompts=[prompt], responses=responses, rankings=[ranking], label="batch").result()
    print("ranking", ranking.id, flush=True)
    store.save_demonstration(Demonstration(new_id(), prompt.id, "text", "Ann", "final")).result()
    print("demonstration", prompt.id, flush=True)
    if number % 5 == 4:
        store.undo().result()
        print("undone", prompt.id, flush=True)
"""


def killed_writer(path: Path, run: int, seconds: float) -> list[list[str]]:
    """Let a writer work for a while, kill it, and return what it was told is saved."""
    child = subprocess.Popen([sys.executable, "-c", WRITER, str(path), str(run)], stdout=subprocess.PIPE, text=True)
    assert child.stdout
    lines = [child.stdout.readline()]  # its first act is done: now the time counts
    time.sleep(seconds)  # the moment of death is the point
    child.send_signal(signal.SIGKILL)
    lines += child.stdout.readlines()
    child.stdout.close()
    assert child.wait() == -signal.SIGKILL
    return [line.split() for line in lines if line.endswith("\n")]


def test_a_writer_killed_at_any_moment_loses_no_acknowledged_label_and_leaves_none_half_done(tmp_path):
    path = tmp_path / "p"
    Project.create(path).close()
    chance = random.Random(7)
    acknowledged: list[list[str]] = []
    perhaps: set[str] = set()
    for run in range(8):
        acknowledged += killed_writer(path, run, chance.uniform(0, 0.15))
        with Project.open(path) as project:
            store = project.store
            assert project.check() == []
            rankings = {r.id for r in store.rankings()}
            told = {
                kind: {id_ for k, id_ in acknowledged if k == kind} for kind in ("prompt", "responses", "demonstration")
            }
            assert {id_ for k, id_ in acknowledged if k == "ranking"} <= rankings
            assert told["prompt"] <= {p.id for p in store.prompts(limit=-1)}
            assert all(len(store.responses(id_)) == 3 for id_ in told["responses"])
            assert all(len(store.responses(p.id)) in (0, 3) for p in store.prompts(limit=-1))
            undone = {id_ for k, id_ in acknowledged if k == "undone"}
            written = {d.prompt_id for d in store.demonstrations()}
            perhaps.add(acknowledged[-1][1])  # its undo may have landed without the word of it, in any of the runs
            assert told["demonstration"] - undone - perhaps <= written
            assert not undone & written
            assert len(current_pairs(store).rows) == 3 * len(rankings)
    assert len(acknowledged) > 16


def test_undo_goes_on_where_a_killed_writer_stopped(tmp_path):
    Project.create(tmp_path / "p").close()
    killed_writer(tmp_path / "p", 0, 0.1)
    with Project.open(tmp_path / "p") as project:
        while project.store.undo_label():
            project.store.undo().result()
        assert project.store.counts().prompts == 0
        assert project.check() == []


def fill(disk: Path) -> Path:
    """Use up a disk to the last page."""
    ballast = disk / "ballast"
    with ballast.open("wb", buffering=0) as out:
        try:
            while True:
                out.write(bytes(4096))
        except OSError:
            return ballast


def test_on_a_full_disk_the_label_is_refused_whole_and_can_be_saved_again_when_there_is_room(small_disk, records):
    with Project.create(small_disk / "p") as project:
        store, make = project.store, records(project.store)
        prompt, (a, b, _) = make.rankable()
        ballast = fill(small_disk)
        saved = []
        error: UserError | None = None
        while error is None:  # the log has some room left in it
            ranking = replace(make.ranking(prompt, [a], [b]), note="n" * 3000)
            try:
                store.save_ranking(ranking).result()
                saved.append(ranking.id)
            except UserError as raised:
                error = raised
        assert "The disk is full: this was not saved" in str(error)
        assert "0 bytes are free" in str(error)
        assert {r.id for r in store.rankings(include_superseded=True)} == set(saved)
        assert {e.ids[0] for e in store.journal() if e.act == "save_ranking"} == set(saved)
        with pytest.raises(UserError, match="disk is full"):
            store.add_batch(prompts=[make.prompt("x" * 9000) for _ in range(50)], label="").result()
        assert store.counts().prompts == 1
        ballast.unlink()
        store.save_ranking(ranking).result()
        assert store.rankings()[0].id == ranking.id
        assert project.check() == []


def test_a_database_that_may_not_grow_refuses_whole_acts(store, make):
    """The same fault without a disk of its own: SQLite is told that the file is as large as it may be."""
    db = store._writer._db
    db.pragma("max_page_count", db.pragma("page_count"))
    with pytest.raises(UserError, match="disk is full"):
        store.add_prompts([make.prompt(str(i) + "x" * 5000) for i in range(50)]).result()
    assert store.prompts() == []
    assert store.journal() == []
    db.pragma("max_page_count", 1_000_000)
    store.add_prompts([make.prompt()]).result()
    assert store.undo_label()


@pytest.fixture
def short_wait(monkeypatch):
    monkeypatch.setattr(database, "BUSY_TIMEOUT_MS", 50)


def test_a_database_locked_by_another_program_is_waited_for_then_refused_with_its_path(short_wait, tmp_path, records):
    with Project.create(tmp_path / "p") as project:
        store, make = project.store, records(project.store)
        other = apsw.Connection(str(store.path))
        other.execute("BEGIN IMMEDIATE")
        prompt = make.prompt()
        with pytest.raises(UserError, match="locked by another program") as raised:
            store.add_prompts([prompt]).result()
        assert str(store.path) in str(raised.value)
        assert store.prompts() == []  # reading goes on
        other.execute("ROLLBACK")
        store.add_prompts([prompt]).result()
        assert [p.id for p in store.prompts()] == [prompt.id]
        other.close()


def test_a_lock_that_ends_in_time_only_delays_the_label(store, make):
    other = apsw.Connection(str(store.path))
    other.execute("BEGIN IMMEDIATE")
    future = store.add_prompts([make.prompt()])
    assert not future.done()
    other.execute("ROLLBACK")
    assert future.result().kinds == {"prompts"}
    other.close()


def test_a_project_locked_by_another_program_is_not_opened(short_wait, tmp_path):
    Project.create(tmp_path / "p").close()
    other = apsw.Connection(str(tmp_path / "p" / "project.db"))
    other.pragma("locking_mode", "exclusive")
    other.execute("BEGIN EXCLUSIVE")
    with pytest.raises(UserError, match="locked by another program: the project was not opened"):
        Project.open(tmp_path / "p")
    other.close()
    Project.open(tmp_path / "p").close()


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (apsw.ReadOnlyError("attempt to write a readonly database"), "cannot be written"),
        (apsw.CantOpenError("unable to open"), "cannot be opened"),
        (apsw.IOError("disk I/O error"), "The disk reported an error"),
        (apsw.CorruptError("malformed"), "is damaged"),
        (apsw.SQLError("no such table"), "Please report"),
    ],
)
def test_every_other_database_error_is_told_in_words(store, make, error, said):
    def fail(_db):
        raise error

    with pytest.raises(UserError, match=said):
        store._writer.submit(fail, undoable=True).result()
    store.add_prompts([make.prompt()]).result()


def test_our_own_bugs_are_not_dressed_up_and_leave_nothing_behind(store, make):
    def fail(db):
        db.execute("DELETE FROM raters")
        raise ZeroDivisionError

    make.rankable()
    with pytest.raises(ZeroDivisionError):
        store._writer.submit(fail, undoable=False).result()
    assert store.raters()


def test_the_writer_is_as_durable_as_it_says(store):
    db = store._writer._db
    assert (db.pragma("journal_mode"), db.pragma("synchronous"), db.pragma("foreign_keys")) == ("wal", 2, 1)


def test_foreign_keys_hold(store, make):
    make.rankable()

    def orphan(db) -> Act:
        db.execute("DELETE FROM prompts")
        return Act("orphan")

    with pytest.raises(UserError, match="FOREIGN KEY"):
        store._writer.submit(orphan, undoable=False).result()
    assert store.counts().prompts == 1
