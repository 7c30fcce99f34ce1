"""Chat with one model, turn by turn; any answer can be sent to labelling."""

from __future__ import annotations

import random
from dataclasses import dataclass

from PySide6.QtCore import QEvent, QObject, Qt, Signal, SignalInstance
from PySide6.QtGui import QGuiApplication, QKeyEvent, QKeySequence, QShortcut
from PySide6.QtWidgets import QDoubleSpinBox, QFrame, QPlainTextEdit, QScrollArea, QSpinBox, QVBoxLayout, QWidget

from ui.context import Context
from ui.drafter import Drafter
from ui.labelling import READ_ONLY, Given, send
from ui.model_picker import ModelPicker
from ui.operations import bind_future, run_task
from ui.plain_text import PlainText
from ui.theme import XS, L, M, S
from ui.widgets import Card, ErrorBanner, IconButton, KeyHint, Text, button, column, row
from workbench.records import Change, Message, ModelRecord, Sampling


@dataclass(slots=True)
class _Turn:
    """A turn of the chat; ``given`` says of an answer which model wrote it."""

    message: Message
    given: Given | None = None


class TurnCard(Card):
    """One turn. ``label_asked()`` is sent by the button of an answer."""

    label_asked: SignalInstance = Signal()  # type: ignore[assignment]

    def __init__(self, who: str, text: str, *, answer: bool, parent: QWidget | None = None) -> None:
        super().__init__(parent=parent, padding=M)
        self.body.setContentsMargins(M, S, S, 12)
        self.body.setSpacing(XS)
        self.about = Text(who, "small", "muted")
        self.text = PlainText(text, name=f"{who} says", fit=True, max_lines=60, frame=False)
        self.text.view.document().setDocumentMargin(0)
        self.text.view.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        copy = IconButton("copy", "Copy this turn", lambda: QGuiApplication.clipboard().setText(self.text.text()))
        self.label = button("Send to labelling", self.label_asked.emit, kind="quiet", name="send-to-labelling")
        self.label.setVisible(False)
        self._answer = answer
        self.body.addLayout(row(self.about, None, self.label, copy, spacing=S))
        self.body.addWidget(self.text)

    def set_whole(self, note: str) -> None:
        """The answer is whole: it can be sent to labelling."""
        if note:
            self.about.setText(f"{self.about.text()} · {note}")
        self.label.setVisible(self._answer and bool(self.text.text().strip()))


class ChatView(QWidget):
    """A conversation with one model at a time; the model can be changed between turns."""

    def __init__(self, context: Context, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.setObjectName("chat")
        self._context = context
        self._turns: list[_Turn] = []
        self._cards: list[TurnCard] = []
        self._sampling = Sampling()
        self._model: ModelRecord | None = None
        self.talker = Drafter(context, self)
        self.model = ModelPicker(context, name="Model to chat with")
        self.model.setObjectName("chat-model")
        self.temperature = QDoubleSpinBox()
        self.temperature.setRange(0.0, 2.0)
        self.temperature.setSingleStep(0.1)
        self.temperature.setValue(0.7)
        self.temperature.setAccessibleName("Temperature; 0 takes the likeliest token")
        self.tokens = QSpinBox()
        self.tokens.setRange(8, 8192)
        self.tokens.setSingleStep(64)
        self.tokens.setValue(512)
        self.tokens.setAccessibleName("At most this many tokens an answer")
        self.system = QPlainTextEdit()
        self.system.setObjectName("chat-system")
        self.system.setAccessibleName("System turn")
        self.system.setPlaceholderText("System turn (optional)")
        self.system.setTabChangesFocus(True)
        self.system.setFixedHeight(48)
        self.fresh = button("New chat", self.clear, name="new-chat")
        self.banner = ErrorBanner()
        self._box = QVBoxLayout()
        self._box.setContentsMargins(0, 0, S, 0)
        self._box.setSpacing(M)
        self._box.addStretch(1)
        inner = QWidget()
        inner.setLayout(self._box)
        self.area = QScrollArea()
        self.area.setAccessibleName("Conversation")
        self.area.setWidgetResizable(True)
        self.area.setFrameShape(QFrame.Shape.NoFrame)
        self.area.setWidget(inner)
        self.area.verticalScrollBar().rangeChanged.connect(self._follow)
        self.entry = QPlainTextEdit()
        self.entry.setObjectName("chat-entry")
        self.entry.setAccessibleName("Your turn")
        self.entry.setPlaceholderText("Say something. Enter sends, Shift+Enter begins a new line.")
        self.entry.setTabChangesFocus(True)
        self.entry.setFixedHeight(72)
        self.entry.installEventFilter(self)
        self.send_button = button("Send", self.send, kind="primary", name="chat-send")
        self.stop = button("Stop", self.talker.stop, name="chat-stop")
        self.stop.hide()
        self._build()
        self.setFocusProxy(self.entry)
        self.talker.token.connect(self._on_token)
        self.talker.ended.connect(self._on_ended)
        self.talker.failed.connect(self._on_failed)
        self.talker.progressed.connect(self._on_progress)
        self.entry.textChanged.connect(self._refresh)
        self.model.model_chosen.connect(lambda _: self._refresh())
        escape = QShortcut(QKeySequence("Esc"), self)
        escape.setContext(Qt.ShortcutContext.WidgetWithChildrenShortcut)
        escape.activated.connect(self.talker.stop)
        self._refresh()

    def _build(self) -> None:
        setup = Card(padding=M)
        setup.body.setContentsMargins(M, 12, M, 12)
        line = row(Text("Model", "small", "muted"), spacing=S)
        line.addWidget(self.model, 1)
        for words, widget in (("Temperature", self.temperature), ("Tokens", self.tokens)):
            line.addSpacing(S)
            line.addWidget(Text(words, "small", "muted"))
            line.addWidget(widget)
        line.addSpacing(S)
        line.addWidget(self.fresh)
        setup.body.addLayout(line)
        setup.body.addWidget(self.system)
        side = column(self.send_button, self.stop, None, spacing=S)
        below = row(self.entry, spacing=S)
        below.addLayout(side)
        below.addLayout(column(KeyHint("Enter"), None, spacing=S))
        layout = column(setup, self.banner, spacing=M)
        layout.addWidget(self.area, 1)
        layout.addLayout(below)
        holder = QWidget()
        holder.setLayout(layout)
        holder.setMaximumWidth(960)  # longer lines are hard to read
        self.setLayout(row(None, holder, None, margins=(L, 0, L, 0)))
        outer = self.layout()
        if outer is not None:
            outer.setStretch(1, 8)  # type: ignore[attr-defined]

    # ---- talking --------------------------------------------------------------------------------------------

    @property
    def messages(self) -> tuple[Message, ...]:
        """The conversation so far, the system turn included."""
        system = self.system.toPlainText().strip()
        first = (Message("system", system),) if system else ()
        return first + tuple(one.message for one in self._turns)

    @property
    def cards(self) -> list[TurnCard]:
        """The turns as they are shown."""
        return list(self._cards)

    def send(self) -> None:
        """Send what is typed and let the model answer."""
        model, text = self.model.record(), self.entry.toPlainText().strip()
        if model is None or not text or self.talker.running:
            return
        self.banner.hide()
        self.entry.clear()
        self._add(_Turn(Message("user", text)), "You")
        self._model = model
        self._sampling = Sampling(self.temperature.value(), 1.0, 0, self.tokens.value(), random.getrandbits(31))
        self.talker.start(model, self.messages, self._sampling)
        self._add(_Turn(Message("assistant", "")), model.name)
        self._refresh()

    def clear(self) -> None:
        """Begin a new conversation."""
        self.talker.stop()
        for card in self._cards:
            self._box.removeWidget(card)
            card.deleteLater()
        self._cards.clear()
        self._turns.clear()
        self.banner.hide()
        self._refresh()
        self.entry.setFocus()

    def _add(self, turn: _Turn, who: str) -> None:
        card = TurnCard(who, turn.message.content, answer=turn.message.role == "assistant")
        place = len(self._turns)
        card.label_asked.connect(lambda: self._send_to_labelling(place))
        if self._context.read_only:
            card.label.setEnabled(False)
            card.label.setToolTip(READ_ONLY)
        self._turns.append(turn)
        self._cards.append(card)
        self._box.insertWidget(self._box.count() - 1, card)

    def _on_token(self, text: str) -> None:
        self._cards[-1].text.append_text(text)

    def _on_progress(self, what: str) -> None:
        if self._model is not None and self._cards:
            self._cards[-1].about.setText(f"{self._model.name} · {what}")

    def _on_ended(self, text: str) -> None:
        model = self._model
        if model is None or not self._turns:
            return
        if not text.strip():
            self._drop_answer()
            self.banner.show_message("The model said nothing", "It ended its answer at once.", "warn")
        else:
            card = self._cards[-1]
            if card.text.text() != text:
                card.text.set_text(text)
            reason = self.talker.finish_reason
            given = Given(text, model.id, model.name, reason, self.talker.token_count, self._sampling)
            self._turns[-1] = _Turn(Message("assistant", text), given)
            card.about.setText(model.name)
            card.set_whole({"stopped": "stopped", "length": "cut off"}.get(reason, ""))
        self._refresh()
        self.entry.setFocus()

    def _on_failed(self, error: BaseException) -> None:
        if self._turns and self._turns[-1].message.role == "assistant" and self._turns[-1].given is None:
            self._drop_answer()
        self.banner.show_error(error)
        self._refresh()

    def _drop_answer(self) -> None:
        """Take the unanswered turns off, and put the words back to be sent again."""
        for _ in range(2):
            turn, card = self._turns.pop(), self._cards.pop()
            self._box.removeWidget(card)
            card.deleteLater()
        if not self.entry.toPlainText():
            self.entry.setPlainText(turn.message.content)

    # ---- labelling ------------------------------------------------------------------------------------------

    def _send_to_labelling(self, place: int) -> None:
        given = self._turns[place].given
        if given is None or self._context.read_only:
            return
        system = len(self.messages) - len(self._turns)
        before = self.messages[: system + place]
        store, card = self._context.store, self._cards[place]
        card.label.setEnabled(False)

        def sent(outcome: tuple[str, object]) -> None:
            prompt_id, future = outcome
            bind_future(future, lambda change: saved(prompt_id, change), failed, owner=self)  # type: ignore[arg-type]

        def saved(_prompt_id: str, _change: Change) -> None:
            card.label.setText("In labelling")
            self._context.notify("The prompt and this answer are in the project. Get more responses in Rank.", "good")

        def failed(error: BaseException) -> None:
            card.label.setEnabled(True)
            self.banner.show_error(error)

        run_task(lambda: send(store, before, [given], source="chat"), sent, failed, owner=self)

    # ---- Qt -------------------------------------------------------------------------------------------------

    def _refresh(self) -> None:
        running = self.talker.running
        self.send_button.setVisible(not running)
        self.stop.setVisible(running)
        self.send_button.setEnabled(self.model.record() is not None and bool(self.entry.toPlainText().strip()))
        self.system.setReadOnly(bool(self._turns))

    def _follow(self, _low: int, high: int) -> None:
        if self.talker.running or self._cards:
            self.area.verticalScrollBar().setValue(high)

    def eventFilter(self, watched: QObject, event: QEvent) -> bool:
        """Enter sends; with Shift it begins a new line."""
        if watched is self.entry and isinstance(event, QKeyEvent) and event.type() == QEvent.Type.KeyPress:
            enter = event.key() in (Qt.Key.Key_Return, Qt.Key.Key_Enter)
            if enter and not event.modifiers() & Qt.KeyboardModifier.ShiftModifier:
                self.send()
                return True
        return super().eventFilter(watched, event)
