from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import pytest
import shiboken6
from PySide6.QtCore import QObject, QThread
from PySide6.QtWidgets import QApplication

from ui import operations as module
from ui.context import Hub
from ui.operations import Collector, bind_future, operations, post, run_task
from workbench.records import Change


def test_work_runs_on_another_thread_and_its_result_arrives_on_the_windows(qtbot: Any) -> None:
    threads: list[int] = []
    got: list[str] = []

    def done(result: str) -> None:
        threads.append(threading.get_ident())
        got.append(result)

    def work() -> str:
        threads.append(threading.get_ident())
        return "result"

    run_task(work, done)
    qtbot.waitUntil(lambda: got == ["result"])
    assert threads[0] != threading.get_ident()
    assert threads[1] == threading.get_ident()


def test_an_error_goes_to_failed_and_not_to_done(qtbot: Any) -> None:
    failures: list[BaseException] = []

    def work() -> None:
        raise ValueError("no")

    run_task(work, lambda _: pytest.fail("done was called"), failures.append)
    qtbot.waitUntil(lambda: len(failures) == 1)
    assert str(failures[0]) == "no"


def test_without_failed_an_error_is_shown(qtbot: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[BaseException] = []
    monkeypatch.setattr(module, "show_failure", shown.append)
    run_task(lambda: 1 // 0)
    qtbot.waitUntil(lambda: len(shown) == 1)
    assert isinstance(shown[0], ZeroDivisionError)


def test_nobody_is_called_once_the_owner_is_gone(qtbot: Any, settle: Callable[[], None]) -> None:
    owner = QObject()
    release = threading.Event()
    got: list[object] = []
    run_task(release.wait, got.append, got.append, owner=owner)
    owner.deleteLater()
    QApplication.sendPostedEvents(owner, 52)  # QEvent.DeferredDelete
    release.set()
    settle()
    assert got == []


def test_the_object_of_a_bound_method_is_an_owner_too(qtbot: Any, settle: Callable[[], None]) -> None:
    class Pane(QObject):
        called = False

        def on_done(self, _result: object) -> None:
            Pane.called = True

    pane = Pane()
    release = threading.Event()
    run_task(release.wait, pane.on_done)
    pane.deleteLater()
    QApplication.sendPostedEvents(pane, 52)
    release.set()
    settle()
    assert not Pane.called


def test_a_cancelled_future_calls_nobody(qtbot: Any, settle: Callable[[], None]) -> None:
    future: Future[int] = Future()
    got: list[object] = []
    bind_future(future, got.append, got.append)
    assert future.cancel()
    future.set_running_or_notify_cancel()
    settle()
    assert got == []


def test_writes_are_counted_until_they_are_on_disk_and_tasks_are_not(qtbot: Any, settle: Callable[[], None]) -> None:
    seen: list[int] = []
    failed: list[BaseException] = []
    ops = operations()
    ops.writes_changed.connect(seen.append)
    ops.write_failed.connect(failed.append)
    run_task(lambda: None)
    settle()
    assert seen == []
    good: Future[int] = Future()
    bad: Future[int] = Future()
    bind_future(good, lambda _: None)
    bind_future(bad, None, lambda _: None)
    good.set_result(1)
    bad.set_exception(OSError("disk full"))
    settle()
    assert seen == [1, 2, 1, 0]
    assert [str(one) for one in failed] == ["disk full"]
    ops.writes_changed.disconnect(seen.append)
    ops.write_failed.disconnect(failed.append)


def test_post_from_many_threads_loses_nothing(qtbot: Any) -> None:
    got: list[int] = []
    ops = operations()

    def send(start: int) -> None:
        for number in range(start, start + 200):
            ops.post(lambda n=number: got.append(n))  # type: ignore[misc]

    threads = [threading.Thread(target=send, args=(200 * n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    qtbot.waitUntil(lambda: len(got) == 800, timeout=10_000)
    for thread in threads:
        thread.join()
    assert sorted(got) == list(range(800))


def test_post_runs_later_on_this_thread(qtbot: Any) -> None:
    got: list[bool] = []
    post(lambda: got.append(QThread.currentThread() == QApplication.instance().thread()))  # type: ignore[union-attr]
    assert got == []
    qtbot.waitUntil(lambda: got == [True])


class Held:
    """Something that a task holds."""


def test_a_task_leaves_no_garbage_behind_that_a_worker_thread_might_collect(
    qtbot: Any, settle: Callable[[], None]
) -> None:
    release = threading.Event()
    held, asked = Held(), Held()
    refs = [weakref.ref(held), weakref.ref(asked)]
    run_task(lambda held=held: (release.wait(10), held), lambda _, asked=asked: id(asked))  # type: ignore[misc]
    del held, asked
    release.set()
    settle()
    operations().pool.submit(lambda: None).result(10)
    assert not gc.isenabled()
    assert [one() for one in refs] == [None, None]


def test_what_a_task_holds_is_let_go_of_on_the_windows_thread(qtbot: Any, settle: Callable[[], None]) -> None:
    threads: list[int] = []
    held = Held()
    weakref.finalize(held, lambda: threads.append(threading.get_ident()))
    run_task(lambda held=held: id(held), lambda _: None)  # type: ignore[misc]
    del held
    settle()
    assert threads == [threading.get_ident()]


def test_garbage_is_collected_on_the_windows_thread_alone(qtbot: Any) -> None:
    collector = Collector()
    threads: set[int] = set()

    def note(_phase: str, _info: object) -> None:
        threads.add(threading.get_ident())

    gc.callbacks.append(note)

    def litter() -> list[list[object]]:
        made: list[list[object]] = [[] for _ in range(50_000)]
        for one in made:
            one.append(one)
        return made

    try:
        run_task(litter, lambda _: None)
        qtbot.waitUntil(lambda: operations().pending == 0)
        collector.collect()
    finally:
        gc.callbacks.remove(note)
        collector.stop()
        gc.disable()
    assert threads == {threading.get_ident()}


def test_a_commit_after_the_project_was_closed_is_told_to_nobody(qtbot: Any) -> None:
    hub = Hub()
    hub.changed.connect(lambda _: pytest.fail("told"))
    hub.tell(Change(frozenset({"prompts"}), ()))
    shiboken6.delete(hub)
    QApplication.processEvents()
