"""The client of a serving engine against a server that plays a script: starts it, outlives it, loses no last reply."""

from __future__ import annotations

import sys
import threading
import time

import pytest

from workbench import estimate as estimate_module
from workbench.errors import UserError
from workbench.estimate import estimate, held_by
from workbench.ids import new_id
from workbench.model_shape import Shape
from workbench.protocol import CountTokensRequest, Failed, Finished, ModelRef, ServeProgress, TokenCounts
from workbench.recipes import SftRecipe
from workbench.serve_client import ServeClient, _Process

SERVER = r"""
import json, os, socket, sys, time
path = sys.argv[1]
server = socket.socket(socket.AF_UNIX)
server.bind(path); server.listen(1)
line, _ = server.accept()
source = line.makefile("rb")
say = lambda **reply: line.sendall(json.dumps(reply).encode() + b"\n")
for raw in source:
    request = json.loads(raw)
    kind, name = request["type"], request.get("model", {}).get("name", "")
    if kind == "leave":
        say(type="finished", id=request["id"]); os._exit(0)
    if kind == "cancel-request":
        say(type="failed", id=request["id"], message="Cancelled", code="cancelled"); continue
    if name == "die": print("a last word", flush=True); os._exit(3)
    if name == "kill": os.kill(os.getpid(), 9)
    if name == "silent": continue
    if name == "large": held = bytearray(b"1" * 200_000_000)
    if name == "future": say(type="from-a-newer-engine", id=request["id"])
    say(type="serve-progress", id=request["id"], what="Counting")
    say(type="token-counts", id=request["id"], counts=[len(request["rows"])], context=os.getpid())
"""


@pytest.fixture
def client(tmp_path, monkeypatch):
    monkeypatch.setenv("TASTEMAKER_RUNTIME", str(tmp_path / "runtime"))
    one = ServeClient([sys.executable, "-c", SERVER])
    yield one
    one.leave()


def count(name="", rows=1):
    model = ModelRef(model_id="m", name=name, base="/b")
    return CountTokensRequest(id=new_id(), model=model, rows=(((), "x"),) * rows)


def test_what_the_engine_holds_counts_as_free_for_a_run_as_whose_start_it_leaves(client, monkeypatch):
    assert client.pid == 0
    assert held_by(client.pid, "cpu") == 0
    client.call(count("large"))
    assert 200_000_000 < held_by(client.pid, "cpu") < 400_000_000
    shape = Shape(10**6, 64, 2, 128, 4, 2, 16, 100, 512)
    monkeypatch.setattr(estimate_module, "available_bytes", lambda: 1000)
    foretold = [
        estimate("sft", SftRecipe(device="cpu"), shape, [], leaving=pid).memory_available for pid in (0, client.pid)
    ]
    assert foretold[0] == 1000
    assert 200_000_000 < foretold[1] < 400_000_000
    monkeypatch.setattr(estimate_module, "has_gpu", lambda: True)
    monkeypatch.setattr(estimate_module, "gpu_held_bytes", lambda pid: 70 if pid == client.pid else 0)
    assert held_by(client.pid, "auto") == 70
    gone = client.pid
    client.leave()
    assert held_by(gone, "cpu") == 0


def wait_for(condition, seconds=20):
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.005)


def test_the_first_request_starts_the_engine_and_its_last_reply_is_returned(client):
    assert not client.running
    before = []
    reply = client.call(count(rows=3), 20, before.append)
    assert isinstance(reply, TokenCounts)
    assert reply.counts == (3,)
    assert [type(one) for one in before] == [ServeProgress]
    assert client.running
    assert client.log_path.exists()


def test_one_process_serves_many_threads(client):
    found = []

    def ask(number):
        found.extend((number, client.call(count(rows=number), 20)) for _ in range(5))

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(1, 7)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert len(found) == 30
    assert all(reply.counts == (number,) for number, reply in found)
    assert len({reply.context for _, reply in found}) == 1


def test_a_death_ends_every_open_request_and_the_next_one_starts_anew(client):
    first = client.call(count(), 20).context
    waiting = []
    client.request(count("silent"), waiting.append)
    reply = client.call(count("die"), 20)
    assert isinstance(reply, Failed)
    assert reply.code == "died"
    assert "a last word" in reply.cause
    wait_for(lambda: bool(waiting))
    assert waiting[0].code == "died"
    assert not client.running
    assert client.call(count(), 20).context != first


def test_a_kill_is_named_in_plain_words(client):
    reply = client.call(count("kill"), 20)
    assert isinstance(reply, Failed)
    assert "out of memory" in reply.cause


def test_a_cancel_reaches_its_request(client):
    replies = []
    request_id = client.request(count("silent"), replies.append)
    client.cancel("unknown")
    client.cancel(request_id)
    wait_for(lambda: bool(replies))
    assert replies[0].code == "cancelled"


def test_a_call_that_takes_too_long_is_cancelled_and_said(client):
    with pytest.raises(UserError, match="did not answer in time"):
        client.call(count("silent"), 0.3)
    assert isinstance(client.call(count(), 20), TokenCounts)


def test_replies_of_a_newer_engine_are_passed_over(client):
    assert isinstance(client.call(count("future"), 20), TokenCounts)


def test_leaving_ends_the_process_its_files_and_what_is_open(client, tmp_path):
    replies = []
    client.request(count("silent"), replies.append)
    client.leave()
    assert not client.running
    assert not list((tmp_path / "runtime").iterdir())
    assert [one.code for one in replies] == ["died"]
    client.leave()
    assert isinstance(client.call(count(), 20), TokenCounts)


def test_a_callback_that_fails_does_not_take_the_line_down(client, monkeypatch):
    said = []
    monkeypatch.setattr(sys, "excepthook", lambda *what: said.append(what[0]))

    def fail(_reply):
        raise RuntimeError("the pane's own fault")

    client.request(count(), fail)
    assert isinstance(client.call(count(), 20), TokenCounts)
    wait_for(lambda: len(said) == 2)


def test_an_engine_that_cannot_start_says_why(tmp_path, monkeypatch):
    monkeypatch.setenv("TASTEMAKER_RUNTIME", str(tmp_path / "runtime"))
    broken = ServeClient([sys.executable, "-c", "raise SystemExit('no torch here')"])
    with pytest.raises(UserError, match="could not be started") as caught:
        broken.call(count(), 20)
    assert "no torch here" in caught.value.cause
    missing = ServeClient([str(tmp_path / "nothing")])
    with pytest.raises(UserError, match="could not be started"):
        missing.call(count(), 20)
    assert isinstance(Finished(id="x"), Finished)


def test_a_request_that_is_cancelled_while_the_engine_starts_is_not_sent(client, monkeypatch):
    starting, go_on = threading.Event(), threading.Event()
    start = ServeClient.start

    def slow(self):
        starting.set()
        go_on.wait(20)
        start(self)

    monkeypatch.setattr(ServeClient, "start", slow)
    asked, replies = count("die"), []
    thread = threading.Thread(target=client.request, args=(asked, replies.append))
    thread.start()
    assert starting.wait(20)
    client.cancel(asked.id)
    go_on.set()
    thread.join(20)
    assert [one.code for one in replies] == ["cancelled"]
    assert isinstance(client.call(count(), 20), TokenCounts)  # it lives: it was not asked to die


def test_an_engine_that_leaves_slowly_takes_no_request_of_the_next_one_with_it(client, monkeypatch):
    client.call(count(), 20)
    leaving, go_on = threading.Event(), threading.Event()
    end = _Process.end

    def slow(self, patience_s):
        leaving.set()
        go_on.wait(20)
        end(self, patience_s)

    monkeypatch.setattr(_Process, "end", slow)
    thread = threading.Thread(target=client.leave)
    thread.start()
    assert leaving.wait(20)
    replies = []
    asked = client.request(count("silent"), replies.append)
    go_on.set()
    thread.join(20)
    assert replies == []
    client.cancel(asked)
    wait_for(lambda: bool(replies))
    assert replies[0].code == "cancelled"
