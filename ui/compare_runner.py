"""Runs the same prompts through several models, a few prompts at a time, and scores what they answer."""

from __future__ import annotations

import random
from collections import deque
from dataclasses import dataclass, replace

from PySide6.QtCore import QObject, Signal, SignalInstance

from ui.compare_state import Cell
from ui.context import Context
from ui.engine_replies import while_alive
from ui.operations import run_task
from workbench.comparisons import Answered, Asked, Scored
from workbench.errors import UserError
from workbench.ids import new_id
from workbench.protocol import (
    AnyReply,
    Failed,
    Finished,
    ModelRef,
    ResponseDone,
    SampleRequest,
    ScoreRequest,
    Scores,
    ServeProgress,
    Token,
)
from workbench.records import ModelRecord, Sampling

CHUNK = 4
"""Prompts a request: the first row is soon complete, and the engine still has a batch."""


@dataclass(frozen=True, slots=True)
class ComparePlan:
    """What to compare."""

    models: tuple[ModelRecord, ...]
    prompts: tuple[Asked, ...]
    reward: ModelRecord | None = None
    sampling: Sampling = Sampling(temperature=0.7)  # noqa: RUF009  frozen
    quantisation: str = "bf16"


@dataclass(frozen=True, slots=True)
class _Job:
    kind: str  # "sample" or "score"
    column: int
    rows: tuple[int, ...]  # prompts by their place in the plan
    seed: int = 0


class CompareRunner(QObject):
    """One plan at a time; ``cells[row, column]`` is what has come.

    Signals: ``cell_changed(row, column)``; ``token(row, column, text)``; ``progressed()``; ``line(object)`` for each
    whole answer and score, for the file; ``failed(error)``; ``finished()``.
    """

    cell_changed: SignalInstance = Signal(int, int)  # type: ignore[assignment]
    token: SignalInstance = Signal(int, int, str)  # type: ignore[assignment]
    progressed: SignalInstance = Signal()  # type: ignore[assignment]
    line: SignalInstance = Signal(object)  # type: ignore[assignment]
    failed: SignalInstance = Signal(object)  # type: ignore[assignment]
    finished: SignalInstance = Signal()  # type: ignore[assignment]

    def __init__(self, context: Context, parent: QObject | None = None) -> None:
        super().__init__(parent)
        self._context = context
        self._jobs: deque[_Job] = deque()
        self._job: _Job | None = None
        self._request = ""
        self._references: dict[str, ModelRef] = {}
        self.plan: ComparePlan | None = None
        self.running = False
        self.cells: dict[tuple[int, int], Cell] = {}
        self.what = ""

    @property
    def done(self) -> int:
        """Answers that are whole."""
        return sum(cell.done for cell in self.cells.values())

    @property
    def total(self) -> int:
        """Answers there will be."""
        return len(self.cells)

    def start(self, plan: ComparePlan) -> None:
        """Begin; a plan that runs is stopped first."""
        self.stop()
        self.plan, self.running, self.what = plan, True, ""
        columns, rows = range(len(plan.models)), range(len(plan.prompts))
        self.cells = {(row, column): Cell() for row in rows for column in columns}
        self._jobs.clear()
        for first in range(0, len(rows), CHUNK):
            chunk = tuple(rows[first : first + CHUNK])
            seed = random.getrandbits(31)  # the same for every model: what differs is the model
            self._jobs += [_Job("sample", column, chunk, seed) for column in columns]
            if plan.reward is not None:
                self._jobs += [_Job("score", column, chunk) for column in columns]
        models = [*plan.models, *([plan.reward] if plan.reward else [])]
        project = self._context.project
        run_task(
            lambda: {one.id: project.resolve(one) for one in models},
            lambda found: self._on_resolved(plan, found),
            self._on_error,
            owner=self,
        )
        self.progressed.emit()

    def stop(self) -> None:
        """End the plan; answers that are not whole stay as far as they have come, marked as stopped."""
        if not self.running:
            return
        request, self._request = self._request, ""
        if request:
            self._context.engine.cancel(request)
        self._finish("stopped")

    def _finish(self, why: str) -> None:
        self.running, self._job = False, None
        self._jobs.clear()
        for key, cell in self.cells.items():
            if not cell.done:
                self.cells[key] = replace(cell, done=True, finish_reason=why)
                self.cell_changed.emit(*key)
        self.progressed.emit()
        self.finished.emit()

    def _on_resolved(self, plan: ComparePlan, found: dict[str, ModelRef]) -> None:
        if self.plan is plan and self.running:
            self._references = found
            self._next()

    def _next(self) -> None:
        plan = self.plan
        self._job = self._jobs.popleft() if self._jobs else None
        if plan is None or self._job is None:
            self._finish("failed")
            return
        job, prompts = self._job, plan.prompts
        self._request = new_id()
        request: SampleRequest | ScoreRequest
        if job.kind == "sample":
            request = SampleRequest(
                id=self._request,
                model=self._references[plan.models[job.column].id],
                prompts=tuple(prompts[row].messages for row in job.rows),
                sampling=replace(plan.sampling, seed=job.seed),
                quantisation=plan.quantisation,
            )
        else:
            rows = self._scorable(job)
            if not rows or plan.reward is None:
                self._next()
                return
            request = ScoreRequest(
                id=self._request,
                model=self._references[plan.reward.id],
                rows=tuple((prompts[row].messages, self.cells[row, job.column].text) for row in rows),
                ended=tuple(self.cells[row, job.column].finish_reason == "stop" for row in rows),
                quantisation=plan.quantisation,
            )
        self._context.engine.request(request, while_alive(self, lambda reply: self._on_reply(job, reply)))
        self.progressed.emit()

    def _scorable(self, job: _Job) -> tuple[int, ...]:
        cells = self.cells
        return tuple(
            row for row in job.rows if cells[row, job.column].done and cells[row, job.column].finish_reason != "failed"
        )

    def _on_reply(self, job: _Job, reply: AnyReply) -> None:
        if reply.id != self._request:
            return
        if isinstance(reply, Token):
            key = job.rows[reply.prompt_index], job.column
            self.cells[key] = replace(self.cells[key], text=self.cells[key].text + reply.text)
            self.token.emit(*key, reply.text)
        elif isinstance(reply, ResponseDone):
            self._on_answer(job, reply)
        elif isinstance(reply, Scores):
            self._on_scores(job, reply)
            self._next()
        elif isinstance(reply, ServeProgress):
            self.what = reply.what
            self.progressed.emit()
        elif isinstance(reply, Failed):
            self._on_failed(job, reply)
        elif isinstance(reply, Finished):
            self._next()

    def _on_answer(self, job: _Job, reply: ResponseDone) -> None:
        row = job.rows[reply.prompt_index]
        self.what = ""
        reason = "length" if reply.finish_reason == "length" else "stop"
        cell = Cell(reply.text, True, reason, reply.token_count, reply.seed)
        self.cells[row, job.column] = cell
        self._tell(row, job.column, cell)

    def _tell(self, row: int, column: int, cell: Cell) -> None:
        if self.plan is not None:
            key = self.plan.prompts[row].key
            self.line.emit(
                Answered(
                    key=key,
                    column=column,
                    text=cell.text,
                    finish_reason=cell.finish_reason,
                    token_count=cell.token_count,
                    seed=cell.seed,
                    error=cell.error,
                )
            )
        self.cell_changed.emit(row, column)
        self.progressed.emit()

    def _on_scores(self, job: _Job, reply: Scores) -> None:
        plan = self.plan
        for index, row in enumerate(self._scorable(job)):
            if index >= len(reply.scores) or plan is None:
                break
            raw = reply.scores[index]
            if raw is None:
                continue
            standard = reply.standardised[index] if index < len(reply.standardised) else None
            key = row, job.column
            self.cells[key] = replace(self.cells[key], raw_score=raw, score=raw if standard is None else standard)
            self.line.emit(Scored(key=plan.prompts[row].key, column=job.column, score=raw, standardised=standard))
            self.cell_changed.emit(*key)
        if reply.refused:
            what = f"{len(reply.refused)} of {len(reply.scores)} answers could not be scored"
            reason = f"the first of them: {reply.refused[min(reply.refused)]}"
            self.failed.emit(UserError(what, reason, "choose a reward model with a longer context, or shorter prompts"))
        self.progressed.emit()

    def _on_failed(self, job: _Job, reply: Failed) -> None:
        error = UserError(reply.message, reply.cause, reply.remedy)
        if job.kind == "sample":
            for row in job.rows:
                cell = self.cells[row, job.column]
                if not cell.done:
                    cell = replace(cell, done=True, finish_reason="failed", error=str(error))
                    self.cells[row, job.column] = cell
                    self._tell(row, job.column, cell)
        self.failed.emit(error)
        if reply.code in ("died", "busy", "cancelled"):
            self._finish("failed")
        else:
            self._next()

    def _on_error(self, error: BaseException) -> None:
        self.failed.emit(error)
        if self.running:
            self._finish("failed")
