"""The rater's earlier cards, newest first, to open one again and correct it."""

from __future__ import annotations

from datetime import datetime

from PySide6.QtCore import Qt, Signal, SignalInstance
from PySide6.QtWidgets import QDialog, QLineEdit, QListWidget, QListWidgetItem, QPushButton, QWidget

from ui.context import Context
from ui.operations import run_task
from ui.rank_session import seconds_text
from ui.theme import M, S
from ui.widgets import Text, button, column, row
from workbench.records import Prompt, Ranking

MOST = 500
_SEARCHED = Qt.ItemDataRole.UserRole + 1
_OUTCOMES = {"ranked": "", "skipped": "skipped", "cannot-rank": "cannot be ranked"}


class RankHistoryDialog(QDialog):
    """Lists current rankings; ``picked(Ranking)`` is sent when one is opened."""

    picked: SignalInstance = Signal(object)  # type: ignore[assignment]

    def __init__(self, context: Context, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.setObjectName("rank-history")
        self.setWindowTitle("Earlier cards")
        self.resize(640, 480)
        self.search = QLineEdit()
        self.search.setPlaceholderText("Search in prompts and notes")
        self.search.setAccessibleName("Search earlier cards")
        self.search.setClearButtonEnabled(True)
        self.search.textChanged.connect(self._filter)
        self.list = QListWidget()
        self.list.setAccessibleName("Earlier cards, newest first")
        self.list.setUniformItemSizes(True)
        self.list.itemActivated.connect(self._on_chosen)
        self.list.currentItemChanged.connect(lambda *_: self.go.setEnabled(self.list.currentItem() is not None))
        self.about = Text(
            "A correction is a new ranking that supersedes the old one; both are kept.", "small", "muted", wrap=True
        )
        self.go: QPushButton = button(
            "Open", lambda: self._on_chosen(self.list.currentItem()), kind="primary", name="open"
        )
        self.go.setEnabled(False)
        buttons = row(None, button("Close", self.reject), self.go, spacing=S)
        self.setLayout(column(self.search, self.list, self.about, buttons, spacing=M, margins=(M, M, M, M)))
        store, rater_id = context.store, context.rater.id

        def work() -> tuple[list[Ranking], dict[str, Prompt]]:
            newest = store.rankings(rater_id=rater_id)[::-1][:MOST]
            return newest, store.prompts_by_id([one.prompt_id for one in newest])

        run_task(work, self._on_loaded, owner=self)

    def _on_loaded(self, loaded: tuple[list[Ranking], dict[str, Prompt]]) -> None:
        rankings, prompts = loaded
        for one in rankings:
            prompt = prompts.get(one.prompt_id)
            if prompt is None:
                continue
            item = QListWidgetItem(f"{prompt.title[:200]}\n{_about(one)}")
            item.setData(Qt.ItemDataRole.UserRole, one)
            item.setData(_SEARCHED, f"{prompt.title} {one.note}".casefold())
            self.list.addItem(item)
        if self.list.count():
            self.list.setCurrentRow(0)
        else:
            self.about.setText("There is no ranking of yours in this project yet.")

    def _filter(self, wanted: str) -> None:
        words = wanted.casefold().split()
        for index in range(self.list.count()):
            item = self.list.item(index)
            item.setHidden(not all(word in item.data(_SEARCHED) for word in words))

    def _on_chosen(self, item: QListWidgetItem | None) -> None:
        if item is not None:
            self.picked.emit(item.data(Qt.ItemDataRole.UserRole))
            self.accept()


def _about(ranking: Ranking) -> str:
    when = datetime.fromisoformat(ranking.created_at).astimezone().strftime("%d %b %H:%M")
    tied = "with ties" if any(len(tier) > 1 for tier in ranking.tiers) else ""
    parts = [when, _OUTCOMES[ranking.outcome], seconds_text(ranking.seconds), tied, ranking.note]
    return " · ".join(part for part in parts if part)
