"""The editor of a response, saved within a second of the last key; nothing is said to be saved before its commit."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace

from PySide6.QtCore import Qt, QTimer, Signal, SignalInstance
from PySide6.QtGui import QKeySequence, QShortcut, QTextCursor, QTextOption
from PySide6.QtWidgets import QPlainTextEdit, QWidget

from ui.context import Context
from ui.draft_state import DraftState, from_document, loses_in_editor, too_heavy
from ui.operations import bind_future
from ui.plain_text import starts_rtl, text_for_view
from ui.widgets import column
from workbench.errors import UserError
from workbench.ids import new_id, now
from workbench.records import Change, Demonstration, Prompt

PAUSE_MS = 500  # save after this pause in typing,
LONGEST_MS = 900  # and never later than this after a key
RETRY_MS = 5000


class DemonstrationEditor(QWidget):
    """One demonstration at a time.

    Signals: ``state_changed()`` whenever something to be shown changed; ``text_changed()`` after each edit;
    ``committed(Demonstration)`` after a revision is on disk; ``finish_asked()`` for Ctrl+Enter.
    """

    state_changed: SignalInstance = Signal()  # type: ignore[assignment]
    text_changed: SignalInstance = Signal()  # type: ignore[assignment]
    committed: SignalInstance = Signal(object)  # type: ignore[assignment]
    finish_asked: SignalInstance = Signal()  # type: ignore[assignment]

    def __init__(self, context: Context, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._context = context
        self._filling = False
        self._author = ""  # whose text the next save is, when a model wrote it
        self._unsaved: dict[str, Demonstration] = {}  # the newest of each prompt, from its sending to its commit
        self._on_their_way: set[str] = set()  # ids of those that the store has not answered yet
        self.commits: Counter[str] = Counter()  # by prompt: what was read before a commit is out of date
        self.state = DraftState()
        self.heavy = False
        self.edit = QPlainTextEdit()
        self.edit.setObjectName("demonstration")
        self.edit.setAccessibleName("Your response")
        self.edit.setPlaceholderText("Write what a good answer looks like.")
        self.edit.setTabChangesFocus(True)
        self.edit.setWordWrapMode(QTextOption.WrapMode.WrapAtWordBoundaryOrAnywhere)
        self.edit.document().contentsChanged.connect(self._on_contents)
        self.setFocusProxy(self.edit)
        self.setLayout(column(self.edit))
        self._pause = _timer(self, PAUSE_MS, self.save)
        self._longest = _timer(self, LONGEST_MS, self.save)
        self._retry = _timer(self, RETRY_MS, self.save_again)
        finish = QShortcut(QKeySequence("Ctrl+Return"), self.edit)
        finish.activated.connect(self.finish_asked)
        keypad = QShortcut(QKeySequence("Ctrl+Enter"), self.edit)
        keypad.activated.connect(self.finish_asked)

    # ---- opening and text -----------------------------------------------------------------------------------

    def open(self, prompt: Prompt, newest: Demonstration | None) -> None:
        """Show a prompt's demonstration; what was open is saved first."""
        self.leave()
        unsaved = self._unsaved.get(prompt.id)
        self.state = DraftState.open(prompt.id, newest, unsaved.text if unsaved else None)
        self._author = newest.author if newest else ""
        self._fill(self.state.text)
        self.save()
        self.state_changed.emit()

    def leave(self) -> None:
        """Save what is open before something else takes its place."""
        self.save()
        self._pause.stop()
        self._longest.stop()

    @property
    def text(self) -> str:
        """The text as it will be saved: what is stored until somebody edits it."""
        return self.state.text

    @property
    def lossy(self) -> str:
        """What editing would change about the stored text beside the edit; "" for nothing or once it is edited."""
        return "" if self.state.edited or self.heavy else loses_in_editor(self.state.text)

    def set_text(self, text: str, author: str = "") -> None:
        """Replace the text as an edit (a restored revision, a model's draft); it is saved like typing."""
        self._author = author
        self._fill(text)
        self.state = self.state.typed(text, author or self._context.rater.id)
        self._plan_save()
        self.text_changed.emit()
        self.state_changed.emit()

    # ---- a model's draft ------------------------------------------------------------------------------------

    def begin_stream(self) -> None:
        """Empty the editor for a model's words; nobody types meanwhile."""
        self._fill("")
        self.edit.setReadOnly(True)

    def stream(self, text: str) -> None:
        """Add a model's words at the end."""
        self._filling = True
        bar = self.edit.verticalScrollBar()
        at_end = bar.value() >= bar.maximum() - 4
        cursor = QTextCursor(self.edit.document())
        cursor.movePosition(QTextCursor.MoveOperation.End)
        cursor.insertText(text)
        if at_end:
            bar.setValue(bar.maximum())
        self._filling = False

    def end_stream(self, text: str | None, author: str) -> None:
        """Keep what the model wrote as an edit of its own; None puts back what stood before."""
        self.edit.setReadOnly(self._context.read_only)
        if text is None:
            self._fill(self.state.text)
        else:
            self.set_text(text, author)
            self.edit.moveCursor(QTextCursor.MoveOperation.End)

    # ---- saving ---------------------------------------------------------------------------------------------

    def save(self) -> None:
        """Save now what is not saved yet; what was refused goes again as it was: by the same author, final or not."""
        if self._context.read_only:
            return
        refused = self._unsaved.get(self.state.prompt_id)
        if refused is not None and refused.text == self.state.text:
            self._commit(refused)
        elif self.state.must_save:
            self._send(self.state.status)
        elif refused is not None and refused.id not in self._on_their_way:
            del self._unsaved[refused.prompt_id]  # what is on disk was typed again: there is nothing left to save
            self.state = replace(self.state, error="")
            self.state_changed.emit()

    def finish(self) -> bool:
        """Save as final. Returns False when there is nothing written."""
        if not self.state.text.strip() or self._context.read_only:
            return False
        self._send("final")
        return True

    @property
    def unsaved(self) -> int:
        """Prompts with text that is not on disk."""
        return len(set(self._unsaved) | ({self.state.prompt_id} if self.state.dirty else set()))

    def unsaved_texts(self) -> list[str]:
        """Return what is not on disk, as it was written."""
        texts = {prompt_id: one.text for prompt_id, one in self._unsaved.items()}
        return list((texts | ({self.state.prompt_id: self.state.text} if self.state.dirty else {})).values())

    def save_again(self) -> None:
        """Try again to save what could not be saved, of this prompt and of others."""
        self.save()
        for prompt_id, one in list(self._unsaved.items()):
            if prompt_id != self.state.prompt_id:
                self._commit(one)

    def _send(self, status: str) -> None:
        made = Demonstration(
            new_id(),
            self.state.prompt_id,
            self.state.text,
            self._author if self._author and status == "draft" else self._context.rater.id,
            "final" if status == "final" else "draft",
            created_at=now(),
        )
        self._pause.stop()
        self._longest.stop()
        self._unsaved[made.prompt_id] = made
        self._commit(made)

    def _commit(self, made: Demonstration) -> None:
        if self.state.prompt_id == made.prompt_id:
            self.state = self.state.sending()
            self.state_changed.emit()
        if made.id in self._on_their_way:
            return
        self._on_their_way.add(made.id)
        bind_future(
            self._context.store.save_demonstration(made),
            lambda change: self._on_committed(made, change),
            lambda error: self._on_refused(made, error),
            owner=self,
        )

    def _on_committed(self, made: Demonstration, change: Change) -> None:
        self._on_their_way.discard(made.id)
        self.commits[made.prompt_id] += 1
        newest = self._unsaved.get(made.prompt_id) is made
        if newest:
            del self._unsaved[made.prompt_id]
        if self.state.prompt_id == made.prompt_id:
            before = self.state.stored.revision if self.state.stored else 0
            made = replace(made, revision=max(1, before + bool(change.kinds)))  # nothing changed, nothing numbered
            self.state = self.state.committed(made, last=newest)
            self._plan_save()  # typed on meanwhile
        self.state_changed.emit()
        self.committed.emit(made)

    def _on_refused(self, made: Demonstration, error: BaseException) -> None:
        self._on_their_way.discard(made.id)
        if self._unsaved.get(made.prompt_id) is not made:
            return  # a newer one is on its way
        if self.state.prompt_id == made.prompt_id:
            self.state = self.state.refused(_reason(error))
            self.state_changed.emit()
        elif not self._retry.isActive():
            self._context.show_error(error)  # once: it is tried again every few seconds
        self._retry.start()

    # ---- Qt -------------------------------------------------------------------------------------------------

    def _on_contents(self) -> None:
        if self._filling or not self.state.prompt_id:
            return
        text = from_document(self.edit.document().toRawText())
        if text == self.state.text:
            return  # only the layout changed
        self._author = ""  # from here on it is the rater's
        self.state = self.state.typed(text, self._context.rater.id)
        self._align(text)
        self._plan_save()
        self.text_changed.emit()
        self.state_changed.emit()

    def _plan_save(self) -> None:
        if self.state.must_save and not self._context.read_only:
            self._pause.start()
            if not self._longest.isActive():
                self._longest.start()

    def _fill(self, text: str) -> None:
        self._filling = True
        self.heavy = too_heavy(text)
        self._align(text)
        self.edit.setPlainText(text_for_view(text).text if self.heavy else text)
        self.edit.setReadOnly(self.heavy or self._context.read_only)
        self.edit.moveCursor(QTextCursor.MoveOperation.End)
        self.edit.verticalScrollBar().setValue(0)
        self._filling = False

    def _align(self, text: str) -> None:
        side = Qt.AlignmentFlag.AlignRight if starts_rtl(text) else Qt.AlignmentFlag.AlignLeft
        option = self.edit.document().defaultTextOption()
        if option.alignment() != side:
            option.setAlignment(side)
            self._filling, before = True, self._filling
            self.edit.document().setDefaultTextOption(option)
            self._filling = before


def _timer(parent: QWidget, interval: int, act: Callable[[], None]) -> QTimer:
    made = QTimer(parent)
    made.setSingleShot(True)
    made.setInterval(interval)
    made.timeout.connect(act)
    return made


def _reason(error: BaseException) -> str:
    if isinstance(error, UserError):
        return " ".join(part for part in (error.cause or error.what, error.remedy) if part)
    return f"{type(error).__name__}: {error}"
