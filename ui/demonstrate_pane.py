"""Demonstrate: choose a prompt, write what a good answer looks like; saved within a second of the last key."""

from __future__ import annotations

from PySide6.QtCore import Qt
from PySide6.QtGui import QHideEvent, QKeySequence, QShortcut
from PySide6.QtWidgets import QSplitter, QStackedWidget, QWidget

from ui.context import Context
from ui.conversation_view import ConversationView
from ui.demonstration_editor import DemonstrationEditor
from ui.drafter import Drafter
from ui.model_picker import ModelPicker
from ui.operations import bind_future, run_task
from ui.prompt_dialog import PromptDialog, has_labels
from ui.prompt_menu import open_prompt_menu
from ui.prompt_queue import PromptQueue
from ui.revisions_dialog import RevisionsDialog
from ui.theme import XS, L, M, S
from ui.token_counter import TokenCounter
from ui.unsaved import Unsaved, finish_writes
from ui.widgets import (
    Card,
    EmptyState,
    ErrorBanner,
    IconButton,
    IconLabel,
    KeyHint,
    PageHeader,
    Pill,
    Text,
    button,
    column,
    plural,
    row,
)
from workbench.records import Change, Counts, Demonstration, ModelRecord, Prompt, Rater

_STATES = {
    "none": ("info", "muted", "Nothing written yet"),
    "typing": ("demonstrate", "accent", "Typing…"),
    "saving": ("demonstrate", "accent", "Saving…"),
    "failed": ("error", "bad", "Not saved"),
}


WIDEST = 1080
"""Of the column that is written in: longer lines are hard to read back."""


class DemonstratePane(QWidget):
    """The writing screen."""

    def __init__(self, context: Context, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.setObjectName("demonstrate-pane")
        self.setAccessibleName("Demonstrate")
        self._context = context
        self._prompt: Prompt | None = None
        self._opening = ""
        self._author = ""  # the model whose draft is being written
        self._going_on = False  # after the commit of a final one, go to the next prompt
        self._draft_when_saved = False
        self._started = False
        self._names: dict[str, str] = {}
        self.queue = PromptQueue(context)
        self.editor = DemonstrationEditor(context)
        self.drafter = Drafter(context, self)
        self.tokens = TokenCounter(context)
        self._build()
        self._connect()

    # ---- building -------------------------------------------------------------------------------------------

    def _build(self) -> None:
        self.header = PageHeader("Demonstrate", " ")
        self.conversation = ConversationView(max_lines=14)
        self._pills = [Pill() for _ in range(6)]
        self.more = IconButton("more", "More about this prompt", self.open_menu)
        card = Card(padding=M)
        card.body.setContentsMargins(M, S, S, 12)
        card.body.setSpacing(XS)
        card.body.addLayout(row(Text("Prompt", "small", "muted"), *self._pills, None, self.more, spacing=S))
        card.body.addWidget(self.conversation)
        self.banner = ErrorBanner()
        self.lossy = Text("", "small", "warn", wrap=True)
        self.lossy.setObjectName("lossy")
        self.lossy.hide()
        self._mark = IconLabel("info", 16)
        self.saved = Text("", "small", "muted")
        self.saved.setObjectName("saved-state")
        self.revisions = button("Revisions…", self.open_revisions, kind="quiet", name="revisions")
        state = row(self._mark, self.saved, None, self.tokens, spacing=S)
        self.model = ModelPicker(self._context, name="Model that drafts")
        self.model.setMaximumWidth(280)
        self.draft = button("Draft with", self.start_draft, name="draft", tip="Let this model write a first version")
        self.stop = button("Stop", self.drafter.stop, name="stop-draft", tip="Keep what has come (Esc)")
        self.stop.hide()
        self.final = button("Final", self.finish, kind="primary", name="final", tip="Done: it may train from now on")
        self.final.setMinimumWidth(96)
        acts = row(self.draft, self.stop, self.model, None, self.revisions, spacing=S)
        acts.setStretch(2, 4)  # the model's name is seen whole where there is room
        acts.addLayout(row(self.final, KeyHint("Ctrl Enter"), spacing=XS))
        side = column(card, spacing=S)
        side.addWidget(self.banner)
        side.addWidget(Text("Your response", "small", "muted"))
        side.addWidget(self.editor, 1)
        for part in (self.lossy, state, acts):
            side.addWidget(part) if isinstance(part, QWidget) else side.addLayout(part)
        side.setContentsMargins(M, 0, 0, 0)
        sheet = QWidget()
        sheet.setLayout(side)
        sheet.setMaximumWidth(WIDEST)
        work = QWidget()
        work.setLayout(row(sheet, spacing=0))
        self.empty = EmptyState("demonstrate", "No prompts yet", "", "New prompt…", self.new_prompt)
        self.empty.set(
            "No prompts yet",
            "A prompt is what somebody asks; a demonstration is how you would have it answered. Write the first one "
            "here, or import a file (Ctrl+I).",
        )
        self.pages = QStackedWidget()
        self.pages.addWidget(QWidget())
        self.pages.addWidget(work)
        self.pages.addWidget(self.empty)
        self.split = QSplitter(Qt.Orientation.Horizontal)
        left = QWidget()
        left.setLayout(column(self.queue, margins=(0, 0, M, 0)))
        self.split.addWidget(left)
        self.split.addWidget(self.pages)
        self.split.setStretchFactor(1, 1)
        self.split.setSizes([336, 900])
        self.split.setChildrenCollapsible(False)
        root = column(self.header, self.split, spacing=M, margins=(L, M, L, M))
        root.setStretch(1, 1)
        self.setLayout(root)

    def _connect(self) -> None:
        self._context.changed.connect(self._on_changed)
        self.queue.chosen.connect(self.open_prompt)
        self.queue.new_asked.connect(self.new_prompt)
        self.editor.state_changed.connect(self._on_state)
        self.editor.text_changed.connect(self._count)
        self.editor.committed.connect(self._on_committed)
        self.editor.finish_asked.connect(self.finish)
        self.model.model_chosen.connect(lambda _: self._on_model())
        self.drafter.began.connect(self._on_draft_began)
        self.drafter.token.connect(self.editor.stream)
        self.drafter.progressed.connect(lambda what: self._say("demonstrate", "accent", what))
        self.drafter.ended.connect(self._on_draft_ended)
        self.drafter.failed.connect(self._on_draft_failed)
        self.banner.action_clicked.connect(self.editor.save_again)
        for keys, act in (
            ("Ctrl+Shift+N", self.new_prompt),
            ("Ctrl+F", self.queue.search.setFocus),
            ("Ctrl+Down", lambda: self.queue.step(1)),
            ("Ctrl+Up", lambda: self.queue.step(-1)),
            ("Ctrl+D", self.start_draft),
            ("Esc", self._on_escape),
        ):
            made = QShortcut(QKeySequence(keys), self)
            made.setContext(Qt.ShortcutContext.WidgetWithChildrenShortcut)
            made.activated.connect(act)

    # ---- the pane's life ------------------------------------------------------------------------------------

    def activate(self) -> None:
        """The pane is shown."""
        if not self._started:
            self._started = True
            self.queue.start()
            self.queue.list.setFocus()
        run_task(self._context.store.counts, self._on_counts, owner=self)
        store = self._context.store
        run_task(lambda: (store.models(), store.raters()), self._on_names, owner=self)

    def show_item(self, prompt_id: str = "", split: str = "", **_: str) -> None:
        """Open a prompt, or show the prompts of a split to choose among them."""
        if split:
            self.queue.show_split(split)
            self.queue.list.setFocus()
        if prompt_id and not self.queue.choose(prompt_id):
            run_task(lambda: self._context.store.prompt(prompt_id), self._on_found, owner=self)

    def unsaved(self) -> Unsaved | None:
        """Save what is open; what could not be saved by now."""
        self.editor.leave()
        self.editor.save_again()
        finish_writes(self._context.store)
        count = self.editor.unsaved
        what = f"The text of {plural(count, 'demonstration')}"
        return Unsaved(what, "\n\n".join(self.editor.unsaved_texts())) if count else None

    def hideEvent(self, event: QHideEvent) -> None:
        """Save at once when another pane is shown or the window closes."""
        super().hideEvent(event)
        self.editor.leave()

    @property
    def prompt(self) -> Prompt | None:
        """The prompt that is open."""
        return self._prompt

    def _on_found(self, prompt: Prompt | None) -> None:
        if prompt is not None:
            self.open_prompt(prompt)

    def _on_names(self, found: tuple[list[ModelRecord], list[Rater]]) -> None:
        self._names = {one.id: one.name for some in found for one in some}

    def _on_counts(self, counts: Counts) -> None:
        drafts = f", {plural(counts.demonstrations_draft, 'draft')}" if counts.demonstrations_draft else ""
        self.header.set_subtitle(
            f"{plural(counts.demonstrations_final, 'final demonstration')}{drafts} · {plural(counts.prompts, 'prompt')}"
        )
        if not counts.prompts:
            self._prompt = None
            self.pages.setCurrentWidget(self.empty)
        elif self._prompt is None and self.pages.currentWidget() is self.empty:
            self.pages.setCurrentIndex(0)

    def _on_changed(self, change: Change) -> None:
        if change.kinds & {"prompts", "demonstrations"}:
            run_task(self._context.store.counts, self._on_counts, owner=self)
        if change.kinds & {"models", "raters"}:
            store = self._context.store
            run_task(lambda: (store.models(), store.raters()), self._on_names, owner=self)
        self.queue.on_changed(change)
        undone = not change.label and "demonstrations" in change.kinds
        if self._prompt is not None and (undone or self._prompt.id in change.ids) and not self.editor.state.dirty:
            self._open(self._prompt.id)  # undone elsewhere, moved to another split, or tagged

    # ---- opening --------------------------------------------------------------------------------------------

    def open_prompt(self, prompt: Prompt) -> None:
        """Show a prompt and its demonstration."""
        if self._prompt is not None and prompt.id == self._prompt.id:
            return
        self.drafter.stop()
        self._draft_when_saved = False
        self.editor.leave()
        self._open(prompt.id)

    def _open(self, prompt_id: str) -> None:
        store, commits = self._context.store, self.editor.commits[prompt_id]
        self._opening = prompt_id
        run_task(
            lambda: (store.prompt(prompt_id), store.demonstration_for(prompt_id)),
            lambda found: self._on_opened(*found, commits),
            owner=self,
        )

    def _on_opened(self, prompt: Prompt | None, newest: Demonstration | None, commits: int) -> None:
        if prompt is None or prompt.id != self._opening or self.drafter.running:
            return  # another one was chosen meanwhile
        if commits != self.editor.commits[prompt.id]:
            self._open(prompt.id)  # it was read before what was written there came to the disk
            return
        same = self._prompt is not None and self._prompt.id == prompt.id
        if same and self.editor.state.dirty:
            return
        self._prompt = prompt
        self.banner.hide()
        self.conversation.set_messages(prompt.messages)
        words = [("held-out", "accent")] if prompt.split == "held-out" else []
        words += [(tag, "") for tag in prompt.tags]
        for index, pill in enumerate(self._pills):
            pill.setVisible(index < len(words))
            if index < len(words):
                pill.set(*words[index])
        self.editor.open(prompt, newest)
        self.pages.setCurrentIndex(1)
        self._count()
        self.queue.choose(prompt.id)

    def _count(self) -> None:
        if self._prompt is not None:
            ask = self.editor.state.edited or self._context.engine.state in ("ready", "busy")
            self.tokens.count(self._prompt.messages, self.editor.text, ask=ask)

    def _on_model(self) -> None:
        self.tokens.set_model(self.model.record())
        self._on_state()

    # ---- state ----------------------------------------------------------------------------------------------

    def _on_state(self) -> None:
        state, editor = self.editor.state, self.editor
        kind = state.saved
        if self._draft_when_saved and kind in ("saved", "failed"):
            self._draft_when_saved = False
            if kind == "saved":
                self._begin_draft()
        running = self.drafter.running
        if not running:
            self._say_state()
        self.lossy.setVisible(bool(editor.lossy) or editor.heavy)
        self.lossy.setText(
            "This text is too long to edit here; it is kept and trained as it is."
            if editor.heavy
            else f"If you edit this text, {editor.lossy}."
        )
        writable = not self._context.read_only
        self.draft.setVisible(not running)
        self.stop.setVisible(running)
        self.draft.setEnabled(writable and self.model.record() is not None and not editor.heavy)
        final = state.stored is not None and state.stored.status == "final" and not state.dirty
        self.final.setEnabled(writable and not running and bool(state.text.strip()) and not final)
        self.revisions.setEnabled(state.stored is not None)

    def _say_state(self) -> None:
        state = self.editor.state
        if state.saved == "failed":
            self._say("error", "bad", "Not saved: the text stays here and is tried again")
            if self.banner.isHidden() or self.banner.action.text() != "Try again now":
                self.banner.show_message("This text is not saved yet", state.error, "bad", "Try again now")
            return
        if self.banner.action.text() == "Try again now":
            self.banner.hide()
        if state.saved == "saved" and state.stored is not None:
            if state.stored.status == "final":
                self._say("check", "good", f"Saved · final · revision {state.stored.revision}")
            else:
                was = " (edited since it was final)" if state.finished is not None else ""
                self._say("check", "muted", f"Saved · draft{was}")
            return
        self._say(*_STATES[state.saved])

    def _say(self, icon: str, tone: str, words: str) -> None:
        self._mark.set(icon, tone)
        self.saved.set_tone(tone)
        self.saved.setText(words)
        self.saved.setAccessibleName(words)

    def _on_committed(self, made: Demonstration) -> None:
        self.queue.model.set_state(made.prompt_id, made.status)
        if self._going_on and made.status == "final" and self._prompt and made.prompt_id == self._prompt.id:
            self._going_on = False
            if self.queue.next_open(made.prompt_id) is None:
                self._context.notify("Every prompt in this list has its final demonstration.", "good")
            self.editor.edit.setFocus()

    # ---- acts -----------------------------------------------------------------------------------------------

    def finish(self) -> None:
        """Save as final and go on to the next prompt once it is committed."""
        state = self.editor.state
        if self._prompt is None or self.drafter.running:
            return
        if state.stored is not None and state.stored.status == "final" and not state.dirty:
            self.queue.next_open(self._prompt.id)
            return
        self._going_on = self.editor.finish()
        if not self._going_on:
            self._say("warning", "warn", "Write something first: an empty answer cannot be final")

    def start_draft(self) -> None:
        """Let the chosen model draft; what stands there is kept as a revision first."""
        if self._prompt is None or self.drafter.running or not self.draft.isEnabled():
            return
        state = self.editor.state
        if state.text.strip() and state.saved != "saved":
            self._draft_when_saved = True
            self.editor.save()
        else:
            self._begin_draft()

    def _begin_draft(self) -> None:
        model = self.model.record()
        if model is not None and self._prompt is not None:
            self.drafter.start(model, self._prompt.messages)
            self._say("demonstrate", "accent", f"{model.name} is asked…")
            self._on_state()

    def _on_draft_began(self) -> None:
        self.banner.hide()
        self.editor.begin_stream()
        self._author = self.drafter.model.id if self.drafter.model else ""
        self._say("demonstrate", "accent", "A draft is being written · Esc stops it and keeps what has come")

    def _on_draft_ended(self, text: str) -> None:
        self.editor.end_stream(text if text.strip() else None, self._author)
        self.editor.edit.setFocus()
        self._on_state()

    def _on_draft_failed(self, error: BaseException) -> None:
        if self.editor.edit.isReadOnly():
            self.editor.end_stream(None, "")
        self._on_state()
        self.banner.show_error(error)

    def _on_escape(self) -> None:
        if self.drafter.running:
            self.drafter.stop()
        else:
            self.editor.edit.setFocus()

    def new_prompt(self) -> None:
        """Write a new prompt."""
        if self._context.read_only:
            self._context.notify("The project is open for reading only.", "warn")
            return
        tag = str(self.queue.tag.currentData() or "")
        self._show_dialog(PromptDialog(self._context, [tag] if tag else [], self))

    def _show_dialog(self, dialog: PromptDialog) -> None:
        dialog.setAttribute(Qt.WidgetAttribute.WA_DeleteOnClose)
        dialog.added.connect(self._on_added)
        dialog.opened.connect(lambda prompt_id: self.show_item(prompt_id=prompt_id))
        dialog.open()

    def _on_added(self, prompt_id: str) -> None:
        self.show_item(prompt_id=prompt_id)
        self.editor.edit.setFocus()

    def open_revisions(self) -> None:
        """Show the revisions of what is open."""
        if self._prompt is not None:
            prompt_id = self._prompt.id
            run_task(lambda: self._context.store.demonstration_history(prompt_id), self._on_history, owner=self)

    def _on_history(self, history: list[Demonstration]) -> None:
        dialog = RevisionsDialog(history, self._names, self)
        dialog.setAttribute(Qt.WidgetAttribute.WA_DeleteOnClose)
        dialog.restored.connect(lambda one: self.editor.set_text(one.text))
        dialog.open()

    def open_menu(self) -> None:
        """Show what else can be done with the prompt."""
        prompt, store = self._prompt, self._context.store
        if prompt is None:
            return
        self.editor.leave()
        at = self.more.mapToGlobal(self.more.rect().bottomLeft())

        def show(labelled: bool) -> None:
            labelled = labelled or bool(self.editor.text)
            open_prompt_menu(self, at, self._context, prompt, self._archive, write, labelled=labelled)

        def write(instead: bool) -> None:
            self._show_dialog(PromptDialog(self._context, parent=self, like=prompt, instead=instead))

        run_task(lambda: has_labels(store, prompt.id), show, owner=self)

    def _archive(self, prompt: Prompt) -> None:
        self.editor.leave()
        self.queue.next_open(prompt.id)
        bind_future(self._context.store.archive_prompts([prompt.id]), owner=self)
        self._context.notify("The prompt was archived; Edit > Undo brings it back.")
