"""Line icons from ``assets/icons``, drawn in the colours of the theme at any resolution."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from PySide6.QtCore import QByteArray, QRectF, Qt
from PySide6.QtGui import QColor, QGuiApplication, QIcon, QPainter, QPixmap
from PySide6.QtSvg import QSvgRenderer

from ui.theme import colours

_FOLDER = Path(__file__).resolve().parent.parent / "assets" / "icons"


def names() -> tuple[str, ...]:
    """List the icons there are."""
    return tuple(sorted(path.stem for path in _FOLDER.glob("*.svg")))


def pixmap(name: str, size: int, colour: str, ratio: float = 1.0) -> QPixmap:
    """Draw an icon of ``size`` logical pixels in one colour. Raises FileNotFoundError for an unknown name."""
    return _draw(name, size, QColor(colour).name(), round(ratio * 100))


def icon(name: str, colour: str = "", size: int = 20) -> QIcon:
    """Return an icon in ``colour`` (the theme's text colour when empty), sharp at one to three times the resolution.

    A pixmap keeps its colour: set the icon anew on ``PaletteChange`` (``ui.widgets.IconButton`` does).
    """
    theme = colours()
    made = QIcon()
    for ratio in sorted({1.0, 2.0, _screen_ratio()}):
        made.addPixmap(pixmap(name, size, colour or theme.text, ratio))
        made.addPixmap(pixmap(name, size, theme.disabled, ratio), QIcon.Mode.Disabled)
    return made


def _screen_ratio() -> float:
    app = QGuiApplication.instance()
    return app.devicePixelRatio() if isinstance(app, QGuiApplication) else 1.0


@lru_cache(maxsize=64)
def _source(name: str) -> str:
    return (_FOLDER / f"{name}.svg").read_text(encoding="utf-8")


@lru_cache(maxsize=512)
def _draw(name: str, size: int, colour: str, percent: int) -> QPixmap:
    renderer = QSvgRenderer(QByteArray(_source(name).replace("currentColor", colour).encode()))
    drawn = QPixmap(round(size * percent / 100), round(size * percent / 100))
    drawn.fill(Qt.GlobalColor.transparent)
    painter = QPainter(drawn)
    renderer.render(painter, QRectF(0, 0, drawn.width(), drawn.height()))
    painter.end()
    drawn.setDevicePixelRatio(percent / 100)
    return drawn
