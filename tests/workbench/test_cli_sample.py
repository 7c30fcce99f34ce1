"""Sampling and scoring from the command line, with an engine that plays a script."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from workbench import cli, cli_sample
from workbench.formats.exporter import export_file
from workbench.ids import new_id
from workbench.project import Project
from workbench.protocol import (
    AnyReply,
    AnyRequest,
    Finished,
    ModelRef,
    ResponseDone,
    SampleRequest,
    ScoreRequest,
    Scores,
    ServeProgress,
)
from workbench.records import Message, ModelRecord, ModelRole, Prompt, Ranking, Rater, Response

Answer = Callable[[AnyRequest], Iterator[AnyReply]]
TOO_LONG = 1000


def run(*arguments: object) -> int:
    return cli.main([str(one) for one in arguments], lambda _: 0)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[AnyRequest]:
    """What the engine was asked; it answers by the seed, and gives each text its length for a score."""
    requests: list[AnyRequest] = []

    class Client:
        def request(self, request: AnyRequest, on_reply: Callable[[AnyReply], None]) -> None:
            requests.append(request)
            for reply in answers(request):
                on_reply(reply)

        def call(self, request: AnyRequest, timeout: float) -> AnyReply:
            requests.append(request)
            return list(answers(request))[-1]

        def leave(self) -> None:
            pass

    monkeypatch.setattr(cli_sample, "ServeClient", Client)
    monkeypatch.setattr(Project, "resolve", lambda _, one: ModelRef(model_id=one.id, name=one.name, base=one.path))
    return requests


def answers(request: AnyRequest) -> Iterator[AnyReply]:
    if isinstance(request, ScoreRequest):
        scores = tuple(float(len(text)) if len(text) < TOO_LONG else None for _, text in request.rows)
        stds = tuple(one and one / 10 for one in scores) if request.model.name == "ensemble" else ()
        refused = {place: "its last 9 tokens do not fit" for place, one in enumerate(scores) if one is None}
        yield Scores(id=request.id, scores=scores, stds=stds, refused=refused)
        return
    assert isinstance(request, SampleRequest)
    yield ServeProgress(id=request.id, what="Prompt 2 is longer than the context: its first 9 tokens were left out")
    for index in range(len(request.prompts) * request.count):
        prompt, response = divmod(index, request.count)
        seed = request.sampling.seed + index if request.sampling.temperature else 0
        yield ResponseDone(
            id=request.id,
            prompt_index=prompt,
            response_index=response,
            text=f"drawn by {seed}",
            finish_reason="stop",
            token_count=3,
            seed=request.sampling.seed + index,
        )
    yield Finished(id=request.id)


@pytest.fixture
def project_dir(tmp_path: Path) -> Path:
    with Project.create(tmp_path / "project") as project:
        prompts = [Prompt(new_id(), (Message("user", f"question {n}"),)) for n in range(10)]
        project.store.add_prompts(prompts).result()
        roles: tuple[ModelRole, ...] = ("base", "reward")
        for role in roles:
            project.store.save_model(ModelRecord(id=new_id(), name=role, role=role, path="/nowhere")).result()
        project.store.save_model(ModelRecord(id=new_id(), name="ensemble", role="reward", path="/nowhere")).result()
    return tmp_path / "project"


def responses(project_dir: Path) -> list[Response]:
    with Project.open(project_dir, read_only=True) as project:
        return [one for prompt in project.store.prompts() for one in project.store.responses(prompt.id)]


def test_every_response_keeps_the_seed_that_draws_it_again(project_dir: Path, asked: list[AnyRequest]) -> None:
    assert run("sample", project_dir, "--model", "base", "--n", "2", "--seed", "7") == 0
    kept = responses(project_dir)
    assert [one.sampling.seed for one in kept if one.sampling] == list(range(7, 27))  # 8 and then 2 prompts, 2 each
    assert all(one.sampling and one.text == f"drawn by {one.sampling.seed}" for one in kept)


def test_drawing_twice_draws_other_responses(project_dir: Path, asked: list[AnyRequest]) -> None:
    for _ in range(2):
        assert run("sample", project_dir, "--model", "base", "--n", "2") == 0
    first, second = (one.sampling.seed for one in (asked[0], asked[2]) if isinstance(one, SampleRequest))
    assert first != second
    assert len(responses(project_dir)) == 40


def test_a_response_that_says_what_another_one_says_is_left_out(
    project_dir: Path, asked: list[AnyRequest], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("sample", project_dir, "--model", "base", "--n", "3", "--temperature", "0", "--json") == 0
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (report["responses"], report["repeated"]) == (10, 20)
    assert len(responses(project_dir)) == 10


def test_a_prompt_that_was_cut_is_named(
    project_dir: Path, asked: list[AnyRequest], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("sample", project_dir, "--model", "base", "--n", "1") == 0
    shown = capsys.readouterr().out
    assert "Prompt 'question 1' is longer than the context" in shown
    assert "Prompt 'question 9' is longer than the context" in shown


@pytest.mark.parametrize(
    "wrong",
    [["--n", "0"], ["--limit", "-1"], ["--temperature", "nan"], ["--temperature", "-1"], ["--max-new-tokens", "0"]],
)
def test_sampling_settings_that_mean_nothing_are_misuse(wrong: list[str], project_dir: Path) -> None:
    with pytest.raises(SystemExit) as caught:
        run("sample", project_dir, "--model", "base", *wrong)
    assert caught.value.code == 2


def test_a_reward_model_is_not_sampled(
    project_dir: Path, asked: list[AnyRequest], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("sample", project_dir, "--model", "reward") == 1
    assert asked == []
    assert "There is no base or sft or policy model 'reward'" in capsys.readouterr().err


def pairs_file(folder: Path, rows: int) -> Path:
    """Two of three pairs of each prompt have the longer response chosen; the last row is no pair."""
    lines = [
        json.dumps({"prompt": f"question {n // 3}", "chosen": f"{n}" * (2 if n % 3 else 9), "rejected": f"{n}" * 5})
        for n in range(10, rows + 10)
    ]
    file = folder / "pairs.jsonl"
    file.write_text("\n".join([*lines, '{"prompt": "q", "chosen": "same", "rejected": "same"}']) + "\n")
    return file


def test_scores_are_json_lines_and_all_else_goes_to_stderr(
    project_dir: Path, tmp_path: Path, asked: list[AnyRequest], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("score", project_dir, pairs_file(tmp_path, 60), "--reward", "reward") == 0
    shown = capsys.readouterr()
    rows = [json.loads(line) for line in shown.out.splitlines()]
    assert len(rows) == 60
    assert rows[0] == {"line": 1, "chosen": 4.0, "rejected": 10.0}
    assert "not scored, line 61" in shown.err
    assert "accuracy 0.333 (95 % " in shown.err
    assert [len(one.rows) for one in asked if isinstance(one, ScoreRequest)] == [64, 56]


def test_several_heads_give_every_score_its_spread_and_one_head_gives_none(
    project_dir: Path, tmp_path: Path, asked: list[AnyRequest], capsys: pytest.CaptureFixture[str]
) -> None:
    """70 pairs are 140 scores in three requests: the spreads keep to their sides across them."""
    file = pairs_file(tmp_path, 70)
    assert run("score", project_dir, file, "--reward", "ensemble") == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len([one for one in asked if isinstance(one, ScoreRequest)]) == 3
    assert rows[0] == {"line": 1, "chosen": 4.0, "rejected": 10.0, "std": {"chosen": 0.4, "rejected": 1.0}}
    assert all(row["std"] == {side: row[side] / 10 for side in ("chosen", "rejected")} for row in rows)
    assert run("score", project_dir, file, "--reward", "reward") == 0
    assert "std" not in capsys.readouterr().out


def test_a_side_that_the_engine_cannot_score_is_null_and_named_with_the_reason(
    project_dir: Path, tmp_path: Path, asked: list[AnyRequest], capsys: pytest.CaptureFixture[str]
) -> None:
    """Of 40 pairs, in two requests, the chosen sides of lines 1 and 34 are too long: 38 pairs have an accuracy."""
    file = pairs_file(tmp_path, 40)
    lines = file.read_text().splitlines()
    for line in (1, 34):
        lines[line - 1] = json.dumps(json.loads(lines[line - 1]) | {"chosen": "long" * TOO_LONG})
    file.write_text("\n".join(lines) + "\n")
    assert run("score", project_dir, file, "--reward", "ensemble") == 0
    shown = capsys.readouterr()
    rows = {row["line"]: row for row in map(json.loads, shown.out.splitlines())}
    assert rows[1] == {"line": 1, "chosen": None, "rejected": 10.0, "std": {"chosen": None, "rejected": 1.0}}
    assert [line for line, row in rows.items() if row["chosen"] is None] == [1, 34]
    for line in (1, 34):
        assert f"not scored, line {line}, chosen: its last 9 tokens do not fit" in shown.err
    assert "on 38 pairs" in shown.err
    assert run("score", project_dir, file, "--reward", "reward", "--json") == 0
    summary = json.loads(capsys.readouterr().out.splitlines()[-1])["summary"]
    assert [(one["line"], one["side"]) for one in summary["unscored"]] == [(1, "chosen"), (34, "chosen")]


def test_a_ranked_response_that_was_cut_off_is_scored_as_such_and_all_others_as_whole(
    project_dir: Path, tmp_path: Path, asked: list[AnyRequest]
) -> None:
    with Project.open(project_dir) as project:
        prompt = project.store.prompts()[0]
        given = [Response(new_id(), prompt.id, one, finish_reason=one) for one in ("stop", "length", "written")]  # type: ignore[arg-type]
        ranking = Ranking(new_id(), prompt.id, "ann", tuple((one.id,) for one in given))
        project.store.add_batch(responses=given, rankings=[ranking], raters=[Rater("ann", "Ann")], label="r").result()
        export_file(project, tmp_path / "rankings.jsonl", what="rankings")
    assert run("score", project_dir, tmp_path / "rankings.jsonl", "--reward", "reward") == 0
    assert run("score", project_dir, pairs_file(tmp_path, 1), "--reward", "reward") == 0
    told = [
        dict(zip((text for _, text in one.rows), one.ended, strict=True))
        for one in asked
        if isinstance(one, ScoreRequest)
    ]
    assert told[0] == {"stop": True, "length": False, "written": True}
    assert set(told[1].values()) == {True}


def test_help_says_what_a_scored_row_holds(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run("score", "--help")
    assert "adds std: for each side the standard deviation over the heads" in " ".join(capsys.readouterr().out.split())


def test_the_interval_of_an_accuracy_counts_prompts_and_not_pairs(
    project_dir: Path, tmp_path: Path, asked: list[AnyRequest], capsys: pytest.CaptureFixture[str]
) -> None:
    from workbench.statistics import wilson

    assert run("score", project_dir, pairs_file(tmp_path, 60), "--reward", "reward", "--json") == 0
    summary = json.loads(capsys.readouterr().out.splitlines()[-1])["summary"]
    assert summary["pairs"] == 60
    assert [one["line"] for one in summary["rejected"]] == [61]
    # 60 pairs of prompts of 2, 19 times 3 and 1: worth 60^2 / (2^2 + 19 x 3^2 + 1^2) trials
    trials = 3600 / 176
    assert (summary["low"], summary["high"]) == pytest.approx(wilson(trials / 3, trials), abs=1e-9)
