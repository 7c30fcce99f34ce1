"""Fixtures of the window's tests: an application without a screen, a project with some labels, a fake engine."""

from __future__ import annotations

import os

os.environ["QT_QPA_PLATFORM"] = "offscreen"

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from PySide6.QtCore import QCoreApplication, QEvent, QObject, QTimer, Signal
from PySide6.QtWidgets import QApplication

from ui.context import Context, Hub
from ui.operations import Collector, operations, run_task
from ui.settings import Settings
from ui.theme import Theme
from workbench.ids import new_id, now
from workbench.protocol import LAST_REPLIES, AnyReply, AnyRequest, Failed
from workbench.records import (
    Demonstration,
    Message,
    ModelRecord,
    Prompt,
    Ranking,
    Rater,
    Response,
    Sampling,
)

Script = Callable[[AnyRequest], list[AnyReply]]


@pytest.fixture(autouse=True)
def _no_window_outlives_its_test(qapp: QApplication) -> Iterator[None]:
    """Carry out what ``deleteLater`` promised: without a running loop Qt would keep every test's window for ever.

    As in the application, garbage is collected on this thread alone, and no thread outlives what it works for.
    """
    collector = Collector()
    yield
    operations().stop_workers(wait=True)
    QCoreApplication.sendPostedEvents(None, QEvent.Type.DeferredDelete.value)
    collector.collect()
    collector.stop()
    collector.deleteLater()


class FakeEngineService(QObject):
    """An engine that plays a script: for each type of request, the replies it gives, one a turn of the event loop.

    ``on(SampleRequest, lambda request: [ResponseDone(id=request.id, ...), Finished(id=request.id)])``. A request
    without a script fails with code "error". ``hold()`` keeps replies back until ``release()``.
    """

    state_changed = Signal(str)

    def __init__(self, parent: QObject | None = None) -> None:
        super().__init__(parent)
        self.requests: list[AnyRequest] = []
        self.cancelled: list[str] = []
        self.state = "off"
        self.idle_process = 0
        self._scripts: dict[type, Script] = {}
        self._open: dict[str, Callable[[AnyReply], None]] = {}
        self._queue: deque[AnyReply] = deque()
        self._held = False
        self._timer = QTimer(self)
        self._timer.setInterval(0)
        self._timer.timeout.connect(self._next)

    @property
    def busy(self) -> bool:
        return bool(self._open)

    def on(self, request_type: type, script: Script) -> None:
        self._scripts[request_type] = script

    def hold(self) -> None:
        self._held = True

    def release(self) -> None:
        self._held = False
        self._timer.start()

    def request(self, request: AnyRequest, on_reply: Callable[[AnyReply], None]) -> str:
        self.requests.append(request)
        self._open[request.id] = on_reply
        script = self._scripts.get(type(request))
        replies = script(request) if script else [Failed(id=request.id, message=f"no script for {type(request)}")]
        self._queue.extend(replies)
        self._set_state("busy")
        if not self._held:
            self._timer.start()
        return request.id

    def cancel(self, request_id: str = "") -> None:
        self.cancelled.append(request_id)
        self._queue = deque(reply for reply in self._queue if reply.id != request_id)
        if request_id in self._open:
            self._queue.append(Failed(id=request_id, message="cancelled", code="cancelled"))
            self._timer.start()

    def borrow(
        self,
        work: Callable[[Any], Any],
        done: Callable[[Any], None],
        failed: Callable[[BaseException], object],
        *,
        owner: QObject | None = None,
    ) -> Any:
        run_task(lambda: work(self), done, failed, owner=owner)
        return self

    def call(self, request: AnyRequest, timeout: float | None = None, on_reply: Any = None) -> AnyReply:
        self.requests.append(request)
        script = self._scripts.get(type(request))
        *before, last = script(request) if script else [Failed(id=request.id, message=f"no script for {type(request)}")]
        for reply in before:
            if on_reply is not None:
                on_reply(reply)
        return last

    def shutdown(self) -> None:
        self._queue.clear()
        self._open.clear()
        self._timer.stop()
        self._set_state("off")

    def _next(self) -> None:
        if not self._queue or self._held:
            self._timer.stop()
            return
        reply = self._queue.popleft()
        on_reply = self._open.get(reply.id)
        if isinstance(reply, LAST_REPLIES):
            self._open.pop(reply.id, None)
        if on_reply is not None:
            on_reply(reply)
        if not self._open:
            self._set_state("ready")

    def _set_state(self, state: str) -> None:
        if state != self.state:
            self.state = state
            self.state_changed.emit(state)


@dataclass
class Said:
    """What a pane said to the window: notices, errors, where it wanted to go, what it wanted explained."""

    notices: list[tuple[str, str]] = field(default_factory=list)
    errors: list[BaseException] = field(default_factory=list)
    places: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    explained: list[str] = field(default_factory=list)


@pytest.fixture(autouse=True)
def own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep every test's cache, runtime and configuration to itself."""
    for name in ("CACHE", "RUNTIME", "CONFIG"):
        monkeypatch.setenv(f"TASTEMAKER_{name}", str(tmp_path / f"own-{name.lower()}"))


@pytest.fixture
def theme(qapp: QApplication) -> Iterator[Theme]:
    made = Theme(qapp, "light")
    yield made
    qapp.setStyleSheet("")
    made.deleteLater()


@pytest.fixture
def fake_engine(qapp: QApplication) -> Iterator[FakeEngineService]:
    made = FakeEngineService()
    yield made
    made.shutdown()
    made.deleteLater()


def prompt(text: str, *, split: str = "train", tags: tuple[str, ...] = (), system: str = "") -> Prompt:
    messages = ((Message("system", system),) if system else ()) + (Message("user", text),)
    return Prompt(new_id(), messages, tags=tags, split=split, created_at=now())  # type: ignore[arg-type]


def response(to: Prompt, text: str, model_id: str = "") -> Response:
    sampling = Sampling(seed=1) if model_id else None
    return Response(
        new_id(),
        to.id,
        text,
        model_id=model_id,
        sampling=sampling,
        finish_reason="stop",
        token_count=max(1, len(text) // 4),
        created_at=now(),
    )


@pytest.fixture
def empty_project(tmp_path: Path) -> Iterator[Any]:
    """A real project without a label."""
    from workbench.project import Project

    made = Project.create(tmp_path / "empty")
    yield made
    made.close()


@dataclass
class Filled:
    """A real project and what is in it."""

    project: Any
    rater: Rater
    prompts: list[Prompt]
    responses: list[Response]
    demonstrations: list[Demonstration]
    rankings: list[Ranking]
    base: ModelRecord


def fill(project: Any) -> Filled:
    """Put 12 prompts, 4 demonstrations, 4 responses to each of 8 prompts, 3 rankings and a base into a project."""
    store = project.store
    rater = Rater(new_id(), "me", created_at=now())
    folder = project.path / "base-model"
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text('{"model_type": "llama", "hidden_size": 64}', encoding="utf-8")
    base = ModelRecord(new_id(), "tiny base", "base", str(folder), source="demo", created_at=now())
    prompts = [
        prompt(
            f"How do I explain topic {index} to a friend in two sentences?",
            split="held-out" if index >= 10 else "train",
            tags=("everyday",) if index % 2 else ("science",),
        )
        for index in range(12)
    ]
    demonstrations = [
        Demonstration(new_id(), one.id, f"Say what {one.title[:20]} is for, then give one example.", "me", "final")
        for one in prompts[:4]
    ]
    responses = [
        response(one, f"Answer {letter}: start from what your friend knows. {'More words. ' * n}", base.id)
        for one in prompts[:8]
        for n, letter in enumerate("abcd")
    ]
    store.save_rater(rater).result(10)
    store.save_model(base).result(10)
    store.add_prompts(prompts).result(10)
    for one in demonstrations:
        store.save_demonstration(one).result(10)
    store.add_responses(responses).result(10)
    rankings = []
    for index in range(3):
        ids = [one.id for one in responses if one.prompt_id == prompts[index].id]
        ranking = Ranking(
            new_id(),
            prompts[index].id,
            rater.id,
            ((ids[0],), (ids[1], ids[2]), (ids[3],)),
            seconds=12.5,
            shown_order=tuple(ids),
            created_at=now(),
        )
        store.save_ranking(ranking).result(10)
        rankings.append(ranking)
    return Filled(project, rater, prompts, responses, demonstrations, rankings, base)


@pytest.fixture
def filled(tmp_path: Path) -> Iterator[Filled]:
    """A real project with some labels, a base model and a rater."""
    from workbench.project import Project

    project = Project.create(tmp_path / "my taste")
    yield fill(project)
    project.close()


@pytest.fixture
def said() -> Said:
    return Said()


@pytest.fixture
def make_context(
    qapp: QApplication, theme: Theme, fake_engine: FakeEngineService, said: Said
) -> Iterator[Callable[..., Context]]:
    """Make a pane's context over a project: ``make_context(filled.project, filled.rater)``."""
    hubs: list[tuple[Hub, Callable[[], None]]] = []

    def make(project: Any, rater: Rater | None = None) -> Context:
        hub = Hub()
        hubs.append((hub, project.store.subscribe(hub.tell)))
        return Context(
            project=project,
            engine=fake_engine,
            rater=rater or Rater(new_id(), "me", created_at=now()),
            hub=hub,
            theme=theme,
            settings=Settings(None),
            notify=lambda text, kind="info": said.notices.append((text, kind)),
            navigate=lambda pane, **what: said.places.append((pane, what)),
            explain=lambda stage, _values=None: said.explained.append(stage),
            show_error=said.errors.append,
        )

    yield make
    for hub, unsubscribe in hubs:
        unsubscribe()
        hub.deleteLater()


@pytest.fixture
def context(make_context: Callable[..., Context], filled: Filled) -> Context:
    """A pane's context over a project with some labels."""
    return make_context(filled.project, filled.rater)


@pytest.fixture
def settle(qtbot: Any) -> Callable[[], None]:
    """Wait until no task and no write is open any more, and what they had to tell has been told."""

    def wait() -> None:
        qtbot.waitUntil(lambda: operations().pending == 0, timeout=20_000)
        QApplication.processEvents()
        qtbot.waitUntil(lambda: operations().pending == 0, timeout=20_000)

    return wait
