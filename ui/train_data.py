"""Which prompts a run trains on and which it only measures on: tags, and what is held out."""

from __future__ import annotations

from PySide6.QtCore import QSize, Signal, SignalInstance
from PySide6.QtGui import QResizeEvent
from PySide6.QtWidgets import QSpinBox, QWidget

from ui.checklist import Checklist, Entry
from ui.context import Context
from ui.labels import stack
from ui.operations import run_task
from ui.prompt_menu import move_to
from ui.theme import S
from ui.widgets import ElidedLabel, IconButton, Text, button, row
from workbench.records import Counts
from workbench.training_data import share_to_hold_out

STANDARD_SHARE = 10


class TagChoice(QWidget):
    """All prompts, or those with one of some tags. ``chosen(object)`` tells the tags, none for all prompts."""

    chosen: SignalInstance = Signal(object)  # type: ignore[assignment]

    def __init__(self, context: Context, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._context = context
        self.tags: tuple[str, ...] = ()
        self.words = ElidedLabel("", "body")
        self.pick = button("Choose tags…", self.ask, name="train-tags")
        self.all = IconButton("close", "Train on all prompts again", lambda: self._take([]))
        line = row(self.words, self.all, self.pick, spacing=S)
        line.setStretch(0, 1)
        self.setLayout(line)
        self._say()

    def set_tags(self, tags: tuple[str, ...]) -> None:
        """Show a choice without telling anyone."""
        self.tags = tags
        self._say()

    def ask(self) -> None:
        """Open the list of tags."""
        store = self._context.store

        def read(search: str) -> list[Entry]:
            wanted = search.casefold()
            return [Entry(tag, f"{tag}  ({count:,})") for tag, count in store.tags() if wanted in tag.casefold()]

        sheet = Checklist(
            "Choose tags",
            "Prompts with any of these tags train; held-out prompts still only measure.",
            read,
            self.tags,
            self,
        )
        sheet.chosen.connect(self._take)
        sheet.open()

    def _take(self, tags: list[str]) -> None:
        if tuple(tags) != self.tags:
            self.set_tags(tuple(tags))
            self.chosen.emit(self.tags)

    def _say(self) -> None:
        self.words.setText(f"Tagged {' or '.join(self.tags)}" if self.tags else "All prompts")
        self.all.setVisible(bool(self.tags))
        self.pick.setAccessibleDescription(self.words.text())


class HoldOut(QWidget):
    """What is held out, and one act that holds a share of the prompts out; undo takes it back."""

    def __init__(self, context: Context, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._context = context
        self._counts = Counts()
        self.words = Text("", "body")
        self.share = QSpinBox()
        self.share.setObjectName("hold-out-share")
        self.share.setAccessibleName("Share of the prompts to hold out")
        self.share.setRange(1, 90)
        self.share.setValue(STANDARD_SHARE)
        self.share.setSuffix("%")
        self.share.valueChanged.connect(lambda _: self._say())
        self.go = button("", self._on_go, name="hold-out-now")
        self.by_hand = IconButton(
            "demonstrate", "Hold out by hand", lambda: context.navigate("demonstrate", split="train")
        )
        self._acts = QWidget()
        self._acts.setLayout(row(self.share, self.go, self.by_hand, None, spacing=S))
        self._line = row(spacing=S)
        self._line.addWidget(self.words, 1)
        self._line.addWidget(self._acts)
        self.setLayout(self._line)
        self._say()

    def minimumSizeHint(self) -> QSize:
        """Be as narrow as the acts: the words stand above them where there is no room beside."""
        return QSize(self._acts.minimumSizeHint().width(), super().minimumSizeHint().height())

    def resizeEvent(self, event: QResizeEvent) -> None:
        """Put the words above the acts where they do not fit beside them."""
        super().resizeEvent(event)
        wide = event.size().width() >= self.words.sizeHint().width() + self._acts.sizeHint().width() + S
        stack(self._line, stacked=not wide)

    def set_counts(self, counts: Counts) -> None:
        """Show how many prompts there are and how many of them are held out."""
        self._counts = counts
        self._say()

    def _missing(self) -> int:
        return round(self._counts.prompts * self.share.value() / 100) - self._counts.prompts_held_out

    def _say(self) -> None:
        held, every, missing = self._counts.prompts_held_out, self._counts.prompts, self._missing()
        self.words.setText(
            f"{held:,} of {every:,} prompts, {held / every:.0%}" if held else "None marked: a fixed tenth"
        )
        number = f" {missing:,}{' more' if held else ''}" if missing > 0 else ""
        self.go.setText(f"Hold out{number}")
        self.go.setEnabled(missing > 0 and not self._context.read_only)
        enough = "As many are held out already" if every and missing <= 0 else ""
        self.go.setToolTip(enough or "Mark this share of the prompts held-out now: they never train anything")

    def _on_go(self) -> None:
        project, share = self._context.project, self.share.value()
        run_task(lambda: share_to_hold_out(project, share), self._hold_out, owner=self)

    def _hold_out(self, prompt_ids: list[str]) -> None:
        if prompt_ids:  # none where the button was pressed twice
            move_to(self, self._context, prompt_ids, "held-out")
