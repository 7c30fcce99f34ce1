"""Every fault here is caused for real: processes are killed, crashed, hung and starved of disk."""

import os
import signal
import subprocess
import sys
import textwrap
import time

import pytest

from workbench import reaper, sockets, supervisor
from workbench.errors import UserError
from workbench.manifests import faults_of
from workbench.protocol import Cancel, Ended, Pause, Ping, Resume, SaveNow, Started, Stop


def uninterrupted(fake_run, steps):
    run = fake_run(steps=steps, step_s=0.0).launch()
    run.until("done")
    return run.losses()


def test_a_run_trains_to_its_end(fake_run):
    run = fake_run(steps=12).launch()
    status = run.until("done")
    assert (status.step, status.total_steps, status.resumable) == (12, 12, False)
    assert run.folder.final_dir() is not None
    assert run.folder.exit().code == 0
    assert run.folder.exit().peak_rss_bytes > 5_000_000
    assert [event.seq for event in run.folder.events()] == list(range(len(list(run.folder.events()))))


def test_kill_9_in_mid_step_is_seen_within_a_second_and_resumes_bit_for_bit(fake_run):
    expected = uninterrupted(fake_run, 30)
    run = fake_run(steps=30, step_s=0.02, save_every=4).launch()
    run.until(lambda status: status.step >= 10)
    killed = time.monotonic()
    os.kill(run.engine_pid, signal.SIGKILL)
    status = run.until("interrupted")
    assert time.monotonic() - killed < 1.0
    assert "signal 9" in status.cause
    assert status.resumable
    assert run.folder.exit().signal == 9
    run.resume().until("done")
    assert run.losses() == expected
    started = [event for event in run.folder.events() if isinstance(event, Started)]
    assert len(started) == 2
    assert started[1].resumed_from % 4 == 0
    assert started[1].resumed_from > 0
    seqs = [event.seq for event in run.folder.events()]
    assert seqs == sorted(set(seqs))


def test_kill_9_in_mid_checkpoint_never_uses_a_torn_one(fake_run):
    run = fake_run(steps=10_000, step_s=0.0, save_every=1, payload_bytes=3_000_000)
    run.launch()
    begun = 0
    torn = 0
    for attempt in range(12):
        run.until(lambda status, begun=begun: status.state == "running" and status.step >= begun + 2)
        time.sleep(0.001 * (attempt * 7 % 23))
        os.kill(run.engine_pid, signal.SIGKILL)
        run.until("interrupted")
        left = [one.name for one in (run.path / "checkpoints").iterdir()]
        torn += any(name.startswith(".tmp-") for name in left)
        good = run.folder.checkpoints()
        assert good
        assert all(not faults_of(one) for one in run.folder.checkpoint_names())
        assert int(good[0].name) >= begun  # never falls behind
        begun = int(good[0].name)
        run.resume()
    assert torn > 0, "no kill hit a checkpoint: the test proves nothing"
    run.until(lambda status: status.state == "running" and status.step > begun)
    steps = sorted(run.losses())
    assert steps == list(range(1, len(steps) + 1))


def test_killing_the_reaper_leaves_the_engine_and_its_lock(fake_run, is_process):
    run = fake_run(steps=60, step_s=0.02).launch()
    run.until(lambda status: status.step >= 3)
    engine, shim = run.engine_pid, run.reaper_pid()
    os.kill(shim, signal.SIGKILL)
    run.until(lambda status: status.step >= 10)
    assert is_process(engine)
    assert supervisor.is_alive(run.path)
    assert supervisor.device_holder("cpu") == run.path  # the device is not given to another run
    run.until("done")
    assert run.folder.exit() is None


def test_killing_the_reaper_and_then_the_engine_is_an_end_of_unknown_cause(fake_run):
    run = fake_run(steps=1000, step_s=0.02).launch()
    run.until(lambda status: status.step >= 3)
    os.kill(run.reaper_pid(), signal.SIGKILL)
    os.kill(run.engine_pid, signal.SIGKILL)
    status = run.until("interrupted")
    assert "vanished" in status.cause
    assert status.resumable


def test_killing_the_launching_process_leaves_the_run(fake_run):
    run = fake_run(steps=40, step_s=0.02)
    code = f"""
        import time
        from pathlib import Path
        from workbench import supervisor
        supervisor.launch(Path({str(run.path)!r}), argv={run.argv!r})
        print("launched", flush=True)
        time.sleep(600)
    """
    window = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)], stdout=subprocess.PIPE, start_new_session=True
    )
    with window:
        assert window.stdout.readline() == b"launched\n"
        run.until(lambda status: status.step >= 2)
        os.killpg(window.pid, signal.SIGKILL)
    status = run.until("done")
    assert status.step == 40
    seqs = [event.seq for event in run.folder.events()]
    assert seqs == list(range(len(seqs)))


@pytest.mark.parametrize(
    ("kind", "state", "words"),
    [
        ("segfault", "interrupted", "segmentation fault"),
        ("abort", "interrupted", "aborted"),
        ("kill", "interrupted", "signal 9"),
        ("exit", "failed", "code 3"),
    ],
)
def test_a_crash_is_named_and_the_log_kept(fake_run, kind, state, words):
    run = fake_run(steps=20, at={"8": kind}).launch()
    status = run.until(state)
    assert words in status.cause
    assert f"about to {kind}" in run.folder.log_tail()
    if kind == "segfault":
        assert "Fatal Python error: Segmentation fault" in run.folder.log_tail()
    run.resume(at={}).until("done")


def test_a_damaged_newest_checkpoint_is_passed_over(fake_run):
    expected = uninterrupted(fake_run, 20)
    run = fake_run(steps=20, step_s=0.01, save_every=3, at={"14": "kill"}).launch()
    run.until("interrupted")
    newest = run.path / "checkpoints" / "12" / "adapter_model.safetensors"
    content = bytearray(newest.read_bytes())
    content[500] ^= 1  # one flipped bit, which safetensors would load in silence
    newest.write_bytes(content)
    assert [one.name for one in run.folder.checkpoints()] == ["9"]
    run.resume(at={}).until("done")
    assert run.losses() == expected
    assert [event.resumed_from for event in run.folder.events() if isinstance(event, Started)] == [-1, 9]


def test_a_torn_last_event_is_cut_off_on_resume(fake_run):
    run = fake_run(steps=20, at={"7": "kill"}).launch()
    run.until("interrupted")
    with (run.path / "events.jsonl").open("ab") as out:
        out.write(b'{"type":"metrics","seq":99,"st')
    run.resume(at={}).until("done")
    lines = (run.path / "events.jsonl").read_bytes().splitlines()
    assert len(lines) == len(list(run.folder.events()))
    assert sorted(run.losses()) == list(range(1, 21))


def test_two_runs_of_one_device_take_turns_in_order(fake_run):
    first, second, third = (fake_run(steps=15, step_s=0.02) for _ in range(3))
    first.launch()
    first.until("running")
    second.launch()
    second.until(lambda status: status.state == "queued" and "1 ahead" in status.detail)
    third.launch()
    third.until(lambda status: status.state == "queued" and "2 ahead" in status.detail)
    third.until("done")
    ends = [next(event.at for event in run.folder.events() if isinstance(event, Ended)) for run in (first, second)]
    starts = [next(event.at for event in run.folder.events() if isinstance(event, Started)) for run in (second, third)]
    assert ends[0] < starts[0]
    assert ends[1] < starts[1]


def test_a_dead_reaper_in_the_line_does_not_block_it(fake_run, wait_for):
    first, second, third = (fake_run(steps=40, step_s=0.02) for _ in range(3))
    first.launch()
    first.until("running")
    second.launch()
    second.until("queued")
    third.launch()
    third.until(lambda status: "2 ahead" in status.detail)
    waiting = [pid for pid in os.listdir("/proc") if pid.isdigit() and reads(pid, str(second.path), "reaper.py")]
    assert len(waiting) == 1
    os.kill(int(waiting[0]), signal.SIGKILL)
    status = second.until("interrupted")
    assert "waited for the device" in status.detail
    third.until("done")


def reads(pid, *words):
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as source:
            line = source.read().decode("utf-8", "replace")
    except OSError:
        return False
    return all(word in line for word in words)


@pytest.mark.parametrize("command", [Stop(), Cancel()])
def test_a_queued_run_can_be_taken_out_of_the_line(fake_run, command):
    first = fake_run(steps=1000, step_s=0.02).launch()
    first.until("running")
    second = fake_run(steps=5).launch()
    second.until("queued")
    with pytest.raises(UserError, match="waits for the device"):
        supervisor.send(second.path, Pause())
    assert supervisor.send(second.path, command).phase == "stopped"
    status = second.until("stopped")
    assert "queue" in status.detail
    assert not list(second.folder.events())
    supervisor.send(first.path, Cancel())
    first.until("stopped")
    second.resume().until("done")


def test_stop_saves_and_resume_goes_on_exactly(fake_run):
    expected = uninterrupted(fake_run, 30)
    run = fake_run(steps=30, step_s=0.02, save_every=0x7FFF).launch()
    run.until(lambda status: status.step >= 5)
    supervisor.send(run.path, Stop(save=True))
    status = run.until("stopped")
    assert [one.name for one in run.folder.checkpoints()] == [str(status.step)]
    assert status.resumable
    run.resume().until("done")
    assert run.losses() == expected


def test_cancel_ends_in_mid_step_without_saving(fake_run):
    run = fake_run(steps=30, at={"4": "spin"}).launch()
    run.until(lambda status: status.step >= 3)
    asked = time.monotonic()
    supervisor.send(run.path, Cancel())
    run.until("stopped")
    assert time.monotonic() - asked < 2.0
    assert run.folder.checkpoints() == []


def test_pause_waits_and_resume_goes_on(fake_run):
    run = fake_run(steps=40, step_s=0.01).launch()
    run.until(lambda status: status.step >= 2)
    supervisor.send(run.path, Pause())
    status = run.until("paused")
    assert supervisor.send(run.path, Ping()).step == status.step
    assert run.folder.state().step == status.step
    supervisor.send(run.path, Resume())
    run.until("done")


def test_save_now_saves_now(fake_run):
    run = fake_run(steps=1000, step_s=0.01, save_every=0x7FFF).launch()
    run.until(lambda status: status.step >= 2)
    supervisor.send(run.path, SaveNow())
    run.until(lambda _: len(run.folder.checkpoints()) == 1)
    supervisor.send(run.path, Cancel())
    run.until("stopped")


def test_a_hung_engine_is_left_alone_and_killed_only_when_asked(fake_run, wait_for):
    run = fake_run(steps=30, at={"4": "hang"}).launch()
    run.until(lambda status: status.step >= 3)
    wait_for(lambda: "about to hang" in run.folder.log_tail())
    supervisor.kill(run.path, grace_s=0.3)
    status = run.until("interrupted")
    assert "signal 9" in status.cause


def test_sigterm_ends_a_run_cleanly_and_its_end_is_written_down(fake_run):
    run = fake_run(steps=1000, step_s=0.01).launch()
    run.until(lambda status: status.step >= 3)
    os.kill(run.reaper_pid(), signal.SIGTERM)  # a shutdown asks every process to end
    supervisor.kill(run.path)
    assert run.folder.exit().code == 0
    assert run.until("stopped").state == "stopped"


def test_commands_to_a_run_that_is_not_at_work_are_refused(fake_run):
    run = fake_run(steps=3).launch()
    run.until("done")
    with pytest.raises(UserError, match="not at work"):
        supervisor.send(run.path, Pause())
    with pytest.raises(UserError, match="finished"):
        supervisor.resume(run.path)


def test_a_run_cannot_be_launched_twice(fake_run):
    run = fake_run(steps=1000, step_s=0.02).launch()
    with pytest.raises(UserError, match="at work already"):
        supervisor.launch(run.path, argv=run.argv)
    run.until("running")
    with pytest.raises(UserError, match="at work already"):
        run.resume()


def test_an_engine_that_cannot_be_started_fails_with_the_reason(fake_run):
    run = fake_run()
    supervisor.launch(run.path, argv=["/no/such/python"])
    status = run.until("failed")
    assert "/no/such/python" in status.cause


def test_the_socket_is_private_and_heartbeats_come_unasked(fake_run, runtime, wait_for):
    run = fake_run(steps=1000, step_s=0.01).launch()
    run.until(lambda status: status.step >= 1)
    (path,) = runtime.glob("run-*.sock")
    assert path.stat().st_mode & 0o777 == 0o600
    heard = []
    connection = supervisor.EngineConnection(run.path, heard.append)
    try:
        wait_for(lambda: len(heard) >= 2)
        assert connection.liveness() == "ok"
        assert heard[-1].step > 0
    finally:
        connection.close()


def test_a_runtime_folder_with_a_long_path_works(fake_run, tmp_path, monkeypatch):
    long = tmp_path / ("x" * 60) / ("y" * 60)
    long.mkdir(parents=True)
    monkeypatch.setenv("TASTEMAKER_RUNTIME", str(long))
    run = fake_run(steps=1000, step_s=0.01).launch()
    run.until(lambda status: status.step >= 1)
    assert supervisor.send(run.path, Ping()).answers == "ping"
    supervisor.send(run.path, Cancel())
    run.until("stopped")


def test_a_recycled_pid_is_not_signalled(fake_run):
    bystander = subprocess.Popen(["sleep", "60"])
    try:
        note = reaper.LockNote(state="running", pid=bystander.pid, started=1)
        supervisor._signal_engine(note, signal.SIGKILL)
        assert bystander.poll() is None
    finally:
        bystander.kill()
        bystander.wait()


def test_an_engine_that_falls_silent_is_not_responding_and_never_killed_for_it(fake_run, wait_for, monkeypatch):
    monkeypatch.setattr(supervisor, "SLOW_AFTER_S", 1.5)
    monkeypatch.setattr(supervisor, "NOT_RESPONDING_AFTER_S", 2.5)
    run = fake_run(steps=10_000, step_s=0.01).launch()
    run.until(lambda status: status.step >= 1)
    heard = []
    connection = supervisor.EngineConnection(run.path, heard.append)
    try:
        wait_for(lambda: heard)
        os.kill(run.engine_pid, signal.SIGSTOP)  # as when the machine is suspended
        wait_for(lambda: connection.liveness() == "slow")
        wait_for(lambda: connection.liveness() == "not responding")
        assert run.folder.state().state == "running"
        with pytest.raises(UserError, match="does not answer"):
            supervisor.send(run.path, Ping(), timeout=0.3)
        os.kill(run.engine_pid, signal.SIGCONT)
        wait_for(lambda: connection.liveness() == "ok")
        supervisor.send(run.path, Cancel())
        run.until("stopped")
        assert connection.silent_s < 1.0  # an ended run is not a silent one
    finally:
        connection.close()


def test_strangers_and_nonsense_on_the_socket_do_no_harm(fake_run):
    run = fake_run(steps=10_000, step_s=0.01).launch()
    run.until(lambda status: status.step >= 1)
    with sockets.connect(sockets.control_socket(run.path), 5.0) as client:
        client.sendall(b'not json\n{"type":"format-disk"}\n' + b"x" * 10)
        answers = b""
        while answers.count(b"not a command") < 2:
            answers += client.recv(4096)
    with pytest.raises(OSError, match=r"reset|Broken pipe"):  # a line without an end is cut off
        flood(sockets.control_socket(run.path))
    assert supervisor.send(run.path, Ping()).answers == "ping"


def flood(path):
    with sockets.connect(path, 5.0) as client:
        for _ in range(1000):
            client.sendall(b"x" * 65536)


def test_a_missed_reaper_or_python_is_an_error_at_launch(fake_run, monkeypatch):
    run = fake_run()
    with pytest.raises(UserError, match="could not be started"):
        supervisor.launch(run.path, python="/no/such/python", argv=run.argv)
    with pytest.raises(UserError, match="could not be started"):
        supervisor.launch(run.path, python="/bin/false", argv=run.argv)
    assert run.folder.state().state == "interrupted"
    run.launch().until("done")
