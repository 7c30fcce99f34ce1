"""Strict JSON: what a lenient parser would change in silence is refused with a plain reason."""

from __future__ import annotations

import pytest

from workbench.formats.parsed import RowError
from workbench.formats.values import NESTING_LIMIT, decode_strictly


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (b'{"a": 1', "not valid JSON"),
        (b"", "it ends too early"),
        (b"{'a': 1}", "not valid JSON"),
        (b'{"a": NaN}', "has NaN, which is not JSON"),
        (b"[Infinity]", "has Infinity"),
        (b"[-Infinity]", "has -Infinity"),
        (b'{"a": 1e999}', "too large"),
        (b'{"a": "\\ud800"}', "half of a surrogate pair (\\ud800)"),
        (b'{"\\udc00": 1}', "half of a surrogate pair (\\udc00)"),
        (b'{"a": "\xff"}', "not valid UTF-8: byte 0xff at byte 107 of the file"),
        (b'{"a": "\xc3"}', "not valid UTF-8: byte 0xc3 at byte 107 of the file"),
        (b'{"a": "x\x00y"}', "NUL byte at byte 108 of the file"),
        (b'{"a": 1, "a": 2}', 'the key "a" is given twice'),
        (b'{"b": {"a": 1, "c": 0, "a": 2}}', 'the key "a" is given twice'),
        (b'{"n": ' + b"9" * 5000 + b"}", "a whole number of 5000 digits"),
        (b"[" * 100_000 + b"]" * 100_000, "nested deeper than"),
        (b'{"a": "line\nbreak"}', "not valid JSON"),
        (b'{"a": 1} {"b": 2}', "not valid JSON"),
    ],
)
def test_a_bad_value_is_refused_with_its_reason(raw: bytes, reason: str) -> None:
    with pytest.raises(RowError) as refused:
        decode_strictly(raw, offset=100)
    assert reason in str(refused.value)


def test_a_whole_surrogate_pair_is_text() -> None:
    assert decode_strictly(b'"\\ud83d\\ude00"') == "\N{GRINNING FACE}"


def test_nesting_is_counted_and_not_guessed_from_the_number_of_brackets() -> None:
    wide = b"[" + b"[]," * 500 + b'"[[[[[[[[[ \\" [[[["]'
    assert len(decode_strictly(wide)) == 501
    deep = b"[" * NESTING_LIMIT + b"]" * NESTING_LIMIT
    assert decode_strictly(deep)
    with pytest.raises(RowError, match="nested"):
        decode_strictly(b"[" + deep + b"]")


def test_an_unclosed_text_with_many_brackets_is_malformed_rather_than_deep() -> None:
    with pytest.raises(RowError, match="not valid JSON"):
        decode_strictly(b'["' + b"[" * 500)
