"""``tastemaker agreement``: how consistent the labels are, and what sways them."""

from __future__ import annotations

import argparse
import textwrap
from dataclasses import asdict

from workbench.agreement import Agreement, measure
from workbench.agreement_words import beyond_chance, findings, of_pairs
from workbench.cli_shared import open_to_read
from workbench.preflight import many
from workbench.terminal import Terminal

_WIDTH = 100


def agreement(options: argparse.Namespace, terminal: Terminal) -> int:
    """Print what the labels say of themselves."""
    with open_to_read(options.dir) as project:
        told = measure(project.store)
    if terminal.json:
        terminal.result(as_json(told))
        return 0
    for line in lines(told):
        terminal.say(line)
    return 0


def as_json(told: Agreement) -> dict[str, object]:
    """Everything as plain values, with what follows from the noise."""
    made = asdict(told)
    if told.noise is not None:
        made["noise"]["ceiling"] = told.noise.ceiling
    return made


def lines(told: Agreement) -> list[str]:
    """The same for people."""
    made = [f"{many(told.rankings, 'ranking')} by {many(told.raters, 'rater')}, {many(told.pairs, 'judged pair')}."]
    for one in findings(told):
        made += ["", f"{one.title}: {one.number}" if one.number else one.title]
        made += textwrap.wrap(one.evidence, _WIDTH, initial_indent="  ", subsequent_indent="  ")
        made += textwrap.wrap(one.advice, _WIDTH, initial_indent="  > ", subsequent_indent="    ")
        if one.key == "raters" and len(told.by_raters) > 1:
            for two in told.by_raters:
                same = two.told.exact
                made.append(f"  {two.first} and {two.second}: {same.share:.0%} ({same.low:.0%} to {same.high:.0%})")
                made.append(f"    {of_pairs(same)}; {beyond_chance(two.told, 'Cohen’s kappa')}")
    return made
