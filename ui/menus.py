"""The menu bar: every deed of the window by name and key. What is chosen leaves as a signal."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from PySide6.QtCore import QObject, Signal, SignalInstance
from PySide6.QtGui import QAction, QActionGroup, QKeySequence
from PySide6.QtWidgets import QMainWindow, QMenu

from ui.panes import PANES
from ui.theme import MODES, TEXT_SIZES, Theme

Key = QKeySequence.StandardKey


class Menus(QObject):
    """File, Edit, View, Go and Help. Deeds that need a project are off while none is open."""

    new_asked: SignalInstance = Signal()  # type: ignore[assignment]
    open_asked: SignalInstance = Signal()  # type: ignore[assignment]
    recent_chosen: SignalInstance = Signal(str)  # type: ignore[assignment]
    close_asked: SignalInstance = Signal()  # type: ignore[assignment]
    import_asked: SignalInstance = Signal()  # type: ignore[assignment]
    export_asked: SignalInstance = Signal()  # type: ignore[assignment]
    check_asked: SignalInstance = Signal()  # type: ignore[assignment]
    restore_asked: SignalInstance = Signal()  # type: ignore[assignment]
    quit_asked: SignalInstance = Signal()  # type: ignore[assignment]
    undo_asked: SignalInstance = Signal()  # type: ignore[assignment]
    redo_asked: SignalInstance = Signal()  # type: ignore[assignment]
    rater_asked: SignalInstance = Signal()  # type: ignore[assignment]
    theme_chosen: SignalInstance = Signal(str)  # type: ignore[assignment]
    text_size_chosen: SignalInstance = Signal(str)  # type: ignore[assignment]
    pane_chosen: SignalInstance = Signal(str)  # type: ignore[assignment]
    explain_asked: SignalInstance = Signal()  # type: ignore[assignment]
    glossary_asked: SignalInstance = Signal()  # type: ignore[assignment]
    keys_asked: SignalInstance = Signal()  # type: ignore[assignment]
    about_asked: SignalInstance = Signal()  # type: ignore[assignment]

    def __init__(self, window: QMainWindow, theme: Theme) -> None:
        super().__init__(window)
        self._window = window
        self._need_project: list[QAction] = []
        bar = window.menuBar()
        file = bar.addMenu("&File")
        self._add(file, "&New project…", self.new_asked, QKeySequence(Key.New))
        self._add(file, "&Open project…", self.open_asked, QKeySequence(Key.Open))
        self.recent = file.addMenu("Open &recent")
        file.addSeparator()
        self._add(file, "&Import labels…", self.import_asked, QKeySequence("Ctrl+I"), project=True)
        self._add(file, "&Export labels…", self.export_asked, QKeySequence("Ctrl+E"), project=True)
        file.addSeparator()
        self._add(file, "&Check project", self.check_asked, project=True)
        self._add(file, "Restore a &backup…", self.restore_asked, project=True)
        file.addSeparator()
        self._add(file, "Close &project", self.close_asked, QKeySequence("Ctrl+W"), project=True)
        self._add(file, "&Quit", self.quit_asked, QKeySequence("Ctrl+Q"))
        edit = bar.addMenu("&Edit")
        self.undo = self._add(edit, "&Undo", self.undo_asked, QKeySequence(Key.Undo), project=True)
        self.redo = self._add(edit, "&Redo", self.redo_asked, QKeySequence("Ctrl+Shift+Z"), project=True)
        edit.addSeparator()
        self._add(edit, "Rater &name…", self.rater_asked, project=True)
        view = bar.addMenu("&View")
        self._theme_actions = self._choices(
            view.addMenu("&Theme"), {one: one.capitalize() for one in MODES}, theme.mode, self.theme_chosen
        )
        self._size_actions = self._choices(
            view.addMenu("Text &size"),
            {one: one.capitalize() for one in TEXT_SIZES},
            theme.text_size,
            self.text_size_chosen,
        )
        go = bar.addMenu("&Go")
        for number, info in enumerate(PANES, 1):
            made = self._add(go, info.title, None, QKeySequence(f"Ctrl+{number}"), project=True)
            made.triggered.connect(lambda _checked=False, key=info.key: self.pane_chosen.emit(key))
        help_menu = bar.addMenu("&Help")
        self._add(help_menu, "&Explain this page", self.explain_asked, QKeySequence("F1"), project=True)
        self._add(help_menu, "&Glossary of metrics", self.glossary_asked)
        self._add(help_menu, "&Keys", self.keys_asked, QKeySequence("Ctrl+?"))
        help_menu.addSeparator()
        self._add(help_menu, "&About Tastemaker", self.about_asked)
        self.set_undo("", "")
        self.set_project_open(False)

    def actions(self) -> list[QAction]:
        """List every action that has a key, for the page of keys."""
        found: list[QAction] = []
        for menu in self._window.menuBar().actions():
            inner = menu.menu()
            if isinstance(inner, QMenu):
                found += [one for one in inner.actions() if not one.shortcut().isEmpty()]
        return found

    def set_project_open(self, is_open: bool) -> None:
        """Turn the deeds that need a project on or off."""
        for action in self._need_project:
            action.setEnabled(is_open)
        if is_open:
            self.set_undo("", "")

    def set_undo(self, undo: str, redo: str) -> None:
        """Say what undo and redo would do; "" turns them off."""
        self.undo.setText(f"&Undo {_short(undo)}".rstrip())
        self.undo.setEnabled(bool(undo))
        self.redo.setText(f"&Redo {_short(redo)}".rstrip())
        self.redo.setEnabled(bool(redo))

    def set_recent(self, paths: Sequence[str]) -> None:
        """List the recent projects."""
        self.recent.clear()
        for path in paths:
            made = self.recent.addAction(f"{Path(path).name}   {Path(path).parent}".replace("&", "&&"))
            made.triggered.connect(lambda _checked=False, chosen=path: self.recent_chosen.emit(chosen))
        self.recent.setEnabled(bool(paths))

    def set_choices(self, theme: Theme) -> None:
        """Mark the theme and text size that are on."""
        for actions, chosen in ((self._theme_actions, theme.mode), (self._size_actions, theme.text_size)):
            actions[chosen].setChecked(True)

    def _add(
        self,
        menu: QMenu,
        text: str,
        signal: SignalInstance | None,
        key: QKeySequence | None = None,
        *,
        project: bool = False,
    ) -> QAction:
        made = menu.addAction(text)
        if key is not None:
            made.setShortcut(key)
        if signal is not None:
            made.triggered.connect(_dropping(signal))
        if project:
            self._need_project.append(made)
        return made

    def _choices(self, menu: QMenu, choices: dict[str, str], chosen: str, signal: SignalInstance) -> dict[str, QAction]:
        group = QActionGroup(menu)
        made: dict[str, QAction] = {}
        for key, title in choices.items():
            action = menu.addAction(title)
            action.setCheckable(True)
            action.setChecked(key == chosen)
            group.addAction(action)
            action.triggered.connect(_dropping(signal, key))
            made[key] = action
        return made


def _dropping(signal: SignalInstance, *values: str) -> Callable[[bool], None]:
    def emit(_checked: bool) -> None:
        signal.emit(*values)

    return emit


def _short(label: str) -> str:
    label = " ".join(label.split()).replace("&", "&&")
    return label if len(label) <= 48 else label[:47] + "…"
