from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import shiboken6
from PySide6.QtCore import QObject

from ui.context import Context
from ui.engine_service import EngineService
from ui.operations import operations, run_task
from ui.token_counter import TokenCounter
from workbench.errors import UserError
from workbench.protocol import (
    AnyReply,
    AnyRequest,
    CountTokensRequest,
    Failed,
    Finished,
    ModelRef,
    SampleRequest,
    Token,
    TokenCounts,
)

REF = ModelRef(model_id="m", name="m", base="/nowhere")


class FakeClient:
    """Answers on a thread of its own, as the real one does."""

    def __init__(self, replies: Callable[[AnyRequest], list[AnyReply]] | None = None) -> None:
        self.replies = replies or (lambda request: [Finished(id=request.id)])
        self.requests: list[AnyRequest] = []
        self.cancelled: list[str] = []
        self.left = 0
        self.pid = 41
        self.closed = False

    def request(self, request: AnyRequest, on_reply: Callable[[AnyReply], None]) -> str:
        self.requests.append(request)
        found = self.replies(request)
        threading.Thread(target=lambda: [on_reply(one) for one in found]).start()
        return request.id

    def call(self, request: AnyRequest, timeout: float | None = None, on_reply: Any = None) -> AnyReply:
        self.requests.append(request)
        return self.replies(request)[-1]

    def cancel(self, request_id: str) -> None:
        self.cancelled.append(request_id)

    def leave(self) -> None:
        self.left += 1

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def client() -> FakeClient:
    return FakeClient()


@pytest.fixture
def service(qapp: Any, client: FakeClient) -> Iterator[EngineService]:
    made = EngineService(lambda: client)
    yield made
    made.shutdown()
    made.deleteLater()


def ask(request_id: str = "a") -> SampleRequest:
    return SampleRequest(id=request_id, model=REF, prompts=((),))


def test_replies_arrive_in_order_on_the_windows_thread(qtbot: Any, service: EngineService, client: FakeClient) -> None:
    client.replies = lambda request: [
        *(Token(id=request.id, prompt_index=0, response_index=0, text=str(n)) for n in range(500)),
        Finished(id=request.id),
    ]
    got: list[AnyReply] = []
    threads: set[int] = set()

    def on_reply(reply: AnyReply) -> None:
        threads.add(threading.get_ident())
        got.append(reply)

    assert service.request(ask(), on_reply) == "a"
    assert service.busy
    qtbot.waitUntil(lambda: bool(got) and isinstance(got[-1], Finished), timeout=10_000)
    assert [one.text for one in got if isinstance(one, Token)] == [str(n) for n in range(500)]
    assert threads == {threading.get_ident()}
    assert not service.busy


def test_a_stream_never_holds_the_window_longer_than_a_slice(
    qtbot: Any, service: EngineService, client: FakeClient
) -> None:
    client.replies = lambda request: [
        *(Token(id=request.id, prompt_index=0, response_index=0, text="x") for _ in range(60)),
        Finished(id=request.id),
    ]
    delivered: list[float] = []
    spans: list[float] = []
    deliver = service._deliver

    def timed() -> None:
        start = time.perf_counter()
        deliver()
        spans.append(time.perf_counter() - start)

    service._deliver = timed  # type: ignore[method-assign]
    service._timer.timeout.disconnect()
    service._timer.timeout.connect(timed)

    def slow(_reply: AnyReply) -> None:
        until = time.perf_counter() + 0.002
        while time.perf_counter() < until:
            pass
        delivered.append(time.perf_counter())

    service.request(ask(), slow)
    qtbot.waitUntil(lambda: len(delivered) == 61, timeout=10_000)
    assert len(spans) > 5  # handed over in many slices, so that frames come in between


def test_the_state_goes_from_off_over_starting_to_ready(qtbot: Any, service: EngineService, client: FakeClient) -> None:
    states: list[str] = []
    service.state_changed.connect(states.append)
    assert service.state == "off"
    service.request(ask(), lambda _: None)
    qtbot.waitUntil(lambda: service.state == "ready")
    assert states[0] == "starting"
    assert states[-1] == "ready"
    service.shutdown()
    assert service.state == "off"
    assert client.closed


def test_an_engine_that_cannot_start_ends_the_request_with_the_reason(qtbot: Any, qapp: Any) -> None:
    def broken() -> FakeClient:
        raise UserError("The engine could not be started", "torch is missing", "install the extra")

    service = EngineService(broken)
    got: list[AnyReply] = []
    service.request(ask(), got.append)
    qtbot.waitUntil(lambda: len(got) == 1)
    assert isinstance(got[0], Failed)
    assert (got[0].message, got[0].cause) == ("The engine could not be started", "torch is missing")
    assert service.state == "failed"
    service.shutdown()


def test_a_bug_in_the_client_ends_the_request_too(qtbot: Any, service: EngineService, client: FakeClient) -> None:
    def bug(_request: AnyRequest) -> list[AnyReply]:
        raise RuntimeError("oops")

    client.replies = bug
    got: list[AnyReply] = []
    service.request(ask(), got.append)
    qtbot.waitUntil(lambda: len(got) == 1)
    assert isinstance(got[0], Failed)
    assert got[0].code == "died"


def test_cancel_reaches_the_client_while_the_request_is_open_and_not_after(
    qtbot: Any, service: EngineService, client: FakeClient
) -> None:
    client.replies = lambda _request: []
    service.request(ask("one"), lambda _: None)
    qtbot.waitUntil(lambda: len(client.requests) == 1)
    service.cancel("one")
    service.cancel("unknown")
    qtbot.waitUntil(lambda: client.cancelled == ["one"])


def test_two_requests_at_once_start_one_engine(qtbot: Any, qapp: Any) -> None:
    made: list[FakeClient] = []

    def make() -> FakeClient:
        made.append(FakeClient())
        return made[-1]

    service = EngineService(make)
    got: list[AnyReply] = []
    for name in "abcdef":
        service.request(ask(name), got.append)
    qtbot.waitUntil(lambda: len(got) == 6)
    assert len(made) == 1
    service.shutdown()


def test_nothing_is_told_after_shutdown(qtbot: Any, service: EngineService, client: FakeClient) -> None:
    got: list[AnyReply] = []
    service.request(ask(), got.append)
    service.shutdown()
    qtbot.wait(50)
    assert got == []


def test_borrowed_work_gets_the_client_and_tells_its_result(
    qtbot: Any, service: EngineService, client: FakeClient
) -> None:
    client.replies = lambda request: [TokenCounts(id=request.id, counts=(3,), context=2048)]
    got: list[Any] = []
    request = CountTokensRequest(id="c", model=REF, rows=())
    service.borrow(lambda lent: lent.call(request), got.append, got.append)
    assert service.busy
    qtbot.waitUntil(lambda: len(got) == 1)
    assert got[0].counts == (3,)
    assert not service.busy


def test_a_borrowed_client_that_was_cancelled_asks_nothing_more(
    qtbot: Any, service: EngineService, client: FakeClient
) -> None:
    entered, go_on = threading.Event(), threading.Event()
    got: list[Any] = []
    request = CountTokensRequest(id="c", model=REF, rows=())

    def work(lent: Any) -> AnyReply:
        lent.call(request)
        entered.set()
        go_on.wait(10)
        return lent.call(request)

    lent = service.borrow(work, got.append, got.append)
    assert entered.wait(10)
    lent.cancel()
    go_on.set()
    qtbot.waitUntil(lambda: len(got) == 1)
    assert got[0].code == "cancelled"
    qtbot.waitUntil(lambda: client.cancelled == ["c"])
    assert len(client.requests) == 1


def test_an_idle_engine_gives_its_memory_back_and_a_busy_one_does_not(
    qtbot: Any, service: EngineService, client: FakeClient
) -> None:
    service.release()
    assert client.left == service.idle_process == 0  # there was no engine
    client.replies = lambda _request: []
    service.request(ask(), lambda _: None)
    qtbot.waitUntil(lambda: len(client.requests) == 1)
    service.release()
    assert service.idle_process == 0  # it is at work and stays
    client.replies = lambda request: [Finished(id=request.id)]
    service.cancel("a")
    service._open.clear()
    assert service.idle_process == 41
    service.release()
    qtbot.waitUntil(lambda: client.left == 1)
    assert service.state == "off"


@pytest.fixture
def starting(qapp: Any, client: FakeClient) -> Iterator[tuple[EngineService, threading.Event]]:
    """A service whose engine takes as long to start as the event takes to be set."""
    go_on = threading.Event()

    def make() -> FakeClient:
        go_on.wait(20)
        return client

    service = EngineService(make)
    yield service, go_on
    go_on.set()
    service.shutdown()
    service.deleteLater()


def test_an_engine_that_starts_slowly_does_not_keep_the_project_from_being_read(
    qtbot: Any, starting: tuple[EngineService, threading.Event]
) -> None:
    service, go_on = starting
    entered: list[int] = []
    read: list[str] = []
    for name in "abcdef":
        service.request(ask(name), lambda _: None)
    for _ in range(4):
        service.borrow(lambda _lent: (entered.append(1), go_on.wait(20)), lambda _: None, lambda _: None)
    run_task(lambda: "rows", read.append)
    qtbot.waitUntil(lambda: read == ["rows"], timeout=3_000)
    go_on.set()
    qtbot.waitUntil(lambda: not service.busy)


def test_a_request_that_is_cancelled_while_the_engine_starts_is_given_up(
    qtbot: Any, starting: tuple[EngineService, threading.Event], client: FakeClient
) -> None:
    service, go_on = starting
    client.replies = lambda _request: []
    got: list[AnyReply] = []
    service.request(ask("sent"), got.append)
    service.request(ask("waiting"), got.append)
    service.cancel("sent")
    service.cancel("waiting")
    go_on.set()
    qtbot.waitUntil(lambda: [one.id for one in got] == ["waiting"] and client.cancelled[:1] == ["sent"])
    assert isinstance(got[0], Failed)
    assert got[0].code == "cancelled"
    assert [one.id for one in client.requests] == ["sent"]


def test_borrowed_work_gives_the_engine_back_when_the_one_who_asked_has_gone(
    qtbot: Any, service: EngineService
) -> None:
    owner, go_on = QObject(), threading.Event()
    told: list[object] = []
    service.borrow(lambda _lent: go_on.wait(10), told.append, told.append, owner=owner)
    shiboken6.delete(owner)
    go_on.set()
    qtbot.waitUntil(lambda: not service.busy)
    assert told == []


def test_a_fault_of_one_asker_does_not_hold_up_the_replies_to_others(
    qtbot: Any, service: EngineService, monkeypatch: pytest.MonkeyPatch
) -> None:
    faults: list[object] = []
    monkeypatch.setattr(sys, "excepthook", lambda _kind, error, _trace: faults.append(error))
    got: list[AnyReply] = []
    service._open = {"a": lambda _reply: 1 // 0, "b": got.append}  # type: ignore[dict-item, return-value]
    for name in "ab":
        service._gather(Finished(id=name))
    qtbot.waitUntil(lambda: len(got) == 1)
    assert isinstance(faults[0], ZeroDivisionError)
    assert not service.busy


def test_the_line_says_that_the_engine_failed_until_it_is_started_anew(
    qtbot: Any, service: EngineService, client: FakeClient
) -> None:
    states: list[str] = []
    service.state_changed.connect(states.append)
    client.replies = lambda request: [Failed(id=request.id, message="It ended", code="died")]
    service.request(ask("a"), lambda _: None)
    qtbot.waitUntil(lambda: service.state == "failed")
    client.replies = lambda request: [Finished(id=request.id)]
    service.request(ask("b"), lambda _: None)
    qtbot.waitUntil(lambda: service.state == "ready")
    assert states == ["starting", "failed", "starting", "ready"]


def test_nothing_is_asked_of_an_engine_that_was_shut_down(
    qtbot: Any, service: EngineService, client: FakeClient
) -> None:
    service.shutdown()
    service.request(ask(), lambda _: None)
    assert not service.busy
    assert client.requests == []


def test_a_token_counter_has_one_request_open_at_a_time_and_then_counts_the_newest_text(
    qtbot: Any, context: Context, fake_engine: Any, filled: Any
) -> None:
    fake_engine.hold()
    fake_engine.on(CountTokensRequest, lambda one: [TokenCounts(id=one.id, counts=(len(one.rows[0][1]),), context=99)])
    counter = TokenCounter(context)
    qtbot.addWidget(counter)
    counter._timer.setInterval(0)
    counter.set_model(filled.base)
    counter._reference = REF
    messages = filled.prompts[0].messages
    counter.count(messages, "x")
    qtbot.waitUntil(lambda: len(fake_engine.requests) == 1)
    for length in (2, 3, 4):
        counter.count(messages, "x" * length)
        qtbot.waitUntil(lambda: not counter._timer.isActive() and operations().pending == 0)
    assert len(fake_engine.requests) == 1
    fake_engine.release()
    qtbot.waitUntil(lambda: counter.text() == "4 of 99 tokens")
    assert len(fake_engine.requests) == 2
