"""How consistent the labels are: raters with each other, one asked twice, and what sways them; with what to do."""

from __future__ import annotations

from PySide6.QtCore import QEvent
from PySide6.QtGui import QResizeEvent
from PySide6.QtWidgets import QDialog, QGridLayout, QSpinBox, QWidget

from ui.context import Context
from ui.interval_bar import IntervalBar
from ui.judgement_view import ShareTable
from ui.labels import FONT_EVENTS
from ui.operations import run_task
from ui.re_ask import every_of, set_every
from ui.theme import L, M, S
from ui.train_parts import PageScroll
from ui.widgets import Card, ErrorBanner, Text, button, column, plural, row
from workbench.agreement import Agreement, measure
from workbench.agreement_words import Finding, findings
from workbench.judgement import Share

TWO_COLUMNS = 96  # digits wide; what is narrower has its cards one below the other
MOST_EVERY = 1000


class FindingCard(Card):
    """One number with its picture, what it rests on, and what to do about it."""

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent=parent)
        self.heading = Text("", "small", "muted")
        self.number = Text("", "number")
        self.bar = IntervalBar()
        self.evidence = Text("", "small", "muted", wrap=True)
        self.advice = Text("", "body", wrap=True)
        for part in (self.heading, self.number, self.bar, self.evidence, self.advice):
            self.body.addWidget(part)
        self.body.addStretch(1)

    def show_finding(self, one: Finding) -> None:
        """Show another finding."""
        self.heading.setText(one.title)
        self.number.setText(one.number or "–")
        self.number.setAccessibleName(f"{one.title}: {one.number or 'not known'}")
        self.number.set_tone("" if one.number else "muted")
        self.bar.setVisible(one.rate is not None)
        if one.rate is not None:
            self.bar.set(one.rate.share, one.rate.low, one.rate.high)
        self.evidence.setText(one.evidence)
        self.advice.setText(one.advice)
        self.advice.set_tone(one.tone)


class ConsistencyDialog(QDialog):
    """Measures the project's labels on a worker thread and says what they are worth."""

    def __init__(self, context: Context, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.setObjectName("consistency")
        self.setWindowTitle("Consistency of the labels")
        self._context = context
        self.cards: dict[str, FindingCard] = {}
        self.rests_on = Text("Measuring…", "body", "muted", wrap=True)
        self.banner = ErrorBanner()
        self.two_raters = Card("Every two raters")
        self.table = ShareTable("Raters", "Agree")
        self.table.setAccessibleName("Agreement of every two raters")
        self.two_raters.body.addWidget(self.table)
        self.two_raters.hide()
        self.every = QSpinBox()
        self.every.setRange(0, MOST_EVERY)
        self.every.setSpecialValueText("never")
        self.every.setPrefix("every ")
        self.every.setSuffix(" judgements")
        self.every.setAccessibleName("Ask for an earlier card again, every so many judgements")
        self.every.setValue(every_of(context.settings))
        self.every.valueChanged.connect(lambda value: set_every(context.settings, value))
        self._page = QWidget()
        self._grid = QGridLayout()
        self._grid.setContentsMargins(0, 0, S, 0)
        self._grid.setSpacing(M)
        self._page.setLayout(self._grid)
        self._columns = 0
        asks = row(
            Text("Ask for an earlier card again:"),
            self.every,
            None,
            button("Close", self.reject),
            spacing=S,
            margins=(0, 0, S, 0),
        )
        body = column(self.rests_on, self.banner, PageScroll(self._page), asks, spacing=M, margins=(L, M, M, M))
        body.setStretch(2, 1)
        self.setLayout(body)
        room = parent.window().size() if parent is not None else None
        self.resize(min(1120, room.width() - 80) if room else 960, min(960, room.height() - 80) if room else 720)
        run_task(lambda: measure(context.store), self._on_measured, self._on_failed, owner=self)

    def _on_failed(self, error: BaseException) -> None:
        self.rests_on.hide()
        self.banner.show_error(error)

    def _on_measured(self, told: Agreement) -> None:
        self.rests_on.setText(
            f"{plural(told.rankings, 'current ranking')} by {plural(told.raters, 'rater')}, "
            f"{plural(told.pairs, 'judged pair')}. Intervals count prompts: the pairs of one ranking go together."
        )
        for one in findings(told):
            card = self.cards[one.key] = FindingCard()
            card.show_finding(one)
        shares = [
            Share(
                f"{two.first}, {two.second}{_kappa(two.told.beyond_chance)}",
                two.told.exact.pairs,
                two.told.exact.prompts,
                two.told.exact.prompts,
                two.told.exact.share,
                two.told.exact.low,
                two.told.exact.high,
            )
            for two in told.by_raters
        ]
        if len(shares) > 1:
            self.table.show_shares(shares)
            self.two_raters.show()
        self._columns = 0
        self._reflow()

    def _reflow(self) -> None:
        """Lay the cards side by side where there is room."""
        columns = 2 if self.width() >= TWO_COLUMNS * self.fontMetrics().horizontalAdvance("0") else 1
        if columns == self._columns or not self.cards:
            return
        self._columns = columns
        parts = [*self.cards.values(), self.two_raters]
        for part in parts:
            self._grid.removeWidget(part)
        for place, card in enumerate(self.cards.values()):
            self._grid.addWidget(card, place // columns, place % columns)
        last = -(-len(self.cards) // columns)
        self._grid.addWidget(self.two_raters, last, 0, 1, columns)
        for place in range(2):
            self._grid.setColumnStretch(place, int(place < columns))
        for place in range(self._grid.rowCount() + 1):
            self._grid.setRowStretch(place, 0)
        self._grid.setRowStretch(last + 1, 1)

    def resizeEvent(self, event: QResizeEvent) -> None:
        """Follow the width."""
        super().resizeEvent(event)
        self._reflow()

    def changeEvent(self, event: QEvent) -> None:
        """Follow the text size."""
        super().changeEvent(event)
        if event.type() in FONT_EVENTS:
            self._reflow()


def _kappa(value: float | None) -> str:
    return "" if value is None else f" · Cohen’s kappa {value:.2f}"
