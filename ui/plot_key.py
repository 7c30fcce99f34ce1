"""How each line of a plot looks, and the key that says so: own colour and own line style for every line."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from PySide6.QtCore import QEvent, QRect, QSize, Qt
from PySide6.QtGui import QColor, QFontMetrics, QPainter, QPaintEvent, QPen
from PySide6.QtWidgets import QSizePolicy, QWidget

from ui.theme import XS, S, colours, font
from workbench.metrics import Metric

_DASHED, DOTTED, _DOT_DASHED, _LONG = (6.0, 3.0), (2.0, 3.0), (8.0, 3.0, 2.0, 3.0), (12.0, 4.0)
_TAILS = {"validation prompts": "validation"}
_HELD_OUT_DASHES = (_DASHED, _DOT_DASHED, _LONG)


@dataclass(frozen=True, slots=True)
class Look:
    """How a metric is drawn: its short name within the plot, its colour by index, its dashes and dots."""

    metric: Metric
    name: str
    index: int
    dashes: tuple[float, ...]
    dots: str


def looks_of(metrics: Sequence[Metric]) -> list[Look]:
    """Give each line of a plot its own colour and line style: train solid, held-out dashed, bounds dotted."""
    names = _short_names(metrics)
    found: list[Look] = []
    solid = dashed = 0
    for index, (metric, name) in enumerate(zip(metrics, names, strict=True)):
        bound = metric.key.endswith(("_low", "_high"))
        dots = "s" if metric.key.startswith("eval_") else "o"
        if bound or metric.key.startswith(("min_", "max_")):
            dashes: tuple[float, ...] = DOTTED
        elif metric.key.startswith("eval_"):
            dashes = _HELD_OUT_DASHES[min(dashed, 2)]
            dashed += 1
        else:
            dashes = () if solid == 0 else (_LONG, _DOT_DASHED, _DASHED)[min(solid - 1, 2)]
            solid += 1
        of = metric.key.rpartition("_")[0]  # the ends of an interval have the colour of what they bound
        colour = next((one.index for one in found if bound and one.metric.key == of), index)
        found.append(Look(metric, name, colour, dashes, "" if bound else dots))
    return found


def _short_names(metrics: Sequence[Metric]) -> list[str]:
    """Drop what all lines of a plot say alike: 'loss, train' and 'loss, held-out' become 'train' and 'held-out'."""
    if len(metrics) == 1:
        return [metrics[0].label]
    split = [metric.label.partition(", ") for metric in metrics]
    heads = {head.removesuffix(" to reference") for head, _, _ in split}
    if len(heads) != 1:
        return [metric.label for metric in metrics]
    tails = [_TAILS.get(tail, tail) for _, _, tail in split]
    measured = {"held-out", "validation"} & set(tails)
    return [tail or ("train" if measured else head) for (head, _, _), tail in zip(split, tails, strict=True)]


def blend(colour: str, ground: str, share: float) -> str:
    """Mix a colour with the ground, as an opaque colour (cheaper to draw than a transparent one)."""
    a, b = QColor(colour), QColor(ground)
    parts = zip((a.red(), a.green(), a.blue()), (b.red(), b.green(), b.blue()), strict=True)
    return QColor(*(round(one + (two - one) * share) for one, two in parts)).name()


@dataclass(frozen=True, slots=True)
class KeyEntry:
    """One line of a plot's key."""

    name: str
    value: str
    colour: str
    dashes: tuple[float, ...]


class LineKey(QWidget):
    """The key of a plot: a piece of each line, its name and its value; wraps where the card is narrow."""

    _SAMPLE = 20

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._entries: list[KeyEntry] = []
        self._placed_for: tuple[object, ...] = ()
        self._placed: tuple[list[QRect], int] = ([], 0)
        policy = QSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Fixed)
        policy.setHeightForWidth(True)
        self.setSizePolicy(policy)
        self.setFont(font("small"))
        self.hide()

    def set_entries(self, entries: list[KeyEntry]) -> None:
        """Show these lines; hidden when there is none."""
        if entries == self._entries:
            return
        again = len(entries) != len(self._entries)
        self._entries = entries
        self.setVisible(bool(entries))
        if again or self.height() != self.heightForWidth(self.width()):
            self.updateGeometry()
        self.update()

    def hasHeightForWidth(self) -> bool:
        """The height depends on how many lines the key wraps to."""
        return True

    def heightForWidth(self, width: int) -> int:
        """Return the height that the wrapped key needs."""
        return self._place(width)[1]

    def sizeHint(self) -> QSize:
        """Ask for the height at the present width."""
        return QSize(160, self._place(max(self.width(), 160))[1])

    def _place(self, width: int) -> tuple[list[QRect], int]:
        names = (width, self.font().key(), *(entry.name for entry in self._entries))
        if names != self._placed_for:
            self._placed_for, self._placed = names, self._placing(width)
        return self._placed

    def _placing(self, width: int) -> tuple[list[QRect], int]:
        metrics = QFontMetrics(self.font())
        height = metrics.height() + 2
        places, x, y = [], 0, 0
        for entry in self._entries:
            # the widest value keeps its room, so that entries do not jump while values change
            wide = self._SAMPLE + XS + metrics.horizontalAdvance(entry.name) + S + metrics.horizontalAdvance("-0.0000")
            if x and x + wide > width:
                x, y = 0, y + height
            places.append(QRect(x, y, min(wide, width), height))
            x += wide + S
        return places, y + height if places else 0

    def paintEvent(self, _event: QPaintEvent) -> None:
        """Draw the entries."""
        theme = colours(self)
        painter = QPainter(self)
        metrics = QFontMetrics(self.font())
        for place, entry in zip(self._place(self.width())[0], self._entries, strict=True):
            middle = place.center().y() + 1
            pen = QPen(QColor(entry.colour), 2)
            if entry.dashes:
                pen.setDashPattern([length / 2 for length in entry.dashes])
            painter.setPen(pen)
            painter.drawLine(place.left(), middle, place.left() + self._SAMPLE, middle)
            text = place.adjusted(self._SAMPLE + XS, 0, 0, 0)
            flags = int(Qt.AlignmentFlag.AlignLeft | Qt.AlignmentFlag.AlignVCenter)
            painter.setPen(QColor(theme.muted))
            painter.drawText(text, flags, entry.name)
            painter.setPen(QColor(theme.text))
            painter.drawText(text.adjusted(metrics.horizontalAdvance(entry.name) + S, 0, 0, 0), flags, entry.value)

    def changeEvent(self, event: QEvent) -> None:
        """Follow the text size."""
        super().changeEvent(event)
        if event.type() == QEvent.Type.ApplicationFontChange:
            self.setFont(font("small"))
