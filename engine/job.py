"""The life of a training process: lock, log, socket, the method, and the last word. No torch until all that stands."""

from __future__ import annotations

import faulthandler
import fcntl
import importlib
import os
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.control import Cancelled, Control, Stopped
from engine.events import EventLog
from workbench import reaper
from workbench.errors import UserError
from workbench.protocol import Cancel, Ended, Phase, Pong
from workbench.records import step_word

if TYPE_CHECKING:
    from engine.session import Session


def train(run_dir: Path, run: Callable[[Any], None] | None = None) -> int:
    """Carry out the run in a folder and return the process's exit code: 0 done or stopped, 1 failed.

    ``run`` takes the place of the method's own (for tests).
    """
    run_dir = run_dir.resolve()
    try:
        own_lock = hold_lock(run_dir)
    except UserError as error:
        print(f"engine: {error}", file=sys.stderr)
        return 1
    claim_output(run_dir / "engine.log")
    events = EventLog(run_dir)
    control = Control()
    control.status = lambda: Pong(seq=events.seq, phase="starting")
    control.catch_signals()
    try:
        control.listen(run_dir)
        if (run_dir / reaper.UNQUEUE).exists():
            control.obey(Cancel())
        with control.whole():
            events.emit(Phase(name="starting", detail="loading libraries"))
        ended = _carry_out(run_dir, control, events, run)
        control.ending = True
    except Cancelled:
        ended = Ended(state="stopped", message="Cancelled before training began")
    except Exception as error:
        ended = _failure(error, 0)
    control.ending = True
    events.emit(ended)
    events.sync()
    control.close()
    events.close()
    if own_lock is not None:
        os.close(own_lock)
    return 1 if ended.state == "failed" else 0


def hold_lock(run_dir: Path) -> int | None:
    """Hold the run's lock: the one inherited from the reaper until the process ends, or our own, which is returned.

    Raises UserError when another process works on this run.
    """
    inherited = False
    for variable in (reaper.LOCK_FD_VARIABLE, reaper.LEASE_FD_VARIABLE):
        given = os.environ.pop(variable, "")
        if given:
            inherited = True
            flags = fcntl.fcntl(int(given), fcntl.F_GETFD)
            fcntl.fcntl(int(given), fcntl.F_SETFD, flags | fcntl.FD_CLOEXEC)
    if inherited:
        return None
    handle = reaper.take(run_dir / "lock")
    if handle is None:
        raise UserError("This run is being worked on already", str(run_dir), "wait for it, or stop it")
    since = reaper.trim_torn_line(run_dir / "events.jsonl")
    (run_dir / "exit.json").unlink(missing_ok=True)
    pid = os.getpid()
    reaper.write_note(
        handle, reaper.LockNote(state="running", since=since, pid=pid, started=reaper.start_ticks(pid), lease="")
    )
    return handle


def claim_output(log: Path) -> None:
    """Send all that any library prints, from Python or from C, to the log; crashes write their stacks there."""
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    sys.stdout.flush()
    sys.stderr.flush()
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    os.close(handle)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    faulthandler.enable(file=2)
    faulthandler.register(signal.SIGUSR2, file=2)  # "where does it hang?"


def _carry_out(run_dir: Path, control: Control, events: EventLog, run: Callable[[Any], None] | None) -> Ended:
    from engine.session import DivergedError, Session

    session: Session | None = None
    try:
        session = Session(run_dir, control=control, events=events)
        method = run or importlib.import_module(f"engine.{session.spec.method}").run
        method(session)
        word = step_word(session.spec.method, session.step)
        return Ended(state="done", step=session.step, message=f"Finished after {session.step:,} {word}")
    except Cancelled as cancelled:
        control.ending = True
        step, word = _place(session)
        what = "Ended from outside (SIGTERM)" if cancelled.by_system else "Cancelled"
        return Ended(state="stopped", step=step, message=f"{what} after {word} {step}; {_kept(run_dir, word)}")
    except Stopped as stopped:
        control.ending = True
        step, word = _place(session)
        saved = stopped.saved_step >= 0
        rest = "everything is saved" if saved else f"nothing was saved for it; {_kept(run_dir, word)}"
        return Ended(state="stopped", step=step, message=f"Stopped after {word} {step}; {rest}")
    except DivergedError as error:
        word = _place(session)[1]
        return Ended(
            state="failed",
            step=error.step,
            message=f"Training diverged: {error.metric} was {error.kind} at {word} {error.step}",
            cause="the steps were too large for this loss, or a row of the batch is broken",
            remedy=f"lower the learning rate; {_kept(run_dir, word)}",
        )
    except Exception as error:
        return _failure(error, _place(session)[0])


def _place(session: Session | None) -> tuple[int, str]:
    """Return the step that a run has reached, and what its steps are called."""
    return (session.step, step_word(session.spec.method)) if session else (0, step_word(""))


def _failure(error: Exception, step: int) -> Ended:
    traceback.print_exception(error)
    if isinstance(error, UserError):
        return Ended(state="failed", step=step, message=error.what, cause=error.cause, remedy=error.remedy)
    if _out_of_memory(error):
        return Ended(
            state="failed",
            step=step,
            message="Memory ran out",
            cause=_first_line(error),
            remedy="lower micro_batch or max_length, turn gradient checkpointing on, or hold the base in nf4",
        )
    return Ended(
        state="failed",
        step=step,
        message=f"The engine failed: {type(error).__name__}",
        cause=_first_line(error),
        remedy="the engine's log has the details",
    )


def _out_of_memory(error: Exception) -> bool:
    if "torch" not in sys.modules:
        return isinstance(error, MemoryError)
    from engine.memory import is_out_of_memory

    return is_out_of_memory(error)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [""])[0][:500]


def _kept(run_dir: Path, word: str) -> str:
    from engine.checkpoints import newest_good

    newest = newest_good(run_dir / "checkpoints").path
    return f"the checkpoint of {word} {newest.name} is kept" if newest else "there is no checkpoint yet"
