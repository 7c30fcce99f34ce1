"""Written rules that score a response without a reward model: for trying PPO out, and for tests of learning."""

from __future__ import annotations

from collections.abc import Callable

from workbench.errors import UserError
from workbench.recipes import parse_rule

Rule = Callable[[str, int, bool], float]
"""(text, tokens with the EOS, ended by EOS) -> score."""


def rule_scorer(rule: str) -> Rule:
    """Make the scorer of a rule such as ``shorter-than:40``; every rule gives 1 when it is met and 0 when not.

    - ``shorter-than:N``: fewer than N tokens, its EOS counted, and ended by EOS.
    - ``longer-than:N``: more than N tokens, ended or not.
    - ``contains:TEXT``: the text occurs, in upper or lower case.

    Raises UserError when there is no such rule.
    """
    try:
        name, argument = parse_rule(rule)
    except ValueError as error:
        raise UserError(
            f"The rule {rule!r} cannot be used", str(error), "use shorter-than:N, longer-than:N or contains:TEXT"
        ) from error
    if name == "contains":
        wanted = argument.casefold()
        return lambda text, _tokens, _ended: float(wanted in text.casefold())
    limit = int(argument)
    if name == "longer-than":
        return lambda _text, tokens, _ended: float(tokens > limit)
    return lambda _text, tokens, ended: float(ended and tokens < limit)
