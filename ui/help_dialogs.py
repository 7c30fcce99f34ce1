"""Help: what every metric means, which keys there are, what this program is."""

from __future__ import annotations

from collections.abc import Sequence

from PySide6.QtCore import Qt, QTimer
from PySide6.QtGui import QAction, QResizeEvent
from PySide6.QtWidgets import (
    QAbstractItemView,
    QGridLayout,
    QHeaderView,
    QLineEdit,
    QScrollArea,
    QTableWidget,
    QTableWidgetItem,
    QWidget,
)

from ui.project_dialogs import Sheet
from ui.theme import M, S
from ui.widgets import KeyHint, SectionTitle, Text, button, column
from workbench.metrics import GLOSSARY, Metric

METHOD_WORDS = {"sft": "SFT", "reward": "reward model", "dpo": "DPO", "kto": "KTO", "ppo": "PPO"}
# Keys that panes have beside the menu's; told here so that one page has them all.
PANE_KEYS: dict[str, tuple[tuple[str, str], ...]] = {
    "Rank": (
        ("1 … 9", "Give the response in focus this place"),
        ("=", "Tie it with the one placed before"),
        ("⌫", "Take its place away"),
        ("← →", "Go to another response"),
        ("Enter", "Submit the ranking and go on"),
        ("S", "Skip for now"),
        ("X", "Cannot be ranked"),
        ("+ −", "Thumbs up or down for the response in focus; again takes it away"),
        ("F", "Flag the response in focus"),
        ("N", "Write a note"),
        ("D", "Show the differences"),
        ("C", "Say how consistent the labels are"),
    ),
    "Demonstrate": (
        ("Ctrl+Enter", "Mark the demonstration as final and go to the next prompt"),
        ("Ctrl+F", "Search the prompts"),
        ("Ctrl+↑ ↓", "Go to another prompt"),
        ("Ctrl+D", "Let a model draft"),
        ("Ctrl+Shift+N", "Write a new prompt"),
    ),
    "Everywhere": (("Tab", "Go to the next control"), ("Esc", "Close a dialog or the explanation")),
}


class Glossary(Sheet):
    """A table of all metrics with a search field."""

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__("Glossary of metrics", "What every number is, by the name under which it is logged.", parent)
        self.search = QLineEdit()
        self.search.setPlaceholderText("Search a name, a word or a method")
        self.search.setAccessibleName("Search the glossary")
        self.search.setClearButtonEnabled(True)
        self.table = QTableWidget(0, 4)
        self.table.setAccessibleName("Metrics")
        self.table.setHorizontalHeaderLabels(["Metric", "Logged as", "What it is", "Methods"])
        self.table.verticalHeader().hide()
        self.table.setShowGrid(False)
        self.table.setWordWrap(True)
        self.table.setEditTriggers(QAbstractItemView.EditTrigger.NoEditTriggers)
        self.table.setSelectionBehavior(QAbstractItemView.SelectionBehavior.SelectRows)
        self.table.setTabKeyNavigation(False)
        header = self.table.horizontalHeader()
        header.setDefaultAlignment(Qt.AlignmentFlag.AlignLeft | Qt.AlignmentFlag.AlignVCenter)
        for column_index, width in ((0, 240), (1, 220), (3, 150)):
            self.table.setColumnWidth(column_index, width)
        header.setSectionResizeMode(2, QHeaderView.ResizeMode.Stretch)
        self.body.addWidget(self.search)
        self.body.addWidget(self.table, 1)
        close = button("Close", self.accept, kind="primary")
        self.buttons.addWidget(close)
        self.search.textChanged.connect(self.show_matching)
        self._fit = QTimer(self)
        self._fit.setSingleShot(True)
        self._fit.setInterval(30)
        self._fit.timeout.connect(self.table.resizeRowsToContents)
        self.resize(1040, 680)
        self.show_matching("")

    def resizeEvent(self, event: QResizeEvent) -> None:
        """Fit the rows to the new width of their texts."""
        super().resizeEvent(event)
        self._fit.start()

    def show_matching(self, words: str) -> None:
        """Show the metrics in which every word occurs."""
        found = [one for one in GLOSSARY.values() if matches(one, words)]
        self.table.setRowCount(len(found))
        for at, one in enumerate(found):
            unit = f" ({one.unit})" if one.unit else ""
            methods = ", ".join(METHOD_WORDS[method] for method in one.methods)
            for place, text in enumerate((one.label + unit, one.key, one.formula, methods)):
                item = QTableWidgetItem(text)
                item.setTextAlignment(Qt.AlignmentFlag.AlignLeft | Qt.AlignmentFlag.AlignTop)
                self.table.setItem(at, place, item)
        self.table.resizeRowsToContents()


def matches(metric: Metric, words: str) -> bool:
    """Whether every word occurs in a metric's name, key, formula or methods."""
    methods = " ".join(METHOD_WORDS[one] for one in metric.methods)
    whole = f"{metric.key} {metric.label} {metric.formula} {methods} {metric.plot}".casefold()
    return all(word in whole for word in words.casefold().split())


class Keys(Sheet):
    """Every key on one page."""

    def __init__(self, actions: Sequence[QAction], parent: QWidget | None = None) -> None:
        super().__init__("Keys", "Everything can be done from the keyboard.", parent)
        groups = {"Menus": tuple((one.shortcut().toString(), _name(one)) for one in actions)}
        groups |= PANE_KEYS
        inner = QWidget()
        grid = QGridLayout(inner)
        grid.setHorizontalSpacing(M)
        grid.setVerticalSpacing(S)
        at = 0
        for title, keys in groups.items():
            grid.addWidget(SectionTitle(title), at, 0, 1, 2)
            at += 1
            for key, what in keys:
                grid.addWidget(KeyHint(key), at, 0, Qt.AlignmentFlag.AlignRight)
                grid.addWidget(Text(what, wrap=True), at, 1)
                at += 1
        grid.setColumnStretch(1, 1)
        grid.setRowStretch(at, 1)
        scroll = QScrollArea()
        scroll.setWidgetResizable(True)
        scroll.setWidget(inner)
        scroll.setAccessibleName("Keys")
        self.body.addWidget(scroll, 1)
        close = button("Close", self.accept, kind="primary")
        close.setDefault(True)
        self.buttons.addWidget(close)
        self.resize(600, 640)


def _name(action: QAction) -> str:
    text = action.text().replace("&", "").rstrip("…")
    return text.split()[0] if text.startswith(("Undo", "Redo")) else text


class About(Sheet):
    """What this program is."""

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__("Tastemaker", "Teach a language model your own taste, on your own machine.", parent)
        from importlib.metadata import PackageNotFoundError, version

        def of(package: str) -> str:
            try:
                return version(package)
            except PackageNotFoundError:
                return "not installed"

        lines = [f"Tastemaker {of('tastemaker')}", f"Qt for Python {of('PySide6-Essentials')}"]
        lines += [f"{name} {of(name)}" for name in ("torch", "transformers", "peft", "bitsandbytes")]
        self.body.addLayout(column(*(Text(line, selectable=True) for line in lines), spacing=2))
        self.body.addWidget(
            Text("Apache-2.0. Nothing leaves this machine unless you ask for a download.", "small", "muted", wrap=True)
        )
        close = button("Close", self.accept, kind="primary")
        close.setDefault(True)
        self.buttons.addWidget(close)
