"""The numbers of a plot as a table, for those who read rather than look: one row a step, newest first."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from PySide6.QtCore import QAbstractTableModel, QModelIndex, QObject, QPersistentModelIndex, Qt
from PySide6.QtWidgets import QDialog, QTableView, QWidget

from ui.numbers import short
from ui.plot_key import Look
from ui.run_history import RunHistory
from ui.theme import L, M
from ui.widgets import Text, button, column, row

Index = QModelIndex | QPersistentModelIndex
_NONE = QModelIndex()


class PlotTable(QAbstractTableModel):
    """Steps and values of a plot's lines, as they were when the table was opened."""

    def __init__(
        self, history: RunHistory, looks: Sequence[Look], step_word: str = "step", parent: QObject | None = None
    ) -> None:
        super().__init__(parent)
        self.step_word = step_word
        self._looks = [look for look in looks if history.lines.get(look.metric.key)]
        lines = [history.lines[look.metric.key] for look in self._looks]
        steps = np.unique(np.concatenate([line.x for line in lines])) if lines else np.empty(0)
        self._steps = steps[::-1].copy()
        self._values = np.full((len(steps), len(lines)), np.nan)
        for column_, line in enumerate(lines):
            self._values[len(steps) - 1 - np.searchsorted(steps, line.x), column_] = line.y

    def rowCount(self, parent: Index = _NONE) -> int:
        """Return the number of steps."""
        return 0 if parent.isValid() else len(self._steps)

    def columnCount(self, parent: Index = _NONE) -> int:
        """Return the step and the lines."""
        return 0 if parent.isValid() else 1 + len(self._looks)

    def data(self, index: Index, role: int = Qt.ItemDataRole.DisplayRole) -> Any:
        """Return a cell; empty where a line has no value at a step."""
        if not index.isValid():
            return None
        if role == Qt.ItemDataRole.TextAlignmentRole:
            return int(Qt.AlignmentFlag.AlignRight | Qt.AlignmentFlag.AlignVCenter)
        if role != Qt.ItemDataRole.DisplayRole:
            return None
        if index.column() == 0:
            return f"{self._steps[index.row()]:g}"
        value = float(self._values[index.row(), index.column() - 1])
        unit = self._looks[index.column() - 1].metric.unit
        return "" if np.isnan(value) else short(value, "bytes" if unit == "bytes" else "")

    def headerData(self, section: int, orientation: Qt.Orientation, role: int = Qt.ItemDataRole.DisplayRole) -> Any:
        """Return a line's name and its formula."""
        if orientation != Qt.Orientation.Horizontal or not 0 <= section <= len(self._looks):
            return None
        if role == Qt.ItemDataRole.DisplayRole:
            return self.step_word if section == 0 else self._looks[section - 1].name
        if role == Qt.ItemDataRole.ToolTipRole and section:
            return self._looks[section - 1].metric.formula.replace("<", "‹")
        return None


class PlotTableDialog(QDialog):
    """A window with the table of one plot."""

    def __init__(self, title: str, summary: str, model: PlotTable, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.setObjectName("plot-table")
        self.setAttribute(Qt.WidgetAttribute.WA_DeleteOnClose)
        self.setWindowTitle(f"{title}: numbers")
        model.setParent(self)
        self.table = QTableView()
        self.table.setAccessibleName(f"{title}, numbers by {model.step_word}")
        self.table.setModel(model)
        self.table.verticalHeader().hide()
        self.table.setAlternatingRowColors(True)
        self.table.setShowGrid(False)
        self.table.setTabKeyNavigation(False)
        self.table.horizontalHeader().setStretchLastSection(True)
        close = button("Close", self.accept, kind="primary")
        self.setLayout(
            column(
                Text(title, "heading"),
                Text(summary, "small", "muted", wrap=True),
                self.table,
                row(None, close),
                spacing=M,
                margins=(L, L, L, M),
            )
        )
        self.resize(560, 560)
