"""What stands around the cards of the ranking screen: its header, the line about sampling, and the footer."""

from __future__ import annotations

from PySide6.QtCore import QSize, Signal, SignalInstance
from PySide6.QtGui import QResizeEvent
from PySide6.QtWidgets import QComboBox, QLineEdit, QProgressBar, QPushButton, QSizePolicy, QWidget

from ui.sampler import Sampler
from ui.theme import M, S
from ui.widgets import ElidedLabel, IconLabel, KeyHint, PageHeader, Text, button, column, plural, row, safe_tip

COLUMN_CHOICES = (("Columns: auto", 0), ("1 column", 1), ("2 columns", 2), ("3 columns", 3), ("4 columns", 4))


class RankHeader(PageHeader):
    """Title, how the session goes, and what is used now and then."""

    columns_chosen: SignalInstance = Signal(int)  # type: ignore[assignment]

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__("Rank", " ", parent)
        self.differences = _toggle("Differences", "Mark the words that the focused response lacks (D)", "differences")
        self.reveal = _toggle("Reveal", "After each card, say which model wrote which response (R)", "reveal")
        self.columns = QComboBox()
        self.columns.setObjectName("columns")
        self.columns.setAccessibleName("Columns")
        for text, value in COLUMN_CHOICES:
            self.columns.addItem(text, value)
        self.columns.currentIndexChanged.connect(lambda _: self.columns_chosen.emit(self.columns.currentData()))
        self.earlier = button("Earlier…", tip="Open a card of before to correct it (H)", name="earlier")
        self.consistency = button(
            "Consistency…", tip="How well the labels agree, and what sways them (C)", name="consistency"
        )
        self.sample = button("Get responses…", kind="primary", tip="Sample responses to rank (G)", name="get-responses")
        for one in (self.differences, self.reveal, self.columns, self.earlier, self.consistency, self.sample):
            self.add_action(one)

    def minimumSizeHint(self) -> QSize:
        """Ask for no room for what a narrow window does without: C does the same."""
        size = super().minimumSizeHint()
        return (
            size if self.consistency.isHidden() else QSize(size.width() - self._room_for_consistency(), size.height())
        )

    def resizeEvent(self, event: QResizeEvent) -> None:
        """Leave consistency to its key where there is no room for its button."""
        super().resizeEvent(event)
        needed = self.minimumSizeHint().width() + self._room_for_consistency()
        self.consistency.setVisible(self.width() >= needed)

    def _room_for_consistency(self) -> int:
        return self.consistency.sizeHint().width() + S


def _toggle(text: str, tip: str, name: str) -> QPushButton:
    made = button(text, tip=tip, name=name)
    made.setCheckable(True)
    return made


class SamplingStrip(QWidget):
    """One quiet line while responses are drawn in the background; hidden otherwise."""

    def __init__(self, sampler: Sampler, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.setObjectName("sampling-strip")
        self._sampler = sampler
        self.text = ElidedLabel("", "small", "muted")
        self.bar = QProgressBar()
        self.bar.setTextVisible(False)
        self.bar.setFixedWidth(160)
        self.bar.setAccessibleName("Prompts sampled")
        self.stop = button("Stop", sampler.stop, kind="quiet", tip="Keep what is whole and draw no more", name="stop")
        self.retry = button("Save again", sampler.retry, kind="quiet", name="save-responses-again")
        line = row(IconLabel("sample", 16), spacing=S)
        line.addWidget(self.text, 1)
        for part in (self.bar, self.retry, self.stop):
            line.addWidget(part)
        self.setLayout(line)
        self.hide()
        sampler.progressed.connect(self.refresh)

    def refresh(self) -> None:
        """Say where sampling stands."""
        sampler = self._sampler
        self.setVisible(sampler.running or sampler.unsaved > 0)
        self.retry.setVisible(sampler.unsaved > 0)
        self.stop.setVisible(sampler.running)
        self.bar.setVisible(sampler.running)
        if sampler.unsaved and not sampler.running:
            self.text.setText(f"The responses to {plural(sampler.unsaved, 'prompt')} are not saved yet")
            return
        plan, job = sampler.plan, sampler.job
        if plan is None:
            return
        self.bar.setRange(0, max(1, sampler.total))
        self.bar.setValue(sampler.done)
        if sampler.waiting:
            now = f"{plural(plan.ahead, 'prompt')} ready ahead, going on as you rank"
        elif job is None:
            now = "starting"
        elif sampler.what:
            now = sampler.what
        else:
            now = f"response {min(job.whole + 1, plan.count)} of {plan.count}"
        self.text.setText(
            f"{plan.model.name}: prompt {min(sampler.done + 1, sampler.total)} of {sampler.total} · {now}"
        )
        self.setAccessibleName(self.text.text())


class RankFooter(QWidget):
    """Note, acts with their keys, and one line that says what is missing or which keys there are."""

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.note = QLineEdit()
        self.note.setObjectName("note")
        self.note.setPlaceholderText("Note (N)")
        self.note.setAccessibleName("Note on this card")
        self.note.setMaxLength(4000)
        self.note.setMinimumWidth(160)
        self.note.setMaximumWidth(720)
        self.undo = _act("Undo", "Ctrl+Z", "undo", "Take the last placement back; on a fresh card, the last ranking")
        self.flag = _act(
            "Flag", "F", "flag", "Mark this response, or all of them: thumbs up or down, harmful, off-topic, …"
        )
        self.skip = _act("Skip", "S", "skip", "Come back to it later")
        self.cannot = _act("Can't rank", "X", "cannot-rank", "Nothing here can be judged; it will not come up again")
        self.submit = button("Submit", kind="primary", name="submit", tip="Save the ranking and go on (Enter)")
        self.submit.setMinimumWidth(96)
        acts = row(spacing=M)
        acts.addWidget(self.note, 1)
        acts.addStretch(0)
        self._acts = acts
        self._act_keys: list[KeyHint] = []
        self._room_for_keys = 0
        for one, key, gap in (
            (self.undo, "Ctrl Z", 2),
            (self.flag, "F", 2),
            (self.skip, "S", 2),
            (self.cannot, "X", 2),
            (self.submit, "Enter", 4),
        ):
            hint = KeyHint(key)
            self._act_keys.append(hint)
            acts.addLayout(row(one, hint, spacing=gap))
        self.message = ElidedLabel("", "small", "muted")
        self.message.setObjectName("message")
        self._digits = KeyHint("1")
        hints = row(spacing=4)
        for key, what in (
            ("", "place"),
            ("=", "tie"),
            ("⌫", "clear"),
            ("+ −", "thumb"),
            ("← →", "move"),
            ("D", "differences"),
        ):
            hints.addWidget(self._digits if not key else KeyHint(key))
            hints.addWidget(Text(what, "small", "muted"))
            if what != "differences":
                hints.addSpacing(S)
        keys = row(spacing=S)
        keys.addWidget(self.message, 1)
        keys.addLayout(hints)
        self.setLayout(column(acts, keys, spacing=S))
        self.setSizePolicy(QSizePolicy.Policy.Preferred, QSizePolicy.Policy.Fixed)

    def resizeEvent(self, event: QResizeEvent) -> None:
        """Leave the keys of the acts to their tips where there is no room for both."""
        super().resizeEvent(event)
        if not self._act_keys[0].isHidden():
            self._room_for_keys = self._acts.minimumSize().width()
        for hint in self._act_keys:
            hint.setVisible(self.width() >= self._room_for_keys)

    def set_count(self, count: int) -> None:
        """Say which digits there are."""
        self._digits.set(f"1–{count}")

    def say(self, text: str, tone: str = "muted") -> None:
        """Say one sentence about this card."""
        self.message.setText(text)
        self.message.set_tone(tone)
        self.message.setAccessibleName(text)


def _act(text: str, key: str, name: str, tip: str) -> QPushButton:
    made = button(text, kind="quiet", tip=f"{tip} ({key})", name=name)
    made.setToolTip(safe_tip(f"{tip} ({key})"))
    return made
