from __future__ import annotations

import stat
from pathlib import Path

import pytest

from workbench import comparisons
from workbench.comparisons import TIE, WITHDRAWN, Answered, Asked, ComparisonLog, Scored, Voted, new_header
from workbench.errors import UserError
from workbench.records import Message


def log(tmp_path: Path) -> ComparisonLog:
    return ComparisonLog(tmp_path, new_header([("a", "base"), ("b", "sft")], reward_id="r", blind=True))


def asked(key: str) -> Asked:
    return Asked(key=key, messages=(Message("user", "question"),), prompt_id=key)


def test_what_was_flushed_is_read_back(tmp_path: Path) -> None:
    one = log(tmp_path)
    one.add(asked("p"), asked("q"))
    one.add(Answered(key="p", column=1, text="hello", finish_reason="stop", token_count=2, seed=3))
    one.add(Scored(key="p", column=1, score=0.5, standardised=-1.0))
    one.add(Voted(key="p", winner=1, shown_order=(1, 0)), Voted(key="q", winner=TIE))
    one.flush()
    assert one.waiting == 0
    back = comparisons.read(one.path)
    assert back.header.model_names == ("base", "sft")
    assert back.header.reward_id == "r"
    assert [p.key for p in back.prompts] == ["p", "q"]
    assert back.answers["p", 1].text == "hello"
    assert back.scores["p", 1].standardised == -1.0
    assert back.votes["p"].shown_order == (1, 0)
    assert back.votes["q"].winner == TIE
    assert stat.S_IMODE(one.path.stat().st_mode) == 0o600


def test_a_later_vote_replaces_and_a_withdrawal_removes(tmp_path: Path) -> None:
    one = log(tmp_path)
    one.add(Voted(key="p", winner=0), Voted(key="p", winner=1), Voted(key="q", winner=0))
    one.flush()
    one.add(Voted(key="q", winner=WITHDRAWN))
    one.flush()
    votes = comparisons.read(one.path).votes
    assert {key: vote.winner for key, vote in votes.items()} == {"p": 1}


def test_a_line_torn_by_a_crash_costs_only_itself(tmp_path: Path) -> None:
    one = log(tmp_path)
    one.add(Voted(key="p", winner=0))
    one.flush()
    with one.path.open("ab") as file:
        file.write(b'{"type":"vote","key":"q","win')
    assert list(comparisons.read(one.path).votes) == ["p"]
    one.add(Voted(key="r", winner=1))
    one.flush()
    assert list(comparisons.read(one.path).votes) == ["p", "r"]


def test_a_comparison_is_gone_on_with_in_its_own_file(tmp_path: Path) -> None:
    one = log(tmp_path)
    one.flush()
    again = ComparisonLog.reopen(tmp_path, comparisons.read(one.path).header)
    again.add(Voted(key="p", winner=1))
    again.flush()
    assert one.path.read_bytes().count(b'"comparison"') == 1
    assert list(comparisons.read(one.path).votes) == ["p"]


def test_what_cannot_be_written_waits_and_says_why(tmp_path: Path) -> None:
    one = log(tmp_path)
    (tmp_path / "comparisons").write_text("in the way", encoding="utf-8")
    one.add(Voted(key="p", winner=0))
    with pytest.raises(UserError, match="not saved"):
        one.flush()
    assert one.waiting == 2
    (tmp_path / "comparisons").unlink()
    one.flush()
    assert list(comparisons.read(one.path).votes) == ["p"]
    one.flush()  # nothing waits: nothing is written


def test_all_comparisons_are_listed_newest_first_without_damaged_ones(tmp_path: Path) -> None:
    assert comparisons.listed(tmp_path) == []
    first, second = log(tmp_path), log(tmp_path)
    first.flush()
    second.flush()
    (tmp_path / "comparisons" / "zz.jsonl").write_text("nonsense\n", encoding="utf-8")
    assert [one.header.id for one in comparisons.listed(tmp_path)] == [second.path.stem, first.path.stem]


def test_a_file_that_is_none_says_so(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text('{"type":"vote","key":"p","winner":0}\n', encoding="utf-8")
    with pytest.raises(UserError, match="not a comparison"):
        comparisons.read(tmp_path / "x.jsonl")
    with pytest.raises(UserError, match="cannot be read"):
        comparisons.read(tmp_path / "absent.jsonl")
