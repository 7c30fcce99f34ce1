"""The window's line to the serving engine: requests go out, replies arrive on the window's thread.

The engine process starts with the first request. Replies are gathered on the client's thread and handed over in
slices of a few milliseconds, so that a fast stream of tokens never holds up a frame.
"""

from __future__ import annotations

import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Protocol, TypeVar, cast

from PySide6.QtCore import QObject, QTimer, Signal, SignalInstance

from ui.operations import Failure, Operations, operations, reaches, run_task
from workbench.errors import UserError
from workbench.protocol import LAST_REPLIES, AnyReply, AnyRequest, Failed

if TYPE_CHECKING:
    from workbench.serve_client import ServeClient

T = TypeVar("T")
SLICE_S = 0.006
LENT_AT_ONCE = 2
OnReply = Callable[[AnyReply], None]


class ServeClientLike(Protocol):
    """What the service needs of :mod:`workbench.serve_client`; calls may block, replies come on any thread."""

    def request(self, request: AnyRequest, on_reply: OnReply) -> str:
        """Send a request; ``on_reply`` is called for each reply, the last one included."""

    def cancel(self, request_id: str) -> None:
        """Ask the engine to give a request up."""

    def call(self, request: AnyRequest, timeout: float | None = None, on_reply: OnReply | None = None) -> AnyReply:
        """Send a request and wait for its last reply."""

    @property
    def pid(self) -> int:
        """The engine process; 0 where there is none."""

    def leave(self) -> None:
        """End the engine process and give its memory back; the next request starts it anew."""

    def close(self) -> None:
        """End the engine process, without patience."""


class EngineLike(Protocol):
    """What panes use; :class:`EngineService` and the tests' fake both are it."""

    state_changed: SignalInstance

    @property
    def state(self) -> str:
        """One of off, starting, ready, busy, failed."""

    @property
    def busy(self) -> bool:
        """Whether a request is open."""

    def request(self, request: AnyRequest, on_reply: OnReply) -> str:
        """Send a request; ``on_reply`` gets each reply on the window's thread. Returns the request's id."""

    def cancel(self, request_id: str) -> None:
        """Give a request up; its last reply is ``Failed(code="cancelled")``."""

    def borrow(
        self,
        work: Callable[[ServeClient], T],
        done: Callable[[T], None],
        failed: Failure,
        *,
        owner: QObject | None = None,
    ) -> Borrowed:
        """Run a deed of the workbench that asks the engine itself, off the window's thread."""

    @property
    def idle_process(self) -> int:
        """The process that :meth:`release` would end; 0 where there is none, or it is at work."""

    def release(self) -> None:
        """Give the engine's memory back while nothing is asked of it, for a run that needs it."""

    def shutdown(self) -> None:
        """End the engine."""


class Borrowed:
    """A client lent to one piece of work: what it asks for can be cancelled from the window's thread."""

    def __init__(self, get_client: Callable[[], ServeClientLike], line: ThreadPoolExecutor) -> None:
        self._get_client = get_client
        self._line = line
        self._client: ServeClientLike | None = None
        self._asked = ""
        self._cancelled = threading.Event()
        self.rest = ""  # what the engine is once this is done; "" while it was not asked

    def call(self, request: AnyRequest, timeout: float | None = None, on_reply: OnReply | None = None) -> AnyReply:
        """Send a request and wait for its last reply, as ``ServeClient.call`` does."""
        if self._cancelled.is_set():
            return Failed(id=request.id, message="This was cancelled", code="cancelled")
        self._client = self._get_client()
        self._asked = request.id
        if self._cancelled.is_set():  # meanwhile
            return Failed(id=request.id, message="This was cancelled", code="cancelled")
        last = self._client.call(request, timeout, on_reply)
        self.rest = _rest_after(last)
        return last

    def cancel(self) -> None:
        """Give up what is asked for now, and what would be asked for next."""
        self._cancelled.set()
        if self._client is not None and self._asked:
            self._line.submit(self._client.cancel, self._asked)


class EngineService(QObject):
    """Requests to a serve process, replies on the window's thread.

    ``make_client`` is called on a worker thread at the first request. ``state_changed(str)`` tells off, starting,
    ready, busy or failed. A start takes seconds and borrowed work minutes: both have threads of their own, so that
    the project can be read meanwhile.
    """

    state_changed: SignalInstance = Signal(str)  # type: ignore[assignment]

    def __init__(self, make_client: Callable[[], ServeClientLike], parent: QObject | None = None) -> None:
        super().__init__(parent)
        self._make_client = make_client
        self._client: ServeClientLike | None = None
        self._open: dict[str, OnReply] = {}
        self._replies: deque[tuple[AnyReply, str]] = deque()  # and what the engine is after each
        self._operations: Operations = operations()
        self._state = self._rest = "off"
        self._lent = 0
        self._line = ThreadPoolExecutor(1, "engine-line")
        self._lending = ThreadPoolExecutor(LENT_AT_ONCE, "engine-lent")
        self._cancelled: set[str] = set()
        self._timer = QTimer(self)
        self._timer.setSingleShot(True)
        self._timer.timeout.connect(self._deliver)
        self._woken = False
        self._closed = False
        self._starting = threading.Lock()

    @property
    def state(self) -> str:
        """One of off, starting, ready, busy, failed."""
        return self._state

    @property
    def busy(self) -> bool:
        """Whether a request is open."""
        return bool(self._open) or self._lent > 0

    @property
    def idle_process(self) -> int:
        """The process that :meth:`release` would end; 0 where there is none, or it is at work."""
        return self._client.pid if self._client is not None and not self.busy else 0

    def request(self, request: AnyRequest, on_reply: OnReply) -> str:
        """Send a request; ``on_reply`` gets each reply on the window's thread, the last one included."""
        if not self._closed:
            self._open[request.id] = on_reply
            self._settle()
            self._line.submit(self._send, request)
        return request.id

    def cancel(self, request_id: str) -> None:
        """Give a request up. Unknown ids are ignored: the last reply may be on its way."""
        if request_id in self._open:
            self._cancelled.add(request_id)
            self._line.submit(self._send_cancel, request_id)

    def borrow(
        self,
        work: Callable[[ServeClient], T],
        done: Callable[[T], None],
        failed: Failure,
        *,
        owner: QObject | None = None,
    ) -> Borrowed:
        """Run ``work(client)`` on a worker thread, then ``done`` or ``failed`` on the window's if ``owner`` lives."""
        lent = Borrowed(self._get_client, self._line)
        self._lent += 1
        self._set_state("busy")

        def after(result: T) -> None:
            self._give_back(lent)
            if reaches(owner, done):
                done(result)

        def after_failure(error: BaseException) -> None:
            self._give_back(lent)
            if reaches(owner, failed):
                failed(error)

        # The engine is given back even if the owner has gone: it waits for the service, not for the owner.
        run_task(lambda: work(cast("ServeClient", lent)), after, after_failure, owner=self, pool=self._lending)
        return lent

    def release(self) -> None:
        """Give the engine's memory back while nothing is asked of it, for a run that needs it."""
        client = self._client
        if client is not None and not self.busy:
            self._line.submit(client.leave)
            self._rest = "off"
            self._settle()

    def shutdown(self) -> None:
        """End the engine; open requests get no further replies. Waits until the process is gone."""
        self.detach()()

    def detach(self) -> Callable[[], None]:
        """Tell nobody anything from now on; return what ends the engine, which may take seconds, for any thread."""
        self._closed = True
        self._open.clear()
        self._timer.stop()
        self._set_state("off")
        self._line.shutdown(wait=False, cancel_futures=True)
        self._lending.shutdown(wait=False, cancel_futures=True)
        client, self._client = self._client, None
        return client.close if client is not None else _nothing

    # ---- on a worker or client thread ----

    def _send(self, request: AnyRequest) -> None:
        if request.id in self._cancelled:
            self._gather(Failed(id=request.id, message="This was cancelled", code="cancelled"), self._rest)
            return
        try:
            client = self._get_client()
            client.request(request, self._gather)
            if self._closed:  # the window went while the engine was starting
                client.close()
        except UserError as error:
            self._gather(Failed(id=request.id, message=error.what, cause=error.cause, remedy=error.remedy), "failed")
        except Exception as error:  # a bug must end the request too, or the pane would wait for ever
            self._gather(Failed(id=request.id, message="The engine could not be asked", cause=repr(error), code="died"))

    def _send_cancel(self, request_id: str) -> None:
        client = self._client
        if client is not None:
            client.cancel(request_id)

    def _get_client(self) -> ServeClientLike:
        with self._starting:
            self._client = self._client or self._make_client()
            return self._client

    def _gather(self, reply: AnyReply, rest: str = "") -> None:
        self._replies.append((reply, rest or _rest_after(reply)))
        if not self._woken:
            self._woken = True
            self._operations.post(self._deliver)

    # ---- on the window's thread ----

    def _deliver(self) -> None:
        self._woken = False
        until = time.perf_counter() + SLICE_S
        while self._replies and not self._closed:
            reply, self._rest = self._replies.popleft()
            on_reply = self._open.get(reply.id)
            if isinstance(reply, LAST_REPLIES):
                self._open.pop(reply.id, None)
                self._cancelled.discard(reply.id)
            if on_reply is not None:
                try:
                    on_reply(reply)
                except Exception:  # a fault of one pane must not hold up the replies to all others
                    sys.excepthook(*sys.exc_info())
            if time.perf_counter() > until and self._replies:
                self._timer.start(1)
                return
        self._settle()

    def _give_back(self, lent: Borrowed) -> None:
        self._lent -= 1
        self._rest = lent.rest or self._rest
        self._settle()

    def _settle(self) -> None:
        if self._closed:
            return
        working = "busy" if self._rest == "ready" or self._lent else "starting"
        self._set_state(working if self.busy else self._rest)

    def _set_state(self, state: str) -> None:
        if state != self._state:
            self._state = state
            self.state_changed.emit(state)


def _rest_after(reply: AnyReply) -> str:
    """Return what the engine is after a reply: it answered, or it died."""
    return "failed" if isinstance(reply, Failed) and reply.code == "died" else "ready"


def _nothing() -> None:
    return None
