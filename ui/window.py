"""The window: rail, panes, drawer, status line and menus. It decides nothing: deeds leave it as signals.

Panes are made by a factory when they are first shown; one that cannot be made is an error card in its place.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping

from PySide6.QtCore import QByteArray, QSize, Qt, Signal, SignalInstance
from PySide6.QtGui import QCloseEvent, QResizeEvent
from PySide6.QtWidgets import QMainWindow, QSplitter, QStackedWidget, QWidget

from ui.explain_drawer import ExplainDrawer
from ui.menus import Menus
from ui.pane_fault import PaneFault
from ui.panes import pane_info
from ui.rail import Rail
from ui.status_line import StatusLine
from ui.theme import Theme
from ui.unsaved import Unsaved
from ui.widgets import Divider, column, row

NARROW_BELOW = 1000
# What the Explain drawer opens at for each pane.
STAGE_OF_PANE = {
    "home": "loop",
    "demonstrate": "sft",
    "rank": "ranking",
    "train": "sft",
    "runs": "reward-model",
    "compare": "compare",
    "models": "loop",
}
_log = logging.getLogger("tastemaker.ui")


class MainWindow(QMainWindow):
    """The one window of a process; shows the welcome page while no project is open."""

    pane_shown: SignalInstance = Signal(str)  # type: ignore[assignment]
    closing: SignalInstance = Signal()  # type: ignore[assignment]
    kept_open: SignalInstance = Signal(object)  # type: ignore[assignment]  # list[Unsaved]: what closing would lose

    def __init__(self, theme: Theme, welcome: QWidget) -> None:
        super().__init__()
        self.setObjectName("main-window")
        self.setWindowTitle("Tastemaker")
        self.setMinimumSize(800, 560)
        self.resize(1280, 800)
        self._make_pane: Callable[[str], QWidget] | None = None
        self._panes: dict[str, QWidget] = {}
        self._current = ""
        self._close_anyway = False
        self.welcome = welcome
        self.rail = Rail()
        self.stack = _Stack()
        self.drawer = ExplainDrawer()
        self.drawer.hide()
        self.status = StatusLine()
        self.split = QSplitter(Qt.Orientation.Horizontal)
        self.split.addWidget(self.stack)
        self.split.addWidget(self.drawer)
        self.split.setStretchFactor(0, 1)
        self.split.setCollapsible(0, False)
        self.split.setChildrenCollapsible(False)
        middle = row(self.rail, spacing=0)
        middle.addWidget(self.split, 1)
        whole = column(spacing=0)
        whole.addLayout(middle, 1)
        whole.addWidget(Divider())
        whole.addWidget(self.status)
        self._work = QWidget()
        self._work.setLayout(whole)
        self._pages = QStackedWidget()
        self._pages.addWidget(self.welcome)
        self._pages.addWidget(self._work)
        self.setCentralWidget(self._pages)
        self.menus = Menus(self, theme)
        theme.changed.connect(self.drawer.refresh)
        self.rail.chosen.connect(self.show_pane)
        self.menus.pane_chosen.connect(self.show_pane)
        self.menus.explain_asked.connect(lambda: self.explain(self.stage()))
        self.drawer.closed.connect(lambda: self._panes[self._current].setFocus() if self._current else None)

    # ---- project ----

    def set_project(self, name: str, place: str, make_pane: Callable[[str], QWidget]) -> None:
        """Show a project's panes, made by ``make_pane(key)`` as they are needed."""
        self.clear_project()
        self._make_pane = make_pane
        self.rail.set_project(name, place)
        self.rail.setEnabled(True)
        self.setWindowTitle(f"{name} – Tastemaker")
        self._pages.setCurrentWidget(self._work)
        self.menus.set_project_open(True)

    def show_opening(self, name: str, place: str) -> None:
        """Show the frame of a project that is being opened."""
        self.rail.set_project(name, place)
        self.rail.setEnabled(False)
        self._pages.setCurrentWidget(self._work)

    def clear_project(self) -> None:
        """Drop all panes and show the welcome page."""
        self._make_pane = None
        self._current = ""
        for pane in self._panes.values():
            self.stack.removeWidget(pane)
            pane.deleteLater()
        self._panes.clear()
        self.drawer.hide()
        self.setWindowTitle("Tastemaker")
        self._pages.setCurrentWidget(self.welcome)
        self.menus.set_project_open(False)

    # ---- panes ----

    @property
    def current(self) -> str:
        """The key of the pane that is shown; "" on the welcome page."""
        return self._current

    def built(self) -> tuple[str, ...]:
        """List the panes that have been made."""
        return tuple(key for key in self._panes)

    def pane(self, key: str) -> QWidget:
        """Return a pane, made now if it has not been needed before."""
        if key not in self._panes:
            self._panes[key] = made = self._build(key)
            self.stack.addWidget(made)
        return self._panes[key]

    def show_pane(self, key: str, **what: str) -> None:
        """Show a pane, and go to something in it where ``what`` says so."""
        if self._make_pane is None:
            return
        pane_info(key)
        pane = self.pane(key)
        self._current = key
        self.rail.set_current(key)
        self.stack.setCurrentWidget(pane)
        if self.drawer.isVisible() and not what:
            self.drawer.show_stage(self.stage())
        _call(pane, "activate")
        if what:
            _call(pane, "show_item", **what)
        self.pane_shown.emit(key)

    def unsaved(self) -> list[Unsaved]:
        """Let every pane save what it holds; return what could not be saved."""
        found = []
        for key, pane in self._panes.items():
            try:
                asked = _call(pane, "unsaved")
            except Exception:  # logged by now; a pane that is broken must not take the others with it
                asked = Unsaved(f"What {pane_info(key).title} holds could not be asked")
            if isinstance(asked, Unsaved):
                found.append(asked)
        return found

    def rebuild(self, key: str) -> None:
        """Make a pane anew after it could not be made."""
        old = self._panes.pop(key, None)
        if old is not None:
            self.stack.removeWidget(old)
            old.deleteLater()
        self.show_pane(key)

    def _build(self, key: str) -> QWidget:
        if self._make_pane is None:
            raise RuntimeError("no project is open")
        try:
            made = self._make_pane(key)
        except Exception as error:
            _log.exception("the pane %s could not be made", key)
            fault = PaneFault(pane_info(key).title, error)
            fault.retry_asked.connect(lambda: self.rebuild(key))
            return fault
        if not made.accessibleName():
            made.setAccessibleName(pane_info(key).title)
        return made

    # ---- explain ----

    def stage(self) -> str:
        """Return the stage that the shown pane is about."""
        asked = getattr(self._panes.get(self._current), "explain_stage", None)
        return str(asked()) if callable(asked) else STAGE_OF_PANE.get(self._current, "loop")

    def explain(self, stage: str, values: Mapping[str, float] | None = None) -> None:
        """Open the drawer at a stage; asked again at the same stage without values it closes."""
        if self.drawer.isVisible() and self.drawer.stage == stage and values is None:
            self.drawer.close_drawer()
            return
        self.drawer.show_stage(stage, values)
        if not self.drawer.isVisible():
            width = max(380, min(480, self.split.width() * 9 // 20))
            self.drawer.show()
            self.split.setSizes([self.split.width() - width, width])

    # ---- Qt ----

    def geometry_text(self) -> str:
        """Return size and place as text for the settings."""
        return bytes(self.saveGeometry().toBase64().data()).decode("ascii")

    def restore_geometry_text(self, text: str) -> None:
        """Take size and place from the settings; nonsense is ignored."""
        if text:
            self.restoreGeometry(QByteArray.fromBase64(text.encode("ascii", "ignore")))

    def resizeEvent(self, event: QResizeEvent) -> None:
        """Give the names of the rail away when the window is narrow."""
        super().resizeEvent(event)
        self.rail.set_wide(event.size().width() >= NARROW_BELOW)

    def closeEvent(self, event: QCloseEvent) -> None:
        """Tell that the window goes, or why it stays."""
        found = [] if self._close_anyway else self.unsaved()
        if found:
            event.ignore()
            self.kept_open.emit(found)
            return
        self.closing.emit()
        super().closeEvent(event)

    def close_anyway(self) -> None:
        """Close, whatever is lost."""
        self._close_anyway = True
        self.close()


class _Stack(QStackedWidget):
    def minimumSizeHint(self) -> QSize:
        """Ask for the shown pane's room alone, not for that of the widest."""
        shown = self.currentWidget()
        return shown.minimumSizeHint() if shown else QSize()


def _call(pane: QWidget, method: str, /, **what: str) -> object:
    found = getattr(pane, method, None)
    if not callable(found):
        return None
    try:
        return found(**what)
    except Exception:
        _log.exception("%s.%s failed", type(pane).__name__, method)
        raise
