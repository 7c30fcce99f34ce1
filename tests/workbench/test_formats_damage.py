"""Whatever bytes a file holds: rows, rejected rows, or one UserError. Never a traceback, never a row lost unsaid."""

from __future__ import annotations

import gzip
import json
import random
from pathlib import Path

import pytest

from workbench.errors import UserError
from workbench.formats.lines import Limits
from workbench.formats.reader import parse

ROWS = [
    {"prompt": f"question {n}", "chosen": f'good "{n}" \\ é', "rejected": f"bad {n}", "tags": ["a", "b"], "n": n}
    for n in range(20)
]
PIECES = [
    b'"',
    b"{",
    b"}",
    b"[",
    b"]",
    b",",
    b"\\",
    b"\n",
    b"\0",
    b"\xff",
    b"\xe2\x80",
    b"\\ud800",
    b"NaN",
    b"\xef\xbb\xbf",
]


def damaged(raw: bytes, dice: random.Random) -> bytes:
    content = bytearray(raw)
    for _ in range(dice.randint(1, 4)):
        at = dice.randrange(len(content))
        length = dice.choice([0, 1, 1, 5, 60])
        content[at : at + length] = dice.choice([b"", *PIECES, bytes([dice.randrange(256)])])
    return bytes(content)


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "indented.json", "a.csv", "a.txt", "a.jsonl.gz", "a"])
def test_a_damaged_file_never_ends_in_a_traceback(tmp_path: Path, name: str) -> None:
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS).encode()
    whole = {
        "a.json": json.dumps(ROWS).encode(),
        "indented.json": json.dumps(ROWS, indent=2).encode(),
        "a.csv": b"prompt,chosen,rejected\n" + b"".join(b'"a ""%d""\nb",c,d\n' % n for n in range(20)),
        "a.jsonl.gz": gzip.compress(lines),
    }.get(name, lines)
    dice = random.Random(name)
    path = tmp_path / name
    for _ in range(150):
        path.write_bytes(damaged(whole, dice))
        for what, format in (("auto", "auto"), ("preferences", "trl"), ("prompts", "auto")):
            try:
                parsed = parse(path, what=what, format=format, limits=Limits(row_bytes=2000, total_bytes=1 << 20))
            except UserError:
                continue
            numbers = [one.line for one in (*parsed.rows, *parsed.rejected)]
            assert len(numbers) == len(set(numbers))
            assert all(one.reason for one in parsed.rejected)


def test_one_damaged_line_costs_one_row(tmp_path: Path) -> None:
    lines = [json.dumps(row).encode() for row in ROWS]
    dice = random.Random(7)
    path = tmp_path / "a.jsonl"
    for _ in range(100):
        at = dice.randrange(len(lines))
        broken = damaged(lines[at], dice).replace(b"\n", b" ")
        path.write_bytes(b"\n".join([*lines[:at], broken, *lines[at + 1 :]]))
        parsed = parse(path, what="preferences", format="trl")
        good = {row.line for row in parsed.rows} | {one.line for one in parsed.rejected}
        assert good >= set(range(1, 21)) - {at + 1}
        assert all(one.line == at + 1 for one in parsed.rejected)
