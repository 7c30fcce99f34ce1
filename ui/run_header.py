"""The head of a run: its name, state, phase, progress and time left, and what can be done with it now."""

from __future__ import annotations

from functools import partial

from PySide6.QtCore import Signal, SignalInstance
from PySide6.QtWidgets import QProgressBar, QPushButton, QWidget

from ui.method_cards import method_title
from ui.numbers import duration
from ui.run_acts import GOES_ON
from ui.run_follower import Seen
from ui.run_history import RunHistory
from ui.theme import M, S
from ui.times import ago
from ui.widgets import ElidedLabel, Pill, Text, button, column, row, safe_tip
from ui.words import STATE_TONES
from workbench.records import RunRecord, step_word
from workbench.run_folder import RunStatus

ACTIONS: dict[str, tuple[str, str, str]] = {
    "pause": ("Pause", "", "Wait at the end of this {step}; memory is held"),
    "unpause": ("Resume", "primary", "Go on"),
    "save": ("Save now", "", "Write a checkpoint at the end of this {step} and go on"),
    "sample": ("Sample now", "", "Draw samples at the end of this {step} and go on; they appear under Samples"),
    "stop-save": (
        "Stop and save",
        "",
        "Write a checkpoint at the end of this {step} and end; it can be resumed exactly",
    ),
    "stop": ("Stop without saving", "danger", "End at once; what was learned since the last checkpoint is lost"),
    "unqueue": ("Take out of the queue", "", "It can be resumed later"),
    "resume": ("Resume", "primary", "Go on from the newest sound checkpoint"),
    "kill": ("End by force", "danger", "Ask the process to end, and kill it after ten seconds"),
    "compare": ("Open in Compare", "", "The model of this run beside the one it came from"),
}
"""Label, look and meaning of each thing that can be done with a run; ``{step}`` is what a step of it is called."""


def actions_for(status: RunStatus, *, has_model: bool, not_responding: bool = False) -> tuple[str, ...]:
    """Return what can be done with a run in this state, the most likely first."""
    found: tuple[str, ...] = {
        "queued": ("unqueue",),
        "running": ("pause", "save", "sample", "stop-save", "stop"),
        "paused": ("unpause", "stop-save", "stop"),
        "stopping": ("stop",),
    }.get(status.state, ())
    if not status.alive and status.resumable:
        found += ("resume",)
    if not_responding:
        found += ("kill",)
    if not status.alive and has_model:
        found += ("compare",)
    return found


class RunHeader(QWidget):
    """Sends ``asked(action)`` with a key of :data:`ACTIONS`."""

    asked: SignalInstance = Signal(str)  # type: ignore[assignment]

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._record: RunRecord | None = None
        self._name = ElidedLabel("", "title")
        self._name.setMinimumWidth(120)
        self.state = Pill()
        self.state.setObjectName("run-state")
        self._method = Pill()
        self._phase = ElidedLabel("", "body", "muted")
        self._phase.setObjectName("run-phase")
        self._steps = Text("", "body")
        self._eta = Text("", "body", "muted")
        self.progress = QProgressBar()
        self.progress.setTextVisible(False)
        self.progress.setAccessibleName("Progress")
        self.buttons: dict[str, QPushButton] = {}
        actions = row(spacing=S)
        for key, (label, kind, tip) in ACTIONS.items():
            made = button(label, partial(self.asked.emit, key), kind=kind, name=f"run-{key}")
            _explain(made, tip, step_word(""))
            made.hide()
            self.buttons[key] = made
            actions.addWidget(made)
        words = row(self._name, spacing=S)
        words.setStretch(0, 1)
        top = row(spacing=M)
        top.addLayout(words, 1)
        top.addLayout(actions)
        middle = row(self.state, self._method, spacing=S)
        middle.addWidget(self._phase, 1)
        middle.addWidget(self._steps)
        middle.addWidget(self._eta)
        self.setLayout(column(top, middle, self.progress, spacing=S))

    def set_record(self, record: RunRecord) -> None:
        """Show another run."""
        self._record = record
        self._name.setText(record.name)
        self._method.set(method_title(record.method))
        self.setAccessibleName(f"Run {record.name}")
        for key, made in self.buttons.items():
            _explain(made, ACTIONS[key][2], step_word(record.method))
            made.hide()
            made.setEnabled(True)

    def update_record(self, record: RunRecord) -> None:
        """Take a newer record of the same run."""
        self._record = record

    def show_seen(self, seen: Seen, history: RunHistory, *, has_model: bool, read_only: bool = False) -> None:
        """Show where the run is."""
        status = seen.status
        if seen.not_responding:
            self.state.set("not responding", "bad")
        else:
            self.state.set(status.state, STATE_TONES[status.state])
        total = status.total_steps or history.total_steps
        step = min(max(status.step, 0), total) if total else status.step
        unit = step_word(self._record.method if self._record else "")
        self._steps.setText(f"{unit} {step:,} of {total:,}" if total else f"{unit} {step:,}" if step else "")
        self._eta.setText(self._time_words(status, history))
        phase = self._phase_words(seen)
        self._phase.setText(phase)
        self.progress.setRange(0, total or 1)
        self.progress.setValue(step if total else int(status.state == "done"))
        self.progress.setVisible(status.alive or status.state != "done")
        self.progress.setAccessibleDescription(f"{status.state}, {phase}, {self._steps.text()}, {self._eta.text()}")
        shown = () if read_only else actions_for(status, has_model=has_model, not_responding=seen.not_responding)
        if read_only and has_model and not status.alive:
            shown = ("compare",)
        for key, made in self.buttons.items():
            if made.isHidden() == (key in shown):
                made.setVisible(key in shown)
                made.setEnabled(True)

    def busy(self, action: str) -> None:
        """Show that an action was asked for, until the next state is seen."""
        others = () if action in GOES_ON else ("pause", "unpause", "stop-save", "resume", "unqueue")
        for key in (*others, action):
            self.buttons[key].setEnabled(False)

    def ready(self) -> None:
        """Let the buttons be pressed again."""
        for made in self.buttons.values():
            made.setEnabled(True)

    def _phase_words(self, seen: Seen) -> str:
        status = seen.status
        if seen.not_responding:
            return f"silent for {duration(seen.silent_s)}; it may be in a long computation"
        if status.alive:
            words = status.phase or "starting"
            detail = f": {status.detail}" if status.detail else ""
            return words[:1].upper() + words[1:] + detail
        when = ago(self._record.ended_at) if self._record and self._record.ended_at else ""
        return " · ".join(part for part in (when, status.detail if status.state in ("done", "stopped") else "") if part)

    def _time_words(self, status: RunStatus, history: RunHistory) -> str:
        if status.state == "running" and status.eta_s >= 0:
            return f"{duration(status.eta_s)} left"
        if not status.alive and history.elapsed_s:
            return f"took {duration(history.elapsed_s)}"
        return ""


def _explain(made: QPushButton, tip: str, word: str) -> None:
    text = tip.format(step=word)
    made.setToolTip(safe_tip(text))
    made.setAccessibleDescription(text)
