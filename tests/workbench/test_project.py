from __future__ import annotations

import errno
import os
import shutil
import stat
import subprocess
import sys
import threading
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import apsw
import pytest

from workbench import backups, database
from workbench import project as project_module
from workbench.backups import ProjectDamaged
from workbench.errors import UserError
from workbench.model_folders import fingerprint
from workbench.project import Project, ProjectInUse, restore_backup
from workbench.records import ModelRecord


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


# ---- creating and opening ----------------------------------------------------------------------------------


def test_a_new_project_has_its_folders_and_only_its_owner_can_read_it(tmp_path, make):
    with Project.create(tmp_path / "a" / "My project") as project:
        assert project.name == "My project"
        assert not project.read_only
        for folder in (project.runs_dir, project.models_dir, project.backups_dir):
            assert folder.is_dir()
            assert mode(folder) == 0o700
        project.store.add_prompts([make.prompt()]).result()
        assert {mode(file) for file in project.path.glob("project.*")} == {0o600}
        assert mode(project.path) == 0o700
        assert project.back_up().path.parent == project.backups_dir
        assert mode(project.backups()[0].path) == 0o600
        assert project.check() == []
        assert project.warning == ""


def test_a_project_is_never_made_over_something_else(tmp_path):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    for path in ("file", "full"):
        with pytest.raises(UserError, match="not an empty folder"):
            Project.create(tmp_path / path)
    Project.create(tmp_path / "p").close()
    with pytest.raises(UserError, match="Open the project that is there"):
        Project.create(tmp_path / "p")
    with pytest.raises(UserError, match="No project can be made"):
        Project.create(tmp_path / "file" / "below")


def test_an_interrupted_creation_can_be_repeated(tmp_path, monkeypatch):
    def cut(*_args, **_kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(database, "migrate", cut)
    with pytest.raises(KeyboardInterrupt):
        Project.create(tmp_path / "p")
    monkeypatch.undo()
    with pytest.raises(UserError, match="There is no project"):
        Project.open(tmp_path / "p")
    Project.create(tmp_path / "p").close()
    Project.open(tmp_path / "p").close()


def test_a_database_error_while_a_project_is_made_is_told_in_words(tmp_path, monkeypatch):
    def full(*_args, **_kwargs):
        raise apsw.FullError("full")

    monkeypatch.setattr(database, "connect", full)
    with pytest.raises(UserError, match="disk is full: the project was not made"):
        Project.create(tmp_path / "p")


def test_what_is_missing_or_not_a_project_is_refused_unchanged(tmp_path):
    with pytest.raises(UserError, match="There is no project"):
        Project.open(tmp_path / "nowhere")
    Project.create(tmp_path / "p").close()
    file = tmp_path / "p" / "project.db"
    with apsw.Connection(str(file)) as db:
        db.pragma("application_id", 1)
    db.close()
    with pytest.raises(UserError, match="not a Tastemaker project"):
        Project.open(tmp_path / "p")


def test_folders_that_went_missing_are_made_again(tmp_path):
    Project.create(tmp_path / "p").close()
    (tmp_path / "p" / "runs").rmdir()
    with Project.open(tmp_path / "p") as project:
        assert project.runs_dir.is_dir()


def test_one_program_at_a_time_writes_and_others_may_read(project, make):
    with pytest.raises(ProjectInUse, match=f"Process {os.getpid()} has it"):
        Project.open(project.path)
    prompt = make.prompt()
    project.store.add_prompts([prompt]).result()
    with Project.open(project.path, read_only=True) as reader:
        assert reader.read_only
        assert [p.id for p in reader.store.prompts()] == [prompt.id]
        with pytest.raises(UserError, match="open for reading only"):
            reader.store.add_prompts([make.prompt()]).result()
        leave = reader.store.subscribe(lambda _: None)
        leave()
        reader.store.wait()
        assert reader.check() == []
        project.store.add_prompts([make.prompt("b")]).result()
        assert len(reader.store.prompts()) == 2


def test_the_lock_goes_with_the_process_that_held_it(tmp_path):
    Project.create(tmp_path / "p").close()
    code = "import sys, workbench.project as w; p = w.Project.open(sys.argv[1]); print(1, flush=True); input()"
    child = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "p")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert child.stdout
    assert child.stdin
    try:
        assert child.stdout.readline() == "1\n"
        with pytest.raises(ProjectInUse, match=f"Process {child.pid} has it"):
            Project.open(tmp_path / "p")
        with pytest.raises(ProjectInUse):
            restore_backup(tmp_path / "p", "x")
    finally:
        child.kill()
        child.wait()
        child.stdin.close()
        child.stdout.close()
    Project.open(tmp_path / "p").close()


def test_a_lock_file_without_a_name_in_it_is_told_as_another_program(project, monkeypatch):
    monkeypatch.setattr(project_module.os, "read", lambda *_: b"")
    with pytest.raises(ProjectInUse, match="Another program has it"):
        Project.open(project.path)


def test_a_folder_that_cannot_be_written_says_to_open_it_for_reading(tmp_path, monkeypatch):
    Project.create(tmp_path / "p").close()
    real = os.open

    def refuse(path, *args, **kwargs):
        if str(path).endswith("project.lock"):
            raise PermissionError(13, "Permission denied")
        return real(path, *args, **kwargs)

    monkeypatch.setattr(project_module.os, "open", refuse)
    with pytest.raises(UserError, match="Open it for reading only"):
        Project.open(tmp_path / "p")


def test_closing_twice_is_harmless_and_a_closed_project_can_be_opened_again(tmp_path):
    project = Project.create(tmp_path / "p")
    project.close()
    project.close()
    reader = Project.open(tmp_path / "p", read_only=True)
    reader.close()
    reader.close()
    Project.open(tmp_path / "p").close()


# ---- models and folders ------------------------------------------------------------------------------------


def test_a_run_has_a_folder_by_its_id_and_by_nothing_else(project):
    assert project.run_dir("abc") == project.path / "runs" / "abc"
    for strange in ("", "..", ".", "a/b", "/etc"):
        with pytest.raises(UserError, match="There is no run"):
            project.run_dir(strange)


def test_models_resolve_to_absolute_folders_or_say_what_is_missing(project, tmp_path):
    base = ModelRecord("b", "Base", "base", str(tmp_path / "base"))
    tuned = ModelRecord("t", "Tuned", "sft", "runs/r/final", base_id="b", parent_id="b")
    with pytest.raises(UserError, match="base model is not in the project"):
        project.resolve(tuned)
    project.store.save_model(base).result()
    with pytest.raises(UserError, match="is not there"):
        project.resolve(base)
    (tmp_path / "base").mkdir()
    with pytest.raises(UserError, match=r"config.json, \*.safetensors is missing"):
        project.resolve(base)
    (tmp_path / "base" / "config.json").write_text("{}")
    (tmp_path / "base" / "model-00001.safetensors").write_text("")
    assert project.resolve(base).base == str(tmp_path / "base")
    assert project.resolve(base).adapter == project.resolve(base).adapter_sha256 == ""
    with pytest.raises(UserError, match="is not there"):
        project.resolve(tuned)
    final = project.run_dir("r") / "final"
    final.mkdir(parents=True)
    (final / "adapter_config.json").write_text("{}")
    with pytest.raises(UserError, match=r"adapter_model\.safetensors is missing"):
        project.resolve(tuned)
    (final / "adapter_model.safetensors").write_text("")
    ref = project.resolve(tuned)
    assert (ref.base, ref.adapter) == (str(tmp_path / "base"), str(final))
    assert (ref.model_id, ref.name, ref.base_sha256, ref.adapter_sha256) == ("t", "Tuned", "", "")


def test_a_model_whose_files_changed_is_not_used(project, tmp_path, monkeypatch):
    monkeypatch.setenv("TASTEMAKER_CACHE", str(tmp_path / "cache"))
    place, final = tmp_path / "base", project.path / "models" / "t"
    for folder, names in (
        (place, ("config.json", "model.safetensors")),
        (final, ("adapter_config.json", "adapter_model.safetensors")),
    ):
        folder.mkdir()
        for name in names:
            (folder / name).write_bytes(bytes(64))
    base = ModelRecord("b", "Base", "base", str(place), sha256=fingerprint(place))
    tuned = ModelRecord("t", "Tuned", "sft", "models/t", base_id="b", parent_id="b", sha256=fingerprint(final))
    project.store.save_model(base).result()
    ref = project.resolve(tuned)
    assert (ref.base_sha256, ref.adapter_sha256) == (base.sha256, tuned.sha256)
    (final / "adapter_model.safetensors").write_bytes(bytes(63) + b"x")
    with pytest.raises(UserError, match="The adapter of Tuned has changed since it was added"):
        project.resolve(tuned)
    (final / "adapter_model.safetensors").write_bytes(bytes(64))
    (place / "config.json").write_bytes(b"{}")
    with pytest.raises(UserError, match="The base of Tuned has changed"):
        project.resolve(tuned)
    with pytest.raises(UserError, match="The model Base has changed"):
        project.resolve(base)


def test_an_adapters_path_never_leads_out_of_the_project(project, tmp_path):
    base = ModelRecord("b", "Base", "base", str(tmp_path / "base"))
    project.store.save_model(base).result()
    for path in ("models/../../victim", "/etc", "..", "backups/x", ""):
        with pytest.raises(UserError, match="leads out of the project"):
            project.resolve(ModelRecord("t", "Tuned", "sft", path, base_id="b", parent_id="b"))


def test_lineage_goes_down_to_the_base_and_round_no_circle(project):
    for model in (
        ModelRecord("b", "b", "base", "/b"),
        ModelRecord("s", "s", "sft", "", base_id="b", parent_id="b"),
        ModelRecord("d", "d", "policy", "", base_id="b", parent_id="s"),
        ModelRecord("i", "imported", "sft", "", base_id="b"),
        ModelRecord("x", "x", "sft", "", base_id="b", parent_id="y"),
        ModelRecord("y", "y", "sft", "", base_id="b", parent_id="x"),
    ):
        project.store.save_model(model).result()

    def line(id_: str) -> list[str]:
        return [m.id for m in project.lineage(id_)]

    assert line("d") == ["d", "s", "b"]
    assert line("i") == ["i", "b"]
    assert line("x") == ["x", "y"]
    assert line("nobody") == []


# ---- backups of a live project -----------------------------------------------------------------------------


def test_closing_backs_up_what_changed_unless_a_backup_is_young(project, make):
    path = project.path
    project.close()
    assert project.backups() == []
    for expected, text in ((1, "a"), (1, "b")):
        with Project.open(path) as again:
            again.store.add_prompts([make.prompt(text)])
        assert len(again.backups()) == expected
    old = again.backups()[0]
    then = datetime.now(UTC) - timedelta(hours=1)
    old.path.rename(old.path.with_name(f"000001-{then:%Y%m%dT%H%M%S}Z.db"))
    with Project.open(path) as again:
        again.store.save_model(ModelRecord("m", "m", "base", "/m")).result()
    assert len(again.backups()) == 1  # no label changed
    with Project.open(path) as again:
        again.store.add_prompts([make.prompt("c")])
    assert [b.number for b in again.backups()] == [2, 1]


def test_a_clock_that_was_set_back_does_not_stop_backups(project, make):
    future = datetime.now(UTC) + timedelta(days=300)
    backups.back_up(project.path / "project.db", project.backups_dir, at=future)
    project.store.add_prompts([make.prompt()])
    project.close()
    assert [b.number for b in project.backups()] == [2, 1]


def test_while_one_works_a_backup_is_made_every_half_hour_beside_the_work(project, make):
    project._backup_due_at = time.monotonic()
    project.store.add_prompts([make.prompt()]).result()
    project.store.add_prompts([make.prompt("b")]).result()
    project.close()
    (backup,) = project.backups()
    assert backups.newest_good(project.backups_dir) == backup


def test_a_backup_that_fails_beside_the_work_is_logged_and_tried_again_at_the_end(project, make, monkeypatch, caplog):
    def full(*_args, **_kwargs):
        raise UserError("No backup was made", "the disk is full")

    monkeypatch.setattr(backups, "back_up", full)
    project._backup_due_at = time.monotonic()
    project.store.add_prompts([make.prompt()]).result()
    thread = project._backup_thread
    assert isinstance(thread, threading.Thread)
    thread.join()
    assert "No backup was made. The disk is full." in caplog.text
    caplog.clear()
    project.close()
    (told,) = caplog.records
    assert (told.getMessage(), told.exc_info) == ("No backup was made. The disk is full.", None)  # a sentence


def test_a_backup_that_failed_is_told_at_the_next_opening_until_one_is_good(project, make, monkeypatch, caplog):
    with monkeypatch.context() as patch:
        patch.setattr(backups, "back_up", lambda *_: (_ for _ in ()).throw(UserError("No backup was made")))
        project.store.add_prompts([make.prompt()]).result()
        project.close()
    caplog.clear()
    with Project.open(project.path) as again:
        assert again.warning == again.backup_problem == "No backup was made."
        assert caplog.messages == ["No backup was made."]
        again.back_up()
        assert again.warning == ""
    with Project.open(project.path) as again:
        assert again.warning == ""


# ---- damage ------------------------------------------------------------------------------------------------


@pytest.fixture
def labelled(tmp_path, project, make):
    """The folder of a closed project with labels and one good backup."""
    for number in range(100):
        project.store.add_prompts([make.prompt(f"{number} " + "word " * 500)])
    project.store.wait()
    project.close()
    assert len(project.backups()) == 1
    return project.path


def damage(path: Path, how: str) -> None:
    file = path / "project.db"
    raw = bytearray(file.read_bytes())
    if how == "truncated":
        raw = raw[: len(raw) // 2]
    elif how == "empty":
        raw = bytearray()
    elif how == "overwritten":
        raw[:16] = b"not a database!!"
    elif how == "schema zeroed":
        raw[100:4096] = bytes(3996)
    file.write_bytes(raw)


@pytest.mark.parametrize("how", ["truncated", "empty", "overwritten", "schema zeroed", "missing"])
@pytest.mark.parametrize("read_only", [False, True])
def test_a_damaged_database_is_refused_unchanged_and_the_newest_good_backup_is_named(labelled, how, read_only):
    file = labelled / "project.db"
    if how == "missing":
        file.unlink()
    else:
        damage(labelled, how)
    before = file.read_bytes() if file.exists() else None
    good = backups.backups(labelled / "backups")[0]
    (labelled / "backups" / "000009-20990101T000000Z.db").write_bytes(b"a newer backup, not good")
    with pytest.raises(ProjectDamaged, match=good.path.name) as raised:
        Project.open(labelled, read_only=read_only)
    assert raised.value.backup == good
    assert (file.read_bytes() if file.exists() else None) == before
    aside = restore_backup(labelled, good.path.name)
    assert (aside is None) == (how == "missing")
    if aside and before is not None:
        assert (aside / "project.db").read_bytes() == before
    with Project.open(labelled) as project:
        assert project.store.counts().prompts == 100
        assert project.check() == []


def test_without_a_good_backup_the_error_says_so(labelled):
    for backup in backups.backups(labelled / "backups"):
        backup.path.unlink()
    damage(labelled, "truncated")
    with pytest.raises(ProjectDamaged, match="There is no good backup") as raised:
        Project.open(labelled)
    assert raised.value.backup is None


def test_pages_damaged_behind_the_header_are_met_when_they_are_read(labelled):
    file = labelled / "project.db"
    raw = bytearray(file.read_bytes())
    for page in range(0, len(raw), 4096):
        if b"word word word" in raw[page : page + 4096]:
            raw[page : page + 4096] = b"\xff" * 4096
    file.write_bytes(raw)
    with Project.open(labelled, read_only=True) as project:
        with pytest.raises(ProjectDamaged, match="This could not be read"):
            project.store.prompts(limit=-1)
        assert project.check() != []


def test_a_backup_elsewhere_can_be_restored_too(labelled, tmp_path):
    copy = tmp_path / "copy.db"
    copy.write_bytes(backups.backups(labelled / "backups")[0].path.read_bytes())
    assert restore_backup(labelled, copy) is not None
    assert restore_backup(labelled, copy) is not None
    assert len(list((labelled / "backups").glob("replaced-*"))) == 2


def inside(file: Path, table: str, text: bytes) -> int:
    """Where a text lies in one of a table's pages: the same words are kept for undo and for the search too."""
    db = apsw.Connection(str(file), flags=apsw.SQLITE_OPEN_READONLY)
    size = int(db.pragma("page_size"))
    leaves = "SELECT pageno FROM dbstat WHERE name = ? AND pagetype = 'leaf'"
    pages = [page for (page,) in db.execute(leaves, (table,))]
    db.close()
    raw = file.read_bytes()
    found = (raw.find(text, (page - 1) * size, page * size) for page in pages)
    return next(place for place in found if place >= 0)


def test_a_changed_byte_inside_a_label_is_found_though_sqlite_finds_nothing(labelled):
    file = labelled / "project.db"
    raw = file.read_bytes()
    place = inside(file, "prompts", b"word word")
    file.write_bytes(raw[:place] + b"ward" + raw[place + 4 :])
    with Project.open(labelled) as project:
        with project.store.reading() as db:
            assert db.pragma("integrity_check") == "ok"
        (fault, *_) = project.check()
        assert "does not match its sha256" in fault
        made = project.back_up()
        assert made.damaged
        assert [(b.number, b.damaged) for b in project.backups()] == [(2, True), (1, False)]
        assert "Some records of the project are damaged (prompts: the record" in project.backup_problem
        good = backups.newest_good(project.backups_dir)
        assert good
        assert good.number == 1
    with Project.open(labelled) as project:
        assert "Some records of the project are damaged" in project.warning
    assert made.when.endswith("UTC, with damaged records")
    restore_backup(labelled, made.path)  # better than nothing, where there is no better one


def test_a_project_on_a_read_only_medium_can_be_read(small_disk, make):
    with Project.create(small_disk / "p") as project:
        project.store.add_prompts([make.prompt()]).result()
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with pytest.raises(UserError, match="Read-only file system"):
        Project.open(small_disk / "p")
    with Project.open(small_disk / "p", read_only=True) as project:
        assert project.store.counts().prompts == 1
        assert project.check() == []


def test_a_project_whose_newest_labels_cannot_be_seen_on_a_read_only_medium_is_refused(small_disk, tmp_path, make):
    with Project.create(tmp_path / "p") as project:
        project.store.add_prompts([make.prompt()]).result()
        shutil.copytree(project.path, small_disk / "p")  # as a kill would leave it: the label is in the log alone
    assert (small_disk / "p" / "project.db-wal").stat().st_size
    (small_disk / "p" / "project.db-shm").unlink()
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with pytest.raises(UserError, match=r"newest labels are in project\.db-wal.*[Cc]opy the whole project folder"):
        Project.open(small_disk / "p", read_only=True)


def test_a_path_that_cannot_be_a_project_is_refused_in_a_sentence(tmp_path):
    bad = Path(os.fsdecode(os.fsencode(tmp_path) + b"/q\xff"))
    for deed in (Project.create, Project.open):
        with pytest.raises(UserError, match=r"q\\udcff.*not valid UTF-8"):
            deed(bad)
        with pytest.raises(UserError, match="File name too long"):
            deed(tmp_path / ("x" * 300))
    assert list(tmp_path.iterdir()) == []
    folder = tmp_path / "p"
    Project.create(folder).close()
    (folder / "project.lock").unlink()
    (folder / "project.lock").mkdir()
    with pytest.raises(UserError, match="cannot be written"):
        Project.open(folder)


def test_a_project_that_its_user_may_not_read_is_refused_in_a_sentence(tmp_path, monkeypatch):
    Project.create(tmp_path / "p").close()

    def refuse(file):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(project_module, "_check_file", refuse)
    with pytest.raises(UserError, match=r"cannot be opened\. Permission denied"):
        Project.open(tmp_path / "p")
    monkeypatch.undo()
    Project.open(tmp_path / "p").close()  # the lock was given back


def test_a_database_that_is_there_and_cannot_be_opened_is_not_called_missing(tmp_path):
    there = tmp_path / "project.db"
    there.write_text("")
    for path, remedy in ((there, "permissions"), (tmp_path / "gone.db", "still there")):
        assert remedy in database.problem_of(apsw.CantOpenError("no"), path, doing="nothing was read").remedy


def test_a_database_whose_log_cannot_be_opened_is_not_taken_for_a_read_only_medium(labelled):
    (labelled / "project.db-wal").mkdir()
    with pytest.raises(UserError, match="cannot be opened"):
        Project.open(labelled, read_only=True)
    (labelled / "project.db-wal").rmdir()


def test_a_model_record_keeps_its_place_when_it_is_changed(project):
    one, two = ModelRecord("1", "one", "base", "/1"), ModelRecord("2", "two", "base", "/2")
    for model in (one, two, replace(one, name="uno")):
        project.store.save_model(model).result()
    assert [m.name for m in project.store.models()] == ["uno", "two"]
