"""Now and then an earlier card comes back in Rank, shuffled anew and without its old answer: how alike are the two?"""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import Future
from functools import partial

from PySide6.QtCore import QObject, Signal, SignalInstance

from ui.context import Context
from ui.operations import run_task
from ui.rank_session import RankItem, shuffled
from ui.settings import Settings
from workbench.ids import new_id
from workbench.re_asks import due, stands
from workbench.records import Change, Ranking
from workbench.store import Store

DEFAULT_EVERY = 20
_KEY = "rank.re-ask-every"


def every_of(settings: Settings) -> int:
    """Return after how many judgements an earlier card is asked for again; 0 for never."""
    given = settings.pane(_KEY, str(DEFAULT_EVERY))
    return int(given) if given.isdigit() else DEFAULT_EVERY


def set_every(settings: Settings, every: int) -> None:
    """Keep another number."""
    settings.set_pane(_KEY, str(every))


def card_of(store: Store, first: Ranking) -> RankItem | None:
    """Make the card that asks for a ranking again: the same responses in another order, nothing filled in.

    None where some of them are gone.
    """
    prompt = store.prompt(first.prompt_id)
    placed = [id_ for tier in first.tiers for id_ in tier]
    known = store.responses_by_id(placed)
    if prompt is None or len(known) < len(placed):
        return None
    ranking_id = new_id()
    order = shuffled(ranking_id, placed)
    if order == first.shown_order:
        order = order[::-1]
    return RankItem(ranking_id, prompt, tuple(known[id_] for id_ in order), re_asks=first)


class ReAsks(QObject):
    """Looks after each judgement whether a card is due, off the window's thread.

    ``withdrawn(set[str])``: ids of cards at hand that repeat what stands no more, so that they cannot be saved.
    """

    withdrawn: SignalInstance = Signal(object)  # type: ignore[assignment]

    def __init__(self, context: Context, parent: QObject | None = None) -> None:
        super().__init__(parent)
        self._context = context
        self._ready: RankItem | None = None
        self._looking = False
        self._turn = 0  # what was found before a change knows nothing of it
        self._answers: dict[str, Ranking] = {}  # by the answer's id, what it repeats

    def save(self, ranking: Ranking, item: RankItem | None) -> Future[Change]:
        """Save a judgement as what its card asked for: a ranking, or the answer to one that is asked again."""
        first = item.re_asks if item else None
        if first is None:
            return self._context.store.save_ranking(ranking)
        self._answers[ranking.id] = first
        return self._context.store.save_re_ask(ranking, first.id)

    def repeats(self, ranking: Ranking) -> Ranking | None:
        """Return the ranking that a judgement of this sitting repeats; None for one that stands by itself."""
        return self._answers.get(ranking.id)

    def without_answers(self, rankings: Iterable[Ranking]) -> list[Ranking]:
        """Leave out what only repeats another judgement: the sitting counts each prompt once."""
        return [one for one in rankings if one.id not in self._answers]

    def look(self) -> None:
        """Find what is due, for the next card or the one after it."""
        every = every_of(self._context.settings)
        if self._looking or self._ready is not None or not every or self._context.read_only:
            return
        self._looking = True
        store, rater_id = self._context.store, self._context.rater.id

        def work() -> RankItem | None:
            first = due(store, rater_id, every)
            return card_of(store, first) if first else None

        run_task(work, partial(self._on_found, self._turn), self._on_failed, owner=self)

    def take(self) -> RankItem | None:
        """Return the card that is due, once; None where there is none, or somebody else judges now."""
        item, self._ready = self._ready, None
        return item if item and self.is_own(item) and every_of(self._context.settings) else None

    def is_own(self, item: RankItem) -> bool:
        """Whether a card may be shown to whoever judges now: nobody can say once more what another has said."""
        return item.re_asks is None or item.re_asks.rater_id == self._context.rater.id

    def on_judged(self, ranking: Ranking) -> None:
        """Drop what was ready of a prompt that was just judged: it may ask for what was corrected."""
        self._turn += 1
        if self._ready is not None and self._ready.prompt.id == ranking.prompt_id:
            self._ready = None
        self.look()

    def on_changed(self, change: Change, at_hand: Iterable[RankItem]) -> None:
        """Follow the project: withdraw cards, ready or at hand, that ask for what was corrected, undone or archived."""
        if not change.kinds & {"rankings", "prompts"}:
            return
        self._turn += 1
        asked = {one.ranking_id: one.re_asks.id for one in (*at_hand, self._ready) if one and one.re_asks}
        store = self._context.store

        def work() -> set[str]:
            return {card for card, first in asked.items() if not stands(store, first)}

        if asked:
            run_task(work, self._on_gone, self._context.show_error, owner=self)

    def _on_gone(self, cards: set[str]) -> None:
        if self._ready is not None and self._ready.ranking_id in cards:
            self._ready = None
            self.look()
        if cards:
            self.withdrawn.emit(cards)

    def _on_found(self, turn: int, item: RankItem | None) -> None:
        self._looking = False
        if turn == self._turn:
            self._ready = item
        else:
            self.look()

    def _on_failed(self, error: BaseException) -> None:
        self._looking = False
        self._context.show_error(error)
