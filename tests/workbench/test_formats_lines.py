"""Files as streams: bounded in memory, whatever they hold."""

from __future__ import annotations

import gzip
import os
import tracemalloc
from pathlib import Path

import pytest

from workbench.errors import UserError
from workbench.formats.lines import Limits, Raw, StreamCutError, check_file, chunks, lines, read_head

SMALL = Limits(row_bytes=1000)


def read(path: Path, limits: Limits = SMALL) -> list[Raw]:
    return list(lines(path, limits))


def test_lines_are_split_at_line_feeds_alone(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes("one\r\ntwo\u2028still two\x0b\x85\nthree".encode())
    assert [raw.raw.decode() for raw in read(path)] == ["one\r", "two\u2028still two\x0b\x85", "three"]


def test_a_file_that_has_carriage_returns_alone_is_split_at_those(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"one\rtwo\r\rthree\r")
    assert [(raw.number, raw.raw, raw.offset) for raw in read(path)] == [
        (1, b"one", 0),
        (2, b"two", 4),
        (3, b"", 8),
        (4, b"three", 9),
    ]
    path.write_bytes(b"one\r")
    assert [raw.raw for raw in read(path)] == [b"one\r"]


def test_a_byte_order_mark_is_dropped_and_offsets_still_count_it(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"\xef\xbb\xbfone\ntwo\n")
    assert [(raw.number, raw.raw, raw.offset) for raw in read(path)] == [(1, b"one", 3), (2, b"two", 7)]
    assert read_head(path) == b"one\ntwo\n"


def test_a_line_over_the_limit_is_named_and_the_rest_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"one\n" + b"x" * 1001 + b"\n" + b"y" * 1000 + b"\nlast\n")
    found = read(path)
    assert [bool(raw.problem) for raw in found] == [False, True, False, False]
    assert "the limit for one row is 1000 B" in found[1].problem
    assert len(found[1].raw) <= 400
    assert found[3] == Raw(4, b"last", 4 + 1002 + 1001)


def test_a_single_line_of_fifty_megabytes_is_refused_with_memory_flat(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    with path.open("wb") as out:
        out.write(b'"')
        for _ in range(50):
            out.write(b"x" * (1 << 20))
        out.write(b'"\n"after"\n')
    tracemalloc.start()
    found = [(raw.number, bool(raw.problem)) for raw in lines(path, Limits(row_bytes=4 << 20))]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found == [(1, True), (2, False)]
    assert peak < 16 << 20


def test_gzip_is_told_by_content_and_may_have_members_and_padding(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(gzip.compress(b"one\ntw") + gzip.compress(b"o\nthree\n") + b"\0" * 512)
    assert [raw.raw for raw in read(path)] == [b"one", b"two", b"three"]


def test_a_truncated_gzip_file_gives_what_came_before_the_cut(tmp_path: Path) -> None:
    whole = gzip.compress(b"".join(os.urandom(30).hex().encode() + b"\n" for _ in range(2000)))
    path = tmp_path / "a.gz"
    path.write_bytes(whole[: len(whole) // 2])
    found = read(path)
    assert len(found) > 500
    assert not any(raw.problem for raw in found[:-1])
    assert "breaks off" in found[-1].problem


def test_a_damaged_gzip_file_gives_what_came_before_the_damage(tmp_path: Path) -> None:
    path = tmp_path / "a.gz"
    path.write_bytes(gzip.compress(b"one\ntwo\n") + gzip.compress(b"three\n")[:10] + b"\x07rest")
    found = read(path)
    assert [raw.raw for raw in found[:2]] == [b"one", b"two"]
    assert "damaged" in found[-1].problem
    path.write_bytes(gzip.compress(b"one\n")[:-6] + b"\0\0\0\0\0\0")
    assert read(path)[0].problem == ""
    assert "damaged" in read(path)[-1].problem


def test_a_gzip_bomb_is_refused_by_its_ratio_and_by_its_size(tmp_path: Path) -> None:
    path = tmp_path / "bomb.jsonl.gz"
    path.write_bytes(gzip.compress((b"x" * 999 + b"\n") * (40 << 10)))
    with pytest.raises(UserError, match="200 times its size"):
        read(path, Limits())
    with pytest.raises(UserError, match=r"larger than 1\.0 MiB"):
        read(path, Limits(total_bytes=1 << 20))


@pytest.mark.parametrize(
    ("content", "cause"),
    [
        (b"", "it is empty"),
        (b"PK\x03\x04rest", "zip archive"),
        (b"PAR1....", "Parquet"),
        (b"SQLite format 3\0", "SQLite"),
        ("ab".encode("utf-16"), "UTF-16"),
        (gzip.compress(b"PAR1....", mtime=0), "Parquet"),
    ],
)
def test_what_is_no_text_is_refused_with_what_it_is(tmp_path: Path, content: bytes, cause: str) -> None:
    path = tmp_path / "file"
    path.write_bytes(content)
    with pytest.raises(UserError, match=f"(?i){cause}") as refused:
        read(path)
    assert refused.value.remedy


def test_a_folder_a_missing_file_and_a_pipe_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"(?i)it is a folder"):
        check_file(tmp_path)
    with pytest.raises(UserError, match=r"(?i)no such file"):
        check_file(tmp_path / "missing")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match=r"(?i)not a regular file"):
        check_file(tmp_path / "pipe")


def test_a_file_that_may_not_be_read_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "secret.jsonl"
    path.write_bytes(b"x")

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(UserError, match=r"(?i)no permission"):
        check_file(path)


def test_a_disk_fault_is_told_as_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"x\n")

    def fail(*_: object, **__: object) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(Path, "open", fail)
    with pytest.raises(UserError, match="Input/output error"):
        check_file(path)
    monkeypatch.setattr("workbench.formats.lines.check_file", lambda _: None)
    with pytest.raises(UserError, match="Input/output error"):
        list(chunks(path, SMALL))


def test_the_head_of_a_truncated_gzip_file_is_what_there_is(tmp_path: Path) -> None:
    path = tmp_path / "a.gz"
    path.write_bytes(gzip.compress(os.urandom(5000).hex().encode())[:2000])
    assert read_head(path)
    with pytest.raises(StreamCutError):
        list(chunks(path, Limits()))
