"""The command line's own parts: parsing, words for people, finding models, verdicts."""

import io
import json
from pathlib import Path

import pytest

from workbench import cli, demo_report, qt_check
from workbench.demo_report import Outcome, verdict_of
from workbench.errors import UserError
from workbench.model_choice import default_reward, default_start, find_model
from workbench.records import ModelRecord
from workbench.statistics import wilson
from workbench.terminal import Terminal, in_bytes, in_time


def no_window(_: Path | None) -> int:
    raise AssertionError("the window must not open")


def run(*arguments: str) -> int:
    return cli.main(arguments, no_window)


def test_without_arguments_the_window_opens() -> None:
    opened: list[Path | None] = []
    assert cli.main([], lambda path: opened.append(path) or 0) == 0
    assert opened == [None]


def test_open_hands_the_project_to_the_window() -> None:
    opened: list[Path | None] = []
    cli.main(["open", "some/project"], lambda path: opened.append(path) or 0)
    assert opened == [Path("some/project")]


@pytest.mark.parametrize(
    "arguments",
    [
        ["fly"],
        ["train", "dir", "magic"],
        ["train", "dir", "sft", "--preset", "Huge"],
        ["train", "dir", "sft", "--set", "foo"],
        ["export", "dir", "out", "--what", "nothing"],
    ],
)
def test_misuse_exits_with_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        run(*arguments)
    assert caught.value.code == 2
    assert "usage:" in capsys.readouterr().err


def test_help_lists_every_setting_of_every_method(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run("train", "--help")
    shown = capsys.readouterr().out
    for name in ("learning_rate", "center_coefficient", "beta", "kl_coefficient", "missing_eos_penalty"):
        assert name in shown


def test_help_shows_each_method_its_own_defaults_and_what_a_setting_may_be(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run("train", "--help")
    shown = capsys.readouterr().out
    kto = shown[shown.index("  kto:") : shown.index("  ppo:")]
    assert "learning_rate = 2e-05" in kto  # as DPO's, and other than that of every method
    assert "[none, best-and-worst]" in kto
    assert "[2 to 65536]" in kto
    assert "%%" not in shown


def test_a_missing_project_is_one_sentence_and_exit_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("runs", str(tmp_path / "nowhere")) == 1
    message = capsys.readouterr().err
    assert message.startswith("tastemaker: ")
    assert "Traceback" not in message


def test_an_error_is_json_where_json_was_asked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("runs", str(tmp_path / "nowhere"), "--json") == 1
    assert set(json.loads(capsys.readouterr().out)) == {"error", "cause", "remedy"}


def test_the_interrupt_key_exits_with_130(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(path: Path | None) -> int:
        raise KeyboardInterrupt

    assert cli.main([], interrupted) == 130


def test_new_with_the_sample_says_how_many_prompts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("new", str(tmp_path / "p"), "--sample", "--json") == 0
    assert json.loads(capsys.readouterr().out)["prompts"] >= 80
    assert run("check", str(tmp_path / "p")) == 0
    assert "sound" in capsys.readouterr().out


def test_exported_preferences_come_back_in_another_project(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("new", str(tmp_path / "one"), "--sample")
    run("new", str(tmp_path / "two"))
    out = tmp_path / "pairs.jsonl"
    assert run("export", str(tmp_path / "one"), str(out), "--what", "preferences") == 0
    capsys.readouterr()
    assert run("import", str(tmp_path / "two"), str(out), "--json") == 0
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert report["added"] == len(out.read_text().splitlines())
    assert report["rejected"] == []
    assert run("import", str(tmp_path / "two"), str(out), "--json") == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["added"] == 0


def model(name: str, role: str, base: str = "", created: str = "2") -> ModelRecord:
    return ModelRecord(id=f"id-of-{name}", name=name, role=role, path="", base_id=base, created_at=created)  # type: ignore[arg-type]


MODELS = [
    model("SmolLM2", "base", created="1"),
    model("sft 1", "sft", "id-of-SmolLM2", "2"),
    model("sft 2", "sft", "id-of-SmolLM2", "3"),
    model("reward 1", "reward", "id-of-SmolLM2", "4"),
    model("other", "base", created="0"),
]


@pytest.mark.parametrize("text", ["sft 2", "id-of-sft 2"])
def test_a_model_is_found_by_name_or_id(text: str) -> None:
    assert find_model(MODELS, text).name == "sft 2"


def test_a_beginning_that_fits_one_model_is_enough() -> None:
    assert find_model(MODELS, "Smol").name == find_model(MODELS, "smollm").name == "SmolLM2"
    assert find_model(MODELS, "id-of-rew").name == "reward 1"


def test_a_beginning_that_fits_several_models_is_refused_with_their_names() -> None:
    with pytest.raises(UserError, match=r"'sft 1' \(.*\), 'sft 2'"):
        find_model(MODELS, "sft")


def test_a_whole_name_is_asked_for_where_it_cannot_be_undone() -> None:
    assert find_model(MODELS, "sft 1", whole=True).name == "sft 1"
    for part in ("Smol", "sft", ""):
        with pytest.raises(UserError, match=f"There is no model '{part}'"):
            find_model(MODELS, part, whole=True)


def test_no_text_names_no_model() -> None:
    with pytest.raises(UserError, match="There is no model ''"):
        find_model(MODELS[:1], "")


def test_a_model_that_does_not_exist_is_refused_with_near_names() -> None:
    with pytest.raises(UserError, match="Did you mean 'reward 1'"):
        find_model(MODELS, "rewrd 1")


def test_a_role_that_no_model_has_is_said() -> None:
    with pytest.raises(UserError, match="no policy model yet"):
        find_model(MODELS, "x", ("policy",))


def test_sft_starts_from_a_base_and_the_others_from_the_newest_sft() -> None:
    assert default_start(MODELS, "sft") == MODELS[0]
    assert default_start(MODELS, "dpo") == MODELS[2]
    assert default_start([], "sft") is None


def test_the_default_reward_model_is_on_the_same_base() -> None:
    assert default_reward(MODELS, MODELS[2]) == MODELS[3]
    assert default_reward(MODELS, MODELS[4]) is None


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"), [(8, 10, 0.4902, 0.9433), (0, 10, 0.0, 0.2775), (0, 0, 0.0, 1.0)]
)
def test_wilson_interval(successes: int, trials: int, low: float, high: float) -> None:
    # 8 of 10: (0.8 + z^2/20 -+ z sqrt(0.016 + z^2/400)) / (1 + z^2/10), z = 1.96
    assert wilson(successes, trials) == pytest.approx((low, high), abs=1e-4)


@pytest.mark.parametrize(
    ("count", "text"), [(12, "12 B"), (2048, "2 KiB"), (5 * 1024**2, "5.0 MiB"), (3e12, "2794.0 GiB")]
)
def test_bytes_for_people(count: float, text: str) -> None:
    assert in_bytes(count) == text


@pytest.mark.parametrize(("seconds", "text"), [(4.2, "4 s"), (60, "1 min"), (200, "3 min 20 s"), (7500, "2 h 5 min")])
def test_durations_for_people(seconds: float, text: str) -> None:
    assert in_time(seconds) == text


class Tty(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_bar_is_redrawn_in_place_and_cleared_by_a_sentence() -> None:
    stream = Tty()
    terminal = Terminal(stream=stream)
    terminal.progress("sft", 0.5, "12 s left")
    terminal.say("a checkpoint")
    assert "\r" in stream.getvalue()
    assert "50%" in stream.getvalue()
    assert stream.getvalue().endswith("\ra checkpoint\n")


def test_a_log_file_gets_no_bar() -> None:
    stream = io.StringIO()
    terminal = Terminal(stream=stream)
    for step in range(100):
        terminal.progress("sft", step / 100)
    assert len(stream.getvalue().splitlines()) == 1
    assert "\r" not in stream.getvalue()


def test_ldd_output_names_what_is_lacking() -> None:
    output = "\tlibEGL.so.1 => not found\n\tlibc.so.6 => /lib/libc.so.6 (0x0)\n\tlibxcb-cursor.so.0 => not found\n"
    lacking = qt_check.lacking_libraries(output)
    assert {qt_check.PACKAGES[name] for name in lacking} == {"libegl1", "libxcb-cursor0"}


def history(key: str, *values: float) -> demo_report.History:
    return [(step, {key: value}) for step, value in enumerate(values)]


def test_a_verdict_says_that_a_loss_fell() -> None:
    assert (
        verdict_of("sft", history("eval_loss", 2.0, 1.5), 12) == "the held-out loss fell from 2.000 to 1.500 (12 rows)."
    )


def test_a_verdict_says_that_nothing_changed() -> None:
    assert "did not change" in verdict_of("sft", history("eval_loss", 2.0, 2.005), 12)


def measured(value: float, low: float, high: float) -> demo_report.History:
    return [(1, {"eval_accuracy": value, "eval_accuracy_low": low, "eval_accuracy_high": high})]


def test_a_reward_model_no_better_than_guessing_is_called_so() -> None:
    assert "cannot be told apart from guessing" in verdict_of("reward", measured(0.7, 0.45, 0.87), 12)
    assert "guessing" not in verdict_of("reward", measured(0.7, 0.6, 0.8), 120)
    assert "no held-out pairs" in verdict_of("reward", [], 0)


def test_the_interval_of_a_reward_model_is_the_one_that_its_run_measured() -> None:
    text = verdict_of("reward", measured(0.7, 0.45, 0.87), 12)
    assert "70% of the held-out pairs, which are of 12 rankings (95 % 45% to 87%)" in text


def test_the_interval_of_dpo_counts_what_its_pairs_are_worth() -> None:
    values = [(0, {"eval_loss": 0.69}), (8, {"eval_loss": 0.5, "eval_rewards/accuracies": 0.8})]
    low, high = wilson(8, 10)
    assert f"80% of held-out pairs (95 % {low:.0%} to {high:.0%})" in verdict_of("dpo", values, 12, 10)


def test_a_score_that_rose_with_the_length_is_doubted() -> None:
    values = [
        (1, {"objective/scores": 0.0, "objective/kl": 0.0, "ppo/mean_length": 20.0, "ppo/eos_missing": 0.1}),
        (2, {"objective/scores": 1.0, "objective/kl": 2.0, "ppo/mean_length": 60.0, "ppo/eos_missing": 0.5}),
    ]
    assert "read the answers before believing it" in verdict_of("ppo", values, 0)


def test_ppo_is_judged_by_the_same_held_out_prompts_before_and_after() -> None:
    def judged(after: float, low: float, high: float) -> str:
        rollout = {"objective/kl": 1.0, "ppo/mean_length": 20.0, "ppo/eos_missing": 0.1}
        gain = {"eval_objective/scores_gain_low": low, "eval_objective/scores_gain_high": high}
        values = [(0, {"eval_objective/scores": 0.2}), (1, {"objective/scores": 0.0} | rollout)]
        values += [(2, {"objective/scores": -1.0} | rollout), (2, {"eval_objective/scores": after} | gain)]
        return verdict_of("ppo", values, 18)

    chance = "So few prompts cannot tell that from chance."
    assert "on the same held-out prompts rose (0.20 to 0.80, 95 % +0.30 to +0.90) at" in judged(0.8, 0.3, 0.9)
    assert chance not in judged(0.8, 0.3, 0.9)
    assert judged(0.8, -0.1, 1.3).endswith(chance)
    assert judged(-0.4, -1.3, 0.1).endswith(chance)
    assert "did not change (0.20 to 0.22, 95 % -0.10 to +0.14)" in judged(0.22, -0.1, 0.14)
    assert chance not in judged(0.22, -0.1, 0.14)


def test_the_page_escapes_what_models_said(tmp_path: Path) -> None:
    from workbench.demo_report import Answer, write_report
    from workbench.records import Message, Prompt

    prompt = Prompt("p", (Message("user", "<b>hi</b>"),))
    answers = [Answer(name, prompt, "<script>alert(1)</script>", 3, True) for name in ("base", "sft")]
    outcome = Outcome.of("sft", "SFT", history("eval_loss", 2.0, 1.5), 12, 3.0)
    page = write_report(tmp_path / "report", [outcome], answers, 60.0)
    text = page.read_text()
    assert "<script>" not in text
    assert "<b>hi" not in text
    assert (tmp_path / "report" / "sft.png").stat().st_size > 1000
    assert json.loads((tmp_path / "report" / "summary.json").read_text())["models"]["sft"]["answers"] == 1
