"""``python -m engine serve SOCKET``: one warm process that samples, scores, renders, imports and exports.

Three threads. The reader takes requests from the socket and hears cancels at once. The worker does what needs a
model, one request after the other. The main thread does what needs a tokenizer only, under a time limit: chat
templates come from strangers, and only the main thread can be interrupted in one. A bad request costs its sender a
:class:`Failed` and nobody else anything. With no client for 30 seconds the process ends.

torch is loaded by the first request that needs it, so that the socket is there within a tenth of a second.
"""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from types import FrameType
from typing import TypeVar

import msgspec

from engine.control import peer_uid
from workbench.errors import UserError
from workbench.jsonl import encode
from workbench.protocol import (
    AnyReply,
    AnyRequest,
    CancelRequest,
    CountTokensRequest,
    Failed,
    Finished,
    Leave,
    RenderRequest,
    decode_request,
)
from workbench.sockets import bind

T = TypeVar("T")
ORPHAN_AFTER_S = 30.0
TEMPLATE_LIMIT_S = 5.0
LINE_LIMIT_BYTES = 64 * 1024 * 1024
_SEND_TIMEOUT_S = 30.0


class RequestCancelled(Exception):
    """Its sender gave the request up, or is gone."""


class _TooLong(Exception):
    """A chat template used up its time."""


class Ticket:
    """One open request: its replies, and whether anybody still wants them."""

    def __init__(self, request: AnyRequest, client: Client) -> None:
        self.request = request
        self._client = client
        self._given_up = False

    @property
    def cancelled(self) -> bool:
        """Whether to stop working on it."""
        return self._given_up or self._client.gone

    def give_up(self) -> None:
        """Mark it as no longer wanted."""
        self._given_up = True

    def check(self) -> None:
        """Raise RequestCancelled if nobody wants it any more."""
        if self.cancelled:
            raise RequestCancelled

    def reply(self, message: AnyReply) -> None:
        """Send a reply; silence if the client is gone."""
        self._client.send(message)


class Client:
    """One connection. Lines go out whole, from any thread."""

    def __init__(self, line: socket.socket) -> None:
        self.line = line
        self.gone = False
        self._lock = threading.Lock()

    def send(self, message: AnyReply) -> None:
        """Send one reply."""
        content = encode(message) + b"\n"
        with self._lock:
            if self.gone:
                return
            try:
                self.line.sendall(content)
            except OSError:
                self.gone = True

    def lines(self) -> Iterator[bytes]:
        """Yield whole lines until the connection ends or a line has no end."""
        waiting = b""
        while True:
            try:
                chunk = self.line.recv(1 << 18)
            except TimeoutError:
                continue
            except OSError:
                chunk = b""
            if not chunk:
                break
            *whole, waiting = (waiting + chunk).split(b"\n")
            yield from whole
            if len(waiting) > LINE_LIMIT_BYTES:
                break
        self.gone = True

    def close(self) -> None:
        """End the connection."""
        self.gone = True
        with contextlib.suppress(OSError):
            self.line.close()


class Limited:
    """Runs things in the main thread, each for a limited time."""

    def __init__(self) -> None:
        self._work: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()

    def submit(self, work: Callable[[], None]) -> None:
        """Let the main thread do something."""
        self._work.put(work)

    def call(self, work: Callable[[], T]) -> T:
        """Let the main thread do something within the time limit; wait for its result (or its error)."""
        done: Future[T] = Future()

        def carry_out() -> None:
            try:
                done.set_result(self.within_limit(work))
            except BaseException as error:
                done.set_exception(error)

        if threading.current_thread() is threading.main_thread():
            carry_out()
        else:
            self.submit(carry_out)
        return done.result()

    def end(self) -> None:
        """Let :meth:`run` return."""
        self._work.put(None)

    def run(self) -> None:
        """Do what comes, in the main thread, until :meth:`end`."""
        while (work := self._work.get()) is not None:
            work()

    @staticmethod
    def within_limit(work: Callable[[], T]) -> T:
        """Run in the main thread; after the limit raise UserError in the middle of it."""

        def stop(_number: int, _frame: FrameType | None) -> None:
            raise _TooLong

        before = signal.signal(signal.SIGALRM, stop)
        signal.setitimer(signal.ITIMER_REAL, TEMPLATE_LIMIT_S)
        try:
            return work()
        except _TooLong:
            raise _template_fault() from None
        except UserError as error:
            if isinstance(error.__cause__, _TooLong):  # caught by what wraps every fault of a template
                raise _template_fault() from None
            raise
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)


def _template_fault() -> UserError:
    return UserError(
        "The model's chat template does not come to an end",
        f"it was stopped after {TEMPLATE_LIMIT_S:.0f} s",
        "choose another model: this template is broken or hostile",
    )


class Server:
    """The process: a socket, its one client at a time, and the two who work."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._limited = Limited()
        self._heavy: queue.SimpleQueue[Ticket] = queue.SimpleQueue()
        self._open: dict[str, Ticket] = {}
        self._last_seen = time.monotonic()
        self._clients: set[Client] = set()

    def run(self) -> None:
        """Serve until a Leave, or until nobody is there for a while."""
        with bind(self._path) as listener:
            listener.settimeout(0.5)
            for work in (lambda: self._accept(listener), self._work):
                threading.Thread(target=work, daemon=True).start()
            try:
                self._limited.run()
            finally:
                self._path.unlink(missing_ok=True)

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                line, _ = listener.accept()
            except TimeoutError:
                if not self._clients and time.monotonic() - self._last_seen > ORPHAN_AFTER_S:
                    self._limited.end()
                    return
                continue
            except OSError:
                return
            if peer_uid(line) not in (os.getuid(), None):
                line.close()
                continue
            line.settimeout(_SEND_TIMEOUT_S)
            client = Client(line)
            self._clients.add(client)
            threading.Thread(target=self._read, args=(client,), daemon=True).start()

    def _read(self, client: Client) -> None:
        for line in client.lines():
            if line.strip():
                self._take(line, client)
        client.close()
        self._last_seen = time.monotonic()
        self._clients.discard(client)

    def _take(self, line: bytes, client: Client) -> None:
        try:
            request = decode_request(line)
        except (msgspec.DecodeError, msgspec.ValidationError) as error:
            client.send(
                Failed(id=_id_of(line), message="The request cannot be understood", cause=str(error), code="error")
            )
            return
        if isinstance(request, CancelRequest):
            if (open_one := self._open.get(request.id)) is not None:
                open_one.give_up()
            return
        if isinstance(request, Leave):
            for one in list(self._open.values()):
                one.give_up()
            client.send(Finished(id=request.id))
            self._limited.end()
            return
        ticket = Ticket(request, client)
        self._open[request.id] = ticket
        if isinstance(request, RenderRequest | CountTokensRequest):
            self._limited.submit(lambda: self._answer(ticket))
        else:
            self._heavy.put(ticket)

    def _work(self) -> None:
        while True:
            self._answer(self._heavy.get())

    def _answer(self, ticket: Ticket) -> None:
        """Carry out one request; whatever happens, its sender hears of it and the process goes on."""
        ran_out = False
        try:
            ticket.check()
            from engine.serve_requests import carry_out

            reply = carry_out(ticket, self._limited.call)
        except RequestCancelled:
            reply = Failed(id=ticket.request.id, message="Cancelled", code="cancelled")
        except UserError as error:
            reply = Failed(id=ticket.request.id, message=error.what, cause=error.cause, remedy=error.remedy)
        except Exception as error:
            traceback.print_exc()
            reply = _failure(ticket.request.id, error)
            ran_out = _is_out_of_memory(error)
        # Here nothing holds on to the request's tensors any more, as a traceback would.
        _give_back(everything=ran_out)
        self._open.pop(ticket.request.id, None)
        ticket.reply(reply)


def serve(path: Path) -> None:
    """Serve on a socket that only this user can open, until told to leave or orphaned."""
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C belongs to whoever started us
    Server(path).run()


def _failure(request_id: str, error: Exception) -> Failed:
    first = (str(error).strip().splitlines() or [type(error).__name__])[0][:500]
    if _is_out_of_memory(error):
        return Failed(
            id=request_id,
            message="Memory ran out",
            cause=first,
            remedy="ask for fewer or shorter responses at once, hold the base in nf4, or close other programs",
        )
    return Failed(
        id=request_id,
        message=f"The engine failed: {type(error).__name__}",
        cause=first,
        remedy="the engine's log has the details",
    )


def _give_back(*, everything: bool) -> None:
    """Give back the GPU memory that the last request took; all of it, the model's too, when memory ran out."""
    if "torch" not in sys.modules:
        return
    if everything:
        from engine.serve_models import warm

        warm.let_go()
    else:
        from engine.memory import free_unused

        free_unused()


def _is_out_of_memory(error: Exception) -> bool:
    if "torch" not in sys.modules:
        return isinstance(error, MemoryError)
    from engine.memory import is_out_of_memory

    return is_out_of_memory(error)


class _Named(msgspec.Struct):
    id: str = ""


def _id_of(line: bytes) -> str:
    try:
        return msgspec.json.decode(line, type=_Named).id
    except (msgspec.DecodeError, msgspec.ValidationError):
        return ""
