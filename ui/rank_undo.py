"""The ranking screen's way back: rankings of this sitting taken back and brought back, cards of before corrected."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from PySide6.QtCore import QObject, Signal, SignalInstance

from ui.context import Context
from ui.operations import run_task
from ui.rank_acts import SessionActs
from ui.rank_feed import RankFeed
from ui.rank_open import load_again
from ui.rank_session import RankItem, SessionStats, Work, load_item
from ui.rank_view import RankView
from ui.re_ask import ReAsks, card_of
from workbench.records import Change, Ranking


class RankUndo(QObject):
    """Keeps queue, statistics and earlier answers right while rankings go and come back.

    ``opened(prompt_id, item)``: a card of before was read, None where it has fewer than two responses;
    ``redone(Ranking)``: one was brought back by :meth:`redo`.
    """

    opened: SignalInstance = Signal(str, object)  # type: ignore[assignment]
    redone: SignalInstance = Signal(object)  # type: ignore[assignment]

    def __init__(
        self,
        context: Context,
        view: RankView,
        feed: RankFeed,
        re_asks: ReAsks,
        at_hand: Callable[[], list[Work]],
        parent: QObject | None = None,
    ) -> None:
        super().__init__(parent)
        self._context = context
        self._view = view
        self._feed = feed
        self._re_asks = re_asks
        self._at_hand = at_hand
        self.acts = SessionActs(context, self)
        self.stats = SessionStats()

    # ---- the queue ------------------------------------------------------------------------------------------

    def let_go(self, prompt_id: str) -> None:
        """Let a prompt come up by itself again, unless a card of it is at hand."""
        if prompt_id not in self._prompts_at_hand():
            self._feed.let_go(prompt_id)

    def done_with(self, ranking: Ranking) -> None:
        """Tell the queue of what was saved: an answer given once more says nothing of whether its prompt waits."""
        if self._re_asks.repeats(ranking) is None:
            self._feed.done(ranking)
        else:
            self._feed.let_go(ranking.prompt_id)

    def on_changed(self, change: Change) -> None:
        """Follow undo and redo that came from elsewhere (the window's menu)."""
        undone, redone = self.acts.on_changed(change)
        at_hand = self._prompts_at_hand()
        for ranking in undone:
            self.stats.remove(ranking.id)
            if ranking.prompt_id not in at_hand:
                self._feed.give_back(ranking.prompt_id)
        self._count(redone)
        for ranking in redone:
            if ranking.prompt_id not in at_hand:
                self.done_with(ranking)

    # ---- back and forth -------------------------------------------------------------------------------------

    def undo(self) -> None:
        """Take the last ranking of this sitting back, or open it to be corrected where something is newer."""
        if self.acts.last is None:
            self._view.footer.say("Nothing of this session to take back. Earlier… (H) opens a card of before.")
        else:
            self._feed.hold_back(self.acts.last.prompt_id)  # it comes back by this way alone
            self.acts.undo(self._on_undone, self.correct, self._on_failed)

    def redo(self) -> None:
        """Bring back the ranking that was taken back last."""
        if self.acts.next is not None:
            self.acts.redo(self._on_redone, self._on_failed)

    def correct(self, ranking: Ranking) -> None:
        """Open a card of before again; what is saved then supersedes it."""
        if self._re_asks.repeats(ranking) is not None:
            self.let_go(ranking.prompt_id)
            self._view.footer.say("Something else was done since: Edit, Undo takes that back first.", "warn")
            return
        self._read(ranking.prompt_id, partial(load_again, self._context.store, ranking))

    def _on_undone(self, ranking: Ranking) -> None:
        self.stats.remove(ranking.id)
        store, rater_id = self._context.store, self._context.rater.id
        places_of = ranking if ranking.outcome == "ranked" else None
        if (first := self._re_asks.repeats(ranking)) is not None:
            self._read(first.prompt_id, partial(card_of, store, first))
        else:
            read = partial(load_item, store, ranking.prompt_id, rater_id=rater_id, places_of=places_of)
            self._read(ranking.prompt_id, read)
        self._context.notify("The last ranking was taken back; Ctrl+Shift+Z brings it back.")

    def _on_redone(self, ranking: Ranking) -> None:
        self._count([ranking])
        self.redone.emit(ranking)

    def _on_failed(self, error: BaseException) -> None:
        if self.acts.last is not None:
            self.let_go(self.acts.last.prompt_id)
        self._view.warning.show_error(error)
        self._view.footer.say("Nothing was changed.", "bad")

    def _read(self, prompt_id: str, read: Callable[[], RankItem | None]) -> None:
        run_task(read, partial(self.opened.emit, prompt_id), owner=self)

    def _count(self, rankings: list[Ranking]) -> None:
        for ranking in self._re_asks.without_answers(rankings):
            self.stats.add(ranking)

    def _prompts_at_hand(self) -> set[str]:
        return {work.item.prompt.id for work in self._at_hand()}
