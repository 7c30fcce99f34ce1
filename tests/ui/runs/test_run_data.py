"""The Data tab of a run: its rows, what changed since, and the way to each label."""

import threading
from dataclasses import replace

import pytest
from PySide6.QtCore import Qt

from ui.run_data_model import COLUMNS, RunDataModel, narrowed
from ui.run_data_view import RunDataView
from ui.run_view import RunView
from workbench.ids import new_id
from workbench.pairs import current_pairs
from workbench.protocol import ModelRef, RunSpec
from workbench.run_folder import RunFolder
from workbench.run_labels import RunLabel


@pytest.fixture
def run(filled):
    def make(method="dpo", rows=None):
        spec = RunSpec(
            run_id=new_id(), method=method, name="run", recipe={}, model=ModelRef(model_id="b", name="", base="")
        )
        filled.project.runs_dir.mkdir(exist_ok=True)
        rows = current_pairs(filled.project.store).rows if rows is None else rows
        return RunFolder.create(filled.project.runs_dir, spec, rows, [])

    return make


@pytest.fixture
def view(qtbot, theme, filled, settle):
    made = RunDataView(filled.project.store)
    qtbot.addWidget(made)
    made.resize(1000, 700)
    with qtbot.waitExposed(made):
        made.show()
    yield made
    settle()


def test_the_model_is_a_sound_qt_model(qtmodeltester):
    model = RunDataModel()
    model.set_labels([RunLabel("train", "p", "why", "yes", "no"), RunLabel("heldout", "p", "why", "yes", wanted=False)])
    qtmodeltester.check(model)
    assert model.index(1, 1).data() == "thumbs down, stands"
    assert model.headerData(4, Qt.Orientation.Horizontal) == "Rejected"


def test_rows_texts_and_the_way_to_the_label(view, run, settle, filled, qtbot):
    view.set_run(run())
    settle()
    assert view.model.rowCount() == 15  # 3 rankings of 1 > 2 = 2 > 1: 2 + 1 + 2 pairs each
    assert view.count.text() == "15 rows"
    assert not view.changed.isVisible()
    one = view.current
    assert (view.chosen.text(), view.rejected.text()) == (one.chosen, one.rejected)
    with qtbot.waitSignal(view.opened) as sent:
        view.open.click()
    assert sent.args == ["rank", {"prompt_id": filled.prompts[0].id, "ranking_id": filled.rankings[0].id}]


def test_labels_that_changed_since_are_counted_and_can_be_seen_alone(view, run, settle, filled):
    view.set_run(run())
    settle()
    first = filled.rankings[0]
    filled.project.store.save_ranking(replace(first, id=new_id(), tiers=first.tiers[::-1])).result(10)
    view.hide()
    view.show()
    settle()
    assert view.changed.isVisible()
    assert view.changed.what.text() == "1 of the 3 labels that trained this model no longer stands"
    view.only_changed.setChecked(True)
    settle()
    assert view.model.rowCount() == 5
    assert view.since.text() == "changed since"


def test_a_search_narrows(view, run, settle, qtbot):
    view.set_run(run())
    settle()
    view.search.setText("topic 2")
    qtbot.waitUntil(lambda: view.model.rowCount() == 5, timeout=10_000)
    view.search.setText("nothing says this")
    qtbot.waitUntil(lambda: view.model.rowCount() == 0, timeout=10_000)
    assert not view.detail.isVisible()


def test_a_slow_search_does_not_take_the_place_of_a_newer_one(view, run, settle, monkeypatch, qtbot):
    view.set_run(run())
    settle()
    gate = threading.Event()

    def slow(labels, words, *, changed_only):
        if words == "topic 2":
            gate.wait(20)
        return narrowed(labels, words, changed_only=changed_only)

    monkeypatch.setattr("ui.run_data_view.narrowed", slow)
    view.search.setText("topic 2")
    view._narrow()
    view.search.setText("nothing says this")
    view._narrow()
    qtbot.waitUntil(lambda: view.model.rowCount() == 0, timeout=10_000)
    gate.set()
    settle()
    assert view.model.rowCount() == 0


def test_a_run_without_rows_and_damaged_data_say_so(view, run, settle):
    view.set_run(run(rows=[]))
    settle()
    assert view.empty.title.text() == "No rows"
    damaged = run()
    (damaged.path / "data" / "train.jsonl").write_text("{}")
    view.set_run(damaged)
    settle()
    assert "was changed" in view.empty.title.text()


def test_ten_thousand_rows_are_as_quick_as_ten(view, qtbot):
    """Drawing asks only for what is seen: the cells of some thirty lines, not of ten thousand."""
    asked = 0

    class Counting(RunDataModel):
        def data(self, index, role=Qt.ItemDataRole.DisplayRole):
            nonlocal asked
            asked += role == Qt.ItemDataRole.DisplayRole
            return super().data(index, role)

    model = Counting()
    view.table.setModel(model)
    model.set_labels([RunLabel("train", str(n), f"why {n}", "yes " * 300, "no " * 300) for n in range(10_000)])
    view._stack.setCurrentIndex(1)
    view.table.repaint()
    assert 0 < asked < 100 * len(COLUMNS)
    view.table.setModel(view.model)


def test_narrowing_keeps_all_words(view):
    labels = [RunLabel("train", "p", "Why Rain?", "Water", "Fire"), RunLabel("train", "p", "why", "no", since="gone")]
    assert narrowed(labels, "", changed_only=False) is labels
    assert narrowed(labels, "rain fire", changed_only=False) == labels[:1]
    assert narrowed(labels, "why", changed_only=True) == labels[1:]


def test_a_confident_mistake_opens_in_rank_and_so_does_a_row(qtbot, context, said, settle, script, filled):
    made = script("reward", runs_dir=filled.project.runs_dir)
    made.start(10)
    made.end("done", 10)
    page = RunView(context)
    qtbot.addWidget(page)
    page.show()
    page.set_run(made.record("done"))
    settle()
    page.data.opened.emit("rank", {"prompt_id": "p7", "ranking_id": "r7"})
    assert said.places[-1] == ("rank", {"prompt_id": "p7", "ranking_id": "r7"})
    page.judgement.wrong.to_rank.emit({"prompt_id": "p1", "ranking_id": "r1"})
    assert said.places[-1] == ("rank", {"prompt_id": "p1", "ranking_id": "r1"})
    page.stop()
    settle()
