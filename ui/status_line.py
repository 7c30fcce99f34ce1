"""The line at the bottom: what was just done, whether all is saved, what the engine and the runs do."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from PySide6.QtCore import QTimer, Signal, SignalInstance
from PySide6.QtWidgets import QPushButton, QWidget

from ui.operations import operations
from ui.theme import XS, M, S
from ui.widgets import ElidedLabel, IconLabel, Text, announce, row, safe_tip, sentence, visible

if TYPE_CHECKING:
    from workbench.records import RunRecord

NOTICE_MS = 7000
_ENGINE_WORDS = {
    "off": ("Engine idle", "muted"),
    "starting": ("Engine starting…", "accent"),
    "ready": ("Engine ready", "muted"),
    "busy": ("Engine working…", "accent"),
    "failed": ("Engine failed", "bad"),
}


class StatusLine(QWidget):
    """Notices at the left; saved state, engine and runs at the right. ``runs_clicked`` leads to the runs."""

    runs_clicked: SignalInstance = Signal()  # type: ignore[assignment]

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.setObjectName("status-line")
        self._mark = IconLabel("info", 16)
        self._mark.hide()
        self.notice = ElidedLabel("", "small", "muted")
        self.runs = QPushButton("")
        self.runs.setProperty("kind", "quiet")
        self.runs.setStyleSheet("padding: 0 8px;")
        self.runs.hide()
        self.runs.clicked.connect(self.runs_clicked)
        self.engine = Text("", "small", "muted")
        self.saved = Text("", "small", "muted")
        self.saved.setObjectName("saved-state")
        self.rater = Text("", "small", "muted")
        box = row(self._mark, spacing=S, margins=(M, XS, M, XS))
        box.addWidget(self.notice, 1)
        for part in (self.runs, self.engine, self.saved, self.rater):
            box.addWidget(part)
            box.addSpacing(S)
        self.setLayout(box)
        self._timer = QTimer(self)
        self._timer.setSingleShot(True)
        self._timer.timeout.connect(self._clear)
        self._saving = QTimer(self)
        self._saving.setSingleShot(True)
        self._saving.setInterval(150)
        self._saving.timeout.connect(lambda: self._say_saved("Saving…", "accent"))
        self._failed = False
        operations().writes_changed.connect(self._on_writes)
        operations().write_failed.connect(self._on_write_failed)
        self.set_engine("off")

    def notify(self, text: str, kind: str = "info") -> None:
        """Say one sentence for some seconds; warnings and faults stay until the next notice."""
        tone = {"good": "good", "warn": "warn", "bad": "bad"}.get(kind, "muted")
        self._mark.set({"good": "check", "warn": "warning", "bad": "error"}.get(kind, "info"), tone)
        self._mark.show()
        self.notice.set_tone(tone)
        self.notice.setText(text)
        announce(self.notice, text, urgent=kind in ("warn", "bad"))
        self._timer.stop()
        if kind not in ("warn", "bad"):
            self._timer.start(NOTICE_MS)

    def set_engine(self, state: str) -> None:
        """Show the serving engine's state."""
        words, tone = _ENGINE_WORDS.get(state, (state, "muted"))
        self.engine.setText(words)
        self.engine.set_tone(tone)

    def set_rater(self, name: str, *, read_only: bool) -> None:
        """Show whose labels are made here, or that none can be."""
        self.rater.setText("Read-only" if read_only else f"Rater: {name}")
        self.rater.set_tone("warn" if read_only else "muted")
        if read_only:
            self._say_saved("", "muted")
        else:
            self._say_whether_saved()

    def set_runs(self, runs: Sequence[RunRecord]) -> None:
        """Show what trains and what waits."""
        live = [one for one in runs if one.state in ("running", "paused", "stopping")]
        queued = sum(one.state == "queued" for one in runs)
        words = ", ".join(f"{one.name} {one.state}" for one in live[:2])
        if queued:
            words = f"{words}, {queued} queued" if words else f"{queued} queued"
        self.runs.setText(visible(words).replace("&", "&&"))  # one alone would underline the next letter
        self.runs.setAccessibleName(f"Runs in progress: {words}")
        self.runs.setVisible(bool(words))
        self.runs.setToolTip(safe_tip("Show the runs (Ctrl+5)"))

    def _clear(self) -> None:
        self._mark.hide()
        self.notice.setText("")

    def _on_writes(self, open_writes: int) -> None:
        if open_writes:
            self._failed = False
            if not self._saving.isActive():
                self._saving.start()
            return
        self._saving.stop()
        self._say_whether_saved()

    def _on_write_failed(self, error: BaseException) -> None:
        self._failed = True
        self._saving.stop()
        self._say_whether_saved()
        self.notify(sentence(str(error)), "bad")

    def _say_whether_saved(self) -> None:
        if self._failed or operations().unsaved:
            self._say_saved("Not saved", "bad")
        else:
            self._say_saved("All saved", "muted")

    def _say_saved(self, words: str, tone: str) -> None:
        self.saved.setText(words)
        self.saved.set_tone(tone)
