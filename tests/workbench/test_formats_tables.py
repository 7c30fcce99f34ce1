"""CSV and TSV files as streams of rows."""

from __future__ import annotations

from pathlib import Path

import pytest

from workbench.errors import UserError
from workbench.formats.lines import Limits
from workbench.formats.parsed import Rejected
from workbench.formats.tables import TableRow, header_of, table_rows


def read(tmp_path: Path, content: bytes, limits: Limits | None = None) -> list[TableRow | Rejected]:
    path = tmp_path / "a.csv"
    path.write_bytes(content)
    return list(table_rows(path, limits or Limits()))


def test_rows_come_by_column_with_the_line_where_each_begins(tmp_path: Path) -> None:
    found = read(tmp_path, b'\xef\xbb\xbfPrompt, Tags\nfirst,a\n"sec\r\nond ""q"" x",b\n\nthird,c\n')
    assert [(row.line, row.values) for row in found if isinstance(row, TableRow)] == [
        (2, {"prompt": "first", "tags": "a"}),
        (3, {"prompt": 'sec\r\nond "q" x', "tags": "b"}),
        (6, {"prompt": "third", "tags": "c"}),
    ]


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_what_separates_the_columns_is_told_from_the_header(tmp_path: Path, delimiter: str) -> None:
    assert header_of(f"a{delimiter}b")[1] == delimiter
    found = read(tmp_path, f"\r\nprompt{delimiter}x\r\nhello, you{delimiter}1\r\n".encode().replace(b", ", b" "))
    assert [row.values for row in found if isinstance(row, TableRow)] == [{"prompt": "hello you", "x": "1"}]


def test_a_text_longer_than_the_csv_modules_own_limit_is_read(tmp_path: Path) -> None:
    found = read(tmp_path, b"prompt\n" + b"x" * 400_000 + b"\n")
    assert isinstance(found[0], TableRow)
    assert len(found[0].values["prompt"]) == 400_000


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (b"one,two,three", "has 3 cells where the header has 2 cells"),
        (b"one", "has 1 cell where"),
        (b'"a"b,c', "not valid CSV"),
        (b"\xff,x", "not valid UTF-8: byte 0xff at byte 11 of the file"),
        (b"a\x00b,x", "NUL byte at byte 12 of the file"),
    ],
)
def test_a_bad_row_is_rejected_with_its_line_and_the_rest_goes_on(tmp_path: Path, row: bytes, reason: str) -> None:
    found = read(tmp_path, b"prompt,tag\n" + row + b"\ngood,x\n")
    assert isinstance(found[0], Rejected)
    assert found[0].line == 2
    assert reason in found[0].reason
    assert found[1] == TableRow(3, {"prompt": "good", "tag": "x"}, b"good,x")


def test_a_quote_that_is_never_closed_says_which_lines_it_took(tmp_path: Path) -> None:
    found = read(tmp_path, b'prompt\ngood\n"open\nlost\nlost too\n')
    assert isinstance(found[-1], Rejected)
    assert (found[-1].line, found[-1].reason) == (
        3,
        "a quote is opened and never closed (lines 3 to 5 were taken for one text)",
    )
    assert "never closed" in read(tmp_path, b'prompt\n"open')[0].reason  # type: ignore[union-attr]


def test_a_row_and_a_line_over_the_limit_are_rejected_and_the_rest_goes_on(tmp_path: Path) -> None:
    small = Limits(row_bytes=100)
    found = read(tmp_path, b"prompt\n" + b"x" * 101 + b"\ngood\n", small)
    assert [type(row) for row in found] == [Rejected, TableRow]
    found = read(tmp_path, b'prompt\n"' + b"text\n" * 30 + b'"\ngood\n', small)
    assert isinstance(found[0], Rejected)
    assert "is a quote opened and never closed?" in found[0].reason
    assert isinstance(found[-1], TableRow)


def test_a_quote_open_beyond_the_limit_to_the_end_of_the_file_takes_all(tmp_path: Path) -> None:
    found = read(tmp_path, b'prompt\n"' + b"text\n" * 30, Limits(row_bytes=100))
    assert [type(row) for row in found] == [Rejected]


def test_a_header_that_cannot_be_used_refuses_the_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r'(?i)two columns are called "prompt"'):
        read(tmp_path, b"prompt,Prompt\na,b\n")
    with pytest.raises(UserError, match="not valid UTF-8"):
        read(tmp_path, b"pr\xffompt\na\n")
    assert header_of('"a"b,c') == ([], ",")
    assert read(tmp_path, b"\n\n") == []
