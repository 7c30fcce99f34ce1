"""Add a model, export one: each asks for what it needs, shows how far it is and can be cancelled."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import shiboken6
from PySide6.QtCore import Qt, Signal, SignalInstance
from PySide6.QtWidgets import (
    QButtonGroup,
    QComboBox,
    QFileDialog,
    QFormLayout,
    QHBoxLayout,
    QLineEdit,
    QProgressBar,
    QRadioButton,
    QWidget,
)

from ui.context import Context
from ui.engine_service import Borrowed
from ui.operations import post, run_task
from ui.project_dialogs import Sheet
from ui.theme import XS, L, M, S
from ui.widgets import ErrorBanner, IconButton, Text, button, column, row
from workbench.errors import UserError
from workbench.models import CachedBase, add_model, cached_bases, export_model, import_adapter
from workbench.protocol import GGUF_NUMBERS
from workbench.records import ModelRecord

# key, title, what it means
SOURCES: tuple[tuple[str, str, str], ...] = (
    ("demo", "The demo model", "SmolLM2-135M-Instruct, Apache-2.0: small enough to train on any machine. No download."),
    ("cache", "From the cache", "A base model that another project has brought in already."),
    ("folder", "A Hugging Face folder", "With config, tokenizer and safetensors. Pickled weights are refused."),
    ("gguf", "A GGUF file", "Converted once into the cache; marked as having been quantised."),
    ("hub", "From the hub", "Downloads by owner/name. The only thing here that uses the network."),
    ("adapter", "A LoRA adapter", "A peft folder, onto one of the project's base models."),
)


class Working(Sheet):
    """A sheet whose deed takes a while: banner, progress with words, Cancel that cancels."""

    def __init__(self, title: str, text: str, start: str, parent: QWidget | None) -> None:
        super().__init__(title, text, parent)
        self.banner = ErrorBanner()
        self.progress = QProgressBar()
        self.progress.setTextVisible(False)
        self.progress.setAccessibleName("Progress")
        self.doing = Text("", "small", "muted")
        self.progress.hide()
        self.lent: Borrowed | None = None
        self.working = False
        self.stop = button("Cancel", self._on_cancel)
        self.start = button(start, self.begin, kind="primary", name="model-start")
        self.start.setDefault(True)
        self.buttons.addWidget(self.stop)
        self.buttons.addWidget(self.start)

    def add_footer(self) -> None:
        """Put banner and progress under what the sheet asks."""
        self.body.addWidget(self.banner)
        self.body.addWidget(self.doing)
        self.body.addWidget(self.progress)
        self.body.addStretch(1)

    def begin(self) -> None:
        """Do the deed."""
        raise NotImplementedError

    def set_working(self, working: bool) -> None:
        """Show that the deed is being done, or no longer."""
        self.working = working
        self.start.setEnabled(not working)
        self.progress.setVisible(working)
        self.progress.setRange(0, 0)
        self.doing.setText("")

    def tell(self, what: str, fraction: float) -> None:
        """Show how far it is; may be called from any thread."""
        post(lambda: self._show(what, fraction))

    def _show(self, what: str, fraction: float) -> None:
        if shiboken6.isValid(self) and self.working:
            self.doing.setText(what)
            self.progress.setRange(0, 0 if fraction < 0 else 1000)
            self.progress.setValue(round(1000 * fraction))

    def failed(self, error: BaseException) -> None:
        """Show why it did not work."""
        self.set_working(False)
        if not (isinstance(error, UserError) and "cancelled" in error.what.lower()):
            self.banner.show_error(error)

    def _on_cancel(self) -> None:
        if self.working and self.lent is not None:
            self.doing.setText("Cancelling…")
            self.lent.cancel()
        else:
            self.reject()

    def reject(self) -> None:
        """Close; what is being done goes on until it notices the cancellation."""
        if self.working and self.lent is not None:
            self.lent.cancel()
        super().reject()


class AddModel(Working):
    """Where a model comes from; ``added(str)`` tells the new model's id."""

    added: SignalInstance = Signal(str)  # type: ignore[assignment]

    def __init__(self, context: Context, bases: Sequence[ModelRecord], parent: QWidget | None = None) -> None:
        super().__init__("Add a model", "Base models are kept once for all projects.", "Add model", parent)
        self._context = context
        self._bases = list(bases)
        self.group = QButtonGroup(self)
        self.choices: dict[str, QRadioButton] = {}
        for number, (key, title, about) in enumerate(SOURCES):
            choice = QRadioButton(title)
            choice.setObjectName(f"source-{key}")
            choice.setAccessibleDescription(about)
            self.choices[key] = choice
            self.group.addButton(choice, number)
            words = Text(about, "small", "muted", wrap=True)
            words.setContentsMargins(L, 0, 0, 0)
            self.body.addLayout(column(choice, words, spacing=2))
        self.place = QLineEdit()
        self.place.setObjectName("model-place")
        self.browse = IconButton("folder", "Choose", self._on_browse)
        self.cached = QComboBox()
        self.cached.setAccessibleName("Base model of the cache")
        self.base = QComboBox()
        self.base.setAccessibleName("Base model of the adapter")
        for one in self._bases:
            self.base.addItem(one.name, one.id)
        self.token = QLineEdit()
        self.token.setAccessibleName("Hub token")
        self.token.setEchoMode(QLineEdit.EchoMode.Password)
        self.token.setPlaceholderText("Only for gated models; not stored")
        self._form = QFormLayout()
        self._form.setHorizontalSpacing(M)
        self._form.setVerticalSpacing(S)
        self._where = self._with_browse()
        self._form.addRow("Place", self._where)
        self._form.addRow("Model", self.cached)
        self._form.addRow("Onto", self.base)
        self._form.addRow("Token", self.token)
        self.body.addSpacing(XS)
        self.body.addLayout(self._form)
        self.add_footer()
        self.group.idToggled.connect(lambda _id, _on: self._show_fields())
        self.place.textChanged.connect(lambda _text: self._show_fields())
        self.choices["adapter"].setEnabled(bool(self._bases))
        self.choices["cache"].setEnabled(False)
        self.choices["demo"].setChecked(True)
        self.resize(600, 560)
        run_task(cached_bases, self._on_cached, context.show_error, owner=self)

    def source(self) -> str:
        """Return the key of the chosen source."""
        return SOURCES[max(0, self.group.checkedId())][0]

    def begin(self) -> None:
        """Bring the model in."""
        project, place, source = self._context.project, self.place.text().strip(), self.source()
        self.banner.hide()
        self.set_working(True)
        if source == "adapter":
            base = str(self.base.currentData())
            run_task(lambda: import_adapter(project, place, base), self._on_added, self.failed, owner=self)
            return
        asked = {"demo": "demo", "cache": str(self.cached.currentData()), "hub": f"hub:{place.removeprefix('hub:')}"}
        wanted, token = asked.get(source, place), self.token.text().strip()
        self.lent = self._context.engine.borrow(
            lambda client: add_model(project, wanted, client, self.tell, token=token),
            self._on_added,
            self.failed,
            owner=self,
        )

    def _with_browse(self) -> QHBoxLayout:
        box = row(spacing=S)
        box.addWidget(self.place, 1)
        box.addWidget(self.browse)
        return box

    def _show_fields(self) -> None:
        source = self.source()
        placed = source in ("folder", "gguf", "hub", "adapter")
        self._form.setRowVisible(0, placed)
        self._form.setRowVisible(1, source == "cache")
        self._form.setRowVisible(2, source == "adapter")
        self._form.setRowVisible(3, source == "hub")
        self.browse.setVisible(placed and source != "hub")
        hints = {
            "folder": "Folder with config.json and *.safetensors",
            "gguf": "File that ends in .gguf",
            "hub": "owner/name",
            "adapter": "Folder with adapter_config.json",
        }
        self.place.setPlaceholderText(hints.get(source, ""))
        self.place.setAccessibleName(hints.get(source, "Place"))
        if not self.working:
            self.start.setEnabled(not placed or bool(self.place.text().strip()))
        self.start.setText("Download and add" if source == "hub" else "Add model")

    def _on_cached(self, found: list[CachedBase]) -> None:
        known = {one.path for one in self._bases}
        new = [one for one in found if str(one.path) not in known]
        for one in new:
            self.cached.addItem(f"{one.name}  ({one.parameters / 1e6:,.0f} M parameters)", str(one.path))
        self.choices["cache"].setEnabled(bool(new))

    def _on_browse(self) -> None:
        start = self._context.settings.pane("model-folder", str(Path.home()))
        if self.source() == "gguf":
            chosen, _ = QFileDialog.getOpenFileName(self, "Choose a GGUF file", start, "GGUF (*.gguf)")
        else:
            chosen = QFileDialog.getExistingDirectory(self, "Choose the model's folder", start)
        if chosen:
            self._context.settings.set_pane("model-folder", str(Path(chosen).parent))
            self.place.setText(chosen)

    def _on_added(self, model: ModelRecord) -> None:
        self.set_working(False)
        self._context.notify(f"{model.name} was added. {model.note}".strip(), "good")
        self.added.emit(model.id)
        self.accept()


class ExportModel(Working):
    """Write a model as a folder of its own."""

    def __init__(self, context: Context, model: ModelRecord, parent: QWidget | None = None) -> None:
        about = "Into a new folder, with its model card; nothing is overwritten."
        super().__init__(f"Export {model.name}", about, "Export", parent)
        self._context = context
        self._model = model
        self.adapter = QRadioButton("Adapter alone")
        self.merged = QRadioButton("Merged with its base")
        self.gguf = QRadioButton("Merged, as a GGUF file")
        for choice, about in (
            (self.adapter, "A plain peft folder of a few megabytes; whoever uses it needs the same base."),
            (self.merged, "Whole weights in bf16 as safetensors; loads anywhere, takes the base's space again."),
            (self.gguf, "One file for llama.cpp and programs built on it; Llama, Mistral, SmolLM2 and Qwen2 only."),
        ):
            choice.setAccessibleDescription(about)
            words = Text(about, "small", "muted", wrap=True)
            words.setContentsMargins(L, 0, 0, 0)
            self.body.addLayout(column(choice, words, spacing=2))
        self.adapter.setChecked(True)
        if model.role == "base":
            self.adapter.setEnabled(False)
            self.merged.setChecked(True)
        self.gguf.setEnabled(model.role != "reward")  # it scores text and writes none
        folder = Path(context.settings.pane("model-export-folder", str(Path.home())))
        name = "-".join(model.name.lower().split())
        self.place = QLineEdit(str(folder / "".join(c for c in name if c.isalnum() or c in "-_.")))
        self.place.setObjectName("model-place")
        self.place.setAccessibleName("Folder")
        where = row(spacing=S)
        where.addWidget(self.place, 1)
        where.addWidget(IconButton("folder", "Choose where", self._on_browse))
        form = QFormLayout()
        form.setHorizontalSpacing(M)
        self.numbers = QComboBox()
        self.numbers.setAccessibleName("Numbers of the GGUF file")
        self.numbers.addItems(GGUF_NUMBERS)
        form.addRow("Folder", where)
        form.addRow("Numbers", self.numbers)
        form.setRowVisible(self.numbers, False)
        self.gguf.toggled.connect(lambda on: form.setRowVisible(self.numbers, on))
        self.body.addLayout(form)
        self.add_footer()

    def begin(self) -> None:
        """Write the folder."""
        project, model, out = self._context.project, self._model, Path(self.place.text()).expanduser()
        what = "gguf" if self.gguf.isChecked() else "merged" if self.merged.isChecked() else "adapter"
        numbers = self.numbers.currentText()
        self.banner.hide()
        self.set_working(True)
        self.lent = self._context.engine.borrow(
            lambda client: export_model(project, model, out, client, what=what, numbers=numbers, on_progress=self.tell),
            self._on_written,
            self.failed,
            owner=self,
        )

    def _on_browse(self) -> None:
        current = Path(self.place.text())
        chosen = QFileDialog.getExistingDirectory(self, "Export into", str(current.parent))
        if chosen:
            self.place.setText(str(Path(chosen) / current.name))

    def _on_written(self, out: Path) -> None:
        self.set_working(False)
        self._context.settings.set_pane("model-export-folder", str(out.parent))
        self._context.notify(f"{self._model.name} was written to {out}", "good")
        self.accept()


class ConfirmRemove(Sheet):
    """Ask before a model goes off the list; ``confirmed()`` tells yes."""

    confirmed: SignalInstance = Signal()  # type: ignore[assignment]

    def __init__(self, model: ModelRecord, parent: QWidget | None = None) -> None:
        kept = {
            "base": "Its files stay in the cache, for this and other projects.",
        }.get(
            model.role,
            "The run that made it keeps its files."
            if model.path.startswith("runs/")
            else "Its files in the project are deleted. This cannot be undone.",
        )
        super().__init__(f"Remove {model.name}?", f"It goes off the project's list. {kept}", parent)
        self.yes = button("Remove", self._on_yes, kind="danger", name="remove-yes")
        cancel = button("Cancel", self.reject)
        cancel.setDefault(True)
        self.buttons.addWidget(cancel)
        self.buttons.addWidget(self.yes)
        self.setWindowFlag(Qt.WindowType.WindowContextHelpButtonHint, False)

    def _on_yes(self) -> None:
        self.confirmed.emit()
        self.accept()
