import threading

import pytest

from engine.events import EventLog, SampleFile
from workbench.protocol import Metrics, Phase, Sample, Started
from workbench.run_events import EventTail, join_segments, parse_event


def metric(step, value=1.0):
    return Metrics(step=step, values={"loss": value})


def test_numbers_and_time_go_on_in_the_next_process(tmp_path):
    first = EventLog(tmp_path)
    first._elapsed_before = 100.0
    assert [first.emit(metric(1)).seq, first.emit(metric(2)).seq] == [0, 1]
    first.close()
    second = EventLog(tmp_path)
    event = second.emit(metric(3))
    second.sync()
    assert event.seq == 2
    assert event.elapsed_s >= 100.0


def test_a_torn_last_line_is_cut_off_before_the_next_event(tmp_path):
    log = EventLog(tmp_path)
    log.emit(metric(1))
    log.close()
    path = tmp_path / "events.jsonl"
    with path.open("ab") as out:
        out.write(b'{"type":"metrics","seq":7,"step":')
    log = EventLog(tmp_path)
    assert log.emit(metric(2)).seq == 1
    assert [event.step for event in EventTail(tmp_path).read_new()] == [1, 2]


def test_a_file_of_nothing_but_a_torn_line_starts_anew(tmp_path):
    (tmp_path / "events.jsonl").write_bytes(b'{"type":' + b" " * 200_000)
    assert EventLog(tmp_path).emit(metric(1)).seq == 0
    assert len(EventTail(tmp_path).read_new()) == 1


def test_the_last_event_is_found_behind_a_long_unknown_one(tmp_path):
    log = EventLog(tmp_path)
    log.emit(metric(1))
    log.close()
    with (tmp_path / "events.jsonl").open("ab") as out:
        out.write(b'{"type":"future","words":"' + b"x" * 200_000 + b'"}\n')
    assert EventLog(tmp_path).emit(metric(2)).seq == 1


def test_a_nan_is_refused_and_takes_no_number(tmp_path):
    log = EventLog(tmp_path)
    with pytest.raises(ValueError, match="nan"):
        log.emit(metric(1, float("nan")))
    assert log.emit(metric(1)).seq == 0


def test_threads_never_mix_lines_or_numbers(tmp_path):
    log = EventLog(tmp_path)
    threads = [threading.Thread(target=lambda: [log.emit(metric(n)) for n in range(200)]) for _ in range(4)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert [event.seq for event in EventTail(tmp_path).read_new()] == list(range(800))


def test_the_tail_waits_for_the_end_of_a_line(tmp_path):
    log = EventLog(tmp_path)
    tail = EventTail(tmp_path)
    assert tail.read_new() == []
    log.emit(metric(1))
    assert [one.step for one in tail.read_new()] == [1]
    path = tmp_path / "events.jsonl"
    line = b'{"type":"metrics","seq":1,"step":2,"values":{}}\n'
    for piece in (line[:10], line[10:30]):
        with path.open("ab") as out:
            out.write(piece)
        assert tail.read_new() == []
    with path.open("ab") as out:
        out.write(line[30:] + b"damaged\n")
    assert [one.step for one in tail.read_new()] == [2]
    assert tail.offset == path.stat().st_size


def test_a_tail_of_a_run_that_has_not_begun_is_empty(tmp_path):
    assert EventTail(tmp_path).read_new() == []


def test_a_tail_can_be_read_in_pieces(tmp_path, monkeypatch):
    monkeypatch.setattr("workbench.run_events.CHUNK_BYTES", 200)
    log = EventLog(tmp_path)
    for step in range(50):
        log.emit(metric(step))
    tail, pieces = EventTail(tmp_path), []
    while piece := tail.read_new(limit_bytes=400):
        pieces.append([one.step for one in piece])
    assert len(pieces) > 5
    assert [step for piece in pieces for step in piece] == list(range(50))


def test_unknown_events_are_skipped():
    assert parse_event(b'{"type":"future"}') is None
    assert parse_event(b'{"type":"phase","name":"x","more":1}') == Phase(name="x")


def started(resumed_from):
    return Started(pid=1, device="cpu", resumed_from=resumed_from)


@pytest.mark.parametrize(
    ("events", "expected"),
    [
        ([started(-1), metric(1), metric(2)], [1, 2]),
        ([started(-1), metric(1), metric(2), metric(3), started(2), metric(3), metric(4)], [1, 2, 3, 4]),
        ([started(-1), metric(0), metric(1), started(-1), metric(0)], [0]),
        ([started(-1), metric(4), started(4), metric(4), started(2), metric(3)], [3]),
        ([metric(1), metric(2), metric(2)], [1, 2, 2]),
        ([], []),
    ],
)
def test_segments_join_at_the_step_without_a_zigzag(events, expected):
    assert [one.step for one in join_segments(events)] == expected


def test_samples_are_appended_with_their_offset(tmp_path):
    out = SampleFile(tmp_path)
    row = Sample(step=1, prompt_id="p", prompt="Q", response="R")
    assert out.append([row, row]) == (0, True)
    offset, kept = out.append([row])
    assert kept
    assert offset == 2 * (tmp_path / "samples.jsonl").stat().st_size // 3
    out.close()
