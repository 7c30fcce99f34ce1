"""The client of a serving engine: starts it with the first request, hands replies over, outlives its death.

One ``python -m engine serve SOCKET`` process keeps a base model warm. Requests may come from any thread; replies
are handed to callbacks on the client's own thread. When the process dies, every open request gets
``Failed(code="died")`` and the next request starts a new one.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from workbench.errors import UserError
from workbench.folders import runtime_dir
from workbench.ids import new_id
from workbench.jsonl import encode
from workbench.protocol import (
    LAST_REPLIES,
    PROTOCOL_VERSION,
    AnyReply,
    AnyRequest,
    CancelRequest,
    Failed,
    Leave,
    decode_reply,
)
from workbench.protocol_version import VARIABLE
from workbench.reaper import describe_end
from workbench.sockets import connect

OnReply = Callable[[AnyReply], None]
START_TIMEOUT_S = 60.0
LEAVE_TIMEOUT_S = 5.0
_LOG_TAIL_BYTES = 2000
_LINE_LIMIT_BYTES = 64 * 1024 * 1024
_numbers = itertools.count(1)


class _Process:
    """One serving process and the line to it."""

    def __init__(self, argv: Sequence[str]) -> None:
        name = f"serve-{os.getpid()}-{next(_numbers)}"
        self.socket_path = runtime_dir() / f"{name}.sock"
        self.log_path = runtime_dir() / f"{name}.log"
        self.leaving = False
        self.line: socket.socket | None = None
        self._sending = threading.Lock()
        command = [*(argv or [sys.executable, "-P", "-m", "engine", "serve"]), str(self.socket_path)]
        with self.log_path.open("wb") as log:
            self.child = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=_environment(),
                start_new_session=True,
            )

    def connect(self) -> socket.socket:
        """Wait until it listens. Raises UserError when it ends or stays silent."""
        until = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < until:
            with contextlib.suppress(OSError):
                self.line = connect(self.socket_path, 1.0)
                self.line.settimeout(None)
                return self.line
            if self.child.poll() is not None:
                raise UserError("The engine could not be started", self.last_words(), "see `tastemaker doctor`")
            time.sleep(0.02)
        self.end(0.0)
        raise UserError(
            "The engine did not start in time", f"it was silent for {START_TIMEOUT_S:.0f} s", "try again in a moment"
        )

    def send(self, message: AnyRequest) -> None:
        """Send one whole line, from any thread. Raises OSError when nobody listens any more."""
        if self.line is None:
            raise OSError("not connected")
        content = encode(message) + b"\n"
        with self._sending:
            self.line.sendall(content)

    def end(self, patience_s: float) -> None:
        """Wait for the process, then end it the hard way; its files go with it."""
        for number in (None, signal.SIGTERM, signal.SIGKILL):
            if number is not None:
                with contextlib.suppress(ProcessLookupError):
                    self.child.send_signal(number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.child.wait(patience_s if number is None else 2.0)
                break
        if self.line is not None:
            with contextlib.suppress(OSError):
                self.line.shutdown(socket.SHUT_RDWR)
            self.line.close()
        self.socket_path.unlink(missing_ok=True)
        if self.child.returncode in (0, -signal.SIGTERM):
            self.log_path.unlink(missing_ok=True)

    def last_words(self) -> str:
        """Say how it ended: the signal in plain words, or the last line of its log."""
        code = self.child.returncode
        reason = str(describe_end(code, 0)["reason"]) if code is not None else "its socket closed"
        with contextlib.suppress(OSError):
            tail = self.log_path.read_bytes()[-_LOG_TAIL_BYTES:].decode("utf-8", "replace").strip().splitlines()
            if tail and code != -signal.SIGKILL:
                reason = f"{reason}: {tail[-1].strip()[:300]}" if reason else tail[-1].strip()[:300]
        return reason or "it ended by itself"


@dataclass(slots=True)
class _Asked:
    """An open request."""

    on_reply: OnReply
    process: _Process | None = None  # the one that was asked; None while it starts
    cancelled: threading.Event = field(default_factory=threading.Event)


class ServeClient:
    """A line to a serving engine, usable from any thread.

    Args:
        argv: the command that serves, to which the socket's path is added (for tests).
    """

    def __init__(self, argv: Sequence[str] = ()) -> None:
        self._argv = argv
        self._lock = threading.RLock()
        self._process: _Process | None = None
        self._open: dict[str, _Asked] = {}
        self._reader: threading.Thread | None = None

    @property
    def pid(self) -> int:
        """The id of the present process; 0 where there is none."""
        process = self._process
        return process.child.pid if process is not None else 0

    @property
    def running(self) -> bool:
        """Whether there is a process now."""
        return self._process is not None

    @property
    def log_path(self) -> Path | None:
        """Where the present process writes its log."""
        process = self._process
        return process.log_path if process else None

    def start(self) -> None:
        """Start the engine unless it runs; :meth:`request` does so by itself. Raises UserError when it cannot."""
        with self._lock:
            if self._process is not None:
                return
            try:
                process = _Process(self._argv)
            except OSError as error:
                raise UserError("The engine could not be started", str(error), "check Python and the disk") from error
            try:
                line = process.connect()
            except BaseException:
                process.end(0.0)
                raise
            self._process = process
            self._reader = threading.Thread(target=self._read, args=(process, line), name="serve-client", daemon=True)
            self._reader.start()

    def request(self, request: AnyRequest, on_reply: OnReply) -> str:
        """Send a request; ``on_reply`` gets every reply on the client's thread, a last one for certain.

        Returns the request's id. Raises UserError when the engine cannot be started.
        """
        self._open[request.id] = asked = _Asked(on_reply)  # before the start, so that it can be cancelled meanwhile
        try:
            with self._lock:
                self.start()
                asked.process = process = self._process
            assert process is not None
            if asked.cancelled.is_set():
                self._hand_over(Failed(id=request.id, message="This was cancelled", code="cancelled"))
                return request.id
            try:
                process.send(request)
            except OSError:
                self._on_death(process)
        except BaseException:
            self._open.pop(request.id, None)
            raise
        if asked.cancelled.is_set():  # while it was on its way, when the engine did not know it yet
            self._send_cancel(process, request.id)
        return request.id

    def call(self, request: AnyRequest, timeout: float | None = None, on_reply: OnReply | None = None) -> AnyReply:
        """Send a request and wait for its last reply, which may be a :class:`Failed`.

        ``on_reply`` is told the replies before it. Raises UserError when ``timeout`` seconds pass; the request is
        cancelled then. Not to be called from a reply's callback.
        """
        done = threading.Event()
        last: list[AnyReply] = []

        def take(reply: AnyReply) -> None:
            if isinstance(reply, LAST_REPLIES):
                last.append(reply)
                done.set()
            elif on_reply is not None:
                on_reply(reply)

        self.request(request, take)
        if not done.wait(timeout):
            self.cancel(request.id)
            raise UserError("The engine did not answer in time", f"it had {timeout:g} s", "try again with less at once")
        return last[0]

    def cancel(self, request_id: str) -> None:
        """Ask for an end of a request; its last reply is ``Failed(code="cancelled")``. Unknown ids are ignored."""
        asked = self._open.get(request_id)
        if asked is None:
            return
        asked.cancelled.set()
        if asked.process is not None:
            self._send_cancel(asked.process, request_id)

    def _send_cancel(self, process: _Process, request_id: str) -> None:
        with contextlib.suppress(OSError):
            process.send(CancelRequest(id=request_id))

    def leave(self, timeout: float = LEAVE_TIMEOUT_S) -> None:
        """End the engine and give its memory back; open requests get their last reply. Nothing when none runs."""
        with self._lock:
            process, self._process = self._process, None
            reader = self._reader
        if process is None:
            return
        process.leaving = True
        with contextlib.suppress(OSError):
            process.send(Leave(id=new_id()))
        process.end(timeout)
        if reader is not None and reader is not threading.current_thread():
            reader.join(2.0)
        self._fail_open(process, "The engine was closed", "", "")

    def close(self) -> None:
        """As :meth:`leave`, without patience: for a window that closes."""
        self.leave(timeout=1.0)

    def _read(self, process: _Process, line: socket.socket) -> None:
        waiting = b""
        while True:
            try:
                chunk = line.recv(1 << 18)
            except OSError:
                chunk = b""
            if not chunk:
                break
            *lines, waiting = (waiting + chunk).split(b"\n")
            if len(waiting) > _LINE_LIMIT_BYTES:
                break
            for one in lines:
                reply = decode_reply(one)
                if reply is not None:
                    self._hand_over(reply)
        if not process.leaving:
            self._on_death(process)

    def _hand_over(self, reply: AnyReply) -> None:
        last = isinstance(reply, LAST_REPLIES)
        asked = self._open.pop(reply.id, None) if last else self._open.get(reply.id)
        if asked is None:
            return
        try:
            asked.on_reply(reply)
        except Exception:  # a fault of one caller must not take the line down for all others
            sys.excepthook(*sys.exc_info())

    def _on_death(self, process: _Process) -> None:
        with self._lock:
            if process.leaving or self._process is not process:
                return
            process.leaving = True
            self._process = None
        process.end(1.0)
        last_words = process.last_words()
        self._fail_open(process, "The engine ended unexpectedly", last_words, "ask again: it is started anew")

    def _fail_open(self, process: _Process, message: str, cause: str, remedy: str) -> None:
        """End what this process was asked; another may have been started and asked meanwhile."""
        for request_id in [key for key, asked in list(self._open.items()) if asked.process is process]:
            self._hand_over(Failed(id=request_id, message=message, cause=cause, remedy=remedy, code="died"))


def _environment() -> dict[str, str]:
    """Our environment, in which ``-m engine`` finds the same code that runs here, from any folder."""
    root = str(Path(__file__).resolve().parent.parent)
    paths = [root, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    return os.environ | {"PYTHONPATH": os.pathsep.join(dict.fromkeys(paths)), VARIABLE: str(PROTOCOL_VERSION)}
