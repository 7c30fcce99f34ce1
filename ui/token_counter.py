"""How many tokens a conversation has: a quick estimate at once, the model's own count when the engine answers."""

from __future__ import annotations

import math
from collections.abc import Sequence

from PySide6.QtCore import QTimer, Signal, SignalInstance
from PySide6.QtWidgets import QWidget

from ui.context import Context
from ui.engine_replies import while_alive
from ui.operations import run_task
from ui.widgets import Text, safe_tip
from workbench.ids import new_id
from workbench.protocol import LAST_REPLIES, AnyReply, CountTokensRequest, Failed, ModelRef, TokenCounts
from workbench.records import Message, ModelRecord

WAIT_MS = 400
LETTERS_PER_TOKEN = 4.0  # of English text; a rough rule, hence the '~'


def estimate(messages: Sequence[Message], text: str) -> int:
    """Guess the number of tokens, some for each turn's marks included."""
    letters = sum(len(one.content) for one in messages) + len(text)
    return math.ceil(letters / LETTERS_PER_TOKEN) + 4 * (len(messages) + 1)


class TokenCounter(Text):
    """Shows '~120 tokens' at once and '118 of 2,048 tokens' when the engine has counted.

    ``counted(int, int)`` tells a count and the context once they are the model's own.
    """

    counted: SignalInstance = Signal(int, int)  # type: ignore[assignment]

    def __init__(self, context: Context, parent: QWidget | None = None) -> None:
        super().__init__("", "small", "muted", parent=parent)
        self.setObjectName("token-count")
        self._context = context
        self._model: ModelRecord | None = None
        self._reference: ModelRef | None = None
        self._request = ""  # the one that is open; more than one at a time would only queue before the engine
        self._asked: object = None
        self._wanted = False
        self._row: tuple[tuple[Message, ...], str] = ((), "")
        self._limit = 0
        self._timer = QTimer(self)
        self._timer.setSingleShot(True)
        self._timer.setInterval(WAIT_MS)
        self._timer.timeout.connect(self._ask)

    def set_model(self, model: ModelRecord | None) -> None:
        """Count with another model's tokens."""
        if model != self._model:
            self._model, self._reference, self._limit = model, None, 0
            self.count(*self._row, ask=self._context.engine.state in ("ready", "busy"))

    def count(self, messages: Sequence[Message], text: str, *, ask: bool = True) -> None:
        """Estimate now; ask the engine after a pause unless it would have to be started for nothing."""
        self._row = (tuple(messages), text)
        self._timer.stop()
        self._show(estimate(messages, text), exact=False)
        self._wanted = ask and self._model is not None and bool(messages)
        if self._wanted:
            self._timer.start()

    def _ask(self) -> None:
        model = self._model
        if model is None or self._request:
            return  # an open request asks again when it is answered
        if self._reference is None:
            run_task(lambda: self._context.project.resolve(model), self._on_reference, lambda _: None, owner=self)
            return
        self._request, self._asked = new_id(), (self._reference, self._row)
        request = CountTokensRequest(id=self._request, model=self._reference, rows=(self._row,))
        self._context.engine.request(request, while_alive(self, self._on_reply))

    def _on_reference(self, reference: ModelRef) -> None:
        if self._model is not None and reference.model_id == self._model.id:
            self._reference = reference
            self._ask()

    def _on_reply(self, reply: AnyReply) -> None:
        if reply.id != self._request or not isinstance(reply, LAST_REPLIES):
            return
        self._request = ""
        if self._asked != (self._reference, self._row):  # the text has changed since
            if self._wanted and not self._timer.isActive():
                self._ask()
        elif isinstance(reply, TokenCounts) and reply.counts:
            self._limit = reply.context
            self._show(reply.counts[0], exact=True)
            self.counted.emit(reply.counts[0], reply.context)
        elif isinstance(reply, Failed):
            self.setToolTip(safe_tip(f"An estimate: {reply.message}. {reply.cause}"))

    def _show(self, count: int, *, exact: bool) -> None:
        limit = f" of {self._limit:,}" if self._limit else ""
        over = bool(self._limit) and count > self._limit
        self.setText(f"{'' if exact else '~'}{count:,}{limit} tokens" + (": longer than the context" if over else ""))
        self.set_tone("bad" if over else "muted")
        self.setToolTip("" if exact else safe_tip("An estimate until the engine has counted with the model's tokens"))
        self.setAccessibleName(self.text())
