"""The frozen rows of a run as a table that draws only what is seen: ten thousand rows are as quick as ten."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from PySide6.QtCore import QAbstractTableModel, QModelIndex, QObject, QPersistentModelIndex, Qt

from ui.plain_text import visible
from workbench.run_labels import RunLabel

Index = QModelIndex | QPersistentModelIndex
_NONE = QModelIndex()
COLUMNS = ("Used for", "Label", "Prompt", "Chosen", "Rejected")
PART_WORDS = {"train": "training", "heldout": "measuring", "demonstrations": "demonstration"}
SINCE_WORDS = {"current": "stands", "superseded": "changed since", "gone": "gone since"}
_TIPS = (
    "What the run used the row for",
    "Whether the label still stands in the project as the run has it",
    "The last user turn",
    "What the label prefers, or the only response there is",
    "What the label puts below it",
)
_SHOWN = 200


class RunDataModel(QAbstractTableModel):
    """A list of labels; the user role of every cell is the label itself."""

    def __init__(self, parent: QObject | None = None) -> None:
        super().__init__(parent)
        self._labels: Sequence[RunLabel] = ()

    def set_labels(self, labels: Sequence[RunLabel]) -> None:
        """Show other labels."""
        self.beginResetModel()
        self._labels = labels
        self.endResetModel()

    def label(self, line: int) -> RunLabel | None:
        """Return the label of a row."""
        return self._labels[line] if 0 <= line < len(self._labels) else None

    def rowCount(self, parent: Index = _NONE) -> int:
        """Return the number of rows."""
        return 0 if parent.isValid() else len(self._labels)

    def columnCount(self, parent: Index = _NONE) -> int:
        """Return the number of columns."""
        return 0 if parent.isValid() else len(COLUMNS)

    def data(self, index: Index, role: int = Qt.ItemDataRole.DisplayRole) -> Any:
        """Return a cell."""
        one = self.label(index.row())
        if one is None:
            return None
        if role == Qt.ItemDataRole.UserRole:
            return one
        if role == Qt.ItemDataRole.AccessibleTextRole:
            return f"{COLUMNS[index.column()]}: {text_of(one, index.column())}"
        return visible(text_of(one, index.column())) if role == Qt.ItemDataRole.DisplayRole else None

    def headerData(self, section: int, orientation: Qt.Orientation, role: int = Qt.ItemDataRole.DisplayRole) -> Any:
        """Return a column's title and what it means."""
        if orientation != Qt.Orientation.Horizontal or not 0 <= section < len(COLUMNS):
            return None
        if role == Qt.ItemDataRole.TextAlignmentRole:
            return int(Qt.AlignmentFlag.AlignLeft | Qt.AlignmentFlag.AlignVCenter)
        if role == Qt.ItemDataRole.ToolTipRole:
            return _TIPS[section]
        return COLUMNS[section] if role == Qt.ItemDataRole.DisplayRole else None


def narrowed(labels: Sequence[RunLabel], words: str, *, changed_only: bool) -> Sequence[RunLabel]:
    """Return the labels whose texts hold all the words, and of them, if asked, those that stand no more."""
    wanted = words.casefold().split()
    if not wanted and not changed_only:
        return labels
    return [
        one
        for one in labels
        if not (changed_only and one.since == "current")
        and all(word in f"{one.prompt}\n{one.chosen}\n{one.rejected}".casefold() for word in wanted)
    ]


def text_of(one: RunLabel, column: int) -> str:
    """Return what a cell says, on one line."""
    if column == 0:
        return PART_WORDS[one.part]
    if column == 1:
        kind = "tie, " if one.tie else {True: "thumbs up, ", False: "thumbs down, ", None: ""}[one.wanted]
        return kind + SINCE_WORDS[one.since]
    return " ".join((one.prompt, one.chosen, one.rejected)[column - 2][:_SHOWN].split())
