"""Plots as files: PNG and SVG of what is on screen (title, key and lines), CSV of every logged point."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from PySide6.QtCore import QPoint, QRect, QSize
from PySide6.QtGui import QColor, QImage, QPainter
from PySide6.QtSvg import QSvgGenerator
from PySide6.QtWidgets import QWidget

from ui.pyramid import Array
from ui.run_history import RunHistory
from ui.theme import M, colours
from workbench.errors import UserError

PNG_SCALE = 2.0
Columns = dict[str, tuple[Array, Array]]
"""Steps and values by metric key."""


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


def columns_of(history: RunHistory, keys: Iterable[str]) -> Columns:
    """Copy the steps and values of some metrics, for another thread; metrics without values are left out."""
    lines = {key: line for key in keys if (line := history.lines.get(key))}
    return {key: (line.x.copy(), line.y.copy()) for key, line in lines.items()}


def save_csv(columns: Columns, path: Path) -> int:
    """Write every point of some metrics, one row a step; a metric without a value at a step leaves it empty.

    Returns the number of rows. Raises UserError when the file cannot be written.
    """
    steps = np.unique(np.concatenate([x for x, _ in columns.values()])) if columns else np.empty(0)
    cells = []
    for x, y in columns.values():
        cell = [""] * len(steps)
        for at, value in zip(np.searchsorted(steps, x).tolist(), y.tolist(), strict=True):
            cell[at] = repr(value)
        cells.append(cell)
    try:
        with path.open("w", encoding="utf-8", newline="") as out:
            writer = csv.writer(out, lineterminator="\r\n")
            writer.writerow(["step", *columns])
            writer.writerows(zip((f"{step:.0f}" for step in steps.tolist()), *cells, strict=True))
    except OSError as error:
        raise UserError(f"{path.name} could not be written", str(error), "choose another folder") from error
    return len(steps)


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
