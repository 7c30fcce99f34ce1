"""What a run was asked to do: every setting, the models, the frozen data with their hashes, the versions."""

from __future__ import annotations

from collections.abc import Sequence

from PySide6.QtCore import Qt, Signal, SignalInstance
from PySide6.QtWidgets import QGridLayout, QWidget

from ui.recipe_form import GROUP_ORDER, label_of
from ui.setting_editors import text_of
from ui.theme import L, M, S
from ui.times import moment
from ui.train_parts import PageScroll
from ui.widgets import Card, SectionTitle, Text, button, clear, column, row
from workbench.protocol import RunSpec
from workbench.recipes import RECIPES
from workbench.settings_fields import settings_of


class RecipeView(QWidget):
    """``recipe.json`` for people. ``again()``: make a new run with these settings."""

    again: SignalInstance = Signal()  # type: ignore[assignment]

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._spec: RunSpec | None = None
        self._shown = True
        self._page = QWidget()
        self._layout = column(spacing=M, margins=(0, M, S, L))
        self._page.setLayout(self._layout)
        self._changed_only = Text("", "small", "muted")
        again = button("New run with these settings", self.again.emit, name="run-again")
        self.setLayout(column(row(self._changed_only, None, again), PageScroll(self._page), margins=(0, S, 0, 0)))

    def set_spec(self, spec: RunSpec | None) -> None:
        """Show a recipe."""
        if spec != self._spec:
            self._spec, self._shown = spec, False
            if self.isVisible():
                self._fill()

    def showEvent(self, event: object) -> None:
        """Write the page when it is first looked at."""
        super().showEvent(event)  # type: ignore[arg-type]
        if not self._shown:
            self._fill()

    def _fill(self) -> None:
        self._shown, spec = True, self._spec
        clear(self._layout)
        if spec is None:
            return
        settings = settings_of(RECIPES[spec.method])
        changed = {
            one.name
            for one in settings
            if spec.recipe.get(one.name, one.default) != one.default and one.name not in spec.automatic
        }
        self._changed_only.setText(f"● {len(changed)} of {len(settings)} settings differ from the field's default")
        self._layout.addWidget(_card("Models", _models(spec)))
        groups = sorted(
            dict.fromkeys(one.group for one in settings),
            key=lambda group: GROUP_ORDER.index(group) if group in GROUP_ORDER else len(GROUP_ORDER),
        )
        for group in groups:
            lines = []
            for one in settings:
                if one.group == group:
                    value = spec.recipe.get(one.name, one.default)
                    shown = text_of(value) or "empty"
                    about = "Chosen by the memory plan. " if one.name in spec.automatic else ""
                    lines.append((label_of(one), f"{shown} {one.unit}".strip(), one.name in changed, about + one.help))
            self._layout.addWidget(_card(group, lines))
        data = [(name, _in_two(value), False, "sha256") for name, value in sorted(spec.data_sha256.items())]
        self._layout.addWidget(_card("Frozen data, sha256", data))
        made = [(name, value, False, "") for name, value in sorted(spec.versions.items())]
        made += [("Made", moment(spec.created_at), False, ""), ("Run", spec.run_id, False, "")]
        self._layout.addWidget(_card("Versions", made))
        self._layout.addStretch(1)


Line = tuple[str, str, bool, str]
"""Label, value, whether it differs from the default, and what it means."""


def _models(spec: RunSpec) -> list[Line]:
    lines: list[Line] = [("Starts from", spec.model.name, False, spec.model.base)]
    if spec.reward is not None:
        lines.append(("Scored by", spec.reward.name, False, spec.reward.adapter))
    elif spec.method == "ppo":
        lines.append(("Scored by", f"the rule {spec.recipe.get('rule', '')}", False, ""))
    if spec.model.base_sha256:
        lines.append(("Base, sha256", _in_two(spec.model.base_sha256), False, ""))
    return lines


def _in_two(digest: str) -> str:
    """A digest on two lines: a label cannot break it, and would push the page out of the window."""
    half = len(digest) // 2
    return f"{digest[:half]}\n{digest[half:]}"


def _card(title: str, lines: Sequence[Line]) -> QWidget:
    card = Card()
    card.body.addWidget(SectionTitle(title))
    grid = QGridLayout()
    grid.setHorizontalSpacing(M)
    grid.setVerticalSpacing(S)
    top = Qt.AlignmentFlag.AlignTop
    for index, (label, value, changed, about) in enumerate(lines):
        name = Text(("● " if changed else "") + label, "body", "accent" if changed else "muted")
        name.setFixedWidth(176)
        shown = Text(value, "strong" if changed else "body", wrap=True, selectable=True)
        shown.setAccessibleName(f"{label}: {value}" + (", changed from the default" if changed else ""))
        meaning = Text(about, "small", "muted", wrap=True)
        grid.addWidget(name, index, 0, top)
        grid.addWidget(shown, index, 1, top)
        grid.addWidget(meaning, index, 2, top)
    grid.setColumnStretch(1, 1)
    grid.setColumnStretch(2, 2)
    card.body.addLayout(grid)
    return card
