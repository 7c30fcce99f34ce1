"""The samples of one step as a table: score, KL, length, ending and prompt; sorts by any of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from PySide6.QtCore import QAbstractTableModel, QModelIndex, QObject, QPersistentModelIndex, Qt

from ui.numbers import short
from ui.plain_text import visible
from workbench.protocol import Sample

Index = QModelIndex | QPersistentModelIndex
_NONE = QModelIndex()
_RIGHT = int(Qt.AlignmentFlag.AlignRight | Qt.AlignmentFlag.AlignVCenter)
_LEFT = int(Qt.AlignmentFlag.AlignLeft | Qt.AlignmentFlag.AlignVCenter)
COLUMNS = ("Score", "KL", "Tokens", "End", "Prompt and response")
_TIPS = (
    "The reward model's score of the response, or the rule's",
    "Summed over the response, in nats, against the starting model",
    "Tokens of the response",
    "Whether it ended by itself or was cut off",
    "The last user turn, and the response's first words",
)


def length_of(sample: Sample) -> int:
    """Return a sample's tokens; where they were not recorded, its words."""
    return len(sample.tokens) or len(sample.response.split())


class SamplesModel(QAbstractTableModel):
    """A list of samples; the user role of every cell is the sample itself."""

    def __init__(self, parent: QObject | None = None) -> None:
        super().__init__(parent)
        self._samples: list[Sample] = []
        self._sorted = (-1, Qt.SortOrder.AscendingOrder)

    def set_samples(self, samples: Sequence[Sample]) -> None:
        """Show other samples, in the order that was chosen."""
        self.beginResetModel()
        self._samples = list(samples)
        self._sort()
        self.endResetModel()

    def sample(self, line: int) -> Sample | None:
        """Return the sample of a row."""
        return self._samples[line] if 0 <= line < len(self._samples) else None

    def samples(self) -> list[Sample]:
        """Return all samples as they are ordered."""
        return list(self._samples)

    def rowCount(self, parent: Index = _NONE) -> int:
        """Return the number of samples."""
        return 0 if parent.isValid() else len(self._samples)

    def columnCount(self, parent: Index = _NONE) -> int:
        """Return the number of columns."""
        return 0 if parent.isValid() else len(COLUMNS)

    def data(self, index: Index, role: int = Qt.ItemDataRole.DisplayRole) -> Any:
        """Return a cell."""
        sample = self.sample(index.row())
        if sample is None:
            return None
        if role == Qt.ItemDataRole.UserRole:
            return sample
        if role == Qt.ItemDataRole.TextAlignmentRole and index.column() < 3:
            return _RIGHT
        if role == Qt.ItemDataRole.AccessibleTextRole:
            return f"{COLUMNS[index.column()]}: {self._text(sample, index.column())}"
        return visible(self._text(sample, index.column())) if role == Qt.ItemDataRole.DisplayRole else None

    def headerData(self, section: int, orientation: Qt.Orientation, role: int = Qt.ItemDataRole.DisplayRole) -> Any:
        """Return a column's title and what it means."""
        if orientation != Qt.Orientation.Horizontal or not 0 <= section < len(COLUMNS):
            return None
        if role == Qt.ItemDataRole.TextAlignmentRole:
            return _RIGHT if section < 3 else _LEFT
        return {Qt.ItemDataRole.DisplayRole: COLUMNS, Qt.ItemDataRole.ToolTipRole: _TIPS}.get(
            Qt.ItemDataRole(role), (None,) * len(COLUMNS)
        )[section]

    def sort(self, column: int, order: Qt.SortOrder = Qt.SortOrder.AscendingOrder) -> None:
        """Order by a column; -1 is the order in which they were written."""
        self._sorted = (column, order)
        self.layoutAboutToBeChanged.emit()
        before = self.persistentIndexList()
        was = [self._samples[one.row()] for one in before]
        self._sort()
        places = {id(sample): line for line, sample in enumerate(self._samples)}
        after = [self.index(places[id(sample)], one.column()) for sample, one in zip(was, before, strict=True)]
        self.changePersistentIndexList(before, after)
        self.layoutChanged.emit()

    def _sort(self) -> None:
        column, order = self._sorted
        keys: tuple[Callable[[Sample], Any], ...] = (
            lambda one: (one.score is not None, one.score or 0.0),
            lambda one: (one.kl is not None, one.kl or 0.0),
            length_of,
            lambda one: one.ended,
            lambda one: one.prompt,
        )
        if 0 <= column < len(keys):
            self._samples.sort(key=keys[column], reverse=order == Qt.SortOrder.DescendingOrder)

    def _text(self, sample: Sample, column: int) -> str:
        if column == 0:
            return "–" if sample.score is None else short(sample.score)
        if column == 1:
            return "–" if sample.kl is None else short(sample.kl)
        if column == 2:
            return str(length_of(sample))
        if column == 3:
            return "EOS" if sample.ended else "cut off"
        words = " ".join(sample.response[:200].split()) or "(empty)"
        return f"{' '.join(sample.prompt[:120].split())}  →  {words}"
