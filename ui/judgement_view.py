"""What a finished reward run is worth: how often it agrees with the rankings, how sure it is, where it is wrong."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from PySide6.QtCore import Qt
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
from ui.plain_text import visible
from ui.reliability_plot import ReliabilityPlot
from ui.theme import L, M, S
from ui.train_parts import PageScroll
from ui.widgets import Card, Pill, PlainText, SectionTitle, Text, column, plural, row
from workbench.judged_model import JudgedModel
from workbench.judgement import CONFIDENT, JudgedPair, Report, Share
from workbench.rows import PairRow

ROW_HEIGHT = 28
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
        self.plot = ReliabilityPlot()
        self.tables = {
            "By tag": ShareTable("Tag"),
            "By tier distance": ShareTable("Tiers apart"),
            "By score gap": ShareTable("Gap"),
            "By rater": ShareTable("Rater"),
            "By length": ShareTable("Side"),
        }
        self._cards: dict[str, Card] = {}
        self.wrong = WrongPairs()
        self._page = QWidget()
        self._page.setLayout(self._lay_out())
        self.setLayout(column(PageScroll(self._page)))

    def _lay_out(self) -> QGridLayout:
        grid = QGridLayout()
        grid.setContentsMargins(0, M, S, L)
        grid.setSpacing(M)
        heads = row(
            _figure("Accuracy", self.accuracy, self._evidence),
            _figure("Calibration error", self.calibration, self._calibration_words),
            _figure("Length bias", self.length, self._length_words),
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
        left = column(curve, self._cards["By tag"], self._cards["By rater"], None, spacing=M)
        right = column(
            self._cards["By score gap"], self._cards["By tier distance"], self._cards["By length"], None, spacing=M
        )
        grid.addLayout(left, 1, 0)
        grid.addLayout(right, 1, 1)
        grid.addWidget(self.wrong, 2, 0, 1, 2)
        grid.setColumnStretch(0, 1)
        grid.setColumnStretch(1, 1)
        grid.setRowStretch(3, 1)
        return grid

    def show_judged(self, judged: JudgedModel | None) -> None:
        """Show what is known of a model; None empties the page."""
        self._judged = judged
        if judged is None:
            self.wrong.show_pairs((), {})
            return
        told = judged.report
        self._show_figures(told)
        self.plot.set_bins(told.reliability)
        sides = tuple(one for one in (told.length.chosen_longer, told.length.chosen_shorter) if one.pairs)
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

    def _show_figures(self, told: Report) -> None:
        one, length = told.accuracy, told.length
        self.accuracy.setText(f"{one.accuracy:.1%}")
        self._evidence.setText(
            f"{one.low:.0%} to {one.high:.0%} with 95% confidence, from {plural(one.pairs, 'held-out pair')} of "
            f"{plural(one.rankings, 'ranking')}. A coin has 50%."
        )
        self.calibration.setText(f"{told.calibration_error:.1%}")
        self._calibration_words.setText("So far is how sure it is from how often it is right, on average.")
        self.length.setText(f"{length.correlation:+.2f}")
        self._length_words.setText(
            f"Correlation of score with length. It prefers the longer side in {length.model_prefers_longer:.0%} of the "
            f"pairs, the raters in {length.raters_prefer_longer:.0%}."
        )


class ShareTable(QTableWidget):
    """Shares as rows: name, pairs, accuracy, its interval in words and as a picture. As high as its rows."""

    def __init__(self, what: str, parent: QWidget | None = None) -> None:
        super().__init__(0, 4, parent)
        _dress(self)
        _head(self, [what, "Pairs", "Accuracy", "95% interval"], right=(1, 2))
        header = self.horizontalHeader()
        for place, mode in enumerate(
            (
                QHeaderView.ResizeMode.Stretch,
                QHeaderView.ResizeMode.ResizeToContents,
                QHeaderView.ResizeMode.ResizeToContents,
                QHeaderView.ResizeMode.Fixed,
            )
        ):
            header.setSectionResizeMode(place, mode)
        self.setColumnWidth(3, 120)
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
        self.setFixedHeight(self.horizontalHeader().sizeHint().height() + ROW_HEIGHT * len(shares) + 2)


class WrongPairs(Card):
    """The pairs of which the model surely prefers the side that the rater rejected."""

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__("Confident and wrong", parent=parent)
        self.pairs: tuple[JudgedPair, ...] = ()
        self._rows: Mapping[str, PairRow] = {}
        self.about = Text("", "small", "muted", wrap=True)
        self.table = QTableWidget(0, 3)
        self.table.setAccessibleName("Pairs that are judged confidently and wrongly")
        _dress(self.table)
        _head(self.table, ["Gap", "Sure", "Prompt"], right=(0, 1))
        for place in (0, 1):
            self.table.setColumnWidth(place, 72)
        self.table.horizontalHeader().setStretchLastSection(True)
        self.table.itemSelectionChanged.connect(self._on_row)
        self.gap = Pill()
        self.sure = Pill()
        self.apart = Pill()
        self.longer = Pill()
        self.prompt = PlainText(name="Prompt", fit=True, max_lines=4)
        self.chosen = PlainText(name="Chosen by the rater", fit=True, max_lines=10)
        self.rejected = PlainText(name="Rejected by the rater, preferred by the model", fit=True, max_lines=10)
        self.detail = QFrame()
        sides = row(
            column(SectionTitle("The rater chose"), self.chosen, None, spacing=S),
            column(SectionTitle("The model prefers"), self.rejected, None, spacing=S),
            spacing=M,
        )
        sides.setStretch(0, 1)
        sides.setStretch(1, 1)
        self.detail.setLayout(
            column(
                row(self.gap, self.sure, self.apart, self.longer, None, spacing=S),
                Text("Prompt", "small", "muted"),
                self.prompt,
                sides,
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
        shown = min(WRONG_ROWS, len(pairs))
        self.table.setFixedHeight(self.table.horizontalHeader().sizeHint().height() + ROW_HEIGHT * shown + 2)
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
        self.chosen.set_text(found.chosen if found else "")
        self.rejected.set_text(found.rejected if found else "")


def _figure(title: str, number: Text, words: Text) -> Card:
    card = Card()
    number.setAccessibleName(title)
    card.body.addWidget(Text(title, "small", "muted"))
    card.body.addWidget(number)
    card.body.addWidget(words)
    card.body.addStretch(1)
    return card


def _dress(table: QTableWidget) -> None:
    table.verticalHeader().hide()
    table.verticalHeader().setDefaultSectionSize(ROW_HEIGHT)
    table.setShowGrid(False)
    table.setFrameShape(QFrame.Shape.NoFrame)
    table.setWordWrap(False)
    table.setEditTriggers(QAbstractItemView.EditTrigger.NoEditTriggers)
    table.setSelectionBehavior(QAbstractItemView.SelectionBehavior.SelectRows)
    table.setSelectionMode(QAbstractItemView.SelectionMode.SingleSelection)
    table.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
    table.setTabKeyNavigation(False)
    table.horizontalHeader().setHighlightSections(False)


def _head(table: QTableWidget, titles: Sequence[str], right: Sequence[int]) -> None:
    """Name the columns; those of numbers (``right``) stand right."""
    for place, title in enumerate(titles):
        item = QTableWidgetItem(title)
        item.setTextAlignment(_RIGHT if place in right else _LEFT)
        table.setHorizontalHeaderItem(place, item)
