"""Keeps the next cards ready before they are asked for, read on a worker thread."""

from __future__ import annotations

from collections import deque

from PySide6.QtCore import QObject, Signal, SignalInstance

from ui.context import Context
from ui.operations import run_task
from ui.rank_session import RankItem, load_item
from workbench.records import Change, Ranking

READY = 3
"""Cards kept ready: one is enough for the eye, three for a fast hand."""


class RankFeed(QObject):
    """What to rank next.

    ``arrived()`` tells that a card is ready after there was none; ``counted(int)`` how many prompts wait to be
    ranked.
    """

    arrived: SignalInstance = Signal()  # type: ignore[assignment]
    counted: SignalInstance = Signal(int)  # type: ignore[assignment]

    def __init__(self, context: Context, parent: QObject | None = None) -> None:
        super().__init__(parent)
        self._context = context
        self._ready: deque[RankItem] = deque()
        self._held: set[str] = set()  # on screen, or put aside unfinished
        self._passed_over: set[str] = set()  # skipped in this sitting: not again, unless it is asked for
        self._orders: dict[str, str] = {}  # ranking ids given out before their card was read (live views)
        self._rater_id = context.rater.id
        self._turn = 0  # what was read before a card was done knows nothing of it
        self._loading = False
        self._again = False
        self._stale = False
        self.waiting = 0

    @property
    def passed_over(self) -> frozenset[str]:
        """Prompts skipped in this sitting; not all of them need still wait."""
        return frozenset(self._passed_over)

    def take(self) -> RankItem | None:
        """Return the next card now, or None when none is ready (``arrived`` will tell)."""
        item = self._ready.popleft() if self._ready else None
        if item is not None:
            self._held.add(item.prompt.id)
            self.waiting = max(0, self.waiting - 1)
        self.refill()
        return item

    def done(self, ranking: Ranking) -> None:
        """A card was saved: from now on the store knows whether its prompt waits, unless it was only skipped."""
        if ranking.outcome == "skipped":
            self._passed_over.add(ranking.prompt_id)
        else:
            self._passed_over.discard(ranking.prompt_id)
        if self._orders.get(ranking.prompt_id) == ranking.id:
            del self._orders[ranking.prompt_id]
        self.let_go(ranking.prompt_id)

    def let_go(self, prompt_id: str) -> None:
        """A card is on screen no more."""
        self._held.discard(prompt_id)
        self._turn += 1
        self.refill()

    def give_back(self, prompt_id: str) -> None:
        """Let a prompt come up again: its ranking was undone."""
        self._passed_over.discard(prompt_id)
        self.let_go(prompt_id)

    def hold_back(self, prompt_id: str) -> None:
        """Keep a prompt from coming up by itself: it is on screen by another way."""
        self._held.add(prompt_id)
        self._ready = deque(one for one in self._ready if one.prompt.id != prompt_id)

    def start_over(self) -> None:
        """Let skipped prompts come up again."""
        self._passed_over.clear()
        self.refill()

    def follow_rater(self) -> bool:
        """Begin anew when somebody else judges now; returns whether that is so."""
        if self._rater_id == self._context.rater.id:
            return False
        self._rater_id = self._context.rater.id
        self._held.clear()
        self._passed_over.clear()
        self._ready.clear()
        self._turn += 1
        self.refill()
        return True

    def promise(self, prompt_id: str, ranking_id: str) -> None:
        """Name the ranking id, and so the order, that a card will have once its responses are there."""
        self._orders[prompt_id] = ranking_id

    def refill(self) -> None:
        """Read what is missing, off the window's thread; one reading at a time."""
        if self._loading:
            self._again = True
            return
        self._loading = True
        store, rater_id = self._context.store, self._context.rater.id
        turn, held, passed_over = self._turn, tuple(self._held), tuple(self._passed_over)
        orders = dict(self._orders)
        kept = {} if self._stale else {one.prompt.id: one for one in self._ready}
        self._stale = False

        def work() -> tuple[int, list[RankItem]]:
            ids = store.next_to_rank(rater_id=rater_id, exclude=held, passed_over=passed_over)
            found: list[RankItem] = []
            for prompt_id in ids:
                item = kept.get(prompt_id) or load_item(
                    store, prompt_id, rater_id=rater_id, ranking_id=orders.get(prompt_id, "")
                )
                if item is not None:
                    found.append(item)
                if len(found) >= READY:
                    break
            return len(ids), found

        run_task(work, lambda found: self._on_loaded(turn, *found), self._on_failed, owner=self)

    def on_changed(self, change: Change) -> None:
        """Follow the project: new responses, archived prompts, undone rankings."""
        if change.kinds & {"responses", "prompts", "rankings"}:
            self._stale = True  # what is ready stays at hand until it has been read anew
            self.refill()

    def _on_loaded(self, turn: int, count: int, items: list[RankItem]) -> None:
        self._loading = False
        if turn != self._turn:
            self._again = False
            self.refill()
            return
        fresh = [one for one in items if one.prompt.id not in self._held]
        was_empty = not self._ready
        self._ready = deque(fresh)
        self.waiting = count - (len(items) - len(fresh))
        self.counted.emit(self.waiting)
        if self._again:
            self._again = False
            self.refill()
        if was_empty and self._ready:
            self.arrived.emit()

    def _on_failed(self, error: BaseException) -> None:
        self._loading = False
        self._context.show_error(error)
