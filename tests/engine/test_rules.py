"""Rules give 1 or 0, and say what is wrong with a rule that is none."""

from __future__ import annotations

import pytest

from engine.rules import rule_scorer
from workbench.errors import UserError


def test_shorter_than_counts_the_eos_and_wants_an_ending() -> None:
    rule = rule_scorer("shorter-than:40")
    assert rule("x", 39, True) == 1.0
    assert rule("x", 40, True) == 0.0
    assert rule("x", 39, False) == 0.0


def test_longer_than_needs_no_ending() -> None:
    rule = rule_scorer("longer-than:10")
    assert (rule("x", 11, False), rule("x", 10, True)) == (1.0, 0.0)


def test_contains_ignores_case() -> None:
    rule = rule_scorer("contains:Straße")
    assert (rule("Die STRASSE", 3, True), rule("der Weg", 3, True)) == (1.0, 0.0)


@pytest.mark.parametrize("rule", ["", "shorter-than", "shorter-than:x", "shorter-than:0", "rhymes-with:rain"])
def test_a_rule_that_is_none_is_refused_with_a_remedy(rule: str) -> None:
    with pytest.raises(UserError, match="cannot be used") as caught:
        rule_scorer(rule)
    assert "contains:TEXT" in caught.value.remedy
