"""Export labels: what, in which format, to which file."""

from __future__ import annotations

from pathlib import Path
from typing import cast

from PySide6.QtWidgets import (
    QButtonGroup,
    QComboBox,
    QFileDialog,
    QFormLayout,
    QLineEdit,
    QProgressBar,
    QRadioButton,
    QVBoxLayout,
    QWidget,
)

from ui.context import Context
from ui.operations import run_task
from ui.project_dialogs import Sheet
from ui.theme import XS, M, S
from ui.widgets import ErrorBanner, IconButton, Text, button, clear, row
from workbench.formats.exporter import ExportReport, export_file
from workbench.formats.parsed import FORMATS, WHATS, FormatInfo, What
from workbench.records import Counts, Split

WHAT_WORDS: dict[What, str] = {
    "prompts": "Prompts",
    "demonstrations": "Demonstrations (final ones)",
    "preferences": "Preferences: pairs of chosen and rejected",
    "thumbs": "Thumbs: single responses, wanted or not",
    "rankings": "Rankings with everything about them",
}


class ExportDialog(Sheet):
    """Writes a file as one act: it is whole or not there."""

    def __init__(self, context: Context, parent: QWidget | None = None) -> None:
        super().__init__("Export labels", "For other programs, or as a full copy that comes back without loss.", parent)
        self._context = context
        self._formats: list[FormatInfo] = []
        self._touched = False
        self.what = QComboBox()
        self.what.setObjectName("export-what")
        self.what.setAccessibleName("What to export")
        for what in WHATS:
            self.what.addItem(WHAT_WORDS[what], what)
        self.what.setCurrentIndex(WHATS.index("preferences"))
        self.what.currentIndexChanged.connect(lambda _index: self._show_formats())
        self.split = QComboBox()
        self.split.setAccessibleName("Which split")
        for title, key in (("Train and held-out", ""), ("Train only", "train"), ("Held-out only", "held-out")):
            self.split.addItem(title, key)
        self.which = QComboBox()
        self.which.setAccessibleName("Which pairs")
        self.which.addItem("Every ordered pair across tiers", "all")
        self.which.addItem("The best tier against the rest", "best-vs-rest")
        self.path = QLineEdit()
        self.path.setObjectName("export-path")
        self.path.setAccessibleName("File")
        self.path.textEdited.connect(self._on_edited)
        self._choices = QVBoxLayout()
        self._choices.setSpacing(XS)
        self._group = QButtonGroup(self)
        where = row(spacing=S)
        where.addWidget(self.path, 1)
        where.addWidget(IconButton("folder", "Choose the file", self._on_browse))
        self._form = QFormLayout()
        self._form.setHorizontalSpacing(M)
        self._form.setVerticalSpacing(M)
        self._form.addRow("What", self.what)
        self._form.addRow("Format", self._choices)
        self._form.addRow("Split", self.split)
        self._form.addRow("Pairs", self.which)
        self._form.addRow("File", where)
        self.banner = ErrorBanner()
        self.busy = QProgressBar()
        self.busy.setRange(0, 0)
        self.busy.setTextVisible(False)
        self.busy.setAccessibleName("Writing")
        self.busy.hide()
        self.body.addLayout(self._form)
        self.body.addWidget(self.banner)
        self.body.addWidget(self.busy)
        self.body.addStretch(1)
        self.summary = Text("", "body", "muted")
        self.start = button("Export", self._on_export, kind="primary", name="export-start")
        self.buttons.insertWidget(0, self.summary)
        self.buttons.addWidget(button("Cancel", self.reject))
        self.buttons.addWidget(self.start)
        self.resize(680, 520)
        self._counts: Counts | None = None
        self._show_formats()
        run_task(context.store.counts, self._on_counts, context.show_error, owner=self)

    def chosen_what(self) -> What:
        """Return what is to be exported."""
        return cast(What, self.what.currentData())

    def chosen_format(self) -> FormatInfo:
        """Return the format."""
        return self._formats[max(0, self._group.checkedId())]

    def _show_formats(self) -> None:
        for one in self._group.buttons():
            self._group.removeButton(one)
        clear(self._choices)
        what = self.chosen_what()
        self._formats = [info for info in FORMATS[what] if info.can_export]
        for number, info in enumerate(self._formats):
            choice = QRadioButton(info.title)
            choice.setAccessibleDescription(info.description)
            choice.setChecked(number == 0)
            self._group.addButton(choice, number)
            self._choices.addWidget(choice)
            about = Text(info.description, "small", "muted", wrap=True)
            about.setContentsMargins(M + S, 0, 0, XS)
            self._choices.addWidget(about)
        self._form.setRowVisible(self.which, what == "preferences")
        self._suggest()
        self._say_count()

    def _suggest(self) -> None:
        if self._touched:
            return
        folder = Path(self._context.settings.pane("export-folder", str(Path.home())))
        name = f"{self._context.project.name}-{self.chosen_what()}".replace(" ", "-").lower()
        self.path.setText(str(folder / f"{name}.jsonl"))

    def _on_edited(self) -> None:
        self._touched = True

    def _on_counts(self, counts: Counts) -> None:
        self._counts = counts
        self._say_count()

    def _say_count(self) -> None:
        if self._counts is None:
            return
        count = {
            "prompts": self._counts.prompts,
            "demonstrations": self._counts.demonstrations_final,
            "preferences": self._counts.pairs,
            "thumbs": self._counts.thumbs,
            "rankings": self._counts.rankings,
        }[self.chosen_what()]
        self.summary.setText(f"{count:,} in the project")

    def _on_browse(self) -> None:
        chosen, _ = QFileDialog.getSaveFileName(
            self, "Export labels", self.path.text(), "JSON lines (*.jsonl);;JSON (*.json);;Packed (*.jsonl.gz)"
        )
        if chosen:
            self._touched = True
            self.path.setText(chosen)

    def _on_export(self) -> None:
        path = Path(self.path.text()).expanduser()
        what, name = self.chosen_what(), self.chosen_format().name
        split = cast("Split | None", str(self.split.currentData()) or None)
        which = self.which.currentData()
        project = self._context.project
        self.banner.hide()
        self.busy.show()
        self.start.setEnabled(False)
        run_task(
            lambda: export_file(project, path, what=what, format=name, split=split, which=which),
            self._on_written,
            self._on_failed,
            owner=self,
        )

    def _on_written(self, report: ExportReport) -> None:
        self._context.settings.set_pane("export-folder", str(report.path.parent))
        skipped = sum(report.skipped.values())
        left = f", {skipped:,} left out: {next(iter(report.skipped))}" if skipped else ""
        cut = f"; {report.caution}" if report.caution else ""
        tone = "warn" if skipped or cut else "good"
        self._context.notify(f"{report.rows:,} rows written to {report.path}{left}{cut}", tone)
        self.accept()

    def _on_failed(self, error: BaseException) -> None:
        self.busy.hide()
        self.start.setEnabled(True)
        self.banner.show_error(error)
