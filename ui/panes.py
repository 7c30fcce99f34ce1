"""The panes there are, and how one is made: imported by name when it is first needed."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, cast

from PySide6.QtWidgets import QWidget

if TYPE_CHECKING:
    from ui.context import Context
    from ui.unsaved import Unsaved


@dataclass(frozen=True, slots=True)
class PaneInfo:
    """One entry of the rail."""

    key: str
    title: str
    icon: str
    module: str
    class_name: str
    tip: str


PANES: tuple[PaneInfo, ...] = (
    PaneInfo("home", "Home", "home", "ui.home_pane", "HomePane", "The pipeline, and the next thing worth doing"),
    PaneInfo(
        "demonstrate",
        "Demonstrate",
        "demonstrate",
        "ui.demonstrate_pane",
        "DemonstratePane",
        "Write what a good answer looks like",
    ),
    PaneInfo("rank", "Rank", "rank", "ui.rank_pane", "RankPane", "Order a model's responses from best to worst"),
    PaneInfo("train", "Train", "train", "ui.train_pane", "TrainPane", "Choose a method and start a run"),
    PaneInfo("runs", "Runs", "runs", "ui.runs_pane", "RunsPane", "Queue, live curves, samples and history"),
    PaneInfo("compare", "Compare", "compare", "ui.compare_pane", "ComparePane", "The same prompts through two models"),
    PaneInfo("models", "Models", "models", "ui.models_pane", "ModelsPane", "Bases, adapters and where they came from"),
)
KEYS: tuple[str, ...] = tuple(one.key for one in PANES)


class Pane(Protocol):
    """What a pane may offer beyond being a widget; all of it is optional."""

    def activate(self) -> None:
        """Be shown."""

    def show_item(self, **what: str) -> None:
        """Go to something in the pane."""

    def unsaved(self) -> Unsaved | None:
        """Save what the pane holds, now and before returning; say what could not be saved."""


def pane_info(key: str) -> PaneInfo:
    """Find a pane's entry. Raises KeyError."""
    return next(one for one in PANES if one.key == key) if key in KEYS else _unknown(key)


def import_pane(info: PaneInfo) -> Callable[[Context], QWidget]:
    """Import a pane's class; safe off the window's thread. Raises ImportError or AttributeError."""
    return cast("Callable[[Context], QWidget]", getattr(importlib.import_module(info.module), info.class_name))


def _unknown(key: str) -> PaneInfo:
    raise KeyError(f"there is no pane {key!r}; there are {', '.join(KEYS)}")
