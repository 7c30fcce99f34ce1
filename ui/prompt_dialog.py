"""Writes a prompt, new or instead of one that exists: its turns, tags, and the split it belongs to."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from PySide6.QtCore import QTimer, Signal, SignalInstance
from PySide6.QtGui import QKeySequence, QShortcut
from PySide6.QtWidgets import QComboBox, QDialog, QLineEdit, QWidget

from ui.context import Context
from ui.operations import bind_future, run_task
from ui.run_acts import ask
from ui.theme import L, M, S
from ui.turns_editor import TurnsEditor
from ui.widgets import ErrorBanner, Text, button, column, plural, row
from workbench.ids import new_id, now
from workbench.near_duplicates import near, search_words
from workbench.records import Change, Prompt
from workbench.store import Store

CHECK_AFTER_MS = 400


def tags_of(text: str) -> tuple[str, ...]:
    """Split comma-separated tags, each once, in the order written."""
    return tuple(dict.fromkeys(word for part in text.split(",") if (word := " ".join(part.split()))))


def has_labels(store: Store, prompt_id: str) -> bool:
    """Whether anything hangs on a prompt: a demonstration, a response, a ranking. May run on any thread."""
    return bool(
        store.demonstration_history(prompt_id)
        or store.responses(prompt_id)
        or store.rankings(prompt_id=prompt_id, include_superseded=True)
    )


@dataclass(frozen=True, slots=True)
class _Alike:
    same: list[Prompt]
    near: list[tuple[float, Prompt]]


class PromptDialog(QDialog):
    """``added(prompt_id)`` is sent after the prompt is committed; ``opened(prompt_id)`` for one that exists.

    Args:
        context: the project.
        tags: what a new prompt is tagged with to begin with.
        parent: the window below.
        like: a prompt whose turns, tags and split are there to begin with.
        instead: the new prompt takes the place of ``like``, which is archived; no label may hang on it.
    """

    added: SignalInstance = Signal(str)  # type: ignore[assignment]
    opened: SignalInstance = Signal(str)  # type: ignore[assignment]

    def __init__(
        self,
        context: Context,
        tags: Sequence[str] = (),
        parent: QWidget | None = None,
        *,
        like: Prompt | None = None,
        instead: bool = False,
    ) -> None:
        super().__init__(parent)
        self.setObjectName("prompt-dialog")
        self.setWindowTitle("Edit prompt" if instead else "New prompt")
        self.resize(720, 560)
        self._context = context
        self._id = new_id()  # kept over a failed save: trying again cannot add it twice
        self._replaces = like if instead else None
        self._saving = False
        self._asked = 0
        self._same: Prompt | None = None
        self.editor = TurnsEditor(like.messages if like else ())
        self._first = self.editor.messages()
        self.tags = QLineEdit(", ".join(like.tags if like else tags))
        self.tags.setObjectName("tags")
        self.tags.setPlaceholderText("Tags, separated by commas")
        self.tags.setAccessibleName("Tags")
        self.split = QComboBox()
        self.split.setAccessibleName("Split")
        self.split.addItem("Train", "train")
        self.split.addItem("Held-out (never trains anything)", "held-out")
        self.split.setCurrentIndex(self.split.findData(like.split if like else "train"))
        self.about = Text("", "small", "muted", wrap=True)
        self.about.setObjectName("about")
        self.banner = ErrorBanner()
        self.banner.action_clicked.connect(self._open_same)
        words = "Save prompt" if instead else "Add prompt"
        self.add = button(words, self.save, kind="primary", name="add-prompt", tip="Ctrl+Enter")
        ends = row(self.tags, self.split, spacing=S)
        ends.setStretch(0, 1)
        buttons = row(self.about, button("Cancel", self.reject), self.add, spacing=S)
        buttons.setStretch(0, 1)
        layout = column(spacing=M, margins=(L, L, L, M))
        layout.addWidget(self.editor, 1)
        layout.addLayout(ends)
        layout.addWidget(self.banner)
        layout.addLayout(buttons)
        self.setLayout(layout)
        self._timer = QTimer(self)
        self._timer.setSingleShot(True)
        self._timer.setInterval(CHECK_AFTER_MS)
        self._timer.timeout.connect(self._look_for_alike)
        shortcut = QShortcut(QKeySequence("Ctrl+Return"), self)
        shortcut.activated.connect(self.save)
        self.editor.edited.connect(self._on_edited)
        self.editor.setFocus()
        self._refresh()

    def _on_edited(self) -> None:
        self._timer.start()
        self._refresh()

    def _refresh(self) -> None:
        unchanged = self._replaces is not None and self.editor.messages() == self._first
        problem = self.editor.problem() or ("Nothing is changed yet." if unchanged else "")
        self.about.setText(problem)
        self.add.setEnabled(not problem and not self._saving)

    # ---- leaving --------------------------------------------------------------------------------------------

    def reject(self) -> None:
        """Close without saving; asks first when words would be lost."""
        self._leave(super().reject)

    def _leave(self, then: Callable[[], None]) -> None:
        if self.editor.is_blank() or self.editor.messages() == self._first:
            then()
            return
        ask(
            self,
            "Throw away what is written here?",
            "It is not in the project yet, and closing loses it.",
            "Throw it away",
            "Go on writing",
            then,
        )

    # ---- near duplicates ------------------------------------------------------------------------------------

    def _look_for_alike(self) -> None:
        messages, store, replaces = self.editor.messages(), self._context.store, self._replaces
        self._asked += 1
        asked = self._asked
        if self.editor.problem():
            self._show_alike(_Alike([], []))
            return

        def work() -> _Alike:
            others = [one for one in store.find_duplicates(messages) if one != replaces]
            words = search_words(messages)
            candidates = {one.id: one for some in (words, words[:1]) if some for one in _search(store, some)}
            for one in (*others, *([replaces] if replaces else [])):
                candidates.pop(one.id, None)
            return _Alike(others, near(messages, candidates.values()))

        run_task(work, lambda found: self._show_alike(found) if asked == self._asked else None, owner=self)

    def _show_alike(self, found: _Alike) -> None:
        self._same = found.same[0] if found.same else found.near[0][1] if found.near else None
        if found.same:
            self.banner.show_message("This prompt exists already", found.same[0].title[:200], "warn", "Open it")
        elif found.near:
            likeness, nearest = found.near[0]
            others = f" ({plural(len(found.near), 'prompt')} like it)" if len(found.near) > 1 else ""
            self.banner.show_message(
                f"Nearly the same as one you have: {likeness:.0%} of the words{others}",
                nearest.title[:200],
                "warn",
                "Open it",
            )
        else:
            self.banner.hide()

    def _open_same(self) -> None:
        same = self._same
        if same is None:
            return

        def open_() -> None:
            self.opened.emit(same.id)
            self.done(QDialog.DialogCode.Rejected)

        if same.messages == self.editor.messages():
            open_()  # every word of it is in the project
        else:
            self._leave(open_)

    # ---- saving ---------------------------------------------------------------------------------------------

    def save(self) -> None:
        """Save the prompt; the dialog closes after the commit."""
        if not self.add.isEnabled():
            return
        self._saving = True
        self._refresh()
        prompt = Prompt(
            self._id,
            self.editor.messages(),
            tags_of(self.tags.text()),
            source=self._replaces.source if self._replaces else "written",
            split=self.split.currentData(),
            created_at=now(),
        )
        store, old = self._context.store, self._replaces
        future = store.replace_prompt(old.id, prompt) if old else store.add_prompts([prompt])
        bind_future(future, self._on_saved, self._on_failed, owner=self)

    def _on_saved(self, _change: Change) -> None:
        self.added.emit(self._id)
        self.accept()

    def _on_failed(self, error: BaseException) -> None:
        self._saving = False
        self._same = None
        self.banner.show_error(error)
        self._refresh()


def _search(store: Store, words: Sequence[str]) -> list[Prompt]:
    return store.prompts(search=" ".join(words), limit=50)
