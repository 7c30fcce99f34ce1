"""The commands about runs, on real processes that train nothing, beside a window that has the project open."""

import json
import threading

import pytest

from workbench import cli
from workbench.ids import new_id, now
from workbench.project import Project
from workbench.records import ModelRecord, RunRecord


def run(*arguments):
    return cli.main([str(one) for one in arguments], lambda _: 0)


@pytest.fixture
def project_dir(tmp_path, fake_run):
    """A project around the fixture's runs folder."""
    with Project.create(tmp_path):
        return tmp_path


@pytest.fixture
def listed(project_dir, fake_run):
    """Makes a run of the project, listed under a name."""

    def make(name="fake", start="m", **plan):
        made = fake_run(**plan)
        with Project.open(project_dir) as project:
            record = RunRecord(made.path.name, "sft", name, "queued", start, created_at=now())
            project.store.save_run(record).result()
        return made

    return make


def test_runs_watch_stop_and_pause_work_while_the_window_has_the_project(project_dir, listed, capsys):
    going = listed("first run", steps=10_000, step_s=0.02).launch()
    going.until("running")
    with Project.open(project_dir):
        assert run("runs", project_dir) == 0
        assert "running" in capsys.readouterr().out
        assert run("pause", project_dir, "first") == 0
        going.until("paused")
        assert run("resume", project_dir, "FIRST", "--detach") == 0
        going.until("running")
        assert run("stop", project_dir, "first run") == 0
        going.until("stopped")
        assert run("watch", project_dir, going.path.name) == 0
    assert "first run stopped" in capsys.readouterr().out


def test_a_project_is_free_for_others_while_a_run_is_followed(project_dir, listed):
    going = listed(steps=10_000, step_s=0.02).launch()
    going.until("running")
    codes = []
    follower = threading.Thread(target=lambda: codes.append(run("watch", project_dir, "fake")))
    follower.start()
    with Project.open(project_dir):
        going.until(lambda status: status.step > 3)
    assert run("stop", project_dir, "fake") == 0
    follower.join(20)
    assert codes == [0]


def test_a_run_saves_and_draws_samples_when_told_to_and_goes_on(project_dir, listed, capsys):
    going = listed(steps=10_000, step_s=0.01, save_every=1_000_000).launch()
    going.until("running")
    assert run("save", project_dir, "fake") == 0
    assert "writes a checkpoint at the end of its step and goes on" in capsys.readouterr().out
    going.until(lambda _: going.folder.checkpoints())
    assert run("sample-now", project_dir, "fake", "--json") == 0
    assert json.loads(capsys.readouterr().out) == {"run": going.path.name, "sampling": True}
    going.until(lambda _: "samplenow" in [getattr(one, "name", "") for one in going.folder.events()])  # it was heard
    assert going.folder.state().state == "running"
    run("stop", project_dir, "fake", "--cancel")
    going.until("stopped")


def test_stop_cancel_ends_a_run_in_mid_step_without_a_checkpoint(project_dir, listed, capsys):
    going = listed(steps=10, step_s=0.01, save_every=1000, at={"3": "spin"}).launch()
    going.until(lambda status: status.step == 2)
    assert run("stop", project_dir, "fake", "--no-save") == 0
    assert "ends now" in capsys.readouterr().out
    going.until("stopped")
    assert going.folder.checkpoints() == []


def test_stopping_what_is_done_says_that_there_is_nothing_to_do(project_dir, listed, capsys):
    listed(steps=1).launch().until("done")
    assert run("stop", project_dir, "fake") == 1
    said = capsys.readouterr().err
    assert "done already" in said
    assert "esume" not in said


def test_a_run_that_is_not_there_is_named_beside_those_that_are(project_dir, listed, capsys):
    listed("sft 1")
    assert run("watch", project_dir, "zz") == 1
    assert "'sft 1'" in capsys.readouterr().err
    assert run("watch", project_dir, "") == 1


def test_a_run_is_deleted_by_its_whole_name_only(project_dir, listed, capsys):
    ended = listed("sft 1", steps=1).launch()
    ended.until("done")
    assert run("runs", project_dir, "--delete", "sft") == 1
    assert ended.path.exists()
    assert run("runs", project_dir, "--delete", "sft 1") == 0
    assert not ended.path.exists()
    capsys.readouterr()
    assert run("runs", project_dir, "--json") == 0
    assert capsys.readouterr().out == ""


def test_a_run_at_work_is_not_deleted(project_dir, listed, capsys):
    going = listed(steps=10_000, step_s=0.02).launch()
    going.until("running")
    assert run("runs", project_dir, "--delete", "fake") == 1
    assert "at work" in capsys.readouterr().err
    run("stop", project_dir, "fake", "--cancel")
    going.until("stopped")


def test_the_model_of_a_run_that_ended_unseen_is_in_the_list(project_dir, listed, capsys):
    with Project.open(project_dir) as project:
        start = ModelRecord(id=new_id(), name="tiny", role="base", path="/nowhere")
        project.store.save_model(start).result()
    ended = listed("sft 1", start.id, steps=1)
    ended.launch().until("done")
    assert run("model", "list", project_dir, "--json") == 0
    names = [json.loads(line)["name"] for line in capsys.readouterr().out.splitlines()]
    assert names == ["tiny", "sft 1 on tiny"]


def test_two_models_of_one_name_are_never_chosen_between(project_dir, capsys):
    with Project.open(project_dir) as project:
        for _ in range(2):
            twin = ModelRecord(id=new_id(), name="twin", role="base", path="/nowhere")
            project.store.save_model(twin).result()
    assert run("model", "remove", project_dir, "twin") == 1
    assert twin.id[-8:] in capsys.readouterr().err
    assert run("model", "remove", project_dir, "") == 1
    assert run("model", "remove", project_dir, twin.id[-8:]) == 0
    assert run("model", "remove", project_dir, "twi") == 1
    assert run("model", "remove", project_dir, "twin") == 0


def test_resuming_a_finished_run_says_that_nothing_is_left(project_dir, listed, capsys):
    listed(steps=1).launch().until("done")
    assert run("resume", project_dir, "fake") == 1
    assert "nothing left to resume" in capsys.readouterr().err
