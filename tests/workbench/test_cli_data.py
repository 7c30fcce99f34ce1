"""The commands about labels and projects: import, its preview, export, restore, undo and redo."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from workbench import cli, cli_data
from workbench.formats import reader
from workbench.ids import new_id
from workbench.project import Project
from workbench.protocol import AnyReply, Failed, ModelRef, Rendered, RenderRequest
from workbench.records import Message, ModelRecord, Prompt, Ranking, Rater, Response

PROMPTS = '{"prompt": "What is rain?"}\n{"prompt": "What is snow?"}\n'
PAIR = '{"prompt": "What is rain?", "chosen": "Water.", "rejected": "Sun."}\n'


def run(*arguments: object) -> int:
    return cli.main([str(one) for one in arguments], lambda _: 0)


@pytest.fixture
def project_dir(tmp_path: Path) -> Path:
    with Project.create(tmp_path / "project"):
        return tmp_path / "project"


@pytest.fixture
def prompts_file(tmp_path: Path) -> Path:
    (tmp_path / "prompts.jsonl").write_text(PROMPTS)
    return tmp_path / "prompts.jsonl"


@pytest.fixture
def model(project_dir: Path, monkeypatch: pytest.MonkeyPatch) -> ModelRecord:
    record = ModelRecord(id=new_id(), name="tiny", role="base", path="/nowhere")
    with Project.open(project_dir) as project:
        project.store.save_model(record).result()
    monkeypatch.setattr(Project, "resolve", lambda _, one: ModelRef(model_id=one.id, name=one.name, base=one.path))
    return record


def serve(monkeypatch: pytest.MonkeyPatch, answer: Callable[[RenderRequest], AnyReply]) -> None:
    class Client:
        def call(self, request: RenderRequest, timeout: float) -> AnyReply:
            return answer(request)

        def leave(self) -> None:
            pass

    monkeypatch.setattr(cli_data, "ServeClient", Client)


# ---- import ----------------------------------------------------------------------------------------------------


def test_an_import_says_the_format_and_what_it_held_out(
    project_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "split.jsonl"
    file.write_text('{"prompt": "a", "split": "held-out"}\n{"prompt": "b", "colour": "red"}\n')
    assert run("import", project_dir, file, "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["what"], report["format"], report["held_out"]) == ("prompts", "jsonl", 1)
    assert report["batch_id"]
    assert "colour" in " ".join(report["warnings"])
    assert run("import", project_dir, file) == 0
    assert "Read as prompts, format jsonl." in capsys.readouterr().out


@pytest.mark.parametrize(
    "wrong",
    [["--hold-out", "1"], ["--hold-out", "-2"], ["--preview", "-1"], ["--preview", "0"], ["--preview", "many"]],
)
def test_numbers_that_mean_nothing_are_misuse(wrong: list[str], project_dir: Path, prompts_file: Path) -> None:
    with pytest.raises(SystemExit) as caught:
        run("import", project_dir, prompts_file, *wrong)
    assert caught.value.code == 2


def test_a_format_that_does_not_exist_is_misuse_and_names_those_that_do(
    project_dir: Path, prompts_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("import", project_dir, prompts_file, "--format", "zzz") == 2
    assert "alpaca" in capsys.readouterr().err
    assert run("import", project_dir, prompts_file, "--as", "prompts", "--format", "trl") == 2
    assert run("export", project_dir, tmp_path / "out.jsonl", "--what", "preferences", "--format", "implicit") == 2
    assert run("import", project_dir, prompts_file, "--model", "tiny") == 2


def test_a_preview_without_a_good_row_fails(
    project_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "bad.jsonl"
    file.write_text('{"prompt": "a", "chosen": "the same", "rejected": "the same"}\n')
    assert run("import", project_dir, file, "--preview", "3") == 1
    assert "No row of it can be imported" in capsys.readouterr().out


def test_an_import_counts_every_rejected_row_and_shows_the_first_twenty(
    project_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reader, "REJECTED_KEPT", 25)
    file = tmp_path / "bad.jsonl"
    file.write_text('{"prompt": "good"}\n' + '{"prompt": ""}\n' * 30)
    assert run("import", project_dir, file, "--as", "prompts") == 0
    said = "".join(capsys.readouterr())
    assert "Added 1; 0 were there already; 30 rejected." in said
    assert said.count("the prompt is empty") == 20
    assert "and 10 more (25 of them with --json)" in said


def test_a_preview_shows_who_says_what(project_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "pairs.jsonl"
    file.write_text(PAIR)
    assert run("import", project_dir, file, "--preview", "1") == 0
    assert "line 1\n  user: What is rain?\n  chosen: Water.\n  rejected: Sun.\n" in capsys.readouterr().out


def test_a_preview_through_a_model_marks_what_is_trained(
    project_dir: Path,
    tmp_path: Path,
    model: ModelRecord,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file = tmp_path / "pairs.jsonl"
    file.write_text(PAIR)

    def answer(request: RenderRequest) -> AnyReply:
        rows = tuple((("<user>What is rain?\n<bot>", False), (f"{text}<end>", True)) for _, text in request.rows)
        return Rendered(id=request.id, rows=rows, token_counts=(7, 6), template_note="A default template.")

    serve(monkeypatch, answer)
    assert run("import", project_dir, file, "--preview", "1", "--model", model.name) == 0
    shown = capsys.readouterr().out
    assert "  chosen, 7 tokens\n    | <user>What is rain?\n    | <bot>\n    > Water.<end>\n" in shown
    assert "    > Sun.<end>" in shown
    assert "A default template." in shown
    assert run("import", project_dir, file, "--preview", "1", "--model", model.name, "--json") == 0
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert last["rendered"][0]["spans"] == [["<user>What is rain?\n<bot>", False], ["Water.<end>", True]]
    with Project.open(project_dir) as project:
        assert project.store.counts().prompts == 0


def test_a_preview_that_the_engine_refuses_says_why(
    project_dir: Path,
    prompts_file: Path,
    model: ModelRecord,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    serve(monkeypatch, lambda request: Failed(id=request.id, message="No tokenizer"))
    assert run("import", project_dir, prompts_file, "--preview", "1", "--model", "tiny") == 1
    assert "No tokenizer" in capsys.readouterr().err


# ---- export ----------------------------------------------------------------------------------------------------


@pytest.fixture
def sample_dir(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    assert run("new", tmp_path / "sample", "--sample") == 0
    capsys.readouterr()
    return tmp_path / "sample"


def test_an_export_says_what_the_format_could_not_hold(
    sample_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.jsonl"
    export = ["export", sample_dir, out, "--what", "preferences", "--format", "plain"]
    assert run(*export, "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert sum(report["skipped"].values()) > 0
    assert run(*export, "--force") == 0
    shown = capsys.readouterr().out
    assert all(f"{count} left out: {reason}" in shown for reason, count in report["skipped"].items())


def test_an_export_says_how_many_rows_have_a_response_that_was_cut_off(
    sample_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    export = ["export", sample_dir, tmp_path / "out.jsonl", "--what", "preferences", "--force"]
    assert run(*export) == 0
    assert "cut off" not in capsys.readouterr().out
    with Project.open(sample_dir) as project:
        asked = Prompt(new_id(), (Message("user", "What is rain?"),))
        cut = [Response(new_id(), asked.id, text, finish_reason="length") for text in ("It is", "It was")]
        ranking = Ranking(new_id(), asked.id, "ann", tuple((one.id,) for one in cut))
        more = {"prompts": [asked], "responses": cut, "rankings": [ranking], "raters": [Rater("ann", "Ann")]}
        project.store.add_batch(**more, label="cut").result()
    assert run(*export) == 0
    shown = capsys.readouterr().out
    rows = int(re.findall(r"Wrote (\d+) rows", shown)[0])
    assert f"\n  1 of {rows:,} has a response that was cut off, which other programs read as whole\n" in shown
    assert run(*export, "--json") == 0
    assert json.loads(capsys.readouterr().out)["cut_off"] == 1


def test_best_versus_rest_writes_fewer_pairs_than_all(
    sample_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    every, best = tmp_path / "all.jsonl", tmp_path / "best.jsonl"
    assert run("export", sample_dir, every, "--what", "preferences") == 0
    assert run("export", sample_dir, best, "--what", "preferences", "--pairs", "best-vs-rest") == 0
    assert set(best.read_text().splitlines()) < set(every.read_text().splitlines())
    assert run("export", sample_dir, tmp_path / "p.jsonl", "--what", "prompts", "--pairs", "all") == 2


def test_a_file_that_is_there_is_only_overwritten_by_force(
    sample_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "mine.jsonl"
    out.write_text("mine")
    assert run("export", sample_dir, out, "--what", "prompts") == 1
    assert "--force" in capsys.readouterr().err
    assert out.read_text() == "mine"
    assert run("export", sample_dir, out, "--what", "prompts", "--force") == 0
    assert out.read_text() != "mine"


def test_an_export_of_nothing_says_what_to_do(
    project_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("export", project_dir, tmp_path / "out.jsonl", "--what", "preferences") == 1
    said = capsys.readouterr().err
    assert "project has none" in said
    assert "ank the responses" in said


# ---- a project as a whole --------------------------------------------------------------------------------------


def test_undo_takes_an_import_back_and_redo_brings_it_again(
    project_dir: Path, prompts_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def count() -> int:
        with Project.open(project_dir, read_only=True) as project:
            return project.store.counts().prompts

    assert run("undo", project_dir) == 1
    run("import", project_dir, prompts_file)
    capsys.readouterr()
    assert run("undo", project_dir) == 0
    assert "Undone: Import 2 prompts" in capsys.readouterr().out
    assert count() == 0
    assert run("redo", project_dir, "--json") == 0
    assert "Import 2 prompts" in json.loads(capsys.readouterr().out)["redone"]
    assert count() == 2


def test_a_damaged_project_is_restored_from_a_backup_and_the_damaged_file_is_kept(
    project_dir: Path, prompts_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run("import", project_dir, prompts_file)
    with Project.open(project_dir) as project:
        project.back_up()
    (project_dir / "project.db").write_bytes(b"damaged")
    capsys.readouterr()
    assert run("restore", project_dir, "--json") == 0
    newest = json.loads(capsys.readouterr().out.splitlines()[0])
    assert newest["faults"] == []
    assert run("restore", project_dir, newest["number"], "--json") == 0
    aside = Path(json.loads(capsys.readouterr().out)["set_aside"])
    assert (aside / "project.db").read_bytes() == b"damaged"
    assert run("check", project_dir) == 0
    with Project.open(project_dir) as project:
        assert project.store.counts().prompts == 2


def test_a_backup_that_is_not_there_is_refused_before_anything_is_moved(
    project_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (project_dir / "project.db").read_bytes()
    assert run("restore", project_dir, "77") == 1
    assert "There is no backup '77'" in capsys.readouterr().err
    assert (project_dir / "project.db").read_bytes() == before
    assert run("restore", tmp_path / "nowhere") == 1
    assert run("restore", project_dir) == 0
    assert "No backups yet" in capsys.readouterr().out


def test_rejected_rows_beyond_those_that_are_listed_are_counted_too(
    project_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reader, "REJECTED_KEPT", 3)
    (tmp_path / "bad.jsonl").write_text('{"prompt": "hi"}\n' + "no json\n" * 30)
    asked = ["import", str(project_dir), str(tmp_path / "bad.jsonl"), "--as", "prompts", "--format", "jsonl"]
    assert cli.main([*asked, "--preview", "5"], lambda _: 0) == 0
    assert f"and {30 - cli_data.SHOWN_REJECTED} more" in capsys.readouterr().out
    assert cli.main(asked, lambda _: 0) == 0
    said = capsys.readouterr().out
    assert "30 rejected" in said  # 3 listed + 27 counted
    assert f"and {30 - cli_data.SHOWN_REJECTED} more (3 of them with --json)" in said
