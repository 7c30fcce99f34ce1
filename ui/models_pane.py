"""Models: their lineage at the left; at the right the chosen one's card and what can be done with it."""

from __future__ import annotations

from pathlib import Path

from PySide6.QtCore import Qt
from PySide6.QtWidgets import QDialog, QFileDialog, QFrame, QSplitter, QStackedWidget, QTextEdit, QWidget

from ui.context import Context
from ui.lineage_tree import LineageTree
from ui.operations import run_task
from ui.safe_markdown import render
from ui.theme import L, M, S
from ui.widgets import Card, ElidedLabel, EmptyState, ErrorBanner, PageHeader, Pill, Text, button, column, plural, row
from ui.words import ROLE_TONES
from workbench.model_card import card, read_origins
from workbench.moved_bases import is_gone, locate_base
from workbench.records import ROLE_WORDS, Change, ModelRecord

LOCATE = "Locate…"


class ModelsPane(QWidget):
    """Every model of the project, where it came from, and the way in and out."""

    def __init__(self, context: Context) -> None:
        super().__init__()
        self.setObjectName("models-pane")
        self.setAccessibleName("Models")
        self._context = context
        self._models: dict[str, ModelRecord] = {}
        self._card = ""
        self._gone: ModelRecord | None = None
        self._turn = 0
        self.dialog: QDialog | None = None
        self.header = PageHeader("Models", "Bases, the adapters trained on them, and what each came from")
        self.add = button("Add a model…", self.ask_add, kind="primary", name="model-add")
        self.header.add_action(self.add)
        self.tree = LineageTree()
        self.tree.model_chosen.connect(self._on_chosen)
        self.pages = QStackedWidget()
        self.empty = EmptyState(
            "models",
            "No model yet",
            "Everything starts from a base model that can already write. The demo model is small, needs no download "
            "and trains on any machine.",
            "Add a model…",
            self.ask_add,
        )
        split = QSplitter(Qt.Orientation.Horizontal)
        split.addWidget(self.tree)
        split.addWidget(self._details())
        split.setStretchFactor(0, 2)
        split.setStretchFactor(1, 3)
        split.setChildrenCollapsible(False)
        split.setHandleWidth(M)
        split.setStyleSheet("QSplitter::handle { background: transparent; }")
        split.setSizes([400, 620])
        self.pages.addWidget(self.empty)
        self.pages.addWidget(split)
        box = column(self.header, spacing=M, margins=(L, L, L, L))
        box.addWidget(self.pages, 1)
        self.setLayout(box)
        if context.read_only:
            self.add.setEnabled(False)
            self.empty.action.setEnabled(False)
        context.changed.connect(self._on_changed)
        context.theme.changed.connect(self._render)
        self.reload()

    def _details(self) -> QWidget:
        self.name = ElidedLabel("", "title")
        self.role = Pill("")
        self.path = ElidedLabel("", "small", "muted")
        self.gone = ErrorBanner()
        self.gone.setObjectName("base-gone")
        self.gone.action_clicked.connect(self.ask_locate)
        self.text = QTextEdit()
        self.text.setObjectName("model-card")
        self.text.setAccessibleName("Model card")
        self.text.setReadOnly(True)
        self.text.setTabChangesFocus(True)
        self.text.setFrameShape(QFrame.Shape.NoFrame)
        self.text.setStyleSheet("QTextEdit { border: none; background: transparent; padding: 0; }")
        self.train = button("Train from this", self._on_train)
        self.compare = button("Compare", self._on_compare)
        self.export = button("Export…", self._on_export, name="model-export")
        self.remove = button("Remove…", self._on_remove, kind="quiet", name="model-remove")
        top = row(spacing=S)
        top.addWidget(self.name, 1)
        top.addWidget(self.role)
        sheet = Card(padding=L - S)
        sheet.body.addLayout(top)
        sheet.body.addWidget(self.path)
        sheet.body.addWidget(self.gone)
        sheet.body.addSpacing(S)
        sheet.body.addWidget(self.text, 1)
        sheet.body.addLayout(row(self.train, self.compare, self.export, None, self.remove, spacing=S))
        self.descendants = Text("", "small", "muted")
        sheet.body.addWidget(self.descendants)
        return sheet

    # ---- reading ----

    def activate(self) -> None:
        """Nothing to do: the list follows the project."""

    def show_item(self, **what: str) -> None:
        """Go to a model (``model_id``), or open the dialog to add one (``add``)."""
        if what.get("add"):
            self.ask_add()
        elif "model_id" in what:
            self.tree.choose(what["model_id"])

    def reload(self) -> None:
        """Read the models anew."""
        run_task(self._context.store.models, self._on_models, self._context.show_error, owner=self)

    def _on_changed(self, change: Change) -> None:
        if "models" in change.kinds:
            self.reload()

    def _on_models(self, models: list[ModelRecord]) -> None:
        self._models = {one.id: one for one in models}
        self.pages.setCurrentIndex(1 if models else 0)
        self.add.setVisible(bool(models))
        self.tree.set_models(models)
        trained = sum(one.role != "base" for one in models)
        self.header.set_subtitle(f"{plural(len(models) - trained, 'base')}, {plural(trained, 'adapter')}")

    def _on_chosen(self, model_id: str) -> None:
        model = self._models.get(model_id)
        if model is None:
            return
        self._turn += 1
        turn = self._turn
        project = self._context.project
        self.name.setText(model.name)
        self.role.set(ROLE_WORDS[model.role], ROLE_TONES[model.role])
        self.path.setText(str(project.path / model.path))
        below = sum(model_id in (one.parent_id, one.base_id) for one in self._models.values())
        self.descendants.setText(f"{plural(below, 'model')} below it, so it cannot be removed" if below else "")
        self.descendants.setVisible(bool(below))
        writable = not self._context.read_only
        self.remove.setEnabled(not below and writable)
        self.train.setEnabled(model.role != "reward" and writable)
        self.compare.setEnabled(model.role != "reward")
        self.gone.hide()

        def work() -> tuple[str, ModelRecord | None]:
            origins = read_origins(project, model)
            base = origins[-1].model
            return card(origins), base if is_gone(base) else None

        run_task(work, lambda read: self._on_card(turn, *read), self._context.show_error, owner=self)

    def _on_card(self, turn: int, text: str, gone: ModelRecord | None) -> None:
        if turn != self._turn:
            return
        self._card = text.split("\n", 2)[2]  # the name is the heading of the sheet already
        self._gone = gone
        if gone is not None:
            self.gone.show_message(
                f"The folder of {gone.name} is gone",
                f"It was at {gone.path}. Show where it is now: it and what was trained on it can be used again then.",
                "warn",
                "" if self._context.read_only else LOCATE,
            )
        self._render()

    def _render(self) -> None:
        render(self._card, self.text.document())
        self.text.moveCursor(self.text.textCursor().MoveOperation.Start)

    # ---- deeds ----

    def ask_add(self) -> None:
        """Open the dialog that adds a model."""
        from ui.model_dialogs import AddModel

        if self._context.read_only:
            return
        dialog = AddModel(self._context, [one for one in self._models.values() if one.role == "base"], self.window())
        dialog.added.connect(self._on_added)
        self._open(dialog)

    def _on_added(self, model_id: str) -> None:
        if model_id in self._models:
            self.tree.choose(model_id)
        else:
            run_task(self._context.store.models, lambda found: self._show_added(found, model_id), owner=self)

    def _show_added(self, models: list[ModelRecord], model_id: str) -> None:
        self._on_models(models)
        self.tree.choose(model_id)

    def ask_locate(self) -> None:
        """Ask where the folder of a base that is gone lies now, and check that it holds the same model."""
        base, project, settings = self._gone, self._context.project, self._context.settings
        if base is None:
            return
        start = settings.pane("model-folder", str(Path.home()))
        chosen = QFileDialog.getExistingDirectory(self, f"Choose the folder of {base.name}", start)
        if not chosen:
            return
        settings.set_pane("model-folder", str(Path(chosen).parent))
        self.gone.show_message(
            f"Looking whether this is {base.name}…", f"Every file of {chosen} is read once.", "accent"
        )
        run_task(
            lambda: locate_base(project, base.id, chosen),
            self._on_located,
            lambda error: self._on_not_located(base, error),
            owner=self,
        )

    def _on_not_located(self, base: ModelRecord, error: BaseException) -> None:
        if self._gone is not None and self._gone.id == base.id:
            self.gone.show_error(error, LOCATE)
        else:  # another model's sheet is open by now
            self._context.show_error(error)

    def _on_located(self, base: ModelRecord) -> None:
        self._context.notify(f"{base.name} was found again", "good")
        self._models[base.id] = base
        self._on_chosen(self.tree.current_id())

    def _on_train(self) -> None:
        model = self._models[self.tree.current_id()]
        method = "sft" if model.role == "base" else "dpo"
        self._context.navigate("train", method=method, start_model_id=model.id)

    def _on_compare(self) -> None:
        model = self._models[self.tree.current_id()]
        self._context.navigate("compare", model_id=model.id, with_model_id=model.parent_id or model.base_id)

    def _on_export(self) -> None:
        from ui.model_dialogs import ExportModel

        self._open(ExportModel(self._context, self._models[self.tree.current_id()], self.window()))

    def _on_remove(self) -> None:
        from ui.model_dialogs import ConfirmRemove

        model = self._models[self.tree.current_id()]
        dialog = ConfirmRemove(model, self.window())
        dialog.confirmed.connect(lambda: self._remove(model))
        self._open(dialog)

    def _remove(self, model: ModelRecord) -> None:
        from workbench.models import remove_model

        project = self._context.project
        run_task(
            lambda: remove_model(project, model.id),
            lambda _none: self._context.notify(f"{model.name} was removed", "good"),
            self._context.show_error,
            owner=self,
        )

    def _open(self, dialog: QDialog) -> None:
        self.dialog = dialog
        dialog.destroyed.connect(self._on_dialog_gone)
        dialog.open()

    def _on_dialog_gone(self) -> None:
        self.dialog = None
