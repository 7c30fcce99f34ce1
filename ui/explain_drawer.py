"""The drawer at the right that explains a stage: intuition, mechanism, mathematics, what goes wrong."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path

from PySide6.QtCore import Qt, QTimer, Signal, SignalInstance
from PySide6.QtGui import QColor, QHideEvent, QKeyEvent, QPainter, QPaintEvent, QShowEvent, QTextCursor
from PySide6.QtWidgets import QComboBox, QFrame, QTextEdit, QWidget

from ui.theme import M, S, colours
from ui.widgets import Divider, IconButton, SectionTitle, column, row

_FOLDER = Path(__file__).resolve().parent.parent / "assets" / "explain"
STAGES: dict[str, str] = {
    "loop": "The whole loop",
    "sft": "Demonstrations and SFT",
    "sampling": "Sampling responses",
    "ranking": "Ranking",
    "reward-model": "The reward model",
    "dpo": "DPO",
    "kto": "KTO",
    "ppo": "PPO",
    "compare": "Comparing models",
}
# Names that other places use for a stage.
ALIASES = {"demonstrate": "sft", "sample": "sampling", "rank": "ranking", "reward": "reward-model", "home": "loop"}
LIVE_MS = 2000
_VALUE = re.compile(r"\{\{([\w/]+)\}\}")


class ExplainDrawer(QWidget):
    """Shows one stage's text; with a run's values they stand in the formulas. ``closed`` tells that it was shut.

    The values are those that are given with the stage, else what the source says of it, asked again while it is seen.
    """

    closed: SignalInstance = Signal()  # type: ignore[assignment]

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.setObjectName("explain-drawer")
        self.setAccessibleName("Explanation")
        self.setMinimumWidth(300)
        self.stage = ""
        self._values: dict[str, float] = {}
        self._source: Callable[[str], Mapping[str, float]] | None = None
        self._written = ""
        self._live = QTimer(self)
        self._live.setInterval(LIVE_MS)
        self._live.timeout.connect(self._look)
        self.choice = QComboBox()
        self.choice.setAccessibleName("What to explain")
        for key, title in STAGES.items():
            self.choice.addItem(title, key)
        self.choice.activated.connect(lambda index: self.show_stage(str(self.choice.itemData(index))))
        self.text = QTextEdit()
        self.text.setObjectName("explain-text")
        self.text.setAccessibleName("Explanation")
        self.text.setReadOnly(True)
        self.text.setFrameShape(QFrame.Shape.NoFrame)
        self.text.setStyleSheet("QTextEdit { border: none; background: transparent; padding: 0 8px; }")
        head = row(SectionTitle("Explain"), spacing=S, margins=(M, S, S, S))
        head.addWidget(self.choice, 1)
        head.addWidget(IconButton("close", "Close the explanation", self.close_drawer))
        box = column(head, Divider(), spacing=0)
        box.addWidget(self.text, 1)
        self.setLayout(box)

    def show_stage(self, stage: str, values: Mapping[str, float] | None = None) -> None:
        """Show a stage's text. Values, where given, stay for as long as the same stage is shown."""
        stage = stage_named(stage)
        if values is not None or stage != self.stage:
            self._values = dict(values or {})
        self.stage = stage
        self.choice.setCurrentIndex(self.choice.findData(stage))
        self.refresh()
        self.text.verticalScrollBar().setValue(0)

    def set_source(self, source: Callable[[str], Mapping[str, float]] | None) -> None:
        """Ask ``source(stage)`` for the values of a stage that is shown without any."""
        self._source = source

    def _look(self) -> None:
        """Write the text anew if the source has other values by now."""
        if self.isVisible() and self.stage and self._text() != self._written:
            self.refresh()

    def _text(self) -> str:
        values = self._values or (self._source(self.stage) if self._source else {})
        return with_values(read(self.stage), values)

    def showEvent(self, event: QShowEvent) -> None:
        """Keep up with the values."""
        super().showEvent(event)
        self._look()
        self._live.start()

    def hideEvent(self, event: QHideEvent) -> None:
        """Rest while nobody looks."""
        super().hideEvent(event)
        self._live.stop()

    def close_drawer(self) -> None:
        """Shut the drawer."""
        self.hide()
        self.closed.emit()

    def refresh(self) -> None:
        """Write the text anew, in the theme and size that are on."""
        if not self.stage:
            return
        from ui.safe_markdown import render  # the parser is no part of a quick start

        place = self.text.verticalScrollBar().value()
        self._written = self._text()
        render(self._written, self.text.document())
        self.text.document().setDocumentMargin(S)
        self.text.moveCursor(QTextCursor.MoveOperation.Start)
        self.text.verticalScrollBar().setValue(place)

    def keyPressEvent(self, event: QKeyEvent) -> None:
        """Shut with Escape."""
        if event.key() == Qt.Key.Key_Escape:
            self.close_drawer()
        else:
            super().keyPressEvent(event)

    def paintEvent(self, _event: QPaintEvent) -> None:
        """Draw the ground."""
        QPainter(self).fillRect(self.rect(), QColor(colours().surface))


def stage_named(name: str) -> str:
    """Return the stage of a name; "loop" for one that is unknown."""
    name = ALIASES.get(name, name)
    return name if name in STAGES else "loop"


@cache
def read(stage: str) -> str:
    """Return the Markdown of a stage."""
    return (_FOLDER / f"{stage}.md").read_text(encoding="utf-8")


def with_values(text: str, values: Mapping[str, float]) -> str:
    """Put values in the places ``{{metric}}``; a line whose metric has no value yet is left out.

    ``- KL {{objective/kl}}`` becomes '- KL 0.031' while a run gives it, and vanishes otherwise.
    """
    lines = []
    for line in text.splitlines():
        keys = _VALUE.findall(line)
        if keys and not all(key in values for key in keys):
            continue
        lines.append(_VALUE.sub(lambda found: f"{values[found.group(1)]:.4g}", line))
    return "\n".join(lines)


def metric_names(text: str) -> list[str]:
    """List the metrics that a text has places for."""
    return _VALUE.findall(text)
