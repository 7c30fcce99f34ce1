"""Errors, ids, JSON lines and the protocol: what every other module builds on."""

import json
import math
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from workbench import protocol
from workbench.errors import UserError
from workbench.ids import new_id, now
from workbench.jsonl import decode, encode, read_jsonl, write_atomic, write_jsonl
from workbench.records import Message
from workbench.rows import SftRow


def test_an_error_reads_as_sentences() -> None:
    error = UserError("the file cannot be read", "it is a folder", "choose a file")
    assert str(error) == "The file cannot be read. It is a folder. Choose a file."


def test_an_error_leaves_out_what_it_does_not_know() -> None:
    assert str(UserError("nothing to do!")) == "Nothing to do!"


def test_ids_sort_in_the_order_in_which_they_were_made() -> None:
    made = [new_id() for _ in range(5000)]
    assert made == sorted(made)
    assert len(set(made)) == 5000


def test_an_id_is_a_version_7_uuid() -> None:
    one = new_id()
    assert len(one) == 32
    assert one[12] == "7"
    assert one[16] in "89ab"


def test_times_are_utc_and_sort_as_text() -> None:
    first, second = now(), now()
    assert first.endswith("+00:00")
    assert first <= second


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_json_refuses_what_json_does_not_have(bad: float) -> None:
    with pytest.raises(ValueError, match="JSON has no"):
        encode({"values": {"loss": bad, "none": None}})


def test_json_keeps_a_none() -> None:
    assert encode({"score": None}) == b'{"score":null}'


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
messages = st.builds(Message, role=st.sampled_from(["system", "user", "assistant"]), content=texts)
rows = st.builds(SftRow, id=texts, group=texts, prompt=st.tuples(messages, messages), completion=texts)


@given(rows)
def test_a_row_comes_back_as_it_went(row: SftRow) -> None:
    assert decode(encode(row), SftRow) == row


def test_a_file_of_rows_comes_back_as_it_went(tmp_path: Path) -> None:
    sent = [SftRow(str(n), "g", (Message("user", "a\u2028b\r\n"),), "é\x00") for n in range(3)]
    assert write_jsonl(tmp_path / "rows.jsonl", sent) == 3
    assert list(read_jsonl(tmp_path / "rows.jsonl", SftRow)) == sent


def test_a_damaged_line_of_our_own_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    write_jsonl(path, [SftRow("1", "g", (), "x")])
    path.write_bytes(path.read_bytes() + b'\n{"id": 2')
    with pytest.raises(UserError, match=r"rows.jsonl, line 3, cannot be read"):
        list(read_jsonl(path, SftRow))


def test_an_atomic_write_leaves_no_temporary_file(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    write_atomic(path, b"one")
    write_atomic(path, b"two")
    assert path.read_bytes() == b"two"
    assert [one.name for one in tmp_path.iterdir()] == ["state.json"]


EVENTS = [
    protocol.Started(seq=1, pid=7, device="cpu", resumed_from=3, total_steps=9),
    protocol.Phase(seq=2, name="loading"),
    protocol.Progress(seq=3, step=1, total_steps=9, eta_s=2.5),
    protocol.Metrics(seq=4, step=1, values={"loss": 0.5}),
    protocol.Checkpoint(seq=5, step=1, path="checkpoints/1", bytes=10),
    protocol.SampleBatch(seq=6, step=1, offset=0, count=2),
    protocol.Warned(seq=7, code="oom", message="m", remedy="r"),
    protocol.Diverged(seq=8, step=1, metric="loss", kind="nan", rows=("a",)),
    protocol.Paused(seq=9, step=1),
    protocol.Unpaused(seq=10, step=1),
    protocol.Ended(seq=11, state="done", step=9),
]


@pytest.mark.parametrize("event", EVENTS, ids=lambda one: type(one).__name__)
def test_an_event_comes_back_as_it_went(event: protocol.AnyEvent) -> None:
    assert protocol.decode_event(encode(event)) == event


def test_unknown_fields_are_ignored_and_unknown_events_are_skipped() -> None:
    line = json.dumps({"type": "metrics", "step": 1, "values": {"loss": 1}, "colour": "red"}).encode()
    assert protocol.decode_event(line) == protocol.Metrics(step=1, values={"loss": 1.0})
    assert protocol.decode_event(b'{"type": "telepathy"}') is None
    assert protocol.decode_event(b'{"type": "metr') is None


@pytest.mark.parametrize(
    "command",
    [
        protocol.Stop(save=False),
        protocol.Cancel(),
        protocol.Pause(),
        protocol.Resume(),
        protocol.SaveNow(),
        protocol.SampleNow(),
        protocol.Ping(),
    ],
    ids=lambda one: type(one).__name__,
)
def test_a_command_comes_back_as_it_went(command: protocol.Command) -> None:
    assert protocol.decode_command(encode(command)) == command


def test_a_command_that_is_none_is_refused() -> None:
    with pytest.raises(msgspec.ValidationError):
        protocol.decode_command(b'{"type": "explode"}')


MODEL = protocol.ModelRef(model_id="m", name="n", base="/base")
REQUESTS = [
    protocol.SampleRequest(id="1", model=MODEL, prompts=((Message("user", "hi"),),), count=2),
    protocol.ScoreRequest(id="1", model=MODEL, rows=(((Message("user", "hi"),), "yes"),)),
    protocol.LogpsRequest(id="1", model=MODEL, rows=()),
    protocol.RenderRequest(id="1", model=MODEL, rows=()),
    protocol.CountTokensRequest(id="1", model=MODEL, rows=()),
    protocol.ImportModelRequest(id="1", source="demo", destination="/x"),
    protocol.ExportModelRequest(id="1", model=MODEL, destination="/x", what="merged"),
    protocol.CancelRequest(id="1"),
    protocol.Leave(id="1"),
]


@pytest.mark.parametrize("request_", REQUESTS, ids=lambda one: type(one).__name__)
def test_a_request_comes_back_as_it_went(request_: protocol.AnyRequest) -> None:
    assert protocol.decode_request(encode(request_)) == request_


REPLIES = [
    protocol.ServeProgress(id="1", what="loading", fraction=0.5),
    protocol.Token(id="1", prompt_index=0, response_index=1, text="a"),
    protocol.ResponseDone(
        id="1", prompt_index=0, response_index=1, text="a", finish_reason="stop", token_count=1, seed=3
    ),
    protocol.Scores(id="1", scores=(1.0,), standardised=(0.5,), stds=(0.2,)),
    protocol.TokenLogps(id="1", tokens=(("a",),), logps=((-1.0,),)),
    protocol.Rendered(id="1", rows=((("a", True),),), token_counts=(1,)),
    protocol.TokenCounts(id="1", counts=(1,), context=8),
    protocol.Imported(id="1", path="/x", parameters=5, sha256="a"),
    protocol.Finished(id="1"),
    protocol.Failed(id="1", message="no", code="busy"),
]


@pytest.mark.parametrize("reply", REPLIES, ids=lambda one: type(one).__name__)
def test_a_reply_comes_back_as_it_went(reply: protocol.AnyReply) -> None:
    assert protocol.decode_reply(encode(reply)) == reply


def test_a_reply_of_a_newer_engine_is_skipped() -> None:
    assert protocol.decode_reply(b'{"type": "hologram", "id": "1"}') is None
