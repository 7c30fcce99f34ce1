"""What a run is doing or how it ended, added up from its lock, its exit and its last events."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

from workbench.protocol import AnyEvent, Checkpoint, Ended, Exit, Metrics, Paused, Phase, Progress, Started, Unpaused
from workbench.reaper import LockNote
from workbench.records import RunState

STOPPING_PHASE = "stopping"
"""The phase that the engine names when a stop has reached it and the step has not ended yet."""


@dataclass(frozen=True, slots=True)
class RunStatus:
    """What a run is doing, or how it ended."""

    state: RunState
    step: int = 0
    total_steps: int = 0
    phase: str = ""
    detail: str = ""  # one sentence; "" when there is nothing to add to the state
    cause: str = ""
    remedy: str = ""
    eta_s: float = -1.0
    resumable: bool = False
    ended_at: str = ""

    @property
    def alive(self) -> bool:
        """Whether a process works on it or waits for it."""
        return self.state in ("queued", "running", "paused", "stopping")


class Seen:
    """What the last events of a run add up to."""

    def __init__(self) -> None:
        self.step = self.total_steps = 0
        self.phase = self.detail = ""
        self.eta_s = -1.0
        self.paused = self.stopping = self.started = False
        self.ended: Ended | None = None
        self.last_at = ""

    def take(self, event: AnyEvent) -> None:
        """Add the next event."""
        self.last_at = event.at or self.last_at
        match event:
            case Started():
                self.ended, self.paused, self.stopping, self.started, self.eta_s = None, False, False, True, -1.0
                self.step = max(0, event.resumed_from)
                self.total_steps = event.total_steps or self.total_steps
            case Phase():
                self.phase, self.detail = event.name, event.detail
                self.stopping = self.stopping or event.name == STOPPING_PHASE
            case Progress():
                self.step, self.total_steps, self.eta_s = event.step, event.total_steps, event.eta_s
            case Metrics() | Checkpoint():
                self.step = max(self.step, event.step)
            case Paused():
                self.paused = True
            case Unpaused():
                self.paused = False
            case Ended():
                self.ended = event
            case _:
                pass

    def status_alive(self, note: LockNote) -> RunStatus:
        """What the run is doing, while a process holds its lock."""
        if note.state != "running":
            where = f"waiting for the device ({note.ahead} ahead)" if note.ahead else "starting"
            return RunStatus("queued", self.step, self.total_steps, "queued", where)
        state: RunState = "running"
        if self.ended or self.stopping:
            state = "stopping"
        elif self.paused:
            state = "paused"
        phase = "ending" if self.ended else self.phase or "starting"
        return RunStatus(state, self.step, self.total_steps, phase, self.detail, eta_s=self.eta_s)

    def status_dead(self, note: LockNote, end: Exit | None, finished: bool, word: str = "step") -> RunStatus:
        """How the run ended; ``finished`` says that its model is there, ``word`` what its steps are called."""

        def status(state: RunState, detail: str = "", cause: str = "", remedy: str = "") -> RunStatus:
            resumable = state in ("stopped", "failed", "interrupted")
            return RunStatus(
                state,
                self.step,
                self.total_steps,
                self.phase,
                detail,
                cause,
                remedy,
                resumable=resumable,
                ended_at=(end.ended_at if end else "") or self.last_at,
            )

        said: dict[str, Any] = {}
        if self.ended is not None:
            said = {"detail": self.ended.message, "cause": self.ended.cause, "remedy": self.ended.remedy}
        if self.ended is not None and (self.ended.state != "done" or finished):
            return status(cast(RunState, self.ended.state), **said)
        if end is None:
            if not note.state and not self.started:
                return status("interrupted", "The run was made and never started", "", "start it with Resume")
            waiting = "while it waited for the device" if note.state == "queued" else f"at {word} {self.step}"
            return status(
                "interrupted",
                f"The run ended {waiting}",
                "its processes vanished without a word; the machine may have been switched off",
                "resume it",
            )
        if end.code is None and end.signal is None:
            return status("stopped", end.reason[:1].upper() + end.reason[1:])
        if end.signal is not None:
            return status("interrupted", f"The engine ended at {word} {self.step}", end.reason, "resume it")
        return status(
            "failed", f"The engine ended with code {end.code}", end.reason, "the engine's log has its last words"
        )
