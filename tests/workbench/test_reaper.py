import os
import threading
import time

import pytest

from workbench import reaper
from workbench.reaper import LockNote, draw_ticket, held, read_note, take, tickets_before, trim_torn_line, write_note


def test_a_lock_is_held_until_its_descriptor_is_closed(tmp_path):
    path = tmp_path / "lock"
    assert not held(path)
    handle = take(path)
    assert held(path)
    assert take(path, wait_s=0.0) is None
    os.close(handle)
    assert not held(path)
    assert path.stat().st_mode & 0o777 == 0o600


def test_looking_at_a_lock_does_not_keep_others_from_taking_it(tmp_path):
    path = tmp_path / "lock"
    path.touch()
    looking = True

    def look():
        while looking:
            held(path)

    thread = threading.Thread(target=look)
    thread.start()
    try:
        for _ in range(200):
            handle = take(path)
            assert handle is not None
            os.close(handle)
    finally:
        looking = False
        thread.join()


def test_a_child_that_inherits_the_lock_keeps_it(tmp_path):
    path = tmp_path / "lock"
    handle = take(path)
    end, begin = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(begin)
        os.read(end, 1)  # until the parent closes its end
        os._exit(0)
    os.close(handle)
    assert held(path)
    os.close(begin)
    os.close(end)
    os.waitpid(child, 0)
    assert not held(path)


def test_a_note_is_replaced_whole(tmp_path):
    handle = take(tmp_path / "lock")
    long = LockNote("queued", 10**12, 99999, 10**9, 12, "gpu-0")
    for note in (long, LockNote("running", 1)):
        write_note(handle, note)
        assert read_note(tmp_path / "lock") == note
    os.close(handle)


@pytest.mark.parametrize("content", [b"", b"nonsense", b"[1]", b'{"future": 1}'])
def test_a_strange_note_is_an_empty_one(tmp_path, content):
    (tmp_path / "lock").write_bytes(content)
    assert read_note(tmp_path / "lock") == LockNote()
    assert read_note(tmp_path / "none") == LockNote()


def test_start_times_tell_processes_apart():
    assert reaper.start_ticks(os.getpid()) > 0
    assert reaper.start_ticks(2**22 + 1) == 0


@pytest.mark.parametrize(
    ("content", "kept"),
    [(b"", 0), (b"a\nb\n", 4), (b"a\nb", 2), (b"torn", 0), (b"a\n" + b"x" * 200_000, 2), (b"\n", 1)],
)
def test_a_torn_line_is_cut(tmp_path, content, kept):
    path = tmp_path / "events.jsonl"
    path.write_bytes(content)
    assert trim_torn_line(path) == kept
    assert path.read_bytes() == content[:kept]
    assert trim_torn_line(tmp_path / "none") == 0


def test_the_line_is_first_come_first_served(tmp_path):
    line = tmp_path / "line"
    tickets = [draw_ticket(line) for _ in range(3)]
    assert [tickets_before(line, ticket) for ticket, _ in tickets] == [0, 1, 2]
    os.close(tickets[0][1])  # its process died
    assert [tickets_before(line, ticket) for ticket, _ in tickets[1:]] == [0, 1]
    assert not tickets[0][0].exists()
    late = draw_ticket(line)
    assert tickets_before(line, late[0]) == 2
    for _, handle in (*tickets[1:], late):
        os.close(handle)


def test_tickets_drawn_at_once_are_all_different(tmp_path):
    line, drawn = tmp_path / "line", []
    threads = [threading.Thread(target=lambda: drawn.append(draw_ticket(line))) for _ in range(12)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert len({ticket for ticket, _ in drawn}) == 12
    for _, handle in drawn:
        os.close(handle)


def test_waiting_for_the_device_writes_where_one_stands(tmp_path):
    line = tmp_path / "line"
    line.mkdir()
    busy = take(reaper.lease_path(line))
    lock = take(tmp_path / "lock")
    got = []
    waiting = threading.Thread(
        target=lambda: got.append(reaper.wait_for_device(line, tmp_path / "unqueue", lock, LockNote("queued", 5)))
    )
    waiting.start()
    deadline = time.monotonic() + 10
    while read_note(tmp_path / "lock") != LockNote("queued", 5, ahead=1):
        assert time.monotonic() < deadline
    os.close(busy)
    waiting.join(10)
    assert held(reaper.lease_path(line))
    assert list(line.glob("ticket-*")) == []
    for handle in (lock, *got):
        os.close(handle)


def test_a_large_log_is_set_aside(tmp_path, monkeypatch):
    monkeypatch.setattr(reaper, "LOG_LIMIT_BYTES", 10)
    log = tmp_path / "engine.log"
    reaper.rotate_log(log)
    log.write_text("short")
    reaper.rotate_log(log)
    assert log.exists()
    log.write_text("a long story")
    reaper.rotate_log(log)
    assert not log.exists()
    assert (tmp_path / "engine.log.1").read_text() == "a long story"
