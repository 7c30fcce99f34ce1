"""Start, resume, command and end training runs from outside, without owning them.

A run is launched as a process of its own behind a reaper, and found again by its folder: whoever has the folder can
watch and command it. Nothing here is needed for the run to go on.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from workbench import reaper, sockets
from workbench.batch_units import refuse_batch_of_pairs
from workbench.errors import UserError
from workbench.folders import runtime_dir
from workbench.jsonl import decode, encode
from workbench.nvidia import has_gpu
from workbench.protocol import PROTOCOL_VERSION, Cancel, Command, Pong, Stop
from workbench.protocol_version import VARIABLE, refuse_newer, refuse_other
from workbench.run_folder import RunFolder

SLOW_AFTER_S = 3.0
NOT_RESPONDING_AFTER_S = 15.0
"""Heartbeats come each second; silence this long is shown as 'not responding'. Nothing is ever killed for it."""


# ---- starting --------------------------------------------------------------------------------------------------


def launch(run_dir: Path, *, python: str = sys.executable, argv: Sequence[str] | None = None) -> None:
    """Start a run behind a detached reaper, which waits in the device's line. Returns at once.

    Args:
        run_dir: the run's folder.
        python: the interpreter that has the engine's packages.
        argv: the whole command to run instead of ``python -m engine RUN_DIR`` (for tests).

    Raises:
        UserError: the run is alive already, its recipe cannot be read or is of another version, its batch counted pairs
            (:mod:`workbench.batch_units`), or no process could be started.
    """
    run_dir = run_dir.resolve()
    spec = RunFolder(run_dir).spec()
    refuse_other(spec)
    refuse_batch_of_pairs(RunFolder(run_dir), spec)
    lock = reaper.take(run_dir / "lock")
    if lock is None:
        raise UserError(f"The run {spec.name!r} is at work already", "its lock is held", "wait for it, or stop it")
    line = line_folder(str(spec.recipe.get("device", "auto")))
    command = list(argv) if argv is not None else [python, "-P", "-m", "engine", str(run_dir)]
    try:
        (run_dir / reaper.UNQUEUE).unlink(missing_ok=True)
        (run_dir / "exit.json").unlink(missing_ok=True)
        since = reaper.trim_torn_line(run_dir / "events.jsonl")
        reaper.write_note(lock, reaper.LockNote(state="queued", since=since, lease=line.name))
        with (run_dir / "engine.log").open("ab") as log:
            # the reaper forks itself away and its parent ends at once: nothing is left for us to wait for
            done = subprocess.run(
                [python, "-I", "-S", reaper.__file__, str(lock), str(run_dir), str(line), *command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=_engine_environment(),
                pass_fds=(lock,),
                start_new_session=True,
                check=False,
                timeout=60,
            )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UserError(
            f"The run {spec.name!r} could not be started", str(error), "check the disk and Python"
        ) from error
    finally:
        os.close(lock)
    if done.returncode:
        raise UserError(
            f"The run {spec.name!r} could not be started",
            f"its reaper ended with code {done.returncode}",
            f"read {run_dir / 'engine.log'}",
        )


def resume(run_dir: Path, *, python: str = sys.executable, argv: Sequence[str] | None = None) -> None:
    """Take an ended run up again at its newest sound checkpoint. Raises UserError when it is done or at work."""
    status = RunFolder(run_dir).state()
    if status.alive:
        raise UserError("The run is at work already", f"it is {status.state}", "wait for it, or stop it")
    if not status.resumable:
        raise UserError("The run is finished", "there is nothing left to resume", "start a new run from its model")
    launch(run_dir, python=python, argv=argv)


def line_folder(device: str) -> Path:
    """Return the folder of a device's line and lease: one training run at a time on each."""
    return runtime_dir() / "lines" / lease_name(device)


def lease_name(device: str) -> str:
    """Name what a recipe's device ("auto", "cuda" or "cpu") will hold: the GPU where there is one."""
    return "cpu" if device == "cpu" or (device == "auto" and not has_gpu()) else "gpu-0"


def device_holder(device: str = "auto") -> Path | None:
    """Return the folder of the run that holds the device; None when it is free."""
    lease = reaper.lease_path(line_folder(device))
    if not reaper.held(lease):
        return None
    return Path(lease.read_text(errors="replace").strip() or "unknown")


def _engine_environment() -> dict[str, str]:
    """Our environment, in which ``-m engine`` finds the same code that runs here, from any folder."""
    root = str(Path(__file__).resolve().parent.parent)
    paths = [root, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    return os.environ | {"PYTHONPATH": os.pathsep.join(dict.fromkeys(paths)), VARIABLE: str(PROTOCOL_VERSION)}


# ---- commanding ------------------------------------------------------------------------------------------------


def is_alive(run_dir: Path) -> bool:
    """Tell whether a process works on the run or waits for it: by its lock, never by a pid."""
    return reaper.held(run_dir / "lock")


def send(run_dir: Path, command: Command, timeout: float = 2.0) -> Pong:
    """Give a command and return the answer. A queued run is taken out of the line by Stop or Cancel.

    Raises:
        UserError: the run is not at work, does not answer in time, refuses, or is of a newer version.
    """
    run_dir = run_dir.resolve()
    until = time.monotonic() + timeout
    try:
        while True:
            if not is_alive(run_dir):
                if (run_dir / reaper.UNQUEUE).exists() or _was_unqueued(run_dir, command):
                    return Pong(phase="stopped")
                raise UserError(
                    "The run is not at work", f"it is {RunFolder(run_dir).state().state}", "resume it first"
                )
            if reaper.read_note(run_dir / "lock").state != "running":
                if not isinstance(command, Stop | Cancel):
                    raise UserError("The run waits for the device", "it has not started", "wait, or cancel it")
                (run_dir / reaper.UNQUEUE).touch()
            else:
                refuse_newer(run_dir)
                try:
                    return _ask(run_dir, command, max(0.1, until - time.monotonic()))
                except (FileNotFoundError, ConnectionError):
                    pass  # it is starting, or ending
                except TimeoutError as error:
                    raise _no_answer(timeout) from error
            if time.monotonic() >= until:
                raise _no_answer(timeout)
            time.sleep(0.05)
    finally:
        if not is_alive(run_dir) or reaper.read_note(run_dir / "lock").state == "running":
            (run_dir / reaper.UNQUEUE).unlink(missing_ok=True)


def _was_unqueued(run_dir: Path, command: Command) -> bool:
    end = RunFolder(run_dir).exit()
    return isinstance(command, Stop | Cancel) and end is not None and end.code is None and end.signal is None


def _no_answer(timeout: float) -> UserError:
    return UserError(
        "The engine does not answer",
        f"it said nothing for {timeout:g} s; it may be in a long computation",
        "wait a little, or end it with Kill",
    )


def _ask(run_dir: Path, command: Command, timeout: float) -> Pong:
    until = time.monotonic() + timeout
    with sockets.connect(sockets.control_socket(run_dir), timeout) as client:
        client.sendall(encode(command) + b"\n")
        rest = b""
        while True:
            client.settimeout(max(0.01, until - time.monotonic()))
            chunk = client.recv(65536)
            if not chunk:
                raise ConnectionResetError("the engine closed the connection")
            lines = (rest + chunk).split(b"\n")
            rest = lines.pop()
            for line in lines:
                pong = decode(line, Pong)
                if pong.error:
                    raise UserError("The engine refused", pong.error)
                if pong.answers:  # else it is a heartbeat
                    return pong


def kill(run_dir: Path, grace_s: float = 10.0) -> None:
    """End a run that does not answer: SIGTERM, then SIGKILL. Returns when its lock is free.

    Raises:
        UserError: it survives SIGKILL (it hangs in the driver), or nothing tells which process it is.
    """
    run_dir = run_dir.resolve()
    if not is_alive(run_dir):
        return
    note = reaper.read_note(run_dir / "lock")
    if note.state != "running":
        send(run_dir, Cancel(), grace_s)
        return
    for number, wait_s in ((signal.SIGTERM, grace_s), (signal.SIGKILL, 10.0)):
        _signal_engine(note, number)
        until = time.monotonic() + wait_s
        while time.monotonic() < until:
            if not is_alive(run_dir):
                return
            time.sleep(0.02)
    raise UserError(
        "The engine survived being killed",
        "it hangs in the device's driver and keeps the device",
        "new runs wait until it is gone; restarting the machine ends it",
    )


def _signal_engine(note: reaper.LockNote, number: signal.Signals) -> None:
    """Signal the process that the note names, if it is still that process and not one with its recycled pid."""
    with contextlib.suppress(ProcessLookupError):
        if not hasattr(os, "pidfd_open"):
            os.kill(note.pid, number)
            return
        handle = os.pidfd_open(note.pid)
        try:
            if reaper.start_ticks(note.pid) == note.started:
                signal.pidfd_send_signal(handle, number)
        finally:
            os.close(handle)


# ---- liveness --------------------------------------------------------------------------------------------------


class EngineConnection:
    """Stays connected to a run's engine from a thread and hands on every Pong; reconnects while the run lives.

    ``on_message`` is called on that thread. :attr:`silent_s` is how long nothing was heard from a living run.
    """

    def __init__(self, run_dir: Path, on_message: Callable[[Pong], None]) -> None:
        self._run_dir = run_dir.resolve()
        self._on_message = on_message
        self._heard = time.monotonic()
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="heartbeat", daemon=True)
        self._thread.start()

    @property
    def silent_s(self) -> float:
        """Seconds since the last heartbeat; 0 while no engine is at work (queued, ended)."""
        note = reaper.read_note(self._run_dir / "lock")
        if note.state != "running" or not is_alive(self._run_dir):
            self._heard = time.monotonic()
        return time.monotonic() - self._heard

    def liveness(self) -> str:
        """Say "ok", "slow" or "not responding"."""
        silent = self.silent_s
        return "ok" if silent < SLOW_AFTER_S else "slow" if silent < NOT_RESPONDING_AFTER_S else "not responding"

    def close(self) -> None:
        """Let go; the run goes on."""
        self._closed.set()
        self._thread.join(2.0)

    def _follow(self) -> None:
        while not self._closed.wait(0.3):
            if not is_alive(self._run_dir):
                continue
            try:
                with sockets.connect(sockets.control_socket(self._run_dir), 1.0) as client:
                    self._listen(client)
            except OSError:
                continue

    def _listen(self, client: socket.socket) -> None:
        client.settimeout(0.3)
        rest = b""
        while not self._closed.is_set():
            try:
                chunk = client.recv(65536)
            except TimeoutError:
                continue
            if not chunk:
                return
            self._heard = time.monotonic()
            lines = (rest + chunk).split(b"\n")
            rest = lines.pop()
            for line in lines:
                with contextlib.suppress(msgspec.DecodeError, msgspec.ValidationError):
                    self._on_message(decode(line, Pong))
