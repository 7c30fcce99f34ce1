"""What a planned run will use and what it will cost, before it starts."""

from __future__ import annotations

from PySide6.QtCore import Qt
from PySide6.QtWidgets import QHBoxLayout, QWidget

from ui.numbers import count, duration
from ui.theme import L, M, S
from ui.train_parts import CommandLine, Disclosure, MemoryBar
from ui.widgets import Card, Text, column, plural, row
from workbench.records import step_word
from workbench.terminal import in_bytes
from workbench.training import RunPlan


class TrainSummary(QWidget):
    """Data, cost and command of a plan."""

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._train = Text("–", "number")
        self._train_label = Text("to train on", "small", "muted")
        self._held_out = Text("–", "number")
        self._held_out_label = Text("held out", "small", "muted")
        self._words = Text("", "small", "muted", wrap=True)
        data = Card("Data")
        data.body.addLayout(
            row(
                column(self._train, self._train_label, spacing=0),
                L,
                column(self._held_out, self._held_out_label, spacing=0),
                None,
            )
        )
        data.body.addWidget(self._words)
        self.memory = MemoryBar()
        self._memory = Text("", "body", wrap=True)
        self._chosen = Text("", "small", "muted", wrap=True)
        self._chosen.setObjectName("chosen-by-plan")
        self._time = Text("", "body", wrap=True)
        self._disk = Text("", "body", wrap=True)
        self._lines = Text("", "small", "muted", wrap=True, selectable=True)
        self.how = Disclosure("How this was estimated", self._lines, name="estimate-lines")
        self._cost = Card("Cost")
        self._cost.body.addLayout(_line("Memory", self._memory))
        self._cost.body.addWidget(self.memory)
        self._cost.body.addWidget(self._chosen)
        self._cost.body.addSpacing(S)
        self._cost.body.addLayout(_line("Time", self._time))
        self._cost.body.addLayout(_line("Disk", self._disk))
        self._cost.body.addWidget(self.how)
        self._cost.body.addWidget(self._lines)
        self.command = CommandLine()
        self.setLayout(column(data, self._cost, self.command, spacing=M))

    def clear(self) -> None:
        """Show nothing while another method is planned: the numbers of the last one would mislead."""
        for part in (self._train, self._held_out, self._memory, self._time, self._disk):
            part.setText("–")
        self._words.setText("Checking…")
        self._chosen.hide()
        self._memory.set_tone("")
        self.memory.show_need(0, 0)
        self.command.set_text("")

    def show_plan(self, plan: RunPlan) -> None:
        """Show a plan."""
        self._train.setText(count(len(plan.train)))
        self._held_out.setText(count(len(plan.heldout)))
        what = {"sft": "demonstration", "reward": "pair", "dpo": "pair", "kto": "response", "ppo": "prompt"}[
            plan.method
        ]
        self._train_label.setText(f"{what if len(plan.train) == 1 else what + 's'} to train on")
        self._held_out_label.setText("held out" + (", by itself" if plan.auto_held_out else ""))
        self._words.setText(plan.summary)
        cost = plan.estimate
        known = cost.memory_bytes > 0
        self._memory.setText(self.memory.show_need(cost.memory_bytes, cost.memory_available) if known else "–")
        self._memory.set_tone(self.memory.tone() if self.memory.tone() in ("warn", "bad") and known else "")
        said = [f"Measured {in_bytes(cost.memory_last_bytes)} last time."] if cost.memory_last_bytes else []
        chosen = plan.chosen_settings  # what they take stands above, and again below among the lines
        said += [chosen[:1].upper() + chosen[1:] + "."] if chosen else []
        self._chosen.setText(" ".join(said))
        self._chosen.setVisible(bool(said))
        steps = plural(cost.total_steps, step_word(plan.method))
        basis = "from this project's runs" if cost.measured else "a rough guess"
        self._time.setText(f"about {duration(cost.seconds)} for {steps}, {basis}" if known else "–")
        self._disk.setText(f"{in_bytes(cost.checkpoint_bytes)} for each checkpoint" if known else "–")
        self._lines.setText("\n".join(one[:1].upper() + one[1:] + "." for one in cost.lines))
        self.how.setEnabled(known)
        self.command.set_text(plan.command_line)
        self.setAccessibleName(
            f"{plan.summary} Memory {self._memory.text()}. {self._chosen.text()} Time {self._time.text()}."
        )


def _line(label: str, value: Text) -> QHBoxLayout:
    name = Text(label, "body", "muted")
    name.setFixedWidth(64)
    line = row(spacing=S)
    line.addWidget(name, 0, Qt.AlignmentFlag.AlignTop)
    line.addWidget(value, 1)
    return line
