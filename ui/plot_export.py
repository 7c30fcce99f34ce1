"""Plots as files: PNG and SVG of what is on screen (title, key and lines), CSV of every logged point."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from pathlib import Path

from PySide6.QtCore import QPoint, QRect, QSize
from PySide6.QtGui import QColor, QImage, QPainter
from PySide6.QtSvg import QSvgGenerator
from PySide6.QtWidgets import QWidget

from ui.run_history import RunHistory
from ui.theme import M, colours
from workbench.errors import UserError

PNG_SCALE = 2.0


def save_png(widgets: Sequence[QWidget], path: Path) -> None:
    """Draw widgets below each other (in columns as on screen) into a PNG of twice the resolution."""
    places, size = _places(widgets)
    image = QImage(size * PNG_SCALE, QImage.Format.Format_ARGB32)
    image.setDevicePixelRatio(PNG_SCALE)
    image.fill(QColor(colours(widgets[0]).window))
    painter = QPainter(image)
    _render(widgets, places, painter)
    painter.end()
    if not image.save(str(path), "PNG"):  # type: ignore[call-overload]
        raise UserError(f"{path.name} could not be written", "", "choose another folder")


def save_svg(widgets: Sequence[QWidget], path: Path, title: str) -> None:
    """Draw widgets as vectors into an SVG file."""
    places, size = _places(widgets)
    generator = QSvgGenerator()
    generator.setFileName(str(path))
    generator.setSize(size)
    generator.setViewBox(QRect(QPoint(0, 0), size))
    generator.setTitle(title)
    painter = QPainter()
    if not painter.begin(generator):
        raise UserError(f"{path.name} could not be written", "", "choose another folder")
    painter.fillRect(QRect(QPoint(0, 0), size), QColor(colours(widgets[0]).window))
    _render(widgets, places, painter)
    painter.end()


def save_csv(history: RunHistory, keys: Iterable[str], path: Path) -> int:
    """Write every point of some metrics, one row a step; a metric without a value at a step leaves it empty.

    Returns the number of rows. Raises UserError when the file cannot be written.
    """
    text, count = csv_text(history, keys)
    try:
        path.write_text(text, encoding="utf-8", newline="")
    except OSError as error:
        raise UserError(f"{path.name} could not be written", str(error), "choose another folder") from error
    return count


def csv_text(history: RunHistory, keys: Iterable[str]) -> tuple[str, int]:
    """Return the CSV of some metrics and its number of rows."""
    chosen = [key for key in keys if history.lines.get(key)]
    table: dict[float, dict[str, float]] = {}
    for key in chosen:
        line = history.lines[key]
        for step, value in zip(line.x.tolist(), line.y.tolist(), strict=True):
            table.setdefault(step, {})[key] = value
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\r\n")
    writer.writerow(["step", *chosen])
    for step in sorted(table):
        row = table[step]
        writer.writerow([f"{step:g}", *(repr(row[key]) if key in row else "" for key in chosen)])
    return out.getvalue(), len(table)


def _places(widgets: Sequence[QWidget]) -> tuple[list[QPoint], QSize]:
    """Lay the widgets out as they are on screen, without the gaps of those that are not taken."""
    if len(widgets) == 1:
        return [QPoint(0, 0)], widgets[0].size()
    columns = len({one.x() for one in widgets}) or 1
    width, height = max(one.width() for one in widgets), max(one.height() for one in widgets)
    places = [
        QPoint(M + (index % columns) * (width + M), M + (index // columns) * (height + M))
        for index in range(len(widgets))
    ]
    rows = -(-len(widgets) // columns)
    return places, QSize(M + columns * (width + M), M + rows * (height + M))


def _render(widgets: Sequence[QWidget], places: Sequence[QPoint], painter: QPainter) -> None:
    flags = QWidget.RenderFlag.DrawWindowBackground | QWidget.RenderFlag.DrawChildren
    painter.setRenderHint(QPainter.RenderHint.TextAntialiasing)
    for widget, place in zip(widgets, places, strict=True):
        painter.save()
        painter.translate(place)
        widget.render(painter, QPoint(0, 0), renderFlags=flags)
        painter.restore()
