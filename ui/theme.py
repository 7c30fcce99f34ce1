"""Colours, spacing and type of the window: Fusion with two palettes of our own and one short style sheet.

A widget asks :func:`colours` when it paints and repaints on ``PaletteChange``; nothing else needs to know which
theme is on. :class:`Theme` holds the choice (system, light or dark) and follows the system.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from PySide6.QtCore import QObject, Qt, Signal, SignalInstance
from PySide6.QtGui import QColor, QFont, QFontDatabase, QPalette
from PySide6.QtWidgets import QApplication, QWidget

Mode = Literal["system", "light", "dark"]
MODES: tuple[Mode, ...] = ("system", "light", "dark")
FontRole = Literal["display", "title", "heading", "body", "strong", "small", "mono", "mono-small", "number"]

# An 8 px grid; XS is its half step.
XS, S, M, L, XL = 4, 8, 16, 24, 32
RADIUS = 6
TEXT_SIZES: dict[str, float] = {"small": 0.9, "normal": 1.0, "large": 1.2, "larger": 1.45}
_ASSETS = Path(__file__).resolve().parent.parent / "assets"


@dataclass(frozen=True, slots=True)
class Colours:
    """Every colour of one theme, as ``#rrggbb``. Text colours reach WCAG AA on ``window`` and ``surface``."""

    name: Literal["light", "dark"]
    window: str  # behind everything
    surface: str  # cards, lists, fields
    raised: str  # hover, headers, the rail
    border: str  # hairlines between things
    border_strong: str  # edges of what takes input (3:1)
    text: str
    muted: str  # second-rank text, still AA
    disabled: str
    accent: str  # as text, line or icon
    accent_fill: str  # under on_accent text
    on_accent: str
    accent_soft: str  # selected rows, chosen things
    good: str
    good_soft: str
    warn: str
    warn_soft: str
    bad: str
    bad_soft: str
    trained: str  # background of tokens that the loss sees
    lines: tuple[str, ...]

    @property
    def dark(self) -> bool:
        """Whether this is the dark theme."""
        return self.name == "dark"

    def series(self, index: int) -> str:
        """Return the colour of the ``index``-th line of a plot; distinct under the common colour blindnesses."""
        return self.lines[index % len(self.lines)]

    def tone(self, kind: str) -> tuple[str, str]:
        """Return (text, soft background) of ``good``, ``warn``, ``bad``, ``accent`` or anything else (neutral)."""
        return {
            "good": (self.good, self.good_soft),
            "warn": (self.warn, self.warn_soft),
            "bad": (self.bad, self.bad_soft),
            "accent": (self.accent, self.accent_soft),
        }.get(kind, (self.muted, self.raised))


LIGHT = Colours(
    name="light",
    window="#f6f7f9",
    surface="#ffffff",
    raised="#eceef2",
    border="#dfe2e8",
    border_strong="#8a92a0",
    text="#1b1e24",
    muted="#565e6b",
    disabled="#9aa1ad",
    accent="#5343c6",
    accent_fill="#5b4bd1",
    on_accent="#ffffff",
    accent_soft="#eae7fb",
    good="#176b3a",
    good_soft="#e0f3e7",
    warn="#835200",
    warn_soft="#fcf0d6",
    bad="#b3261e",
    bad_soft="#fbe6e4",
    trained="#dcebd2",
    lines=("#4263eb", "#d9480f", "#2b8a3e", "#c2255c", "#0b7285", "#8a6d00", "#7048e8", "#5c636e"),
)
DARK = Colours(
    name="dark",
    window="#15171c",
    surface="#1c1f25",
    raised="#272b33",
    border="#31363f",
    border_strong="#737c8b",
    text="#e6e8ed",
    muted="#a5adba",
    disabled="#666e7b",
    accent="#aea4ff",
    accent_fill="#6a5be0",
    on_accent="#ffffff",
    accent_soft="#2d2a4e",
    good="#6fd39a",
    good_soft="#18332a",
    warn="#e9b44c",
    warn_soft="#3a2f17",
    bad="#ff8f86",
    bad_soft="#41211f",
    trained="#2a4128",
    lines=("#7c9cff", "#ff9a5c", "#62c978", "#ff86b0", "#4cc9dc", "#e0bf4a", "#b39bff", "#a5adba"),
)


def colours(_widget: QWidget | None = None) -> Colours:
    """Return the colours now on screen, as the application has them: style sheets bend a widget's own palette."""
    return DARK if QApplication.palette().color(QPalette.ColorRole.Window).lightness() < 128 else LIGHT


def palette_of(theme: Colours) -> QPalette:
    """Build the Qt palette of a theme."""
    role, group = QPalette.ColorRole, QPalette.ColorGroup
    palette = QPalette()
    for which, value in (
        (role.Window, theme.window),
        (role.WindowText, theme.text),
        (role.Base, theme.surface),
        (role.AlternateBase, theme.window),
        (role.ToolTipBase, theme.raised),
        (role.ToolTipText, theme.text),
        (role.Text, theme.text),
        (role.PlaceholderText, theme.muted),
        (role.Button, theme.surface),
        (role.ButtonText, theme.text),
        (role.BrightText, theme.bad),
        (role.Link, theme.accent),
        (role.LinkVisited, theme.accent),
        (role.Highlight, theme.accent_fill),
        (role.HighlightedText, theme.on_accent),
        (role.Accent, theme.accent_fill),
        (role.Light, theme.surface),
        (role.Midlight, theme.raised),
        (role.Mid, theme.border),
        (role.Dark, theme.border_strong),
        (role.Shadow, "#000000"),
    ):
        palette.setColor(which, QColor(value))
    for which in (role.WindowText, role.Text, role.ButtonText):
        palette.setColor(group.Disabled, which, QColor(theme.disabled))
    palette.setColor(group.Disabled, role.Highlight, QColor(theme.raised))
    palette.setColor(group.Disabled, role.HighlightedText, QColor(theme.disabled))
    return palette


def font(role: FontRole = "body", base: QFont | None = None) -> QFont:
    """Return the font of a role, relative to the application's (which carries the chosen text size)."""
    size = (base or QApplication.font()).pointSizeF()
    made = QFont(base or QApplication.font())
    if role.startswith("mono"):
        made = QFontDatabase.systemFont(QFontDatabase.SystemFont.FixedFont)
    factor, weight = {
        "display": (1.9, QFont.Weight.DemiBold),
        "title": (1.45, QFont.Weight.DemiBold),
        "heading": (1.12, QFont.Weight.DemiBold),
        "body": (1.0, QFont.Weight.Normal),
        "strong": (1.0, QFont.Weight.DemiBold),
        "small": (0.88, QFont.Weight.Normal),
        "mono": (0.95, QFont.Weight.Normal),
        "mono-small": (0.84, QFont.Weight.Normal),
        "number": (1.6, QFont.Weight.DemiBold),
    }[role]
    made.setPointSizeF(max(6.0, size * factor))
    made.setWeight(weight)
    return made


class Theme(QObject):
    """The chosen look of the whole application.

    ``changed`` is sent after the palette or the text size was replaced, for what paints outside Qt's palettes (plots).
    """

    changed: SignalInstance = Signal()  # type: ignore[assignment]

    def __init__(
        self, app: QApplication, mode: Mode = "system", text_size: str = "normal", parent: QObject | None = None
    ) -> None:
        super().__init__(parent or app)
        self._app = app
        self._mode: Mode = mode
        self._text_size = text_size if text_size in TEXT_SIZES else "normal"
        self._base_points = max(10.0, app.font().pointSizeF())
        app.setStyle("Fusion")
        app.styleHints().colorSchemeChanged.connect(self._on_system_changed)
        self._apply()

    @property
    def mode(self) -> Mode:
        """What was chosen: system, light or dark."""
        return self._mode

    @property
    def text_size(self) -> str:
        """The chosen text size, a key of ``TEXT_SIZES``."""
        return self._text_size

    @property
    def colours(self) -> Colours:
        """The colours now on screen."""
        if self._mode == "system":
            return DARK if self._app.styleHints().colorScheme() == Qt.ColorScheme.Dark else LIGHT
        return DARK if self._mode == "dark" else LIGHT

    def set_mode(self, mode: Mode) -> None:
        """Choose system, light or dark."""
        if mode != self._mode:
            self._mode = mode
            self._apply()

    def set_text_size(self, size: str) -> None:
        """Choose a text size. Raises KeyError for one that is not in ``TEXT_SIZES``."""
        if size != self._text_size:
            TEXT_SIZES[size]
            self._text_size = size
            self._apply()

    def _on_system_changed(self) -> None:
        if self._mode == "system":
            self._apply()

    def _apply(self) -> None:
        theme = self.colours
        chosen = QFont(self._app.font())
        chosen.setPointSizeF(self._base_points * TEXT_SIZES[self._text_size])
        self._app.setFont(chosen)
        self._app.setPalette(palette_of(theme))
        self._app.setStyleSheet(style_sheet(theme))
        self.changed.emit()


def apply(app: QApplication, mode: Mode = "system", text_size: str = "normal") -> Theme:
    """Give the application its look and return the object that keeps it."""
    return Theme(app, mode, text_size)


def style_sheet(theme: Colours) -> str:
    """Return the style sheet: only what a palette cannot say (flat buttons, hairlines, slim scroll bars)."""
    values = {key: getattr(theme, key) for key in Colours.__slots__ if isinstance(getattr(theme, key), str)}
    sheet = _SHEET
    for key in sorted(values, key=len, reverse=True):
        sheet = sheet.replace(f"@{key}", values[key])
    return sheet.replace("@icons", (_ASSETS / "icons").as_posix())


# Properties that select a look: QPushButton[kind="primary" | "quiet" | "danger"], QFrame[card="true"].
_SHEET = """
QPushButton { background: @surface; border: 1px solid @border_strong; border-radius: 6px; padding: 5px 12px; }
QPushButton:hover { background: @raised; }
QPushButton:pressed, QPushButton:checked { background: @accent_soft; border-color: @accent; }
QPushButton:focus { border: 2px solid @accent; padding: 4px 11px; }
QPushButton:disabled { color: @disabled; border-color: @border; background: @window; }
QPushButton[kind="primary"] { background: @accent_fill; color: @on_accent; border-color: @accent_fill;
  font-weight: 600; }
QPushButton[kind="primary"]:hover { background: @accent; color: @surface; }
QPushButton[kind="primary"]:focus { border: 2px solid @text; }
QPushButton[kind="primary"]:disabled { background: @raised; color: @disabled; border-color: @raised; }
QPushButton[kind="quiet"] { background: transparent; border-color: transparent; color: @accent; }
QPushButton[kind="quiet"]:hover { background: @accent_soft; }
QPushButton[kind="quiet"]:focus { border: 2px solid @accent; }
QPushButton[kind="quiet"]:disabled { color: @disabled; }
QPushButton[kind="danger"] { color: @bad; border-color: @bad; }
QPushButton[kind="danger"]:hover { background: @bad_soft; }
QToolButton { background: transparent; border: 1px solid transparent; border-radius: 6px; padding: 4px; }
QToolButton:hover { background: @raised; }
QToolButton:checked, QToolButton:pressed { background: @accent_soft; }
QToolButton:focus { border: 1px solid @accent; }
QLineEdit, QPlainTextEdit, QTextEdit, QTextBrowser, QSpinBox, QDoubleSpinBox, QComboBox {
  background: @surface; border: 1px solid @border_strong; border-radius: 6px; padding: 4px 8px;
  selection-background-color: @accent_fill; selection-color: @on_accent; }
QLineEdit:focus, QPlainTextEdit:focus, QTextEdit:focus, QTextBrowser:focus, QSpinBox:focus, QDoubleSpinBox:focus,
QComboBox:focus { border: 1px solid @accent; }
QPlainTextEdit[readOnly="true"], QTextBrowser { border-color: @border; }
QLineEdit:disabled, QComboBox:disabled, QSpinBox:disabled, QDoubleSpinBox:disabled {
  color: @disabled; border-color: @border; }
QComboBox::drop-down { border: none; width: 24px; }
QComboBox::down-arrow { image: url("@icons/arrow-down.svg"); width: 12px; height: 12px; }
QComboBox QAbstractItemView { background: @surface; border: 1px solid @border; padding: 4px; outline: 0; }
QSpinBox::up-button, QDoubleSpinBox::up-button { border: none; width: 18px; subcontrol-position: top right; }
QSpinBox::down-button, QDoubleSpinBox::down-button { border: none; width: 18px; subcontrol-position: bottom right; }
QSpinBox::up-arrow, QDoubleSpinBox::up-arrow { image: url("@icons/arrow-up.svg"); width: 10px; height: 10px; }
QSpinBox::down-arrow, QDoubleSpinBox::down-arrow { image: url("@icons/arrow-down.svg"); width: 10px; height: 10px; }
QAbstractItemView { border: 1px solid @border; border-radius: 6px; outline: 0; background: @surface;
  alternate-background-color: @window; selection-background-color: @accent_soft; selection-color: @text; }
QAbstractItemView:focus { border: 1px solid @accent; }
QAbstractSpinBox { padding: 4px; qproperty-alignment: AlignRight; }
#qt_spinbox_lineedit, QComboBox QLineEdit { border: none; padding: 0 4px; background: transparent; }
QCheckBox, QRadioButton { spacing: 8px; }
QCheckBox::indicator, QRadioButton::indicator, QAbstractItemView::indicator { width: 14px; height: 14px;
  background: @surface; border: 1px solid @border_strong; border-radius: 4px; }
QRadioButton::indicator { border-radius: 8px; }
QCheckBox::indicator:checked, QAbstractItemView::indicator:checked { background: @accent_fill;
  border-color: @accent_fill; image: url("@icons/mark.svg"); }
QRadioButton::indicator:checked { border: 5px solid @accent_fill; width: 6px; height: 6px; background: @on_accent; }
QCheckBox:focus, QRadioButton:focus { color: @accent; }
QCheckBox::indicator:focus, QRadioButton::indicator:focus { border-color: @accent; }
QCheckBox::indicator:disabled, QRadioButton::indicator:disabled { background: @window; border-color: @border; }
QListView::item, QTreeView::item { padding: 4px 8px; }
QTableView { gridline-color: @border; }
QTableView::item { padding: 4px 8px; }
QTreeView::branch { background: transparent; }
QHeaderView { border: none; border-radius: 0; background: @window; }
QHeaderView::section { background: @window; color: @muted; border: none;
  border-bottom: 1px solid @border; padding: 6px 8px; }
QTabBar::tab { background: transparent; color: @muted; padding: 8px 12px; border: none;
  border-bottom: 2px solid transparent; }
QTabBar::tab:selected { color: @text; border-bottom: 2px solid @accent; }
QTabBar::tab:hover, QTabBar::tab:focus { color: @accent; }
QTabWidget::pane { border: none; border-top: 1px solid @border; }
QScrollArea { border: none; background: transparent; }
QScrollBar:vertical { background: transparent; width: 12px; margin: 0; }
QScrollBar:horizontal { background: transparent; height: 12px; margin: 0; }
QScrollBar::handle { background: @border_strong; border-radius: 3px; margin: 3px; min-height: 32px; min-width: 32px; }
QScrollBar::handle:hover { background: @muted; }
QScrollBar::add-line, QScrollBar::sub-line { width: 0; height: 0; }
QScrollBar::add-page, QScrollBar::sub-page { background: transparent; }
QSplitter::handle { background: @border; }
QSplitter::handle:horizontal { width: 1px; }
QSplitter::handle:vertical { height: 1px; }
QSplitter::handle:hover { background: @accent; }
QSlider::groove:horizontal { height: 4px; border-radius: 2px; background: @border; }
QSlider::sub-page:horizontal { height: 4px; border-radius: 2px; background: @accent_fill; }
QSlider::handle:horizontal { width: 14px; height: 14px; margin: -6px 0; border-radius: 8px; background: @surface;
  border: 1px solid @border_strong; }
QSlider::handle:horizontal:hover, QSlider::handle:horizontal:focus { border: 2px solid @accent; }
QProgressBar { background: @raised; border: none; border-radius: 4px; min-height: 8px; max-height: 8px; }
QProgressBar::chunk { background: @accent_fill; border-radius: 4px; }
QMenuBar { background: @window; border-bottom: 1px solid @border; padding: 2px; }
QMenuBar::item { padding: 5px 9px; border-radius: 4px; background: transparent; }
QMenuBar::item:selected { background: @raised; }
QMenu { background: @surface; border: 1px solid @border; padding: 4px; }
QMenu::item { padding: 6px 24px 6px 24px; border-radius: 4px; }
QMenu::item:selected { background: @accent_soft; color: @text; }
QMenu::item:disabled { color: @disabled; }
QMenu::separator { height: 1px; background: @border; margin: 4px 8px; }
QToolTip { background: @raised; color: @text; border: 1px solid @border_strong; padding: 4px 8px; }
QStatusBar { background: @window; border-top: 1px solid @border; }
QStatusBar::item { border: none; }
QFrame[card="true"] { background: @surface; border: 1px solid @border; border-radius: 8px; }
"""
