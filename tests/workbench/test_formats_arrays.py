"""JSON arrays as streams of elements, and how reading goes on after a damaged one."""

from __future__ import annotations

import gzip
import json
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workbench.formats.arrays import _Splitter, elements
from workbench.formats.lines import Limits, Raw

SMALL = Limits(row_bytes=10_000)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)


def split(raw: bytes, size: int = 7, limit: int = 10_000, *, bare: bool = False) -> list[Raw]:
    splitter = _Splitter(limit, bare)
    found = []
    for start in range(0, len(raw), size):
        found += splitter.feed(raw[start : start + size])
        if splitter.given_up:
            return found
    return found + list(splitter.end())


@given(st.lists(JSON, max_size=6), st.sampled_from([None, 0, 2]), st.integers(1, 40), st.booleans())
def test_any_array_in_any_layout_and_in_any_chunks_gives_its_elements(
    values: list[object], indent: int | None, size: int, ascii_only: bool
) -> None:
    raw = json.dumps(values, indent=indent, ensure_ascii=ascii_only).encode("utf-8", "surrogatepass")
    found = split(raw, size)
    assert [json.loads(one.raw) for one in found] == values
    assert [one.number for one in found] == list(range(1, len(values) + 1))
    assert not any(one.problem for one in found)
    assert all(raw[one.offset :].startswith(one.raw) for one in found)


@given(st.lists(st.dictionaries(st.text(max_size=4), JSON, max_size=3), max_size=5), st.integers(1, 40))
def test_objects_one_after_the_other_are_elements_too(values: list[dict[str, object]], size: int) -> None:
    raw = "\n".join(json.dumps(value, indent=2) for value in values).encode()
    assert [json.loads(one.raw) for one in split(raw, size, bare=True)] == values


@pytest.mark.parametrize("size", [1, 3, 1000])
@pytest.mark.parametrize(
    "broken",
    [
        '{"a": "no closing quote, "b": "x"}',
        '{"a": "one quote "too many" here"}',
        '{"a": "b", "c": {"d": 1}',
        '{"a": [1, 2}',
        '{"a": "line\nbreak"}',
    ],
)
def test_after_a_damaged_element_reading_goes_on_where_the_lines_of_elements_tell_how(broken: str, size: int) -> None:
    good = [json.dumps({"n": n}) for n in range(4)]
    raw = ("[\n  " + ",\n  ".join([*good[:2], broken, *good[2:]]) + "\n]").encode()
    whole = [one.raw.decode() for one in split(raw, size) if not one.problem and _is_json(one.raw)]
    assert whole == good
    bad = [one for one in split(raw, size) if one.problem or not _is_json(one.raw)]
    assert bad
    assert bad[0].number == 3


def _is_json(raw: bytes) -> bool:
    try:
        json.loads(raw)
    except ValueError:
        return False
    return True


def test_a_damaged_element_of_an_indented_file_costs_that_element_alone(tmp_path: Path) -> None:
    values = [{"text": f"number {n}", "inner": {"list": [n]}} for n in range(50)]
    raw = json.dumps(values, indent=2).replace('"number 20"', '"number 20').replace('"number 30",', '"number 30" {')
    path = tmp_path / "a.json"
    path.write_text(raw)
    found = list(elements(path, Limits()))
    good = {json.loads(one.raw)["text"] for one in found if not one.problem and _is_json(one.raw)}
    assert good >= {f"number {n}" for n in range(50)} - {"number 20", "number 30"}
    assert "a quote is missing" in next(one.problem for one in found if one.number == 21)


def test_where_nothing_tells_the_next_element_the_rest_is_said_to_be_unread() -> None:
    found = split(b'[{"a": "x\n"}, {"b": 1}]')
    assert len(found) == 1
    assert "the rest of the file was not read" in found[0].problem


def test_an_array_that_is_not_closed_keeps_its_whole_elements() -> None:
    found = split(b'[{"a": 1}, {"b": 2}, {"c"')
    assert [one.raw for one in found[:2]] == [b'{"a": 1}', b'{"b": 2}']
    assert "not closed before the end" in found[2].problem
    found = split(b'[{"a": 1},\n')
    assert "the file ends before the list is closed" in found[1].problem


def test_what_follows_the_array_is_named() -> None:
    found = split(b"[1, 2] [3]", size=3)
    assert [one.raw for one in found[:2]] == [b"1", b"2"]
    assert "more after the end of the list" in found[2].problem
    assert split(b"[1]  \n\n") == [Raw(1, b"1", 1)]


def test_what_follows_a_given_up_array_in_a_file_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(b'[{"a": "x\n"}, {"b": 1}]' + b" " * (3 << 20) + b"[]")
    assert len(list(elements(path, Limits()))) == 1


def test_brackets_that_do_not_match_stay_with_their_element() -> None:
    found = split(b'[1}, {"a": 1}]')
    assert [one.raw for one in found] == [b"1}", b'{"a": 1}']
    assert [one.raw for one in split(b'}{"a": 1}, {"b": 2}', bare=True)] == [b'}{"a": 1}', b', {"b": 2}']


def test_nothing_between_commas_is_named_and_a_last_comma_forgiven() -> None:
    found = split(b"[1,,2,]")
    assert [(one.raw, bool(one.problem)) for one in found] == [(b"1", False), (b"", True), (b"2", False)]


def test_an_element_over_the_limit_is_named_and_the_rest_goes_on() -> None:
    raw = b'[{"a": 1},{"long": "' + b'x\\"' * 500 + b'"},{"b": [2]}]'
    for size in (10, 300, 5000):
        found = split(raw, size, limit=300)
        assert [one.number for one in found] == [1, 2, 3]
        assert "the limit for one row is 300 B" in found[1].problem
        assert found[1].raw.startswith(b'{"long": "x')
        assert found[2].raw == b'{"b": [2]}'


def test_an_element_that_runs_away_ends_at_the_limit() -> None:
    good = [f'{{"n": {n}}}' for n in range(100)]
    raw = ("[\n" + ",\n".join([good[0], '{"open": {', *good[1:]]) + "\n]").encode()
    found = split(raw, 50, limit=200)
    assert "not closed within 200 bytes" in found[1].problem
    assert [one.raw.decode() for one in found if not one.problem] == good


def test_a_huge_element_leaves_memory_flat(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    with path.open("wb") as out:
        out.write(b'[{"a": "')
        for _ in range(50):
            out.write(b"x" * (1 << 20))
        out.write(b'"}, {"b": 1}]')
    tracemalloc.start()
    found = [(raw.number, bool(raw.problem)) for raw in elements(path, Limits(row_bytes=4 << 20))]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found == [(1, True), (2, False)]
    assert peak < 20 << 20


def test_a_truncated_gzip_array_gives_what_came_before_the_cut(tmp_path: Path) -> None:
    path = tmp_path / "a.json.gz"
    whole = gzip.compress(b"\xef\xbb\xbf" + json.dumps([{"n": n * 7919} for n in range(3000)]).encode())
    path.write_bytes(whole[: len(whole) // 2])
    found = list(elements(path, SMALL))
    assert json.loads(found[0].raw) == {"n": 0}
    assert found[0].offset == 4
    assert "breaks off" in found[-1].problem
    assert not any(one.problem for one in found[:-1])


def test_a_file_that_never_opens_a_list_says_so() -> None:
    assert "before the list begins" in split(b"nothing here")[0].problem
    assert [one.raw for one in split(b"} [1]")] == [b"1"]
    assert split(b"  \n ", bare=True) == []
    assert "not closed" in split(b'{"a": 1', bare=True)[0].problem
