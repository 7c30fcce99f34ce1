"""Lets a model draft a demonstration: its words stream in, and nothing that stood there is ever lost."""

from __future__ import annotations

import random

from PySide6.QtCore import QObject, Signal, SignalInstance

from ui.context import Context
from ui.engine_replies import while_alive
from ui.operations import run_task
from workbench.errors import UserError
from workbench.ids import new_id
from workbench.protocol import AnyReply, Failed, Finished, ModelRef, ResponseDone, SampleRequest, ServeProgress, Token
from workbench.records import Message, ModelRecord, Sampling

DRAFT_TOKENS = 512


class Drafter(QObject):
    """One draft at a time.

    Signals: ``began()`` before the first word; ``token(str)``; ``progressed(str)`` with what the engine does;
    ``ended(str)`` with the whole text, or what had come when it was stopped; ``failed(error)`` when nothing came.
    """

    began: SignalInstance = Signal()  # type: ignore[assignment]
    token: SignalInstance = Signal(str)  # type: ignore[assignment]
    progressed: SignalInstance = Signal(str)  # type: ignore[assignment]
    ended: SignalInstance = Signal(str)  # type: ignore[assignment]
    failed: SignalInstance = Signal(object)  # type: ignore[assignment]

    def __init__(self, context: Context, parent: QObject | None = None) -> None:
        super().__init__(parent)
        self._context = context
        self._request = ""
        self._text = ""
        self._turn = 0  # what comes late for an earlier start is told apart by it
        self.model: ModelRecord | None = None
        self.finish_reason = ""  # of the last one: "stop", "length" or "stopped"
        self.token_count = 0

    @property
    def running(self) -> bool:
        """A draft is being written."""
        return self.model is not None

    def start(self, model: ModelRecord, messages: tuple[Message, ...], sampling: Sampling | None = None) -> None:
        """Ask a model for a draft."""
        if self.running:
            return
        self.model, self._text, self._request = model, "", ""
        self._turn += 1
        turn = self._turn
        self.finish_reason, self.token_count = "stopped", 0
        wanted = sampling or Sampling(0.7, 1.0, 0, DRAFT_TOKENS, random.getrandbits(31))

        def resolved(reference: ModelRef) -> None:
            if turn != self._turn or not self.running:
                return  # stopped before it began
            self._request = new_id()
            request = SampleRequest(id=self._request, model=reference, prompts=(messages,), sampling=wanted)
            self.began.emit()
            self._context.engine.request(request, while_alive(self, self._on_reply))

        def refused(error: BaseException) -> None:
            if turn == self._turn and self.running:
                self._on_error(error)

        run_task(lambda: self._context.project.resolve(model), resolved, refused, owner=self)

    def stop(self) -> None:
        """End the draft and keep what has come."""
        if self.running:
            request, self._request = self._request, ""
            if request:
                self._context.engine.cancel(request)
            self._end()

    def _on_reply(self, reply: AnyReply) -> None:
        if reply.id != self._request:
            return
        if isinstance(reply, Token):
            self._text += reply.text
            self.token.emit(reply.text)
        elif isinstance(reply, ServeProgress):
            self.progressed.emit(reply.what)
        elif isinstance(reply, ResponseDone):
            self._text = reply.text
            self.finish_reason, self.token_count = reply.finish_reason, reply.token_count
        elif isinstance(reply, Failed):
            self._on_error(UserError(reply.message, reply.cause, reply.remedy))
        elif isinstance(reply, Finished):
            self._request = ""
            self._end()

    def _end(self) -> None:
        self.model = None
        self.ended.emit(self._text)

    def _on_error(self, error: BaseException) -> None:
        self._request = ""
        if self._text:
            self._end()  # what came before the fault is kept
        self.model = None
        self.failed.emit(error)
