from __future__ import annotations

import dataclasses
import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PySide6.QtWidgets import QFileDialog

from ui import model_dialogs, models_pane
from ui.context import Context
from ui.model_dialogs import AddModel, ConfirmRemove, ExportModel
from ui.models_pane import ModelsPane
from workbench.errors import UserError
from workbench.ids import new_id, now
from workbench.model_folders import fingerprint
from workbench.records import ModelRecord

Settle = Callable[[], None]
Filled = Said = FakeEngineService = Any  # of conftest, which cannot be imported by name


@pytest.fixture
def family(filled: Filled) -> list[ModelRecord]:
    """A base, an SFT model on it, and a reward model and a policy on that."""
    sft = ModelRecord(
        new_id(), "sft 1", "sft", "models/a", base_id=filled.base.id, parent_id=filled.base.id, created_at=now()
    )
    reward = ModelRecord(
        new_id(), "reward 1", "reward", "models/b", base_id=filled.base.id, parent_id=sft.id, created_at=now()
    )
    policy = ModelRecord(
        new_id(), "ppo 1", "policy", "models/c", base_id=filled.base.id, parent_id=sft.id, created_at=now()
    )
    for one in (sft, reward, policy):
        filled.project.store.save_model(one).result(10)
    return [filled.base, sft, reward, policy]


@pytest.fixture
def pane(qtbot: Any, context: Context, family: list[ModelRecord], settle: Settle) -> Iterator[ModelsPane]:
    made = ModelsPane(context)
    qtbot.addWidget(made)
    made.resize(1100, 700)
    made.show()
    settle()
    yield made
    settle()


def test_models_stand_under_the_one_they_came_from(pane: ModelsPane, family: list[ModelRecord]) -> None:
    tree = pane.tree
    root = tree.model().index(0, 0)
    assert root.data() == "tiny base"
    sft = tree.model().index(0, 0, root)
    assert sft.data() == "sft 1"
    assert [tree.model().index(n, 0, sft).data() for n in range(2)] == ["reward 1", "ppo 1"]
    assert tree.current_id() == family[-1].id


def test_the_chosen_model_shows_its_card_and_what_can_be_done(
    pane: ModelsPane, family: list[ModelRecord], said: Said, settle: Settle
) -> None:
    assert pane.name.text() == "ppo 1"
    assert "Where it comes from" in pane.text.toPlainText()
    assert pane.remove.isEnabled()
    pane.train.click()
    pane.compare.click()
    assert said.places == [
        ("train", {"method": "dpo", "start_model_id": family[3].id}),
        ("compare", {"model_id": family[3].id, "with_model_id": family[3].parent_id}),
    ]
    pane.tree.choose(family[0].id)
    settle()
    assert not pane.remove.isEnabled()
    assert "below it" in pane.descendants.text()
    pane.tree.choose(family[2].id)
    settle()
    assert not pane.train.isEnabled()  # nothing is trained from a reward model
    assert "guess about one rater" in pane.text.toPlainText()


def test_a_model_that_is_removed_goes_off_the_list(
    qtbot: Any, pane: ModelsPane, family: list[ModelRecord], settle: Settle
) -> None:
    pane.remove.click()
    assert isinstance(pane.dialog, ConfirmRemove)
    pane.dialog.yes.click()
    qtbot.waitUntil(lambda: family[3].id not in pane._models, timeout=10_000)
    assert pane.tree.current_id() == family[2].id


def test_show_item_goes_to_a_model(pane: ModelsPane, family: list[ModelRecord], settle: Settle) -> None:
    pane.show_item(model_id=family[1].id)
    settle()
    assert pane.name.text() == "sft 1"


def test_a_project_without_models_offers_to_add_one(
    qtbot: Any, make_context: Callable[..., Context], empty_project: Any, settle: Settle
) -> None:
    pane = ModelsPane(make_context(empty_project))
    qtbot.addWidget(pane)
    pane.show()
    settle()
    assert pane.pages.currentWidget() is pane.empty
    pane.empty.action.click()
    assert isinstance(pane.dialog, AddModel)
    pane.dialog.reject()


def test_adding_the_demo_model_shows_progress_and_chooses_it(
    qtbot: Any, pane: ModelsPane, filled: Filled, said: Said, monkeypatch: pytest.MonkeyPatch, settle: Settle
) -> None:
    made = ModelRecord(new_id(), "demo", "base", str(filled.base.path), source="demo", note="Hi.", created_at=now())
    asked: list[str] = []

    def add_model(project: Any, source: str, client: Any, on_progress: Any, *, token: str = "") -> ModelRecord:
        asked.append(source)
        on_progress("Converting", 0.5)
        project.store.save_model(made).result(10)
        return made

    monkeypatch.setattr(model_dialogs, "add_model", add_model)
    pane.ask_add()
    dialog = pane.dialog
    assert isinstance(dialog, AddModel)
    shown: list[str] = []
    dialog._show = lambda what, fraction: shown.append(f"{what} {fraction}")  # type: ignore[method-assign]
    dialog.start.click()
    assert dialog.progress.isVisible()
    qtbot.waitUntil(lambda: pane.tree.current_id() == made.id, timeout=10_000)
    assert asked == ["demo"]
    assert shown == ["Converting 0.5"]
    assert ("demo was added. Hi.", "good") in said.notices


@pytest.mark.parametrize(
    ("source", "place", "asked"),
    [("hub", "owner/name", "hub:owner/name"), ("folder", "/m", "/m"), ("gguf", "/m/x.gguf", "/m/x.gguf")],
)
def test_each_source_is_asked_for_in_its_own_words(
    qtbot: Any,
    context: Context,
    monkeypatch: pytest.MonkeyPatch,
    settle: Settle,
    source: str,
    place: str,
    asked: str,
) -> None:
    seen: list[str] = []

    def add_model(_project: Any, given: str, *_args: Any, **_more: Any) -> ModelRecord:
        seen.append(given)
        raise UserError("The model was refused", "it is pickled", "take another")

    monkeypatch.setattr(model_dialogs, "add_model", add_model)
    dialog = AddModel(context, [])
    dialog.choices[source].setChecked(True)
    assert not dialog.start.isEnabled()
    dialog.place.setText(place)
    dialog.start.click()
    qtbot.waitUntil(lambda: not dialog.banner.isHidden(), timeout=10_000)
    assert seen == [asked]
    assert dialog.banner.what.text() == "The model was refused"
    assert dialog.start.isEnabled()
    settle()
    dialog.reject()


def test_a_cancelled_import_says_nothing_and_can_be_started_again(context: Context, settle: Settle) -> None:
    dialog = AddModel(context, [])
    dialog.set_working(True)
    dialog.failed(UserError("This was cancelled"))
    assert dialog.banner.isHidden()
    assert not dialog.working
    settle()
    dialog.reject()


@pytest.mark.parametrize("what", ["adapter", "merged", "gguf"])
def test_an_export_writes_what_it_is_told_where_it_is_told(
    qtbot: Any,
    context: Context,
    family: list[ModelRecord],
    said: Said,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    what: str,
) -> None:
    seen: list[tuple[str, str, str]] = []

    def export_model(
        _project: Any, model: ModelRecord, out: Path, _client: Any, *, what: str, numbers: str, on_progress: Any
    ) -> Path:
        seen.append((model.name, what, numbers))
        return out

    monkeypatch.setattr(model_dialogs, "export_model", export_model)
    dialog = ExportModel(context, family[3])
    dialog.place.setText(str(tmp_path / "out"))
    getattr(dialog, what).setChecked(True)
    assert dialog.numbers.isVisibleTo(dialog) == (what == "gguf")
    dialog.numbers.setCurrentText("bf16")
    dialog.start.click()
    qtbot.waitUntil(lambda: bool(said.notices), timeout=10_000)
    assert seen == [("ppo 1", what, "bf16")]
    assert str(tmp_path / "out") in said.notices[0][0]


def test_a_base_is_exported_whole_and_a_reward_model_in_every_way_but_as_a_writer_of_text(
    context: Context, family: list[ModelRecord]
) -> None:
    base, reward = ExportModel(context, family[0]), ExportModel(context, family[2])
    assert not base.adapter.isEnabled()
    assert base.merged.isChecked()
    assert base.gguf.isEnabled()
    assert reward.adapter.isEnabled()
    assert reward.merged.isEnabled()
    assert not reward.gguf.isEnabled()
    base.reject()
    reward.reject()


def test_a_base_whose_folder_is_gone_is_located_and_another_model_is_refused(
    pane: ModelsPane,
    family: list[ModelRecord],
    filled: Filled,
    said: Said,
    settle: Settle,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert pane.gone.isHidden()  # its folder is there
    base = sound_base(tmp_path / "was here", width=8)
    record = dataclasses.replace(family[0], path=str(base), sha256=fingerprint(base))
    filled.project.store.save_model(record).result(10)
    settle()
    base.rename(tmp_path / "is here")
    chosen = str(sound_base(tmp_path / "another", width=16))
    monkeypatch.setattr(QFileDialog, "getExistingDirectory", lambda *_: chosen)
    pane.tree.choose(family[1].id)  # what was trained on it says so too
    settle()
    assert pane.gone.what.text() == "The folder of tiny base is gone"
    pane.gone.action.click()
    settle()
    assert "holds another model than tiny base" in pane.gone.what.text()
    assert filled.project.store.model(record.id).path == str(base)
    chosen = str(tmp_path / "is here")
    pane.gone.action.click()
    settle()
    assert filled.project.store.model(record.id).path == chosen
    assert pane.gone.isHidden()
    assert said.notices == [("tiny base was found again", "good")]


def test_a_base_that_is_not_found_says_so_on_no_other_models_sheet(
    pane: ModelsPane,
    family: list[ModelRecord],
    filled: Filled,
    said: Said,
    settle: Settle,
    qtbot: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    refused, goes_on = UserError("The folder holds another model", "no"), threading.Event()

    def refuse(*_: Any) -> None:
        goes_on.wait(20)
        raise refused

    gone = dataclasses.replace(family[0], path=str(tmp_path / "gone"))
    other = ModelRecord(new_id(), "another", "base", str(sound_base(tmp_path / "another", width=8)))
    for one in (gone, other):
        filled.project.store.save_model(one).result(10)
    settle()
    monkeypatch.setattr(models_pane, "locate_base", refuse)
    monkeypatch.setattr(QFileDialog, "getExistingDirectory", lambda *_: str(tmp_path))
    pane.tree.choose(gone.id)
    qtbot.waitUntil(lambda: not pane.gone.isHidden(), timeout=20_000)
    pane.gone.action.click()
    pane.tree.choose(other.id)
    qtbot.waitUntil(lambda: pane._gone is None, timeout=20_000)
    goes_on.set()
    qtbot.waitUntil(lambda: said.errors == [refused], timeout=20_000)
    assert pane.gone.isHidden()


def sound_base(folder: Path, width: int) -> Path:
    """A base as far as its files tell: one tensor of ``width`` zeros."""
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "llama"}')
    (folder / "tokenizer.json").write_text("{}")
    header = json.dumps({"w": {"dtype": "F32", "shape": [width], "data_offsets": [0, 4 * width]}}).encode()
    (folder / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(4 * width))
    return folder
