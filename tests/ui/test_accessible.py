"""What a person with a screen reader or without a mouse meets: names on everything, and a way to everything."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PySide6.QtCore import Qt
from PySide6.QtWidgets import (
    QAbstractButton,
    QAbstractSpinBox,
    QApplication,
    QComboBox,
    QLabel,
    QLineEdit,
    QScrollArea,
    QWidget,
)

from ui.app import App
from ui.operations import operations
from ui.panes import KEYS
from ui.settings import Settings
from workbench.project import Project
from workbench.sample_project import fill_with_sample

Settle = Callable[[], None]


@pytest.fixture
def app(qtbot: Any, qapp: QApplication, tmp_path: Path, settle: Settle) -> Iterator[App]:
    path = tmp_path / "sample"
    with Project.create(path) as project:
        fill_with_sample(project)
    made = App(qapp, Settings(None))
    made.window.resize(1280, 800)
    made.window.show()
    made.open(path)
    qtbot.waitUntil(lambda: made.session is not None, timeout=30_000)
    made._quiet.stop()
    settle()
    yield made
    made.window.close()
    settle()
    made.window.deleteLater()
    made.deleteLater()
    qapp.setStyleSheet("")


def nameless(root: QWidget) -> list[str]:
    """List what takes the focus and says nothing of itself."""
    found = []
    for one in root.findChildren(QWidget):
        inner = one.objectName().startswith("qt_") or isinstance(one, QScrollArea) or "Private" in str(one.parent())
        popup = one.window() is not root.window()  # the list of a combo box speaks for the box
        if inner or popup or one.focusPolicy() == Qt.FocusPolicy.NoFocus or one.focusProxy() is not None:
            continue
        parent = one.parentWidget()
        if isinstance(parent, QComboBox | QAbstractSpinBox) or isinstance(one, QLabel) or one.isHidden():
            continue  # a box has the name of its field, and a label is its own
        labelled = any(label.buddy() is one for label in root.findChildren(QLabel))
        if not (one.accessibleName() or labelled or (isinstance(one, QAbstractButton) and one.text())):
            found.append(f"{type(one).__name__} {one.objectName()!r} in {type(parent).__name__}")
    return found


@pytest.mark.parametrize("key", KEYS)
def test_everything_in_a_pane_that_takes_the_focus_has_a_name(app: App, settle: Settle, key: str) -> None:
    app.window.show_pane(key)
    settle()
    assert nameless(app.window.pane(key)) == []


def test_the_frame_of_the_window_has_names(app: App) -> None:
    for part in (app.window.rail, app.window.status, app.window.drawer, app.welcome):
        assert nameless(part) == []


@pytest.mark.parametrize(
    "deed", ["ask_import", "ask_export", "ask_rater", "ask_restore", "show_glossary", "show_keys", "show_about"]
)
def test_everything_in_a_dialog_that_takes_the_focus_has_a_name_and_escape_closes_it(
    qtbot: Any, app: App, settle: Settle, deed: str
) -> None:
    getattr(app, deed)()
    qtbot.waitUntil(lambda: app.dialog is not None, timeout=10_000)
    settle()
    dialog = app.dialog
    assert dialog is not None
    assert nameless(dialog) == []
    qtbot.keyClick(dialog, Qt.Key.Key_Escape)
    qtbot.waitUntil(lambda: app.dialog is None, timeout=10_000)


def test_the_dialogs_of_models_have_names(qtbot: Any, app: App, settle: Settle) -> None:
    app.window.show_pane("models")
    settle()
    pane: Any = app.window.pane("models")
    pane.ask_add()
    settle()
    assert nameless(pane.dialog) == []
    pane.dialog.reject()


@pytest.mark.parametrize("key", KEYS)
def test_tab_leads_into_a_pane_and_out_of_it_again(qtbot: Any, app: App, settle: Settle, key: str) -> None:
    app.window.show_pane(key)
    settle()
    with qtbot.waitActive(app.window):
        app.window.activateWindow()
    start = app.window.rail.buttons[key]
    start.setFocus()
    pane, seen = app.window.pane(key), list[QWidget]()
    for _ in range(300):
        one = app.window.focusWidget()
        assert one is not None
        if one in seen:
            break
        seen.append(one)
        qtbot.keyClick(one, Qt.Key.Key_Tab)
    assert one is start, f"Tab does not come back: it stays at {one}"
    assert any(pane.isAncestorOf(one) for one in seen), "nothing in the pane is reached by Tab"


@pytest.mark.parametrize("size", ["small", "larger"])
@pytest.mark.parametrize("mode", ["light", "dark"])
def test_every_pane_can_be_drawn_in_every_theme_and_text_size(app: App, settle: Settle, mode: str, size: str) -> None:
    app.theme.set_mode(mode)  # type: ignore[arg-type]
    app.theme.set_text_size(size)
    for key in KEYS:
        app.window.show_pane(key)
        settle()
        assert not app.window.grab().isNull()
    app.theme.set_text_size("normal")
    assert operations().pending == 0


def test_no_label_takes_what_it_is_given_for_markup(app: App, settle: Settle) -> None:
    for key in KEYS:
        app.window.show_pane(key)
    settle()
    rich = [
        f"{type(label).__name__}: {label.text()[:40]}"
        for label in app.window.findChildren(QLabel)
        if label.text() and label.textFormat() not in (Qt.TextFormat.PlainText,) and "<" in label.text()
    ]
    assert rich == []
    assert all(isinstance(one.placeholderText(), str) for one in app.window.findChildren(QLineEdit))
