"""The settings of a recipe as a form, generated from the fields themselves: meaning, unit, range, default, source.

A setting that differs from the preset carries a mark and can be set back; a fault stands beside its field. Text that
is no number keeps the last sound value in the recipe and is itself a problem until it is mended.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from PySide6.QtCore import Qt, Signal, SignalInstance
from PySide6.QtGui import QColor, QPainter, QPaintEvent
from PySide6.QtWidgets import QGridLayout, QLineEdit, QSizePolicy, QVBoxLayout, QWidget

from ui.setting_editors import Editor, editor_for, text_of
from ui.theme import XS, L, M, S, colours
from ui.widgets import IconButton, SectionTitle, Text, row
from workbench.recipes import Recipe
from workbench.settings_fields import Problem, Setting, settings_of

_WORDS = {
    "lora": "LoRA",
    "kl": "KL",
    "gae": "GAE",
    "ppo": "PPO",
    "eos": "EOS",
    "lambda": "λ",
    "gamma": "γ",
    "simpo": "SimPO",
    "orpo": "ORPO",
    "neftune": "NEFTune",
    "max": "Maximum",
}
_LABELS = {
    "max_steps": "Most steps",
    "max_length": "Longest sequence",
    "max_grad_norm": "Gradient clipping",
    "max_kl": "KL limit",
    "kl_horizon": "KL horizon",
    "pairs_from_rankings": "Pairs from rankings",
    "rule": "Rule",
    "batch": "Batch",
    "micro_batch": "Micro-batch",
    "mini_batches": "Mini-batches",
    "eval_every": "Measure every",
    "save_every": "Checkpoint every",
    "gae_lambda": "GAE λ",
    "responses_per_prompt": "Responses per prompt",
}
GROUP_ORDER = (
    "Training",
    "Data",
    "Loss",
    "Rollout",
    "Reward",
    "KL leash",
    "PPO",
    "Optimiser",
    "Model",
    "Memory",
    "Reporting",
)
LABEL_WIDTH, EDITOR_WIDTH, EDITOR_HEIGHT = 168, 152, 32
OPEN_ENDED = 1e6


def label_of(setting: Setting) -> str:
    """Name a setting as a person would: ``learning_rate`` is 'Learning rate'."""
    if setting.name in _LABELS:
        return _LABELS[setting.name]
    words = [_WORDS.get(word, word) for word in setting.name.split("_")]
    words[0] = words[0] if words[0] in _WORDS.values() else words[0].capitalize()
    return " ".join(words)


def range_of(setting: Setting) -> str:
    """Say what a setting may be: '1 to 512', 'at least 0', or its choices."""
    if setting.choices:
        return " or ".join(setting.choices)
    low, high = setting.low, setting.high
    if high is not None and high >= OPEN_ENDED and low is not None:
        high = None  # the bound is there for sanity, not as advice
    if low is not None and high is not None:
        return f"{text_of(low)} to {text_of(high)}"
    if low is not None or high is not None:
        return f"at least {text_of(low)}" if low is not None else f"at most {text_of(high)}"
    return ""


class RecipeForm(QWidget):
    """All settings of one recipe. ``edited(Recipe)`` is sent when the researcher changed something sound."""

    edited: SignalInstance = Signal(object)  # type: ignore[assignment]
    problems_changed: SignalInstance = Signal()  # type: ignore[assignment]

    def __init__(self, parent: QWidget | None = None, *, hide: Sequence[str] = ()) -> None:
        super().__init__(parent)
        self._hidden = frozenset(hide)
        self._type: type | None = None
        self._pages: dict[type, _Page] = {}  # one of each recipe, kept: making one takes half a second
        self._recipe: Recipe | None = None
        self._standard: Recipe | None = None
        self._standard_name = "preset"
        self._narrow = False
        self.rows: dict[str, SettingRow] = {}
        self.search = QLineEdit()
        self.search.setObjectName("find-setting")
        self.search.setPlaceholderText("Find a setting")
        self.search.setAccessibleName("Find a setting")
        self.search.setClearButtonEnabled(True)
        self.search.setFixedWidth(LABEL_WIDTH + EDITOR_WIDTH)
        self.search.textChanged.connect(self._on_search)
        self._nothing = Text("No setting has this in its name or meaning.", "body", "muted")
        self._nothing.hide()
        outer = QVBoxLayout(self)
        outer.setContentsMargins(0, 0, 0, 0)
        outer.setSpacing(M)
        outer.addWidget(self.search)
        outer.addWidget(self._nothing)

    # ---- content ----

    def set_recipe(self, recipe: Recipe, standard: Recipe | None = None, standard_name: str = "preset") -> None:
        """Show a recipe; ``standard`` is what its marks and resets compare it with (by default itself)."""
        if type(recipe) is not self._type:
            self._turn_to(type(recipe))
        self._recipe, self._standard, self._standard_name = recipe, standard or recipe, standard_name
        for name, line in self.rows.items():
            line.set_standard(getattr(self._standard, name), standard_name)
            line.set_value(getattr(recipe, name))
        self._show_unused()

    def recipe(self) -> Recipe | None:
        """Return the recipe as it stands; a field that cannot be read keeps its last sound value."""
        return self._recipe

    def standard(self) -> Recipe | None:
        """Return what the recipe is compared with."""
        return self._standard

    def changed_fields(self) -> list[str]:
        """List the settings that differ from the preset."""
        return [name for name, line in self.rows.items() if line.is_changed()]

    def unreadable(self) -> list[Problem]:
        """Return a problem for every field whose text is no value."""
        return [line.unreadable for line in self.rows.values() if line.unreadable is not None]

    def reset_all(self) -> None:
        """Set everything back to the preset."""
        if self._standard is not None and self._recipe is not None:
            self.set_recipe(self._standard, self._standard, self._standard_name)
            self.edited.emit(self._recipe)
            self.problems_changed.emit()

    def show_problems(self, problems: Sequence[Problem]) -> None:
        """Put each problem beside its field, and take away those that are gone."""
        by_field: dict[str, Problem] = {}
        for problem in sorted(problems, key=lambda one: one.severity == "error"):
            by_field[problem.field] = problem  # an error goes before a warning
        for name, line in self.rows.items():
            line.show_problem(line.unreadable or by_field.get(name))

    def go_to(self, name: str) -> bool:
        """Put the focus on a setting's editor; False when the form has none of that name."""
        line = self.rows.get(name)
        if line is None:
            return False
        self.search.clear()
        line.editor.widget.setFocus(Qt.FocusReason.OtherFocusReason)
        return True

    def set_narrow(self, narrow: bool) -> None:
        """Put what each setting means below its editor, or beside it."""
        self._narrow = narrow
        if self._type is not None:
            self._pages[self._type].set_narrow(narrow)

    # ---- inside ----

    def _turn_to(self, recipe_type: type) -> None:
        if self._type is not None:
            self._pages[self._type].hide()
        if recipe_type not in self._pages:
            self._pages[recipe_type] = page = _Page(
                [one for one in settings_of(recipe_type) if one.name not in self._hidden]
            )
            page.edited.connect(self._on_edited)
            layout = self.layout()
            assert layout is not None
            layout.addWidget(page)
        self._pages[recipe_type].set_narrow(self._narrow)
        self._type = recipe_type
        self.rows = self._pages[recipe_type].rows
        self._pages[recipe_type].show()
        self._on_search(self.search.text())

    def _on_edited(self, name: str) -> None:
        line = self.rows[name]
        if line.unreadable is None and self._recipe is not None and getattr(self._recipe, name) != line.value:
            change: dict[str, Any] = {name: line.value}
            self._recipe = dataclasses.replace(self._recipe, **change)
            self._show_unused()
            self.edited.emit(self._recipe)
        self.problems_changed.emit()

    def _show_unused(self) -> None:
        """Grey what has no effect beside the other settings, and say why."""
        names = {one.name: label_of(one) for one in settings_of(type(self._recipe))}
        for line in self.rows.values():
            applies = line.setting.applies
            unused = applies is not None and not applies.met(self._recipe)
            line.set_unused(f"Only while {names[applies.field]} is {applies.wish}" if applies and unused else "")

    def _on_search(self, text: str) -> None:
        wanted = text.lower().split()
        found = self._type is not None and self._pages[self._type].show_fitting(wanted)
        self._nothing.setVisible(bool(wanted) and not found)


class _Page(QWidget):
    """The settings of one recipe, by group. ``edited(name)`` tells of a change by hand."""

    edited: SignalInstance = Signal(str)  # type: ignore[assignment]

    def __init__(self, settings: Sequence[Setting]) -> None:
        super().__init__()
        self.rows: dict[str, SettingRow] = {}
        self._narrow = False
        self._groups: list[tuple[QWidget, list[SettingRow]]] = []
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.setSpacing(L)
        names = sorted(
            dict.fromkeys(one.group for one in settings),
            key=lambda group: GROUP_ORDER.index(group) if group in GROUP_ORDER else len(GROUP_ORDER),
        )
        for group in names:
            layout.addWidget(self._group(group, [one for one in settings if one.group == group]))

    def set_narrow(self, narrow: bool) -> None:
        """Stack or widen every row."""
        if narrow != self._narrow:
            self._narrow = narrow
            for line in self.rows.values():
                line.set_narrow(narrow)

    def show_fitting(self, wanted: Sequence[str]) -> bool:
        """Show the settings that have every word in name or meaning; returns whether there are any."""
        found = False
        for box, lines in self._groups:
            fitting = [line for line in lines if all(word in line.words for word in wanted)]
            for line in lines:
                line.setVisible(line in fitting)
            box.setVisible(bool(fitting))
            found = found or bool(fitting)
        return found

    def _group(self, title: str, members: Sequence[Setting]) -> QWidget:
        box = QWidget()
        layout = QVBoxLayout(box)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.setSpacing(M)
        layout.addWidget(SectionTitle(title))
        lines = [SettingRow(setting) for setting in members]
        for line in lines:
            line.edited.connect(self.edited)
            self.rows[line.setting.name] = line
            layout.addWidget(line)
        self._groups.append((box, lines))
        return box


class SettingRow(QWidget):
    """One setting: name, editor with unit, what it means; and under it what is wrong with it, if anything."""

    edited: SignalInstance = Signal(str)  # type: ignore[assignment]

    def __init__(self, setting: Setting, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.setting = setting
        self.value: object = setting.default
        self.unreadable: Problem | None = None
        self._standard: object = setting.default
        self._standard_name = "preset"
        self._unused = ""
        label = label_of(setting)
        self.words = f"{label} {setting.name} {setting.help} {setting.group} {setting.source}".lower()
        self.editor: Editor = editor_for(setting)
        self.editor.widget.setObjectName(f"setting-{setting.name}")
        self.editor.widget.setAccessibleName(label)
        self.editor.widget.setFixedSize(EDITOR_WIDTH, EDITOR_HEIGHT)
        self.editor.changed = self._on_changed
        self._mark = _ChangedMark()
        self._label = Text(label, "body")
        self._label.setFixedWidth(LABEL_WIDTH - S - XS)
        self._label.setBuddy(self.editor.widget)
        self._unit = Text(setting.unit, "small", "muted")
        self._unit.setFixedWidth(44)
        self._reset = IconButton("undo", f"Set {label} back", self.reset)
        self._reset.setObjectName(f"reset-{setting.name}")
        policy = self._reset.sizePolicy()
        policy.setRetainSizeWhenHidden(True)
        self._reset.setSizePolicy(policy)
        self._help = Text(setting.help + ".", "body", "muted", wrap=True)
        self._default = Text("", "small", "muted", wrap=True)
        self._problem = Text("", "small", "bad", wrap=True)
        self._problem.hide()
        self._grid = QGridLayout(self)
        self._grid.setContentsMargins(0, 0, 0, 0)
        self._grid.setHorizontalSpacing(S)
        self._grid.setVerticalSpacing(2)
        self._name = QWidget()
        self._name.setFixedWidth(LABEL_WIDTH)
        self._name.setLayout(row(self._mark, self._label, spacing=XS, margins=(0, 7, 0, 0)))
        self._after = QWidget()
        self._after.setLayout(row(self._unit, self._reset, spacing=0))
        self.set_narrow(False)
        self.setSizePolicy(QSizePolicy.Policy.Preferred, QSizePolicy.Policy.Minimum)
        self._describe()
        self._show_changed()

    def set_narrow(self, narrow: bool) -> None:
        """Put what the setting means beside its editor, or below both where the page is narrow."""
        for part in (self._name, self.editor.widget, self._after, self._help, self._default, self._problem):
            self._grid.removeWidget(part)
        top = Qt.AlignmentFlag.AlignTop
        if narrow:
            self._grid.addWidget(self._name, 0, 0, 1, 5, top)
            self._grid.addWidget(self.editor.widget, 1, 1, top)
            self._grid.addWidget(self._after, 1, 2, top)
            self._grid.addWidget(self._help, 2, 1, 1, 4)
            self._grid.addWidget(self._default, 3, 1, 1, 4, top)
            self._grid.addWidget(self._problem, 4, 1, 1, 4)
        else:
            self._grid.addWidget(self._name, 0, 0, 2, 1, top)
            self._grid.addWidget(self.editor.widget, 0, 1, 2, 1, top)
            self._grid.addWidget(self._after, 0, 2, 2, 1, top)
            self._grid.addWidget(self._help, 0, 3)
            self._grid.addWidget(self._default, 1, 3, top)
            self._grid.addWidget(self._problem, 2, 1, 1, 3)
        self._grid.setColumnMinimumWidth(0, XS if narrow else 0)  # with the spacing, the room of the mark
        self._grid.setColumnStretch(3, 0 if narrow else 1)
        self._grid.setColumnStretch(4, 1 if narrow else 0)
        self._grid.setRowStretch(1, 0 if narrow else 1)

    def set_value(self, value: object) -> None:
        """Show a value without telling anyone."""
        self.value, self.unreadable = value, None
        self.editor.show(value)
        self._show_changed()

    def set_standard(self, value: object, name: str) -> None:
        """Tell what this setting is compared with and set back to."""
        self._standard, self._standard_name = value, name
        self._describe()
        self._show_changed()

    def set_unused(self, reason: str) -> None:
        """Say that the setting has no effect, and lock its editor; "" where it has one."""
        if reason == self._unused:
            return
        self._unused = reason
        self.editor.widget.setEnabled(not reason)
        self._label.set_tone("muted" if reason else "")
        self._describe()

    def is_changed(self) -> bool:
        """Whether the setting differs from the preset."""
        return self.unreadable is not None or self.value != self._standard

    def reset(self) -> None:
        """Set the setting back to the preset."""
        self.set_value(self._standard)
        self.edited.emit(self.setting.name)
        self.editor.widget.setFocus(Qt.FocusReason.OtherFocusReason)

    def show_problem(self, problem: Problem | None) -> None:
        """Show what is wrong under the field, or nothing."""
        if problem is None:
            self._problem.hide()
            self._problem.setText("")
        else:
            self._problem.set_tone("bad" if problem.severity == "error" else "warn")
            self._problem.setText(problem.message + (f": {problem.remedy}." if problem.remedy else "."))
            self._problem.show()
        self._describe()

    def problem_text(self) -> str:
        """Return the text of the problem that is shown, or ""."""
        return self._problem.text()

    def _on_changed(self, value: object, sound: bool) -> None:
        if sound:
            self.value, self.unreadable = value, None
        else:
            kind = {int: "a whole number", float: "a number"}.get(self.setting.type, "a value")
            self.unreadable = Problem(self.setting.name, f"{value!r} is not {kind}", f"{range_of(self.setting)}")
        self.show_problem(self.unreadable)
        self._show_changed()
        self.edited.emit(self.setting.name)

    def _describe(self) -> None:
        setting = self.setting
        bounds = "" if setting.choices or setting.type is bool else range_of(setting)
        source = f", {setting.source}" if setting.source else ""
        parts = [self._unused] if self._unused else []
        parts.append(f"Default {text_of(setting.default) or 'empty'}{source}")
        if self._standard != setting.default:
            parts.append(f"{self._standard_name} {text_of(self._standard)}")
        if bounds:
            parts.append(bounds)
        self._default.setText("  ·  ".join(parts))
        spoken = [setting.help, setting.unit and f"in {setting.unit}", *parts, self._problem.text()]
        self.editor.widget.setAccessibleDescription(". ".join(part for part in spoken if part))

    def _show_changed(self) -> None:
        changed = self.is_changed()
        self._mark.set_on(changed)
        self._reset.setVisible(changed)
        back = text_of(self._standard) or "empty"
        self._reset.setAccessibleName(f"Set {self._label.text()} back to {back}")
        self._reset.setToolTip(f"Back to {back}".replace("<", ""))
        self._label.setAccessibleName(self._label.text() + (", changed" if changed else ""))


class _ChangedMark(QWidget):
    """A dot before the name of a changed setting."""

    def __init__(self) -> None:
        super().__init__()
        self._on = False
        self.setFixedSize(S, S)

    def set_on(self, on: bool) -> None:
        self._on = on
        self.setToolTip("Changed from the preset" if on else "")
        self.update()

    def paintEvent(self, _event: QPaintEvent) -> None:
        if self._on:
            painter = QPainter(self)
            painter.setRenderHint(QPainter.RenderHint.Antialiasing)
            painter.setPen(Qt.PenStyle.NoPen)
            painter.setBrush(QColor(colours(self).accent))
            painter.drawEllipse(1, 1, S - 2, S - 2)
