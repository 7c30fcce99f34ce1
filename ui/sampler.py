"""Draws responses in the background, a few prompts ahead of the person, and saves them as they come whole.

One request a prompt: its K responses are one batch for the engine, and the first prompt is ready soonest. When
enough prompts wait to be ranked, sampling waits too, so that a long queue never holds the engine from other work.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field, replace

from PySide6.QtCore import QObject, Signal, SignalInstance

from ui.context import Context
from ui.engine_replies import while_alive
from ui.operations import bind_future, run_task
from workbench.errors import UserError
from workbench.ids import new_id, now
from workbench.protocol import AnyReply, Failed, Finished, ModelRef, ResponseDone, SampleRequest, ServeProgress, Token
from workbench.records import Change, ModelRecord, Prompt, Response, Sampling

MOST_FAILURES = 3
"""As many prompts in a row may fail before sampling gives up: then it is not the prompt."""


@dataclass(frozen=True, slots=True)
class SamplingPlan:
    """What the dialog decides: which model, how, for which prompts, and how many prompts ahead."""

    model: ModelRecord
    prompt_ids: tuple[str, ...]
    count: int = 4
    sampling: Sampling = field(default_factory=Sampling)
    ahead: int = 8  # prompts of this plan that wait to be ranked before sampling waits too; 0 for all at once
    quantisation: str = "bf16"


@dataclass(slots=True)
class SamplingJob:
    """One prompt being sampled. ``texts[i]`` is what has come of response i; ``done[i]`` once it is whole."""

    prompt: Prompt
    ranking_id: str  # of the card that will show these, so that their order is the same before and after
    response_ids: tuple[str, ...]
    texts: list[str]
    done: dict[int, Response] = field(default_factory=dict)
    request_id: str = ""
    error: UserError | None = None

    @property
    def whole(self) -> int:
        """How many responses are whole."""
        return len(self.done)


class Sampler(QObject):
    """Runs a plan.

    Signals: ``progressed()`` whenever the numbers change; ``job_started(job)``, ``token(job, index, text)`` and
    ``response_done(job, index)`` for a live view; ``arrived(prompt_id, ranking_id)`` after the responses of a
    prompt are committed; ``failed(error)``; ``finished()`` when a plan has nothing left to do.
    """

    progressed: SignalInstance = Signal()  # type: ignore[assignment]
    job_started: SignalInstance = Signal(object)  # type: ignore[assignment]
    token: SignalInstance = Signal(object, int, str)  # type: ignore[assignment]
    response_done: SignalInstance = Signal(object, int)  # type: ignore[assignment]
    arrived: SignalInstance = Signal(str, str)  # type: ignore[assignment]
    failed: SignalInstance = Signal(object)  # type: ignore[assignment]
    finished: SignalInstance = Signal()  # type: ignore[assignment]

    def __init__(self, context: Context, parent: QObject | None = None) -> None:
        super().__init__(parent)
        self._context = context
        self._fresh: set[str] = set()  # prompts of this plan that are ready and were not shown yet
        self._plan: SamplingPlan | None = None
        self._reference: ModelRef | None = None
        self._queue: list[str] = []
        self._unsaved: list[tuple[SamplingJob, list[Response]]] = []
        self._failures = 0
        self._loading = False
        self._committing = 0
        self.job: SamplingJob | None = None
        self.done = 0
        self.total = 0
        self.what = ""  # what the engine says it does: loading, ...

    @property
    def running(self) -> bool:
        """A plan is being carried out, or waits for the person to catch up."""
        return self._plan is not None

    @property
    def waiting(self) -> bool:
        """Enough prompts are ready ahead, so nothing is drawn now."""
        idle = self.job is None and not self._loading and not self._committing
        return self._plan is not None and idle and bool(self._queue)

    @property
    def unsaved(self) -> int:
        """Prompts whose responses could not be saved yet; they are kept for :meth:`retry`."""
        return len(self._unsaved)

    def unsaved_texts(self) -> list[str]:
        """Return the responses that could not be saved yet."""
        return [one.text for _, responses in self._unsaved for one in responses]

    @property
    def plan(self) -> SamplingPlan | None:
        """The plan that runs."""
        return self._plan

    def start(self, plan: SamplingPlan) -> None:
        """Begin a plan; one that runs is ended first (its whole responses are kept)."""
        self.stop()
        plan = replace(plan)  # one of its own: what comes late for an earlier start is told apart by it
        self._plan, self._reference = plan, None
        self._queue = list(plan.prompt_ids)
        self._fresh.clear()
        self._failures, self.done, self.total, self.what = 0, 0, len(plan.prompt_ids), ""
        self._loading = True
        self.progressed.emit()
        run_task(
            lambda: self._context.project.resolve(plan.model),
            lambda reference: self._on_resolved(plan, reference),
            lambda error: self._on_failed_reading(plan, error),
            owner=self,
        )

    def stop(self) -> None:
        """End the plan. Responses that are whole by now are saved."""
        if self._plan is None:
            return
        self._plan = None
        self._queue.clear()
        self._loading = False
        job, self.job = self.job, None
        if job is not None:
            if job.request_id:
                self._context.engine.cancel(job.request_id)
            self._save(job)
        self.progressed.emit()
        self.finished.emit()

    def taken(self, prompt_id: str) -> None:
        """A prompt is on screen, so one fewer is ready ahead."""
        if prompt_id in self._fresh:
            self._fresh.discard(prompt_id)
            self._go_on()

    def _go_on(self) -> None:
        plan = self._plan
        if plan is None or self.job is not None or self._reference is None:
            return
        if self._loading or self._committing:
            return
        if not self._queue:
            self._plan = None
            self.progressed.emit()
            self.finished.emit()
        elif not plan.ahead or len(self._fresh) < plan.ahead:
            self._loading = True
            prompt_id = self._queue.pop(0)
            run_task(
                lambda: self._context.store.prompt(prompt_id),
                lambda prompt: self._on_prompt(plan, prompt),
                lambda error: self._on_failed_reading(plan, error),
                owner=self,
            )
        self.progressed.emit()

    def retry(self) -> None:
        """Try again to save what could not be saved."""
        waiting, self._unsaved = self._unsaved, []
        for job, responses in waiting:
            self._commit(job, responses)

    # ---- one prompt -----------------------------------------------------------------------------------------

    def _on_resolved(self, plan: SamplingPlan, reference: ModelRef) -> None:
        if plan is not self._plan:
            return
        self._loading = False
        self._reference = reference
        self._go_on()

    def _on_prompt(self, plan: SamplingPlan, prompt: Prompt | None) -> None:
        reference = self._reference
        if plan is not self._plan or reference is None:
            return
        self._loading = False
        if prompt is None:  # archived meanwhile
            self.done += 1
            self._go_on()
            return
        job = SamplingJob(
            prompt, new_id(), tuple(new_id() for _ in range(plan.count)), [""] * plan.count, request_id=new_id()
        )
        self.job = job
        self.job_started.emit(job)
        request = SampleRequest(
            id=job.request_id,
            model=reference,
            prompts=(prompt.messages,),
            count=plan.count,
            sampling=replace(plan.sampling, seed=random.getrandbits(31)),
            quantisation=plan.quantisation,
        )
        self._context.engine.request(request, while_alive(self, lambda reply: self._on_reply(job, plan, reply)))
        self.progressed.emit()

    def _on_reply(self, job: SamplingJob, plan: SamplingPlan, reply: AnyReply) -> None:
        if job is not self.job:
            return  # stopped: what comes late is not wanted
        if isinstance(reply, Token):
            job.texts[reply.response_index] += reply.text
            self.token.emit(job, reply.response_index, reply.text)
        elif isinstance(reply, ResponseDone):
            self._keep(job, plan, reply)
        elif isinstance(reply, ServeProgress):
            self.what = reply.what
            self.progressed.emit()
        elif isinstance(reply, Failed):
            job.error = UserError(reply.message, reply.cause, reply.remedy)
            self._end(job, fatal=reply.code in ("died", "busy"))
        elif isinstance(reply, Finished):
            self._end(job, fatal=False)

    def _keep(self, job: SamplingJob, plan: SamplingPlan, reply: ResponseDone) -> None:
        index = reply.response_index
        job.texts[index] = reply.text
        job.done[index] = Response(
            id=job.response_ids[index],
            prompt_id=job.prompt.id,
            text=reply.text,
            model_id=plan.model.id,
            sampling=replace(plan.sampling, seed=reply.seed),
            finish_reason="length" if reply.finish_reason == "length" else "stop",
            token_count=reply.token_count,
            source=plan.model.name,
            created_at=now(),
        )
        self.what = ""
        self.response_done.emit(job, index)
        self.progressed.emit()

    def _end(self, job: SamplingJob, *, fatal: bool) -> None:
        self.job = None
        self.done += 1
        self._failures = self._failures + 1 if job.error else 0
        if job.error is not None:
            self.failed.emit(job.error)
            if fatal or self._failures >= MOST_FAILURES:
                self.stop()
        self._save(job)  # the next prompt starts once these are committed and counted among the ready ones

    def _save(self, job: SamplingJob) -> None:
        responses = [job.done[index] for index in sorted(job.done)]
        if responses:
            self._commit(job, responses)
        else:
            self._go_on()

    def _commit(self, job: SamplingJob, responses: list[Response]) -> None:
        self._committing += 1
        if len(responses) > 1:
            self._fresh.add(job.prompt.id)  # now: its card may be on screen before this thread hears of the commit

        def failed(error: BaseException) -> None:
            self._committing -= 1
            self._fresh.discard(job.prompt.id)
            self._unsaved.append((job, responses))
            self._on_error(error)

        def done(_change: Change) -> None:
            self._committing -= 1
            self.arrived.emit(job.prompt.id, job.ranking_id)
            self._go_on()

        bind_future(self._context.store.add_responses(responses), done, failed, owner=self)

    def _on_failed_reading(self, plan: SamplingPlan, error: BaseException) -> None:
        if plan is self._plan:
            self._on_error(error)

    def _on_error(self, error: BaseException) -> None:
        self._plan, self.job, self._loading = None, None, False
        self._queue.clear()
        self.progressed.emit()
        self.failed.emit(error)
        self.finished.emit()
