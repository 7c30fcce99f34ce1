"""A box to choose a model of the project."""

from __future__ import annotations

from collections.abc import Sequence

from PySide6.QtCore import Qt, Signal, SignalInstance
from PySide6.QtWidgets import QComboBox, QSizePolicy, QWidget

from ui.context import Context
from ui.operations import run_task
from ui.plain_text import visible
from workbench.model_choice import by_training
from workbench.records import ROLE_WORDS, Change, ModelRecord


class ModelPicker(QComboBox):
    """The project's models of some roles, the last trained first; keeps its choice while the list changes.

    ``model_chosen(str)`` tells the id of the chosen model ("" for none), also when the list's first load chooses.
    """

    model_chosen: SignalInstance = Signal(str)  # type: ignore[assignment]

    def __init__(
        self,
        context: Context,
        *,
        roles: Sequence[str] = ("base", "sft", "policy"),
        none_text: str = "",
        name: str = "Model",
        parent: QWidget | None = None,
    ) -> None:
        super().__init__(parent)
        self._context = context
        self._roles = tuple(roles)
        self._none_text = none_text
        self._models: list[ModelRecord] = []
        self._wanted = ""
        self._told: str | None = None
        self.setAccessibleName(name)
        self.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Fixed)
        self.setSizeAdjustPolicy(QComboBox.SizeAdjustPolicy.AdjustToMinimumContentsLengthWithIcon)
        self.setMinimumContentsLength(12)
        self.currentIndexChanged.connect(self._on_index)
        context.changed.connect(self._on_changed)
        self.reload()

    def model_id(self) -> str:
        """Return the chosen model's id, or ""."""
        return str(self.currentData() or "")

    def record(self) -> ModelRecord | None:
        """Return the chosen model."""
        return next((one for one in self._models if one.id == self.model_id()), None)

    def models(self) -> list[ModelRecord]:
        """Return what can be chosen."""
        return list(self._models)

    def set_model_id(self, model_id: str) -> None:
        """Choose a model now, or as soon as the list has it."""
        self._wanted = model_id
        index = self.findData(model_id)
        if index >= 0:
            self.setCurrentIndex(index)

    def reload(self) -> None:
        """Read the list anew, off the window's thread."""
        run_task(self._context.store.models, self._on_models, owner=self)

    def _on_changed(self, change: Change) -> None:
        if "models" in change.kinds:
            self.reload()

    def _on_models(self, models: list[ModelRecord]) -> None:
        keep = self._wanted or self.model_id()
        self._models = [one for one in reversed(by_training(models)) if one.role in self._roles]
        self.blockSignals(True)
        self.clear()
        if self._none_text:
            self.addItem(self._none_text, "")
        for one in self._models:
            self.addItem(f"{visible(one.name)}  ·  {ROLE_WORDS[one.role]}", one.id)
            self.setItemData(self.count() - 1, one.name, Qt.ItemDataRole.AccessibleTextRole)
        if not self.count():
            self.addItem("No model yet", "")
        index = self.findData(keep) if keep else 0
        self.setCurrentIndex(max(0, index))
        self.setEnabled(bool(self._models) or bool(self._none_text))
        self.blockSignals(False)
        self._on_index()

    def _on_index(self) -> None:
        now = self.model_id()
        if now != self._told:
            self._told = now
            self.model_chosen.emit(now)
