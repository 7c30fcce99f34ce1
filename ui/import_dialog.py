"""Import labels: choose a file, see what it is and what is wrong with it, then store it as one undoable batch."""

from __future__ import annotations

from pathlib import Path

from PySide6.QtCore import Qt
from PySide6.QtGui import QDragEnterEvent, QDropEvent
from PySide6.QtWidgets import (
    QCheckBox,
    QComboBox,
    QFileDialog,
    QHBoxLayout,
    QHeaderView,
    QLineEdit,
    QProgressBar,
    QSpinBox,
    QStackedWidget,
    QTableView,
    QTabWidget,
    QTextEdit,
    QWidget,
)

from ui.context import Context
from ui.engine_replies import while_alive
from ui.import_preview import RejectedModel, write_rendered, write_rows
from ui.model_picker import ModelPicker
from ui.operations import run_task
from ui.plain_text import PlainText
from ui.project_dialogs import Sheet
from ui.theme import S
from ui.widgets import ElidedLabel, EmptyState, ErrorBanner, Text, button, column, plural, row
from workbench.errors import UserError
from workbench.formats.detect import Detection, explain
from workbench.formats.importer import ImportReport, store_parsed
from workbench.formats.parsed import FORMATS, WHATS, Parsed
from workbench.formats.preview import PreviewRow, preview, render_request, rendered_rows
from workbench.formats.reader import parse
from workbench.ids import new_id
from workbench.protocol import LAST_REPLIES, AnyReply, Failed, ModelRef, Rendered

PREVIEWED = 5
FILTER = "Labels (*.jsonl *.json *.csv *.tsv *.txt *.gz);;All files (*)"


class ImportDialog(Sheet):
    """Reads the file off the window's thread; shows rows, template, faults and warnings before anything is stored."""

    def __init__(self, context: Context, path: Path | None = None, parent: QWidget | None = None) -> None:
        super().__init__("Import labels", "", parent)
        self._context = context
        self._path: Path | None = None
        self._turn = 0  # answers to an earlier file or choice are dropped
        self._parsed: Parsed | None = None
        self._rows: list[PreviewRow] = []
        self._rendered: Rendered | None = None
        self._request = ""
        self.setAcceptDrops(True)
        self.resize(960, 720)
        self.pages = QStackedWidget()
        self.pages.addWidget(self._empty_page())
        self.pages.addWidget(self._file_page())
        self.body.addWidget(self.pages, 1)
        self.summary = Text("", "body", "muted", wrap=True)
        self.start = button("Import", self._on_import, kind="primary", name="import-start")
        self.start.setEnabled(False)
        self.buttons.insertWidget(0, self.summary, 1)
        self.buttons.addWidget(button("Cancel", self.reject))
        self.buttons.addWidget(self.start)
        if context.read_only:
            self.banner.show_message("This project is open for reading only", "Nothing can be imported.", "warn")
        if path is not None:
            self.read(path)

    def _empty_page(self) -> QWidget:
        return EmptyState(
            "import",
            "Choose a file, or drop it here",
            "Prompts, demonstrations, preferences, thumbs or rankings, as JSON lines, JSON, CSV or text. Files "
            "of Alpaca, ShareGPT, OpenAI, TRL, HH, OpenAssistant, Argilla, Label Studio, Kiln and H2O are recognised.",
            "Choose a file…",
            self._on_browse,
        )

    def _file_page(self) -> QWidget:
        self.file = ElidedLabel("", "strong")
        self.reason = ElidedLabel("", "small", "muted")
        self.kind = QComboBox()
        self.kind.setObjectName("import-kind")
        self.kind.setAccessibleName("Read the file as")
        self.kind.setMinimumWidth(400)
        self.kind.activated.connect(lambda _index: self._read_as(str(self.kind.currentData())))
        self.busy = QProgressBar()
        self.busy.setRange(0, 0)
        self.busy.setTextVisible(False)
        self.busy.setAccessibleName("Reading")
        self.banner = ErrorBanner()
        self.tabs = QTabWidget()
        self.tabs.setAccessibleName("What is in the file")
        self.tabs.addTab(self._preview_tab(), "First rows")
        self.left_out = RejectedModel()
        self.table = QTableView()
        self.table.setAccessibleName("Rows that are left out")
        self.table.setModel(self.left_out)
        self.table.setShowGrid(False)
        self.table.setTabKeyNavigation(False)
        self.table.verticalHeader().hide()
        self.table.setSelectionBehavior(QTableView.SelectionBehavior.SelectRows)
        self.table.horizontalHeader().setSectionResizeMode(2, QHeaderView.ResizeMode.Stretch)
        self.table.horizontalHeader().setDefaultAlignment(Qt.AlignmentFlag.AlignLeft)
        self.table.setColumnWidth(0, 72)
        self.table.setColumnWidth(1, 380)
        self.tabs.addTab(self.table, "Left out")
        self.warnings = PlainText("", name="Warnings")
        self.tabs.addTab(self.warnings, "Warnings")
        words = column(self.file, self.reason, spacing=2)
        head = row(spacing=S)
        head.addLayout(words, 1)
        head.addWidget(Text("Read as", "body", "muted"))
        head.addWidget(self.kind)
        head.addWidget(button("Other file…", self._on_browse))
        page = QWidget()
        layout = column(head, self.busy, self.banner, spacing=S)
        layout.addWidget(self.tabs, 1)
        layout.addLayout(self._options())
        page.setLayout(layout)
        return page

    def _preview_tab(self) -> QWidget:
        self.view = QTextEdit()
        self.view.setObjectName("import-preview")
        self.view.setReadOnly(True)
        self.view.setAccessibleName("First rows")
        self.view.setTabChangesFocus(True)
        self.as_model = QCheckBox("As the model reads it")
        self.as_model.setObjectName("import-as-model")
        self.as_model.toggled.connect(lambda _on: self._show_rows())
        self.legend = Text("", "small", "muted")
        self.model = ModelPicker(self._context, name="Model whose template is shown")
        self.model.setFixedWidth(280)
        self.model.model_chosen.connect(self._on_model)
        top = row(self.as_model, self.model, spacing=S)
        top.addWidget(self.legend, 1)
        tab = QWidget()
        layout = column(top, spacing=S, margins=(0, S, 0, 0))
        layout.addWidget(self.view, 1)
        tab.setLayout(layout)
        return tab

    def _options(self) -> QHBoxLayout:
        self.hold_out = QCheckBox("Hold out every")
        self.hold_out.setObjectName("import-hold-out")
        self.every = QSpinBox()
        self.every.setRange(2, 1000)
        self.every.setValue(5)
        self.every.setAccessibleName("Hold out every so many prompts")
        self.hold_out.setChecked(True)
        self.hold_out.toggled.connect(self.every.setEnabled)
        self.rater = QLineEdit(self._context.rater.name)
        self.rater.setAccessibleName("Rater of rows that name none")
        self.rater.setMaximumWidth(200)
        self.rater_label = Text("Rater", "body", "muted")
        return row(
            self.hold_out,
            self.every,
            Text("prompts, so that they never train anything", "body", "muted"),
            None,
            self.rater_label,
            self.rater,
            spacing=S,
        )

    # ---- reading ----

    def read(self, path: Path) -> None:
        """Read a file and show what it is."""
        self._path = path
        self.pages.setCurrentIndex(1)
        self.file.setText(path.name)
        self.reason.setText("Looking at the first rows…")
        self.banner.hide()
        self._begin()
        turn = self._turn
        run_task(
            lambda: explain(path),
            lambda found: self._on_detected(turn, found),
            lambda error: self._on_failed(turn, error),
            owner=self,
        )

    def _begin(self) -> None:
        self._turn += 1
        self._parsed, self._rows, self._rendered = None, [], None
        self.busy.show()
        self.start.setEnabled(False)
        self.summary.setText("")
        self.view.clear()
        self.left_out.set_rows((), "line")
        self._name_tabs(0, 0)

    def _on_detected(self, turn: int, found: Detection) -> None:
        if turn != self._turn:
            return
        self.kind.clear()
        likely = {(one.what, one.format): one.title for one in found.could_be}
        for (what, name), title in likely.items():
            self.kind.addItem(title, f"{what}/{name}")
        for what in WHATS:
            for info in FORMATS[what]:
                if info.can_import and (what, info.name) not in likely:
                    self.kind.addItem(f"{what}: {info.title}", f"{what}/{info.name}")
        if len(likely) < self.kind.count():
            self.kind.insertSeparator(len(likely))
        self.reason.setText(found.why)
        if not found.sure:
            self.banner.show_message(
                "It is not clear what this file holds", "The likeliest reading is shown; choose another above.", "warn"
            )
        self._read_as(f"{found.what}/{found.format}")

    def _read_as(self, chosen: str) -> None:
        path = self._path
        if path is None or "/" not in chosen:
            return
        what, name = chosen.split("/")
        index = self.kind.findData(chosen)
        if index >= 0:
            self.kind.setCurrentIndex(index)
        self._begin()
        turn = self._turn

        def work() -> tuple[Parsed, list[PreviewRow]]:
            parsed = parse(path, what=what, format=name)
            return parsed, preview(parsed, PREVIEWED)

        run_task(
            work, lambda read: self._on_parsed(turn, *read), lambda error: self._on_failed(turn, error), owner=self
        )

    def _on_parsed(self, turn: int, parsed: Parsed, rows: list[PreviewRow]) -> None:
        if turn != self._turn:
            return
        self.busy.hide()
        self._parsed, self._rows = parsed, rows
        count = len(parsed.rows)
        self.left_out.set_rows(parsed.rejected, parsed.numbered_by)
        self.warnings.set_text("\n".join(f"•  {one}" for one in parsed.warnings) or "No warnings.")
        self._name_tabs(parsed.rejected_count, len(parsed.warnings))
        left_out = f", {plural(parsed.rejected_count, 'row')} left out" if parsed.rejected else ""
        self.summary.setText(f"{_count(count, parsed.what)} can be imported{left_out}")
        self.start.setText(f"Import {_count(count, parsed.what)}" if count else "Import")
        self.start.setEnabled(bool(count) and not self._context.read_only)
        judged = parsed.what in ("preferences", "thumbs", "demonstrations")
        self.rater.setVisible(judged)
        self.rater_label.setVisible(judged)
        self.rater_label.setText("Author" if parsed.what == "demonstrations" else "Rater")
        self.hold_out.setEnabled(parsed.format != "native")
        self._show_rows()
        if not count and parsed.rejected:
            self.tabs.setCurrentIndex(1)

    def _on_failed(self, turn: int, error: BaseException) -> None:
        if turn != self._turn:
            return
        self.busy.hide()
        self.reason.setText("")
        self.banner.show_error(error)
        if not isinstance(error, UserError):
            self._context.show_error(error)

    def _name_tabs(self, rejected: int, warnings: int) -> None:
        self.tabs.setTabText(1, f"Left out ({rejected:,})" if rejected else "Left out")
        self.tabs.setTabText(2, f"Warnings ({warnings})" if warnings else "Warnings")

    # ---- the template ----

    def _on_model(self, model_id: str) -> None:
        has_model = bool(model_id)
        self.as_model.setEnabled(has_model)
        self.model.setVisible(has_model)
        self._rendered = None
        if not has_model:
            self.legend.setText("Add a model to see the rows through its chat template, with what is trained marked.")
        self._show_rows()

    def _show_rows(self) -> None:
        if self._parsed is None:
            return
        word = self._parsed.numbered_by
        if not self.as_model.isChecked() or not self._rows:
            if self.model.model_id():
                self.legend.setText("")
            write_rows(self.view.document(), self._rows, word)
        elif self._rendered is None:
            self._ask_rendered()
        else:
            try:
                rendered = rendered_rows(self._rows, self._rendered)
            except ValueError:  # an answer about rows that are no longer shown
                return
            write_rendered(self.view.document(), self._rows, rendered, word)
            note = f"  {self._rendered.template_note}" if self._rendered.template_note else ""
            self.legend.setText(f"Coloured and underlined: trained. The rest is read only.{note}")
        self.view.moveCursor(self.view.textCursor().MoveOperation.Start)

    def _ask_rendered(self) -> None:
        model = self.model.record()
        if model is None or not self._rows:
            return
        self.legend.setText("Rendering through the chat template…")
        turn = self._turn
        run_task(
            lambda: self._context.project.resolve(model),
            lambda ref: self._request_rendered(turn, ref),
            self._on_render_failed,
            owner=self,
        )

    def _request_rendered(self, turn: int, ref: ModelRef) -> None:
        if turn == self._turn:
            self._request = new_id()
            request = render_request(self._rows, ref, self._request)
            self._context.engine.request(request, while_alive(self, self._on_reply))

    def _on_reply(self, reply: AnyReply) -> None:
        if reply.id != self._request:
            return
        if isinstance(reply, LAST_REPLIES):
            self._request = ""
        if isinstance(reply, Rendered):
            self._rendered = reply
            self._show_rows()
        elif isinstance(reply, Failed):
            self._on_render_failed(UserError(reply.message, reply.cause, reply.remedy))

    def _on_render_failed(self, error: BaseException) -> None:
        self.as_model.setChecked(False)
        self.legend.setText(str(error))

    def done(self, result: int) -> None:
        """Close; rows that are still being rendered are not waited for."""
        if self._request:
            self._context.engine.cancel(self._request)
        super().done(result)

    # ---- storing ----

    def _on_import(self) -> None:
        parsed, path = self._parsed, self._path
        if parsed is None or path is None:
            return
        every = self.every.value() if self.hold_out.isChecked() else 0
        rater = self.rater.text().strip() or "import"
        project = self._context.project
        self.start.setEnabled(False)
        self.busy.show()
        self.summary.setText("Storing…")
        run_task(
            lambda: store_parsed(project, parsed, path, every, rater),
            self._on_stored,
            self._on_store_failed,
            owner=self,
        )

    def _on_stored(self, report: ImportReport) -> None:
        self.busy.hide()
        parts = [f"{_count(report.added, report.what)} imported"]
        if report.duplicates:
            parts.append(f"{report.duplicates:,} there already")
        if report.rejected:
            parts.append(f"{report.rejected_count:,} left out")
        if report.held_out:
            parts.append(f"{plural(report.held_out, 'prompt')} held out")
        self._context.notify(", ".join(parts) + (". Undo takes it all back" if report.added else ""), "good")
        if len(report.warnings) > len(self._parsed.warnings if self._parsed else []):
            self._context.notify(report.warnings[-1], "warn")
        self.accept()

    def _on_store_failed(self, error: BaseException) -> None:
        self.busy.hide()
        self.start.setEnabled(True)
        self.summary.setText("")
        self.banner.show_error(error)

    # ---- choosing ----

    def _on_browse(self) -> None:
        start = self._context.settings.pane("import-folder", str(Path.home()))
        chosen, _ = QFileDialog.getOpenFileName(self, "Import labels", start, FILTER)
        if chosen:
            self._context.settings.set_pane("import-folder", str(Path(chosen).parent))
            self.read(Path(chosen))

    def dragEnterEvent(self, event: QDragEnterEvent) -> None:
        """Take one local file."""
        urls = event.mimeData().urls()
        if len(urls) == 1 and urls[0].isLocalFile():
            event.acceptProposedAction()

    def dropEvent(self, event: QDropEvent) -> None:
        """Read the file that was dropped."""
        self.read(Path(event.mimeData().urls()[0].toLocalFile()))


def _count(count: int, what: str) -> str:
    return f"{count:,} {what[:-1] if count == 1 else what}"
