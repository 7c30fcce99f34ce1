"""What every pane is given: the project, the engine, the rater, and how to speak to the rest of the window."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import shiboken6
from PySide6.QtCore import QObject, Signal, SignalInstance

from ui.operations import Operations, operations

if TYPE_CHECKING:
    from ui.engine_service import EngineLike
    from ui.settings import Settings
    from ui.theme import Theme
    from workbench.project import Project
    from workbench.records import Change, Rater
    from workbench.store import Store


class Notify(Protocol):
    """Say one sentence in the window's status line; ``kind`` is info, good, warn or bad."""

    def __call__(self, text: str, kind: str = "info") -> None:
        """Say ``text``."""


class Navigate(Protocol):
    """Show a pane (home, demonstrate, rank, train, runs, compare, models), optionally at something in it.

    ``what`` is handed to the pane's ``show_item(**what)`` where it has one: ``navigate("runs", run_id=...)``,
    ``navigate("train", method="dpo")``, ``navigate("rank", prompt_id=...)``.
    """

    def __call__(self, pane: str, **what: str) -> None:
        """Go there."""


class Explain(Protocol):
    """Open the drawer at a stage (sft, sampling, ranking, reward-model, dpo, kto, ppo, compare).

    ``values`` are a run's newest metrics, by the names of :mod:`workbench.metrics`, shown beside the formulas.
    """

    def __call__(self, stage: str, values: Mapping[str, float] | None = None) -> None:
        """Explain it."""


class Hub(QObject):
    """What happens in the project, told on the window's thread."""

    changed: SignalInstance = Signal(object)  # type: ignore[assignment]  # workbench.records.Change

    def __init__(self, parent: QObject | None = None) -> None:
        super().__init__(parent)
        self._operations: Operations = operations()

    def tell(self, change: Change) -> None:
        """Pass a change on; may be called from any thread (it is what ``store.subscribe`` is given)."""
        self._operations.post(lambda: self._tell(change))

    def _tell(self, change: Change) -> None:
        if shiboken6.isValid(self):  # a commit may be the last thing that a closed project does
            self.changed.emit(change)


def _ignore(*_args: object, **_what: object) -> None:
    return None


@dataclass
class Context:
    """Handed to every pane's ``__init__``."""

    project: Project
    engine: EngineLike
    rater: Rater
    hub: Hub
    theme: Theme
    settings: Settings
    notify: Notify = field(default=_ignore)
    navigate: Navigate = field(default=_ignore)
    explain: Explain = field(default=_ignore)
    show_error: Callable[[BaseException], object] = field(default=_ignore)

    @property
    def store(self) -> Store:
        """The project's store."""
        return self.project.store

    @property
    def changed(self) -> SignalInstance:
        """Signal(Change): something in the store changed; sent on the window's thread after the commit."""
        return self.hub.changed

    @property
    def read_only(self) -> bool:
        """Whether another window has the project, so that nothing may be written."""
        return bool(self.project.read_only)
