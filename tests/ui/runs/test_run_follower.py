import threading
import time
import weakref

import pytest
import shiboken6

from ui.operations import operations
from ui.run_follower import RunFollower, Seen
from ui.run_history import RunHistory
from workbench.run_events import EventTail
from workbench.run_folder import RunStatus


class Watch:
    def __init__(self, run):
        self.history = RunHistory()
        self.seen = []
        self.caught_up = 0
        self.follower = RunFollower(run.path, listen=False)
        self.follower.batch.connect(self.history.apply)
        self.follower.seen.connect(self.seen.append)
        self.follower.caught_up.connect(self._on_caught_up)
        self.follower.start()

    def _on_caught_up(self):
        self.caught_up += 1

    @property
    def state(self):
        return self.seen[-1].status.state if self.seen else ""


@pytest.fixture
def watch(qapp):
    made = []

    def make(run):
        made.append(Watch(run))
        return made[-1]

    yield make
    for one in made:
        one.follower.stop(wait=True)


def test_history_and_state_of_an_ended_run_arrive(script, watch, qtbot):
    run = script("sft")
    run.start()
    run.steps(1, 40)
    run.end("done", 40)
    seen = watch(run)
    qtbot.waitUntil(lambda: seen.caught_up == 1 and seen.state == "done")
    assert len(seen.history.lines["loss"]) == 40
    assert seen.seen[-1].status.step == 40


def test_new_events_of_a_living_run_are_shown_within_half_a_second(script, watch, qtbot):
    run = script("ppo")
    run.live()
    run.start()
    run.steps(1, 3)
    seen = watch(run)
    qtbot.waitUntil(lambda: seen.state == "running" and seen.caught_up == 1)
    start = time.monotonic()
    run.steps(4, 5)
    qtbot.waitUntil(lambda: len(seen.history.lines["objective/kl"]) == 5)
    assert time.monotonic() - start < 1.0  # 0.1 s by design; the rest is for a busy machine


def test_a_vanished_process_is_shown_as_interrupted_within_a_second(script, watch, qtbot):
    run = script("ppo")
    run.live()
    run.start()
    run.steps(1, 3)
    seen = watch(run)
    qtbot.waitUntil(lambda: seen.state == "running")
    start = time.monotonic()
    run.vanish()
    qtbot.waitUntil(lambda: seen.state == "interrupted")
    assert time.monotonic() - start < 1.0


def test_a_run_that_is_resumed_goes_on_at_its_step(script, watch, qtbot):
    run = script("sft")
    run.live()
    run.start(total=20)
    run.steps(1, 9, 20)
    run.vanish()
    seen = watch(run)
    qtbot.waitUntil(lambda: seen.state == "interrupted")
    run.live()
    run.start(total=20, resumed_from=5)
    run.steps(6, 20, 20)
    qtbot.waitUntil(lambda: seen.state == "running" and seen.history.step == 20, timeout=10_000)
    assert list(seen.history.lines["loss"].x) == list(range(1, 21))


def test_a_torn_last_line_waits_for_its_end(script, watch, qtbot):
    run = script("sft")
    run.live()
    run.start()
    run.steps(1, 2)
    with run.folder.events_path.open("ab") as out:
        out.write(b'{"type":"metrics","step":3,"val')
    seen = watch(run)
    qtbot.waitUntil(lambda: seen.caught_up == 1)
    assert len(seen.history.lines["loss"]) == 2
    with run.folder.events_path.open("ab") as out:
        out.write(b'ues":{"loss":1.5}}\n')
    qtbot.waitUntil(lambda: len(seen.history.lines["loss"]) == 3)


def test_nothing_is_delivered_after_stop(script, watch, qtbot):
    run = script("sft")
    run.live()
    run.start()
    run.steps(1, 2)
    seen = watch(run)
    qtbot.waitUntil(lambda: seen.caught_up == 1)
    seen.follower.stop(wait=True)
    run.steps(3, 9)
    qtbot.wait(300)
    assert len(seen.history.lines["loss"]) == 2


def test_silence_counts_only_for_a_living_engine_and_from_fifteen_seconds():
    assert Seen(RunStatus("running"), 15.0).not_responding
    assert not Seen(RunStatus("running"), 14.9).not_responding
    assert not Seen(RunStatus("done"), 99.0).not_responding


@pytest.fixture
def held(monkeypatch):
    """Hold every follower's thread in its first look at the events, until told to go on."""
    entered, go_on = threading.Event(), threading.Event()

    def read_new(_tail, _limit=0):
        entered.set()
        go_on.wait(10)
        return []

    monkeypatch.setattr(EventTail, "read_new", read_new)
    yield entered, go_on
    go_on.set()


def test_a_follower_that_nobody_holds_is_gone_at_once_and_not_when_its_thread_lets_go(script, held, qapp):
    entered, go_on = held
    follower = RunFollower(script("sft").path, listen=False).start()
    reader, gone = follower._reader, weakref.ref(follower)
    assert entered.wait(10)
    del follower
    assert gone() is None
    go_on.set()
    reader.join(10)
    assert not reader.is_alive()


def test_what_was_found_for_a_follower_that_is_deleted_meanwhile_is_dropped(script, held, qapp, qtbot):
    entered, go_on = held
    follower = RunFollower(script("sft").path, listen=False).start()
    reader = follower._reader
    assert entered.wait(10)
    shiboken6.delete(follower)
    go_on.set()
    qtbot.waitUntil(lambda: not reader.is_alive())


def test_a_fault_while_reading_is_told_instead_of_a_page_that_silently_stands_still(script, qtbot, monkeypatch):
    def broken(_tail, _limit=0):
        raise ValueError("no such event")

    monkeypatch.setattr(EventTail, "read_new", broken)
    follower = RunFollower(script("sft").path, listen=False)
    with qtbot.waitSignal(follower.failed) as told:
        follower.start()
    assert str(told.args[0]) == "no such event"


def test_all_followers_end_with_the_project(script, qapp):
    run = script("sft")
    followers = [RunFollower(run.path).start() for _ in range(3)]
    operations().stop_workers(wait=True)
    assert not any(one._reader.is_alive() for one in followers)
