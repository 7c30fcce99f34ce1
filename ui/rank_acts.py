"""What was judged in this sitting, and taking it back: through the store's undo where it is the newest act."""

from __future__ import annotations

from collections.abc import Callable

from PySide6.QtCore import QObject

from ui.context import Context
from ui.operations import bind_future, run_task
from workbench.records import Change, Ranking

Told = Callable[[Ranking], None]
Failure = Callable[[BaseException], None]


class SessionActs(QObject):
    """Rankings of this sitting, newest last, with what the store's undo says of each."""

    def __init__(self, context: Context, parent: QObject | None = None) -> None:
        super().__init__(parent)
        self._context = context
        self._done: list[tuple[Ranking, str]] = []
        self._undone: list[tuple[Ranking, str]] = []
        self._busy = False

    @property
    def last(self) -> Ranking | None:
        """The newest act that was not taken back."""
        return self._done[-1][0] if self._done else None

    @property
    def next(self) -> Ranking | None:
        """The act that redo would bring back."""
        return self._undone[-1][0] if self._undone else None

    def add(self, ranking: Ranking, label: str) -> None:
        """Note an act that was committed; ``label`` is its Change's."""
        self._done.append((ranking, label))
        self._undone.clear()

    def undo(self, undone: Told, newer: Told, failed: Failure) -> None:
        """Take the newest act back: ``undone(ranking)`` after the commit.

        ``newer(ranking)`` is called instead when something else was done in the project since: undo would take that
        back, so the ranking is to be corrected.
        """
        ranking, label = self._done[-1]

        def step(_change: Change) -> None:
            self._busy = False
            self._undone.append(self._done.pop())
            undone(ranking)

        def look(top: str) -> None:
            if top == label:
                bind_future(self._context.store.undo(), step, self._ending(failed), owner=self)
            else:
                self._busy = False
                newer(ranking)

        self._busy = True
        run_task(self._context.store.undo_label, look, self._ending(failed), owner=self)

    def redo(self, redone: Told, failed: Failure) -> None:
        """Bring the act back that was taken back last: ``redone(ranking)`` after the commit.

        Where something else was done since there is nothing to bring back, and nothing is called.
        """
        ranking, label = self._undone[-1]

        def step(_change: Change) -> None:
            self._busy = False
            self._done.append(self._undone.pop())
            redone(ranking)

        def look(top: str) -> None:
            if top == label:
                bind_future(self._context.store.redo(), step, self._ending(failed), owner=self)
            else:
                self._busy = False
                self._undone.clear()

        self._busy = True
        run_task(self._context.store.redo_label, look, self._ending(failed), owner=self)

    @property
    def busy(self) -> bool:
        """An undo or redo is on its way."""
        return self._busy

    def on_changed(self, change: Change) -> tuple[list[Ranking], list[Ranking]]:
        """Follow undo and redo that came from elsewhere (the window's menu).

        Returns:
            Rankings of this sitting that were taken back, and such as were brought back.
        """
        if self._busy or change.label or "rankings" not in change.kinds:
            return [], []  # an act of undo or redo has no label of its own: it cannot itself be undone
        ids = set(change.ids)
        gone = [one for one in self._done if one[0].id in ids]
        back = [one for one in self._undone if one[0].id in ids]
        self._done = [one for one in self._done if one[0].id not in ids] + back
        self._undone = [one for one in self._undone if one[0].id not in ids] + gone
        return [one for one, _ in gone], [one for one, _ in back]

    def _ending(self, failed: Failure) -> Failure:
        def ended(error: BaseException) -> None:
            self._busy = False
            failed(error)

        return ended
