"""The five methods as cards of which one is chosen: a sentence each, and what the project has for it."""

from __future__ import annotations

from dataclasses import dataclass

from PySide6.QtCore import QRectF, QSize, Qt, Signal, SignalInstance
from PySide6.QtGui import QColor, QFont, QFontMetrics, QPainter, QPaintEvent, QPen
from PySide6.QtWidgets import QAbstractButton, QButtonGroup, QGridLayout, QSizePolicy, QWidget

from ui.icons import pixmap
from ui.theme import RADIUS, M, S, colours, font
from ui.words import thumbs_said
from workbench.records import Counts, Method


@dataclass(frozen=True, slots=True)
class MethodInfo:
    """What the pane says of a method."""

    method: Method
    title: str
    icon: str
    sentence: str


CARD_WIDTH = 208  # what a card wants; two to a row may have less
COLUMNS = (5, 3, 2)
METHOD_INFOS: tuple[MethodInfo, ...] = (
    MethodInfo(
        "sft", "SFT", "demonstrate", "Shows the model your demonstrations until it answers the way you wrote them."
    ),
    MethodInfo("reward", "Reward model", "score", "Learns from your rankings to score any response as you would."),
    MethodInfo("dpo", "DPO", "compare", "Moves the model towards what you chose and away from what you rejected."),
    MethodInfo(
        "kto", "KTO", "check", "Learns from thumbs on single responses: more of the wanted, less of the unwanted."
    ),
    MethodInfo(
        "ppo", "PPO", "refresh", "Lets the model write, scores what it wrote, and reinforces the best, on a leash."
    ),
)


def method_title(method: Method) -> str:
    """Return a method's name as people say it."""
    return next(one.title for one in METHOD_INFOS if one.method == method)


def labels_of(method: Method, counts: Counts) -> str:
    """Say what the project has for a method."""
    if method == "kto":
        return _thumbs_of(counts)
    number, one, many = {
        "sft": (counts.demonstrations_final, "final demonstration", "final demonstrations"),
        "reward": (counts.pairs, "preference pair", "preference pairs"),
        "dpo": (counts.pairs, "preference pair", "preference pairs"),
        "ppo": (counts.prompts, "prompt", "prompts"),
    }[method]
    text = f"{number:,} {one if number == 1 else many}" if number else f"No {many} yet"
    if method == "ppo":
        rewards = counts.models.get("reward", 0)
        text += f", {rewards} reward model{'' if rewards == 1 else 's'}" if rewards else ", no reward model"
    return text


def _thumbs_of(counts: Counts) -> str:
    """Say what KTO has: both kinds of thumb are wanted, and rankings may stand in (``rankings_as_thumbs``)."""
    said = thumbs_said(counts)
    if not said:
        return "No thumbs yet" + (", rankings can stand in" if counts.pairs else "")
    if counts.thumbs_up and counts.thumbs_down:
        return said
    return f"{said}, none {'down' if counts.thumbs_up else 'up'} yet"


class MethodCard(QAbstractButton):
    """One method: its name, one sentence, and what the project has for it."""

    def __init__(self, info: MethodInfo, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.info = info
        self._labels = ""
        self.setCheckable(True)
        self.setText(info.title)
        self.setObjectName(f"method-{info.method}")
        self.setAccessibleName(info.title)
        self.setAccessibleDescription(info.sentence)
        self.setFocusPolicy(Qt.FocusPolicy.StrongFocus)
        self.setCursor(Qt.CursorShape.PointingHandCursor)
        self.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Fixed)
        self.setAttribute(Qt.WidgetAttribute.WA_Hover)

    def set_labels(self, text: str) -> None:
        """Say what the project has for this method."""
        self._labels = text
        self.setAccessibleDescription(f"{self.info.sentence} {text}")
        self.update()

    def sizeHint(self) -> QSize:
        """Leave room for a title, three lines and the labels."""
        lines = self.fontMetrics().lineSpacing()
        return QSize(200, M + 24 + S + 3 * lines + S + lines + M)

    def height_at(self, width: int) -> int:
        """Return the height at which sentence and labels are seen whole."""

        def high(face: QFont, text: str) -> int:
            wrap = int(Qt.TextFlag.TextWordWrap)
            return QFontMetrics(face).boundingRect(0, 0, width - 2 * M, 9999, wrap, text).height()

        whole = M + 24 + S + high(font("body"), self.info.sentence) + S + high(font("small"), self._labels) + M
        return max(self.sizeHint().height(), whole)

    def minimumSizeHint(self) -> QSize:
        """Be no narrower than a sentence can be read."""
        return QSize(152, self.sizeHint().height())

    def paintEvent(self, _event: QPaintEvent) -> None:
        """Draw the card; the chosen one has a strong edge, a soft ground and a tick."""
        theme = colours(self)
        painter = QPainter(self)
        painter.setRenderHint(QPainter.RenderHint.Antialiasing)
        chosen = self.isChecked()
        ground = theme.accent_soft if chosen else theme.raised if self.underMouse() else theme.surface
        painter.setPen(QPen(QColor(theme.accent if chosen else theme.border), 2 if chosen else 1))
        painter.setBrush(QColor(ground))
        edge = QRectF(self.rect()).adjusted(1, 1, -1, -1)
        painter.drawRoundedRect(edge, RADIUS + 2, RADIUS + 2)
        if self.hasFocus():
            painter.setPen(QPen(QColor(theme.accent), 1.5))
            painter.setBrush(Qt.BrushStyle.NoBrush)
            painter.drawRoundedRect(edge.adjusted(3, 3, -3, -3), RADIUS, RADIUS)
        area = self.rect().adjusted(M, M, -M, -M)
        ink = theme.accent if chosen else theme.muted
        painter.drawPixmap(area.left(), area.top(), pixmap(self.info.icon, 20, ink, self.devicePixelRatioF()))
        painter.setPen(QColor(theme.text))
        painter.setFont(font("heading"))
        title = area.adjusted(20 + S, 0, 0, 0)
        title.setHeight(22)
        flags = Qt.AlignmentFlag
        painter.drawText(title, int(flags.AlignLeft | flags.AlignVCenter), self.info.title)
        if chosen:
            tick = pixmap("check", 20, theme.accent, self.devicePixelRatioF())
            painter.drawPixmap(area.right() - 20, area.top(), tick)
        painter.setFont(font("body"))
        words = area.adjusted(0, 24 + S, 0, 0)
        painter.drawText(words, int(flags.AlignLeft | flags.AlignTop | Qt.TextFlag.TextWordWrap), self.info.sentence)
        painter.setFont(font("small"))
        painter.setPen(QColor(theme.muted))
        painter.drawText(area, int(flags.AlignLeft | flags.AlignBottom | Qt.TextFlag.TextWordWrap), self._labels)


class MethodCards(QWidget):
    """The five methods, of which one is chosen; arrow keys move the choice. Sends ``chosen(method)``."""

    chosen: SignalInstance = Signal(str)  # type: ignore[assignment]

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.setAccessibleName("Method")
        self.cards: dict[str, MethodCard] = {}
        self._group = QButtonGroup(self)
        self._grid = QGridLayout(self)
        self._grid.setContentsMargins(0, 0, 0, 0)
        self._grid.setSpacing(S)
        self._columns = 0
        for info in METHOD_INFOS:
            card = MethodCard(info)
            self.cards[info.method] = card
            self._group.addButton(card)
            card.toggled.connect(lambda on, method=info.method: self.chosen.emit(method) if on else None)
        self._place(2)

    def choose(self, method: str) -> None:
        """Choose a method."""
        self.cards[method].setChecked(True)

    def set_counts(self, counts: Counts) -> None:
        """Say on each card what the project has for it."""
        for info in METHOD_INFOS:
            self.cards[info.method].set_labels(labels_of(info.method, counts))
        self._fit()

    def resizeEvent(self, event: object) -> None:
        """All in a row where there is room, else three or two: no card is left alone in a wide one."""
        super().resizeEvent(event)  # type: ignore[arg-type]
        self._place(next(many for many in COLUMNS if self.width() >= many * CARD_WIDTH + (many - 1) * S or many == 2))
        self._fit()

    def _fit(self) -> None:
        """Make all cards as high as the one that says most."""
        width = (self.width() - (self._columns - 1) * S) // self._columns
        height = max(card.height_at(width) for card in self.cards.values())
        for card in self.cards.values():
            card.setFixedHeight(height)

    def _place(self, columns: int) -> None:
        if columns == self._columns:
            return
        self._columns = columns
        for index, card in enumerate(self.cards.values()):
            self._grid.addWidget(card, index // columns, index % columns)
        for index in range(len(self.cards)):
            self._grid.setColumnStretch(index, 1 if index < columns else 0)
