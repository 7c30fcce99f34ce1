"""Where a run starts and who scores it: models, rule, preset and name, each with its fault beside it."""

from __future__ import annotations

from collections.abc import Sequence

from PySide6.QtCore import Qt
from PySide6.QtWidgets import QBoxLayout, QButtonGroup, QLayout, QLineEdit, QRadioButton, QVBoxLayout, QWidget

from ui.context import Context
from ui.labels import stack
from ui.model_picker import ModelPicker
from ui.theme import M, S
from ui.train_data import HoldOut, TagChoice
from ui.train_parts import PresetBar
from ui.widgets import Card, Text, column, row
from workbench.model_choice import START_ROLES
from workbench.recipes import PRESETS
from workbench.records import Method
from workbench.settings_fields import Problem

_PLACES = ("start_model", "reward_model", "rule", "tags")


class SetupCard(Card):
    """The choices of a run beside its method and its settings."""

    def __init__(self, context: Context, parent: QWidget | None = None) -> None:
        super().__init__(parent=parent)
        self.starts: dict[tuple[str, ...], ModelPicker] = {}
        for roles in dict.fromkeys(START_ROLES.values()):
            picker = ModelPicker(context, roles=roles, name="Starting model")
            picker.setObjectName("start-model-" + "-".join(roles))
            self.starts[roles] = picker
        self.reward = ModelPicker(context, roles=("reward",), name="Reward model")
        self.reward.setObjectName("reward-model")
        self.by_model = QRadioButton("Reward model")
        self.by_rule = QRadioButton("Written rule")
        self.by_rule.setObjectName("by-rule")
        self._scored_by = QButtonGroup(self)
        for one in (self.by_model, self.by_rule):
            self._scored_by.addButton(one)
        self.by_model.setChecked(True)
        self.rule = QLineEdit()
        self.rule.setObjectName("rule")
        self.rule.setAccessibleName("Rule")
        self.rule.setPlaceholderText("shorter-than:40, longer-than:40 or contains:please")
        self.rule.hide()
        self.tags = TagChoice(context)
        self.hold_out = HoldOut(context)
        self.presets = PresetBar(PRESETS)
        self.run_name = QLineEdit()
        self.run_name.setObjectName("run-name")
        self.run_name.setAccessibleName("Name of the run")
        self.run_name.setPlaceholderText("Chosen for you")
        self.run_name.setMaxLength(120)
        self.notes = {place: Text("", "small", "bad", wrap=True) for place in _PLACES}
        for note in self.notes.values():
            note.hide()
        self._place()
        self.by_rule.toggled.connect(self._on_scored_by)

    def _place(self) -> None:
        fields = QVBoxLayout()
        fields.setSpacing(M)
        self._fields: list[QBoxLayout] = []

        def add(label: str, content: QWidget | QLayout) -> None:
            self._fields.append(_field(label, content))
            fields.addLayout(self._fields[-1])

        starts = column(spacing=0)
        for picker in self.starts.values():
            starts.addWidget(picker)
        add("Start from", column(starts, self.notes["start_model"], spacing=2))
        self._scoring = QWidget()
        choice = column(row(self.by_model, self.by_rule, None, spacing=M), self.reward, self.rule, spacing=S)
        choice.addWidget(self.notes["reward_model"])
        choice.addWidget(self.notes["rule"])
        self._fields.append(_field("Scored by", choice))
        self._scoring.setLayout(self._fields[-1])
        fields.addWidget(self._scoring)
        add("Data", column(self.tags, self.notes["tags"], spacing=2))
        add("Held out", self.hold_out)
        add("Preset", self.presets)
        add("Name", self.run_name)
        self.body.addLayout(fields)

    def set_narrow(self, narrow: bool) -> None:
        """Put labels above their fields, and the presets' words below them, or beside them."""
        self.presets.set_narrow(narrow)
        for one in self._fields:
            stack(one, stacked=narrow)

    def show_method(self, method: Method) -> None:
        """Show what this method needs: its roles to start from, and for PPO who scores."""
        for roles, picker in self.starts.items():
            picker.setVisible(roles == START_ROLES[method])
        self._scoring.setVisible(method == "ppo")

    def picker(self, method: Method) -> ModelPicker:
        """Return the picker of the starting model of a method."""
        return self.starts[START_ROLES[method]]

    def rule_text(self) -> str:
        """Return the rule: "" while a reward model scores, a blank while none is written yet."""
        return (self.rule.text().strip() or " ") if self.by_rule.isChecked() else ""

    def show_problems(self, problems: Sequence[Problem]) -> None:
        """Put what is wrong beside its field."""
        for place, note in self.notes.items():
            mine = sorted((one for one in problems if one.field == place), key=lambda one: one.severity != "error")
            note.setVisible(bool(mine))
            note.setText(mine[0].message + "." if mine else "")
            note.set_tone("bad" if mine and mine[0].severity == "error" else "warn")

    def go_to(self, field: str, method: Method) -> bool:
        """Put the focus on a field of this card; False when it is not here."""
        widgets = {
            "start_model": self.picker(method),
            "reward_model": self.reward,
            "rule": self.rule,
            "tags": self.tags.pick,
        }
        if field not in widgets:
            return False
        widgets[field].setFocus(Qt.FocusReason.OtherFocusReason)
        return True

    def _on_scored_by(self, ruled: bool) -> None:
        self.rule.setVisible(ruled)
        self.reward.setVisible(not ruled)
        if ruled and not self.rule.text():
            self.rule.setFocus(Qt.FocusReason.OtherFocusReason)


def _field(label: str, content: QWidget | QLayout) -> QBoxLayout:
    name = Text(label, "body")
    name.setFixedWidth(84)
    name.setContentsMargins(0, 6, 0, 0)
    line = row(spacing=S)
    line.addWidget(name, 0, Qt.AlignmentFlag.AlignTop)
    if isinstance(content, QWidget):
        line.addWidget(content, 1)
    else:
        line.addLayout(content, 1)
    return line
