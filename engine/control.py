"""The engine's ear: a private Unix socket that carries commands and liveness while files carry the truth.

One thread listens, answers every command with a Pong and sends one each second unasked, so that whoever is connected
knows that the process lives even in the middle of a long step. Only processes of the same user are heard.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import socket
import struct
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import msgspec

from workbench.jsonl import encode
from workbench.protocol import (
    Cancel,
    Command,
    Pause,
    Ping,
    Pong,
    Resume,
    SampleNow,
    SaveNow,
    Stop,
    decode_command,
)
from workbench.sockets import bind, control_socket

HEARTBEAT_S = 1.0
_LINE_LIMIT_BYTES = 1024 * 1024


class Stopped(BaseException):
    """The run was asked to end and does; not an Exception, so that no method swallows it.

    ``saved_step`` is the step of the checkpoint that holds everything, or -1 when nothing was saved for it.
    """

    def __init__(self, saved_step: int = -1) -> None:
        super().__init__("stopped")
        self.saved_step = saved_step


class Cancelled(Stopped):
    """The run was asked to end at once, in the middle of a step: by the researcher, or by SIGTERM."""

    def __init__(self, *, by_system: bool = False) -> None:
        super().__init__()
        self.by_system = by_system


class Control:
    """Commands as flags that the training thread reads at each step's end; cancel raises in the main thread.

    Without :meth:`listen` (in tests) the flags can be set by :meth:`obey`.
    """

    def __init__(self) -> None:
        self.stop: Stop | None = None
        self.paused = False
        self.save_asked = False
        self.sample_asked = False
        self.cancelled = False
        self.terminated = False  # by SIGTERM: a shutdown, or Kill
        self.ending = False
        self.status: Callable[[], Pong] = Pong
        self.heard: Callable[[Command], None] = lambda _: None
        self.changed = threading.Event()
        self._depth = 0  # of sections that must not be torn by a cancel
        self._raised = False
        self._main: int | None = None
        self._server: socket.socket | None = None
        self._path: Path | None = None
        self._thread: threading.Thread | None = None
        self._leaving = False

    # ---- commands -------------------------------------------------------------------------------------------

    def obey(self, command: Command) -> Pong:
        """Take up a command and return the answer; ``error`` says why it was refused."""
        if self.ending and not isinstance(command, Ping):
            return msgspec.structs.replace(self.status(), error="the run is ending already")
        match command:
            case Stop():
                self.stop = command
            case Cancel():
                self.cancelled = True
            case Pause():
                self.paused = True
            case Resume():
                self.paused = False
            case SaveNow():
                self.save_asked = True
            case SampleNow():
                self.sample_asked = True
            case Ping():
                return self.status()
        self.heard(command)
        self.changed.set()
        if self.cancelled and self._main is not None:
            signal.pthread_kill(self._main, signal.SIGUSR1)
        return self.status()

    def stop_asked(self) -> Stop | None:
        """The stop that waits for the step's end, if any."""
        return self.stop

    def take_save(self) -> bool:
        """Whether a checkpoint was asked for; asks once."""
        asked, self.save_asked = self.save_asked, False
        return asked

    def take_sample(self) -> bool:
        """Whether samples were asked for; asks once."""
        asked, self.sample_asked = self.sample_asked, False
        return asked

    # ---- cancelling -----------------------------------------------------------------------------------------

    def catch_signals(self) -> None:
        """Let a cancel (and SIGTERM) raise :class:`Cancelled` in the main thread, which must call this."""
        self._main = threading.main_thread().ident
        signal.signal(signal.SIGUSR1, self._on_signal)
        signal.signal(signal.SIGTERM, self._on_signal)

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        if number == signal.SIGTERM:
            self.cancelled = self.terminated = True
        if self.cancelled and not self._raised and self._depth == 0 and not self.ending:
            self._raised = True
            raise Cancelled(by_system=self.terminated)

    @contextlib.contextmanager
    def whole(self) -> Any:
        """A section of the main thread that a cancel does not tear: it takes effect at the section's end."""
        if threading.get_ident() != threading.main_thread().ident:
            yield
            return
        self._depth += 1
        try:
            yield
        finally:
            self._depth -= 1
        self.check_cancelled()

    def check_cancelled(self) -> None:
        """Raise :class:`Cancelled` if a cancel was asked for and something swallowed it."""
        if self.cancelled and self._depth == 0 and not self.ending:
            self._raised = True
            raise Cancelled(by_system=self.terminated)

    # ---- the socket -----------------------------------------------------------------------------------------

    def listen(self, run_dir: Path) -> None:
        """Open the run's socket and serve it from a thread of its own."""
        self._path = control_socket(run_dir)
        self._server = bind(self._path)
        self._thread = threading.Thread(target=self._serve, name="control", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Close the socket and remove its file."""
        self._leaving = True
        if self._path is not None:
            self._path.unlink(missing_ok=True)
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(2.0)

    def _serve(self) -> None:
        assert self._server is not None
        clients: dict[socket.socket, bytes] = {}
        with selectors.DefaultSelector() as selector, self._server as server:
            selector.register(server, selectors.EVENT_READ)
            beat = time.monotonic() + HEARTBEAT_S
            while not self._leaving:
                for key, _ in selector.select(max(0.0, min(0.2, beat - time.monotonic()))):
                    ready = key.fileobj
                    if ready is server:
                        client = _accept(server)
                        if client is not None:
                            clients[client] = b""
                            selector.register(client, selectors.EVENT_READ)
                    elif isinstance(ready, socket.socket) and not self._read(ready, clients):
                        _drop(ready, clients, selector)
                if time.monotonic() >= beat:
                    beat = time.monotonic() + HEARTBEAT_S
                    for client in list(clients):
                        if not _send(client, self.status()):
                            _drop(client, clients, selector)
            for client in list(clients):
                _drop(client, clients, selector)

    def _read(self, client: socket.socket, clients: dict[socket.socket, bytes]) -> bool:
        try:
            chunk = client.recv(65536)
        except BlockingIOError:
            return True
        except OSError:
            return False
        lines = (clients[client] + chunk).split(b"\n")
        clients[client] = lines.pop()
        for line in lines:
            try:
                command = decode_command(line)
                tag = type(command).__struct_config__.tag
                answer = msgspec.structs.replace(self.obey(command), answers=str(tag))
            except (msgspec.DecodeError, msgspec.ValidationError) as error:
                answer = Pong(error=f"not a command: {error}")
            if not _send(client, answer):
                return False
        return bool(chunk) and len(clients[client]) < _LINE_LIMIT_BYTES


def _accept(server: socket.socket) -> socket.socket | None:
    try:
        client, _ = server.accept()
    except OSError:
        return None
    if peer_uid(client) not in (os.getuid(), None):
        client.close()
        return None
    client.setblocking(False)
    return client


def peer_uid(client: socket.socket) -> int | None:
    """Return the user at the other end of a Unix socket; None where the system cannot tell."""
    if not hasattr(socket, "SO_PEERCRED"):
        return None
    raw = client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    return int(struct.unpack("3i", raw)[1])


def _send(client: socket.socket, message: Pong) -> bool:
    line = encode(message) + b"\n"
    try:
        return client.send(line) == len(line)
    except OSError:  # gone, or so slow that its buffer is full
        return False


def _drop(client: socket.socket, clients: dict[socket.socket, bytes], selector: selectors.BaseSelector) -> None:
    clients.pop(client, None)
    with contextlib.suppress(KeyError, ValueError):
        selector.unregister(client)
    client.close()
