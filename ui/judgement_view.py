"""What a finished reward run is worth: how often it agrees with the rankings, how sure it is, where it is wrong."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from PySide6.QtCore import QEvent, Qt, Signal, SignalInstance
from PySide6.QtGui import QResizeEvent
from PySide6.QtWidgets import (
    QAbstractItemView,
    QFrame,
    QGridLayout,
    QHeaderView,
    QTableWidget,
    QTableWidgetItem,
    QWidget,
)

from ui.interval_bar import IntervalDelegate
from ui.labels import FONT_EVENTS
from ui.plain_text import visible
from ui.reliability_plot import ReliabilityPlot
from ui.theme import L, M, S
from ui.train_parts import PageScroll
from ui.widgets import Card, Pill, PlainText, SectionTitle, Text, button, column, plural, row
from workbench.agreement import Noise
from workbench.judged_model import JudgedModel
from workbench.judgement import CONFIDENT, JudgedPair, Report, Share
from workbench.rows import PairRow

ROW_PADDING = 12
HEAD_PADDING = 4
TWO_COLUMNS = 100  # digits wide; what is narrower has its parts one below the other
WRONG_ROWS = 7  # seen at once
MOST_WRONG = 200  # listed; the worst
MOST_TAGS = 12
_LEFT = Qt.AlignmentFlag.AlignLeft | Qt.AlignmentFlag.AlignVCenter
_RIGHT = Qt.AlignmentFlag.AlignRight | Qt.AlignmentFlag.AlignVCenter


class JudgementView(QWidget):
    """A page of numbers above, the list of confident mistakes below."""

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._judged: JudgedModel | None = None
        self.accuracy = Text("", "number")
        self._evidence = Text("", "small", "muted", wrap=True)
        self.calibration = Text("", "number")
        self._calibration_words = Text("", "small", "muted", wrap=True)
        self.length = Text("", "number")
        self._length_words = Text("", "small", "muted", wrap=True)
        self.spread = Text("", "number")
        self._spread_words = Text("", "small", "muted", wrap=True)
        self._spread_card = _figure("Spread of the heads", self.spread, self._spread_words)
        self._spread_card.hide()
        self.plot = ReliabilityPlot()
        self.tables = {
            "By tag": ShareTable("Tag"),
            "By tier distance": ShareTable("Tiers apart"),
            "By score gap": ShareTable("Gap"),
            "By rater": ShareTable("Rater"),
            "By length": ShareTable("Chosen is"),
        }
        self._cards: dict[str, Card] = {}
        self.wrong = WrongPairs()
        self._page = QWidget()
        self._grid = self._lay_out()
        self._page.setLayout(self._grid)
        self._columns = 0
        self._reflow()
        self.setLayout(column(PageScroll(self._page)))

    def _lay_out(self) -> QGridLayout:
        grid = QGridLayout()
        grid.setContentsMargins(0, M, S, L)
        grid.setSpacing(M)
        heads = row(
            _figure("Accuracy", self.accuracy, self._evidence),
            _figure("Calibration error", self.calibration, self._calibration_words),
            _figure("Length bias", self.length, self._length_words),
            self._spread_card,
            spacing=M,
        )
        grid.addLayout(heads, 0, 0, 1, 2)
        curve = Card("How sure it is, and how often right")
        curve.body.addWidget(
            Text("Dots below the dashed line: surer than right. Larger dots: more pairs.", "small", "muted", wrap=True)
        )
        curve.body.addWidget(self.plot)
        curve.body.addStretch(1)
        for title, table in self.tables.items():
            self._cards[title] = card = Card(title)
            table.setAccessibleName(f"Accuracy {title.lower()}")
            card.body.addWidget(table)
            card.body.addStretch(1)
        self._left, self._right = QWidget(), QWidget()
        self._left.setLayout(column(curve, self._cards["By tag"], self._cards["By rater"], None, spacing=M))
        self._right.setLayout(
            column(
                self._cards["By score gap"], self._cards["By tier distance"], self._cards["By length"], None, spacing=M
            )
        )
        grid.addWidget(self.wrong, 3, 0, 1, 2)
        grid.setColumnStretch(0, 1)
        grid.setColumnStretch(1, 1)
        grid.setRowStretch(4, 1)
        return grid

    def _reflow(self) -> None:
        """Lay curve and tables side by side where there is room, one below the other where there is not."""
        columns = 2 if self.width() >= TWO_COLUMNS * self.fontMetrics().horizontalAdvance("0") else 1
        if columns == self._columns:
            return
        self._columns = columns
        for part in (self._left, self._right):
            self._grid.removeWidget(part)
        if columns == 2:
            self._grid.addWidget(self._left, 1, 0)
            self._grid.addWidget(self._right, 1, 1)
        else:
            self._grid.addWidget(self._left, 1, 0, 1, 2)
            self._grid.addWidget(self._right, 2, 0, 1, 2)

    def resizeEvent(self, event: QResizeEvent) -> None:
        """Follow the width."""
        super().resizeEvent(event)
        self._reflow()

    def changeEvent(self, event: QEvent) -> None:
        """Follow the text size."""
        super().changeEvent(event)
        if event.type() in FONT_EVENTS:
            self._reflow()

    def show_judged(self, judged: JudgedModel | None) -> None:
        """Show what is known of a model; None empties the page."""
        self._judged = judged
        if judged is None:
            self.wrong.show_pairs((), {})
            return
        told = judged.report
        self._show_figures(told, judged.noise)
        self.plot.set_bins(told.reliability)
        sides = tuple(
            replace(one, name=name)  # the head of the column says the rest
            for name, one in (("longer", told.length.chosen_longer), ("shorter", told.length.chosen_shorter))
            if one.pairs
        )
        for title, shares in (
            ("By tag", tuple(sorted(told.by_tag, key=lambda one: -one.pairs)[:MOST_TAGS])),
            ("By tier distance", told.by_tier_distance),
            ("By score gap", told.by_gap),
            ("By rater", told.by_rater),
            ("By length", sides),
        ):
            self.tables[title].show_shares(shares)
            self._cards[title].setVisible(bool(shares))
        self.wrong.show_pairs(told.confident_and_wrong, judged.rows)

    def _show_figures(self, told: Report, noise: Noise | None) -> None:
        one, length = told.accuracy, told.length
        self.accuracy.setText(f"{one.accuracy:.1%}")
        self._evidence.setText(
            f"{one.low:.0%} to {one.high:.0%} with 95% confidence, from {plural(one.pairs, 'held-out pair')} of "
            f"{plural(one.rankings, 'ranking')} of {plural(one.prompts, 'prompt')}. A coin has 50%."
            + (f" Labels as consistent as these bound it at {noise.ceiling:.0%}." if noise else "")
        )
        self.calibration.setText(f"{told.calibration_error:.1%}")
        self._calibration_words.setText("How far its confidence is from how often it is right, on average.")
        self.length.setText(f"{length.correlation:+.2f}")
        self._length_words.setText(
            f"Correlation of score with length. It prefers the longer side in {length.model_prefers_longer:.0%} of the "
            f"pairs, the raters in {length.raters_prefer_longer:.0%}."
        )
        apart = told.uncertainty
        self._spread_card.setVisible(apart is not None)
        if apart is not None:
            self.spread.setText(f"{apart.mean_std:.2f}")
            self._spread_words.setText(
                f"{apart.wrong_std:.2f} where it is wrong, {apart.right_std:.2f} where it is right. A wrong pair has "
                f"the larger spread in {apart.larger_on_wrong:.0%} of the comparisons; 50% would say nothing."
            )


class FitTable(QTableWidget):
    """A table to read, as high as its rows, and no higher than ``most`` of them (0: all)."""

    def __init__(
        self, titles: Sequence[str], right: Sequence[int], most: int = 0, parent: QWidget | None = None
    ) -> None:
        super().__init__(0, len(titles), parent)
        self._most = most
        self.verticalHeader().hide()
        self.setShowGrid(False)
        self.setFrameShape(QFrame.Shape.NoFrame)
        self.setWordWrap(False)
        self.setEditTriggers(QAbstractItemView.EditTrigger.NoEditTriggers)
        self.setSelectionBehavior(QAbstractItemView.SelectionBehavior.SelectRows)
        self.setSelectionMode(QAbstractItemView.SelectionMode.SingleSelection)
        self.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        self.setTabKeyNavigation(False)
        self.horizontalHeader().setHighlightSections(False)
        for place, title in enumerate(titles):
            item = QTableWidgetItem(title)
            item.setTextAlignment(_RIGHT if place in right else _LEFT)
            self.setHorizontalHeaderItem(place, item)

    def changeEvent(self, event: QEvent) -> None:
        """Follow the text size."""
        super().changeEvent(event)
        if event.type() in FONT_EVENTS:
            self.fit()

    def fit(self) -> None:
        """Take the height of the rows."""
        height = self.fontMetrics().height() + ROW_PADDING
        self.verticalHeader().setDefaultSectionSize(height)
        rows = min(self.rowCount(), self._most or self.rowCount())
        self.horizontalHeader().setFixedHeight(height + HEAD_PADDING)  # its own hint lags behind the text size
        self.setFixedHeight(height * (rows + 1) + HEAD_PADDING + 2)


class ShareTable(FitTable):
    """Shares as rows: name, pairs, accuracy, its interval in words and as a picture."""

    def __init__(self, what: str, share: str = "Accuracy", parent: QWidget | None = None) -> None:
        super().__init__([what, "Pairs", share, "95% CI"], right=(1, 2), parent=parent)
        header = self.horizontalHeader()
        for place, mode in enumerate(
            (
                QHeaderView.ResizeMode.Stretch,
                QHeaderView.ResizeMode.ResizeToContents,
                QHeaderView.ResizeMode.ResizeToContents,
                QHeaderView.ResizeMode.ResizeToContents,
            )
        ):
            header.setSectionResizeMode(place, mode)
        self.setItemDelegateForColumn(3, IntervalDelegate(self))
        self.setVerticalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)

    def show_shares(self, shares: Sequence[Share]) -> None:
        """Show other shares."""
        self.setRowCount(len(shares))
        for line, one in enumerate(shares):
            interval = f"{one.low:.0%} to {one.high:.0%}"
            for place, text in enumerate((visible(one.name), f"{one.pairs:,}", f"{one.accuracy:.1%}", interval)):
                item = QTableWidgetItem(text)
                if place in (1, 2):
                    item.setTextAlignment(_RIGHT)
                if place == 3:
                    item.setData(Qt.ItemDataRole.UserRole, one)
                    item.setToolTip(interval)
                item.setData(Qt.ItemDataRole.AccessibleTextRole, text)
                self.setItem(line, place, item)
        self.fit()


class WrongPairs(Card):
    """The pairs of which the model surely prefers the side that the rater rejected.

    ``to_rank(what)``: open the label of the pair that is shown, by its ``prompt_id`` and ``ranking_id``.
    """

    to_rank: SignalInstance = Signal(object)  # type: ignore[assignment]

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__("Confident and wrong", parent=parent)
        self.pairs: tuple[JudgedPair, ...] = ()
        self._rows: Mapping[str, PairRow] = {}
        self.about = Text("", "small", "muted", wrap=True)
        self.table = FitTable(["Gap", "Sure", "Prompt"], right=(0, 1), most=WRONG_ROWS)
        self.table.setAccessibleName("Pairs that are judged confidently and wrongly")
        for place in (0, 1):
            self.table.horizontalHeader().setSectionResizeMode(place, QHeaderView.ResizeMode.ResizeToContents)
        self.table.horizontalHeader().setStretchLastSection(True)
        self.table.itemSelectionChanged.connect(self._on_row)
        self.gap = Pill()
        self.sure = Pill()
        self.apart = Pill()
        self.longer = Pill()
        self.open = button(
            "Open in Rank", self._on_open, tip="Look at the label of this pair again", name="wrong-to-rank"
        )
        self.table.itemActivated.connect(lambda _: self._on_open())
        self.prompt = PlainText(name="Prompt", fit=True, max_lines=4)
        self.chosen = PlainText(name="Chosen by the rater", fit=True, max_lines=10)
        self.rejected = PlainText(name="Rejected by the rater, preferred by the model", fit=True, max_lines=10)
        self.detail = QFrame()
        self._sides = QWidget()
        sides = row(
            column(SectionTitle("The rater chose"), self.chosen, None, spacing=S),
            column(SectionTitle("The model prefers"), self.rejected, None, spacing=S),
            spacing=M,
        )
        sides.setStretch(0, 1)
        sides.setStretch(1, 1)
        self._sides.setLayout(sides)
        self.detail.setLayout(
            column(
                row(self.gap, self.sure, self.apart, self.longer, None, self.open, spacing=S),
                Text("Prompt", "small", "muted"),
                self.prompt,
                self._sides,
                spacing=S,
                margins=(0, S, 0, 0),
            )
        )
        for part in (self.about, self.table, self.detail):
            self.body.addWidget(part)

    def show_pairs(self, pairs: Sequence[JudgedPair], rows: Mapping[str, PairRow]) -> None:
        """Show other pairs, the worst first and chosen."""
        self.pairs, self._rows = tuple(pairs[:MOST_WRONG]), rows
        some = bool(pairs)
        self.about.setText(
            f"{plural(len(pairs), 'pair')} of which the model is at least {CONFIDENT:.0%} sure that the rejected side "
            "is better. Each is a mistake of the model, or one of the labels."
            + (f" The worst {MOST_WRONG} are listed." if len(pairs) > MOST_WRONG else "")
            if some
            else f"There is none: on no pair is the model at least {CONFIDENT:.0%} sure of the wrong side."
        )
        self.table.setVisible(some)
        self.detail.setVisible(some)
        self.table.blockSignals(True)
        self.table.setRowCount(len(self.pairs))
        for line, one in enumerate(self.pairs):
            found = rows.get(one.id)
            title = " ".join(found.prompt[-1].content.split())[:300] if found else one.id
            for place, text in enumerate((f"{one.gap:+.2f}", f"{one.confidence:.0%}", visible(title))):
                item = QTableWidgetItem(text)
                if place < 2:
                    item.setTextAlignment(_RIGHT)
                self.table.setItem(line, place, item)
        self.table.blockSignals(False)
        self.table.fit()
        if some:
            self.table.selectRow(0)
            self._on_row()

    def _on_row(self) -> None:
        line = self.table.currentRow()
        if not 0 <= line < len(self.pairs):
            return
        one = self.pairs[line]
        self.gap.set(f"Gap {one.gap:+.2f}", "bad")
        self.sure.set(f"{one.confidence:.0%} sure", "warn")
        self.apart.set(f"{plural(one.tier_distance, 'tier')} apart")
        length = one.length_difference
        words = f"{plural(abs(length), 'token')} {'longer' if length > 0 else 'shorter'}" if length else "as long"
        self.longer.set(f"the chosen side is {words}")
        found = self._rows.get(one.id)
        self.prompt.set_text(found.prompt[-1].content if found else "The texts of this pair are no longer there.")
        self._sides.setVisible(found is not None)
        self.open.setVisible(found is not None)
        self.chosen.set_text(found.chosen if found else "")
        self.rejected.set_text(found.rejected if found else "")

    def _on_open(self) -> None:
        line = self.table.currentRow()
        found = self._rows.get(self.pairs[line].id) if 0 <= line < len(self.pairs) else None
        if found is not None:
            self.to_rank.emit({"prompt_id": found.group, "ranking_id": found.ranking_id})


def _figure(title: str, number: Text, words: Text) -> Card:
    card = Card()
    number.setAccessibleName(title)
    card.body.addWidget(Text(title, "small", "muted"))
    card.body.addWidget(number)
    card.body.addWidget(words)
    card.body.addStretch(1)
    return card
