import time

import pytest

from ui.run_follower import RunFollower, Seen
from ui.run_history import RunHistory
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
