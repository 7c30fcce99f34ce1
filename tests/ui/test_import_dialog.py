from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import shiboken6
from PySide6.QtCore import QMimeData, QPointF, Qt, QUrl
from PySide6.QtGui import QDropEvent

from ui.context import Context
from ui.export_dialog import ExportDialog
from ui.import_dialog import ImportDialog
from ui.import_preview import RejectedModel
from workbench.formats import reader
from workbench.formats.parsed import Rejected
from workbench.ids import new_id
from workbench.project import Project
from workbench.protocol import Failed, ModelRef, Rendered, RenderRequest
from workbench.records import BAD, GOOD, Ranking, Response, ResponseFlag

Settle = Callable[[], None]
Filled = Said = FakeEngineService = Any  # of conftest, which cannot be imported by name


@pytest.fixture
def preferences(tmp_path: Path) -> Path:
    rows = [{"prompt": f"What is {n} + {n}?", "chosen": f"{2 * n}.", "rejected": f"Well, <b>{n}</b>"} for n in range(9)]
    path = tmp_path / "pairs.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)) + '\n{"prompt": "cut\n{"prompt": "x", "chosen": "y"}\n')
    return path


@pytest.fixture
def open_dialog(qtbot: Any, context: Context, settle: Settle) -> Callable[[Path], ImportDialog]:
    def make(path: Path) -> ImportDialog:
        dialog = ImportDialog(context)
        dialog.setAttribute(Qt.WidgetAttribute.WA_DeleteOnClose, False)
        qtbot.addWidget(dialog)
        dialog.show()
        dialog.read(path)
        qtbot.waitUntil(lambda: dialog.busy.isHidden(), timeout=20_000)
        settle()
        return dialog

    return make


def test_a_file_is_detected_previewed_and_its_bad_rows_are_listed(
    open_dialog: Callable[[Path], ImportDialog], preferences: Path
) -> None:
    dialog = open_dialog(preferences)
    assert dialog.kind.currentData() == "preferences/trl"
    assert '"chosen"' in dialog.reason.text()
    text = dialog.view.toPlainText()
    assert "Line 1" in text
    assert "Well, <b>0</b>" in text  # as text, not as markup
    assert "Line 6" not in text
    assert dialog.left_out.rowCount() == 2
    assert dialog.tabs.tabText(1) == "Left out (2)"
    assert dialog.left_out.index(0, 0).data() == "10"
    assert dialog.left_out.index(0, 1).data()
    assert dialog.start.text() == "Import 9 preferences"
    assert "2 rows left out" in dialog.summary.text()


def test_an_import_is_one_batch_that_undo_takes_back(
    qtbot: Any, open_dialog: Callable[[Path], ImportDialog], preferences: Path, filled: Filled, said: Said
) -> None:
    store = filled.project.store
    before = store.counts()
    dialog = open_dialog(preferences)
    dialog.every.setValue(3)
    dialog.start.click()
    qtbot.waitUntil(lambda: bool(said.notices), timeout=20_000)
    after = store.counts()
    assert after.prompts == before.prompts + 9
    assert after.rankings == before.rankings + 9
    assert after.prompts_held_out > before.prompts_held_out
    assert said.notices[0][0].startswith("9 preferences imported")
    assert store.rankings()[-1].rater_id == filled.rater.id
    store.undo().result(10)
    assert store.counts().prompts == before.prompts


def test_importing_the_same_file_again_adds_nothing(
    qtbot: Any, open_dialog: Callable[[Path], ImportDialog], preferences: Path, filled: Filled, said: Said
) -> None:
    for _ in range(2):
        said.notices.clear()
        open_dialog(preferences).start.click()
        qtbot.waitUntil(lambda: bool(said.notices), timeout=20_000)
    assert "9 there already" in said.notices[0][0]
    assert filled.project.store.counts().prompts == 12 + 9


def test_the_reading_can_be_overridden(
    qtbot: Any, open_dialog: Callable[[Path], ImportDialog], preferences: Path, settle: Settle
) -> None:
    dialog = open_dialog(preferences)
    dialog.kind.setCurrentIndex(dialog.kind.findData("prompts/jsonl"))
    dialog.kind.activated.emit(dialog.kind.currentIndex())
    qtbot.waitUntil(lambda: dialog.start.text().endswith("prompts"), timeout=20_000)
    assert "10 prompts" in dialog.summary.text()
    assert not dialog.rater.isVisible()
    settle()


def test_rows_are_shown_through_the_template_with_the_trained_spans_marked(
    qtbot: Any,
    open_dialog: Callable[[Path], ImportDialog],
    preferences: Path,
    fake_engine: FakeEngineService,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Project, "resolve", lambda _self, one: ModelRef(model_id=one.id, name=one.name, base="/x"))

    def answer(request: RenderRequest) -> list[Any]:
        spans = tuple((("<|user|>\nQ\n<|assistant|>\n", False), (text + "<eos>", True)) for _, text in request.rows)
        note = "our default template"
        return [Rendered(id=request.id, rows=spans, token_counts=tuple(9 for _ in spans), template_note=note)]

    fake_engine.on(RenderRequest, answer)
    dialog = open_dialog(preferences)
    dialog.as_model.setChecked(True)
    qtbot.waitUntil(lambda: "trained" in dialog.legend.text(), timeout=20_000)
    assert "our default template" in dialog.legend.text()
    text = dialog.view.toPlainText()
    assert "<|assistant|>" in text
    assert "Chosen, 9 tokens" in text
    marked = [
        fragment.text()
        for fragment in fragments(dialog)
        if fragment.charFormat().fontUnderline() or fragment.charFormat().background().style() != Qt.BrushStyle.NoBrush
    ]
    assert "0.<eos>" in marked
    assert not any("user" in one for one in marked)
    dialog.as_model.setChecked(False)
    assert "<|assistant|>" not in dialog.view.toPlainText()


def fragments(dialog: ImportDialog) -> list[Any]:
    found, block = [], dialog.view.document().begin()
    while block.isValid():
        part = block.begin()
        while not part.atEnd():
            found.append(part.fragment())
            part += 1
        block = block.next()
    return found


def test_a_template_that_cannot_be_rendered_is_said_and_the_rows_stay(
    qtbot: Any,
    open_dialog: Callable[[Path], ImportDialog],
    preferences: Path,
    fake_engine: FakeEngineService,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Project, "resolve", lambda _self, one: ModelRef(model_id=one.id, name=one.name, base="/x"))
    fake_engine.on(RenderRequest, lambda request: [Failed(id=request.id, message="No template")])
    dialog = open_dialog(preferences)
    dialog.as_model.setChecked(True)
    qtbot.waitUntil(lambda: "No template" in dialog.legend.text(), timeout=20_000)
    assert not dialog.as_model.isChecked()
    assert "Line 1" in dialog.view.toPlainText()


def test_rows_that_are_rendered_when_the_dialog_closes_are_given_up_and_missed_by_nobody(
    qtbot: Any,
    open_dialog: Callable[[Path], ImportDialog],
    preferences: Path,
    fake_engine: FakeEngineService,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Project, "resolve", lambda _self, one: ModelRef(model_id=one.id, name=one.name, base="/x"))
    fake_engine.hold()
    dialog = open_dialog(preferences)
    dialog.as_model.setChecked(True)
    qtbot.waitUntil(lambda: len(fake_engine.requests) == 1, timeout=20_000)
    dialog.reject()
    assert fake_engine.cancelled == [fake_engine.requests[0].id]
    shiboken6.delete(dialog)
    fake_engine.release()
    qtbot.waitUntil(lambda: not fake_engine.busy)


def test_a_file_that_cannot_be_read_says_why(open_dialog: Callable[[Path], ImportDialog], tmp_path: Path) -> None:
    path = tmp_path / "nothing.jsonl"
    path.write_text("")
    dialog = open_dialog(path)
    assert not dialog.banner.isHidden()
    assert dialog.banner.more.text() == "It is empty. Choose another file."
    assert not dialog.start.isEnabled()


def test_a_second_file_takes_the_place_of_the_first_even_while_that_is_read(
    qtbot: Any, context: Context, preferences: Path, tmp_path: Path, settle: Settle
) -> None:
    other = tmp_path / "prompts.txt.gz"
    other.write_bytes(gzip.compress(b"One?\nTwo?\n"))
    dialog = ImportDialog(context, preferences)
    dialog.setAttribute(Qt.WidgetAttribute.WA_DeleteOnClose, False)
    qtbot.addWidget(dialog)
    data = QMimeData()
    data.setUrls([QUrl.fromLocalFile(str(other))])
    none = Qt.KeyboardModifier.NoModifier
    dialog.dropEvent(QDropEvent(QPointF(1, 1), Qt.DropAction.CopyAction, data, Qt.MouseButton.LeftButton, none))
    settle()
    assert dialog.file.text() == "prompts.txt.gz"
    assert dialog.kind.currentData() == "prompts/text"
    assert "2 prompts" in dialog.summary.text()


def test_nothing_can_be_imported_into_a_project_that_is_only_read(
    qtbot: Any, filled: Filled, make_context: Callable[..., Context], preferences: Path, settle: Settle, tmp_path: Path
) -> None:
    with Project.open(filled.project.path, read_only=True) as project:
        dialog = ImportDialog(make_context(project), preferences)
        dialog.setAttribute(Qt.WidgetAttribute.WA_DeleteOnClose, False)
        qtbot.addWidget(dialog)
        settle()
        assert dialog.left_out.rowCount() == 2
        assert not dialog.start.isEnabled()
        settle()


def test_the_model_of_rejected_rows_is_sound(qtmodeltester: Any) -> None:
    model = RejectedModel([Rejected(3, "no prompt", '{"x'), Rejected(1200, "cut", "…")], "row")
    qtmodeltester.check(model)
    assert model.headerData(0, Qt.Orientation.Horizontal) == "Row"
    assert model.index(1, 0).data() == "1,200"
    model.set_rows([], "line")
    assert model.rowCount() == 0
    assert model.headerData(0, Qt.Orientation.Horizontal) == "Line"


@pytest.mark.parametrize(
    ("what", "rows"), [("prompts", 12), ("demonstrations", 4), ("preferences", 15), ("thumbs", 2), ("rankings", 3)]
)
def test_labels_are_exported_and_counted(
    qtbot: Any, context: Context, filled: Any, said: Said, tmp_path: Path, settle: Settle, what: str, rows: int
) -> None:
    if what == "thumbs":
        ranking = filled.rankings[0]
        thumbs = (ResponseFlag(ranking.shown_order[0], GOOD), ResponseFlag(ranking.shown_order[3], BAD))
        filled.project.store.save_ranking(replace(ranking, id=new_id(), flags=thumbs)).result(10)
    dialog = ExportDialog(context)
    dialog.setAttribute(Qt.WidgetAttribute.WA_DeleteOnClose, False)
    qtbot.addWidget(dialog)
    settle()
    dialog.what.setCurrentIndex(dialog.what.findData(what))
    assert dialog.summary.text() == f"{rows} in the project"
    out = tmp_path / f"{what}.jsonl"
    dialog.path.setText(str(out))
    dialog.start.click()
    qtbot.waitUntil(lambda: bool(said.notices), timeout=20_000)
    assert len(out.read_text().splitlines()) == rows
    assert said.notices[0] == (f"{rows} rows written to {out}", "good")
    assert context.settings.pane("export-folder") == str(tmp_path)


def test_an_export_warns_of_responses_that_were_cut_off(
    qtbot: Any, context: Context, filled: Any, said: Said, tmp_path: Path, settle: Settle
) -> None:
    prompt = filled.prompts[-1]
    cut = [Response(new_id(), prompt.id, text, finish_reason="length") for text in ("It is", "It was")]
    filled.project.store.add_responses(cut).result(10)
    tiers = tuple((one.id,) for one in cut)
    filled.project.store.save_ranking(Ranking(new_id(), prompt.id, filled.rater.id, tiers)).result(10)
    dialog = ExportDialog(context)
    dialog.setAttribute(Qt.WidgetAttribute.WA_DeleteOnClose, False)
    qtbot.addWidget(dialog)
    settle()
    dialog.what.setCurrentIndex(dialog.what.findData("preferences"))
    dialog.path.setText(str(tmp_path / "x.jsonl"))
    dialog.start.click()
    qtbot.waitUntil(lambda: bool(said.notices), timeout=20_000)
    [(text, tone)] = said.notices
    assert text.endswith("; 1 of 16 has a response that was cut off, which other programs read as whole")
    assert tone == "warn"


def test_an_export_that_fails_says_why_and_can_be_tried_again(
    qtbot: Any, context: Context, tmp_path: Path, settle: Settle
) -> None:
    dialog = ExportDialog(context)
    dialog.setAttribute(Qt.WidgetAttribute.WA_DeleteOnClose, False)
    qtbot.addWidget(dialog)
    settle()
    dialog.path.setText(str(tmp_path / "no" / "such" / "folder" / "x.jsonl"))
    dialog.start.click()
    qtbot.waitUntil(lambda: not dialog.banner.isHidden(), timeout=20_000)
    assert dialog.start.isEnabled()


def test_a_file_name_is_suggested_until_one_is_typed(qtbot: Any, context: Context, settle: Settle) -> None:
    dialog = ExportDialog(context)
    dialog.setAttribute(Qt.WidgetAttribute.WA_DeleteOnClose, False)
    qtbot.addWidget(dialog)
    assert dialog.path.text().endswith("my-taste-preferences.jsonl")
    dialog.what.setCurrentIndex(0)
    assert dialog.path.text().endswith("my-taste-prompts.jsonl")
    dialog.path.setFocus()
    qtbot.keyClicks(dialog.path, "x")
    dialog.what.setCurrentIndex(1)
    assert dialog.path.text().endswith("my-taste-prompts.jsonlx")
    settle()


def test_rows_left_out_beyond_those_that_are_listed_are_counted_too(
    open_dialog: Callable[[Path], ImportDialog],
    tmp_path: Path,
    said: Said,
    settle: Settle,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(reader, "REJECTED_KEPT", 3)
    (tmp_path / "bad.jsonl").write_text('{"prompt": "hi"}\n' * 5 + "no json\n" * 30)
    dialog = open_dialog(tmp_path / "bad.jsonl")
    assert "30 rows left out" in dialog.summary.text()  # 3 listed + 27 counted
    assert dialog.tabs.tabText(1) == "Left out (30)"
    dialog.start.click()
    settle()
    assert "30 left out" in said.notices[0][0]
