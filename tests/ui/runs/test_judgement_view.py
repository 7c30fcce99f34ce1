from dataclasses import replace

import pytest
from PySide6.QtCore import Qt
from PySide6.QtGui import QColor

from ui.judgement_view import MOST_WRONG, JudgementView
from ui.run_view import RunView
from workbench.agreement import Noise
from workbench.judged_model import JudgedModel
from workbench.judgement import JudgedPair, Judgement, report
from workbench.records import Message
from workbench.rows import PairRow


def judged(gaps, *, texts=True, **more):
    pairs = [JudgedPair(f"p{n}", f"r{n}", gap, 1 + n % 2, 10 if n % 2 else -3, "ada") for n, gap in enumerate(gaps)]
    rows = {
        one.id: PairRow(one.id, "g", one.unit, "ada", (Message("user", f"<b>Why {n}?</b>"),), f"yes {n}", f"no {n}")
        for n, one in enumerate(pairs)
    }
    return JudgedModel(9, report(pairs, raters={"ada": "Ada"}, **more), rows if texts else {})


@pytest.fixture
def view(qtbot, theme):
    made = JudgementView()
    qtbot.addWidget(made)
    made.resize(900, 1200)
    with qtbot.waitExposed(made):
        made.show()
    return made


def cells(table, line):
    return [table.item(line, place).text() for place in range(table.columnCount())]


def test_the_figures_and_tables_are_those_of_the_report(view):
    view.show_judged(judged([1.0, 2.0, -1.0, 0.3], tags={"p0": ["science"], "p2": ["science", "short"]}))
    assert view.accuracy.text() == "75.0%"
    assert "4 held-out pairs of 4 rankings of 4 prompts" in view._evidence.text()
    assert cells(view.tables["By tag"], 0)[:3] == ["science", "2", "50.0%"]  # the tag with the most pairs first
    assert cells(view.tables["By rater"], 0)[:3] == ["Ada", "4", "75.0%"]
    assert cells(view.tables["By score gap"], 0)[:3] == ["0.25 to 0.5", "1", "100.0%"]
    assert cells(view.tables["By length"], 1)[0] == "shorter"
    assert view.tables["By rater"].accessibleName() == "Accuracy by rater"


def test_the_bound_that_the_labels_set_is_said_where_it_is_known(view):
    view.show_judged(judged([1.0]))
    assert "bound it" not in view._evidence.text()
    view.show_judged(replace(judged([1.0]), noise=Noise(0.1, 0.05, 0.2, "re-asks")))
    assert "bound it at 90%" in view._evidence.text()


def test_a_part_that_has_nothing_to_say_is_not_there(view):
    view.show_judged(judged([1.0]))
    assert not view._cards["By tag"].isVisible()
    assert view._cards["By rater"].isVisible()
    assert not view.wrong.table.isVisible()
    assert "There is none" in view.wrong.about.text()


def test_the_spread_of_the_heads_is_shown_of_an_ensemble_alone(view):
    view.show_judged(judged([1.0, -1.0]))
    assert not view._spread_card.isVisible()
    pairs = [JudgedPair("a", "r", 1.0, gap_std=0.2), JudgedPair("b", "s", -1.0, gap_std=0.4)]
    view.show_judged(JudgedModel(9, report(pairs), {}))
    assert view._spread_card.isVisible()
    assert view.spread.text() == "0.30"
    assert view._spread_words.text().startswith("0.40 where it is wrong, 0.20 where it is right.")
    assert "in 100% of the comparisons" in view._spread_words.text()


def test_each_mistake_shows_its_texts_as_they_are(view, qtbot):
    view.show_judged(judged([-1.0, 1.0, -3.0]))
    wrong = view.wrong
    assert cells(wrong.table, 0) == ["-3.00", "95%", "<b>Why 2?</b>"]
    assert wrong.prompt.text() == "<b>Why 2?</b>"
    assert (wrong.chosen.text(), wrong.rejected.text()) == ("yes 2", "no 2")
    assert wrong.longer.text() == "the chosen side is 3 tokens shorter"
    qtbot.keyClick(wrong.table, Qt.Key.Key_Down)
    assert (wrong.gap.text(), wrong.sure.text(), wrong.apart.text()) == ("Gap -1.00", "73% sure", "1 tier apart")
    assert wrong.chosen.text() == "yes 0"


def test_a_mistake_whose_run_is_gone_keeps_its_numbers(view):
    view.show_judged(judged([-1.0], texts=False))
    assert cells(view.wrong.table, 0) == ["-1.00", "73%", "p0"]
    assert "no longer there" in view.wrong.prompt.text()
    assert not view.wrong.chosen.isVisible()
    view.show_judged(None)
    assert not view.wrong.table.isVisible()


def test_the_worst_of_very_many_mistakes_are_listed(view):
    view.show_judged(judged([-1.0 - n / 1000 for n in range(MOST_WRONG + 5)]))
    assert view.wrong.table.rowCount() == MOST_WRONG
    assert f"{MOST_WRONG + 5} pairs" in view.wrong.about.text()
    assert f"The worst {MOST_WRONG} are listed." in view.wrong.about.text()


def test_the_curve_can_be_read_without_seeing_it_and_is_drawn_in_both_themes(view, theme):
    view.show_judged(judged([2.0, 2.0, -0.1]))
    said = view.plot.accessibleDescription()
    assert said == "sure to 52%: right in 0% of 1; sure to 88%: right in 100% of 2"
    for mode in ("light", "dark"):
        theme.set_mode(mode)
        picture = view.plot.grab().toImage()
        seen = {picture.pixelColor(x, y).name() for x in range(picture.width()) for y in range(picture.height())}
        assert QColor(theme.colours.series(0)).name() in seen
    view.show_judged(judged([]))
    assert view.plot.accessibleDescription() == "no pairs"


def test_a_narrow_page_or_large_text_puts_the_parts_one_below_the_other(view, theme):
    view.show_judged(judged([1.0, -2.0], tags={"p0": ["science"]}))
    view.resize(1000, 900)
    assert view._left.y() == view._right.y()
    view.resize(500, 900)
    assert view._columns == 1
    view.resize(1000, 900)
    height = view.tables["By rater"].height()
    theme.set_text_size("larger")
    assert view._columns == 1
    assert view.tables["By rater"].height() > height  # rows grow with the text
    theme.set_text_size("normal")


def test_the_pair_that_is_shown_opens_in_rank(view, qtbot):
    view.show_judged(judged([1.0, -2.0]))
    with qtbot.waitSignal(view.wrong.to_rank) as sent:
        view.wrong.open.click()
    row = view.wrong._rows[view.wrong.pairs[0].id]
    assert sent.args == [{"prompt_id": "g", "ranking_id": row.ranking_id}]
    view.show_judged(judged([-2.0], texts=False))
    assert not view.wrong.open.isVisible()


# ---- the tab ----


@pytest.fixture
def run_view(context, qtbot, theme, settle):
    made = RunView(context)
    qtbot.addWidget(made)
    made.resize(1100, 800)
    with qtbot.waitExposed(made):
        made.show()
    yield made
    made.stop()
    settle()


@pytest.fixture
def finished(script, filled):
    def make(method="reward", judgement=None):
        run = script(method, runs_dir=filled.project.runs_dir)
        run.start(10)
        run.steps(1, 10, 10)
        run.end("done", 10)
        if judgement is not None:
            judgement.write(run.path / "final")
        return run

    return make


def has_tab(view):
    return view.tabs.isTabVisible(view.tabs.indexOf(view.judgement))


def test_a_finished_reward_run_has_a_judgement_and_the_next_run_has_its_own(run_view, finished, settle):
    one = finished(judgement=Judgement(step=10, pairs=(JudgedPair("p", "r", 1.0),)))
    other = finished()
    run_view.set_run(one.record("done"))
    settle()
    assert has_tab(run_view)
    assert run_view.judgement.accuracy.text() == "100.0%"
    run_view.set_run(other.record("done"))
    settle()
    assert not has_tab(run_view)


def test_a_run_without_held_out_pairs_or_of_another_method_has_none(run_view, finished, settle):
    for run in (finished(judgement=Judgement()), finished("sft")):
        run_view.set_run(run.record("done"))
        settle()
        assert not has_tab(run_view)


def test_a_run_gets_its_judgement_when_it_ends(run_view, script, filled, qtbot, settle):
    run = script("reward", runs_dir=filled.project.runs_dir)
    run.live()
    run.start(10)
    run_view.set_run(run.record("running"))
    settle()
    assert not has_tab(run_view)
    (run.path / "final").mkdir()
    Judgement(step=10, pairs=(JudgedPair("p", "r", -2.0),)).write(run.path / "final")
    run.end("done", 10)
    qtbot.waitUntil(lambda: has_tab(run_view), timeout=10_000)
    assert run_view.judgement.accuracy.text() == "0.0%"


def test_a_damaged_judgement_is_said_on_the_runs_page(run_view, finished, settle):
    run = finished()
    (run.path / "final" / "judgement.json").write_text("{")
    run_view.set_run(run.record("done"))
    settle()
    assert "cannot be read" in run_view.command_failed.what.text()
    assert not has_tab(run_view)
