"""An editor for each type of setting: a switch, a list, a number, a text. They never change on a turn of the wheel."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from PySide6.QtCore import QEvent, QObject, Qt
from PySide6.QtGui import QKeyEvent
from PySide6.QtWidgets import QCheckBox, QComboBox, QLineEdit, QWidget

from workbench.settings_fields import Setting, parse_value


def text_of(value: object) -> str:
    """Write a setting's value as it is typed: ``0.0002`` is '2e-4', True is 'on'."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, float):
        if value == 0 or 1e-3 <= abs(value) < 1e6:
            return f"{value:.10g}"
        mantissa, _, exponent = f"{value:.6e}".partition("e")
        return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"
    return str(value)


class Editor:
    """A widget that edits one setting; ``changed(value, sound)`` is called at every change by hand."""

    def __init__(self, setting: Setting, widget: QWidget) -> None:
        self.setting = setting
        self.widget = widget
        self.changed: Callable[[Any, bool], None] = lambda _value, _sound: None

    def show(self, value: Any) -> None:
        """Show a value without calling ``changed``."""
        raise NotImplementedError


def editor_for(setting: Setting) -> Editor:
    """Return the editor that fits a setting."""
    if setting.type is bool:
        return _Switch(setting)
    if setting.choices:
        return _Choice(setting)
    return _Line(setting)


class _NoWheel(QObject):
    """Lets the page scroll instead of changing a value under the pointer."""

    def eventFilter(self, _watched: QObject, event: QEvent) -> bool:
        if event.type() == QEvent.Type.Wheel:
            event.ignore()
            return True
        return False


class _Switch(Editor):
    def __init__(self, setting: Setting) -> None:
        self.box = QCheckBox("Off")
        super().__init__(setting, self.box)
        self.box.toggled.connect(self._on_toggled)

    def show(self, value: Any) -> None:
        self.box.blockSignals(True)
        self.box.setChecked(bool(value))
        self.box.setText("On" if value else "Off")
        self.box.blockSignals(False)

    def _on_toggled(self, on: bool) -> None:
        self.box.setText("On" if on else "Off")
        self.changed(on, True)


class _Choice(Editor):
    def __init__(self, setting: Setting) -> None:
        self.box = QComboBox()
        super().__init__(setting, self.box)
        self.box.addItems(list(setting.choices))
        self.box.setFocusPolicy(Qt.FocusPolicy.StrongFocus)
        self.box.installEventFilter(_NoWheel(self.box))
        self.box.currentTextChanged.connect(lambda text: self.changed(text, True))

    def show(self, value: Any) -> None:
        self.box.blockSignals(True)
        self.box.setCurrentText(str(value))
        self.box.blockSignals(False)


class _Line(Editor):
    """A number or a text; Up and Down step a number."""

    def __init__(self, setting: Setting) -> None:
        self.line = _StepLine(self._step) if setting.type in (int, float) else QLineEdit()
        super().__init__(setting, self.line)
        self.line.textEdited.connect(self._on_edited)

    def show(self, value: Any) -> None:
        self.line.setText(text_of(value))
        self.line.setCursorPosition(0)

    def _on_edited(self, text: str) -> None:
        try:
            value = parse_value(self.setting, text)
        except ValueError:
            self.changed(text, False)
            return
        sound = not (isinstance(value, float) and not math.isfinite(value))
        self.changed(value if sound else text, sound)

    def _step(self, direction: int) -> None:
        try:
            value = parse_value(self.setting, self.line.text())
        except ValueError:
            return
        if value is None:
            return
        stepped = value + direction if self.setting.type is int else _stepped(value, direction)
        if self.setting.low is not None:
            stepped = max(stepped, self.setting.type(self.setting.low))
        if self.setting.high is not None:
            stepped = min(stepped, self.setting.type(self.setting.high))
        self.line.setText(text_of(stepped))
        self._on_edited(self.line.text())


def _stepped(value: float, direction: int) -> float:
    """Move a number by one in its first digit: 2e-4 becomes 3e-4, 1e-4 going down 9e-5."""
    if value == 0:
        return 0.01 * direction
    power = 10.0 ** math.floor(math.log10(abs(value)))
    if direction * value < 0 and math.isclose(abs(value), power):
        power /= 10
    return float(f"{value + direction * power:.10g}")


class _StepLine(QLineEdit):
    def __init__(self, step: Callable[[int], None]) -> None:
        super().__init__()
        self._step = step

    def keyPressEvent(self, event: QKeyEvent) -> None:
        if event.key() in (Qt.Key.Key_Up, Qt.Key.Key_Down):
            self._step(1 if event.key() == Qt.Key.Key_Up else -1)
            event.accept()
        else:
            super().keyPressEvent(event)
