import os
import socket
import threading
import time

import pytest

from engine import control as controlling
from engine.control import Control, peer_uid
from workbench import sockets
from workbench.jsonl import decode, encode
from workbench.protocol import Pause, Ping, Pong, Resume, SampleNow, SaveNow, Stop


@pytest.fixture(autouse=True)
def own_runtime(tmp_path, monkeypatch):
    monkeypatch.setenv("TASTEMAKER_RUNTIME", str(tmp_path / "runtime"))
    monkeypatch.setattr(controlling, "HEARTBEAT_S", 0.05)


@pytest.fixture
def listening(tmp_path):
    """A control that listens, and a connected client as (control, ask)."""
    control = Control()
    control.status = lambda: Pong(seq=7, step=3, phase="training")
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    control.listen(run_dir)
    yield control, run_dir
    control.close()


def lines_of(client):
    rest = b""
    while True:
        rest += client.recv(65536)
        *whole, rest = rest.split(b"\n")
        yield from (decode(line, Pong) for line in whole)


def test_commands_become_flags_and_are_answered(listening):
    control, run_dir = listening
    heard = []
    control.heard = heard.append
    with sockets.connect(sockets.control_socket(run_dir), 5.0) as client:
        answers = (pong for pong in lines_of(client) if pong.answers)
        for command in (Pause(), SaveNow(), SampleNow(), Stop(save=False), Ping()):
            client.sendall(encode(command) + b"\n")
            pong = next(answers)
            assert (pong.seq, pong.step, pong.phase, pong.error) == (7, 3, "training", "")
        assert control.paused
        assert control.take_save()
        assert not control.take_save()
        assert control.take_sample()
        assert control.stop_asked() == Stop(save=False)
        client.sendall(encode(Resume()) + b"\n")
        next(answers)
        assert not control.paused
    assert [type(one).__name__ for one in heard] == ["Pause", "SaveNow", "SampleNow", "Stop", "Resume"]


def test_a_line_may_come_in_pieces_and_many_at_once(listening):
    _, run_dir = listening
    line = encode(Ping()) + b"\n"
    with sockets.connect(sockets.control_socket(run_dir), 5.0) as client:
        client.sendall(line[:4])
        client.sendall(line[4:] + line + b"nonsense\n")
        answers = [pong for pong in _take(lines_of(client), 20) if pong.answers or pong.error]
    assert [pong.answers for pong in answers[:2]] == ["ping", "ping"]
    assert "not a command" in answers[2].error


def _take(pongs, most):
    found = []
    for pong in pongs:
        found.append(pong)
        if pong.error or len(found) == most:
            return found
    return found


def test_heartbeats_come_unasked_to_all(listening):
    _, run_dir = listening
    path = sockets.control_socket(run_dir)
    with sockets.connect(path, 5.0) as one, sockets.connect(path, 5.0) as other:
        for client in (one, other):
            pongs = lines_of(client)
            assert [next(pongs).answers, next(pongs).answers] == ["", ""]


def test_clients_that_leave_or_do_not_read_are_dropped(listening):
    _, run_dir = listening
    path = sockets.control_socket(run_dir)
    sockets.connect(path, 5.0).close()
    with sockets.connect(path, 5.0) as deaf, pytest.raises(OSError, match=r"reset|Broken"):
        ask_for_ever(deaf)
    with sockets.connect(path, 5.0) as client:
        client.sendall(encode(Ping()) + b"\n")
        assert next(pong for pong in lines_of(client) if pong.answers).answers == "ping"


def ask_for_ever(client):
    """Ask and never read the answers."""
    until = time.monotonic() + 20
    while time.monotonic() < until:
        client.sendall((encode(Ping()) + b"\n") * 500)


def test_other_users_are_not_heard(listening, monkeypatch):
    _, run_dir = listening
    monkeypatch.setattr(controlling, "peer_uid", lambda _: os.getuid() + 1)
    with sockets.connect(sockets.control_socket(run_dir), 5.0) as client:
        client.settimeout(5.0)
        assert client.recv(100) == b""  # closed at once


def test_the_user_at_the_other_end_is_known():
    one, other = socket.socketpair(socket.AF_UNIX)
    with one, other:
        assert peer_uid(one) == os.getuid()


def test_closing_removes_the_socket_and_a_stale_one_is_replaced(tmp_path):
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    first, second = Control(), Control()
    first.listen(run_dir)
    path = sockets.control_socket(run_dir)
    assert path.stat().st_mode & 0o777 == 0o600
    second.listen(run_dir)  # as after a kill -9, which leaves the file
    second.close()
    assert not path.exists()
    first.close()
    with pytest.raises(FileNotFoundError):
        sockets.connect(path, 1.0)


def test_a_socket_that_cannot_be_made_is_an_error(tmp_path):
    with pytest.raises(OSError):  # noqa: PT011
        sockets.bind(tmp_path / "no" / "such" / "folder.sock")


def test_waiting_threads_are_woken_by_a_command():
    control = Control()
    threading.Timer(0.05, lambda: control.obey(Pause())).start()
    assert control.changed.wait(5.0)
