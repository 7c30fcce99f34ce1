"""``tastemaker judge``: what a reward model is worth, from its judgement of the held-out pairs."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict

from workbench.calibration import BINS
from workbench.cli_shared import open_to_read
from workbench.errors import UserError
from workbench.judged_model import JudgedModel, judged_model
from workbench.judgement import Report, Share
from workbench.model_choice import find_model
from workbench.preflight import many
from workbench.records import ModelRecord
from workbench.run_folder import RunFolder
from workbench.terminal import Terminal

SHOWN_WRONG = 10
_TEXT_WIDTH = 100


def judge(options: argparse.Namespace, terminal: Terminal) -> int:
    """Print the report of a reward model that was judged at its run's end."""
    with open_to_read(options.dir) as project:
        model = find_model(project.store.models(), options.model, ("reward",))
        run = RunFolder(project.run_dir(model.run_id)) if model.run_id else None
        found = judged_model(project.store, project.adapter_folder(model), run)
    if found is None or not found.report.accuracy.pairs:
        raise UserError(
            f"{model.name!r} was not judged",
            "no pairs were held out, or its run did not come to its end, or an older version trained it",
            "hold out some rankings and train a reward model to its end",
        )
    if terminal.json:
        terminal.result({"model": model.name, "step": found.step, **asdict(found.report)})
        return 0
    for line in lines(model, found):
        terminal.say(line)
    return 0


def lines(model: ModelRecord, found: JudgedModel) -> list[str]:
    """The report for people."""
    told = found.report
    of = f"{many(told.accuracy.pairs, 'held-out pair')} of {many(told.accuracy.rankings, 'ranking')}"
    of += f" to {many(told.accuracy.prompts, 'prompt')}"
    made = [f"{model.name!r} at step {found.step}, judged on {of}.", "", _share(told.accuracy, "accuracy")]
    if found.noise is not None:
        made.append(f"  Labels as consistent as these bound it at {found.noise.ceiling:.1%} (tastemaker agreement).")
    for title, part in (
        ("By tag", told.by_tag),
        ("By tier distance", told.by_tier_distance),
        ("By score gap", told.by_gap),
        ("By rater", told.by_rater),
    ):
        if part:
            made += ["", title, *(_share(one) for one in part)]
    return made + _calibration(told) + _length(told) + _uncertainty(told) + _wrong(found)


def _share(one: Share, name: str = "") -> str:
    name = name or one.name
    return f"  {name[:28]:<28} {one.accuracy:6.1%}  ({one.low:.1%} to {one.high:.1%})  {many(one.pairs, 'pair')}"


def _calibration(told: Report) -> list[str]:
    made = ["", f"Calibration error {told.calibration_error:.3f} over {BINS} bins: as sure as, right in"]
    return made + [
        f"  {one.confidence:6.1%}  {one.accuracy:6.1%}  {many(one.pairs, 'pair')}"
        for one in told.reliability
        if one.pairs
    ]


def _length(told: Report) -> list[str]:
    length = told.length
    return [
        "",
        f"Length: raters prefer the longer side in {length.raters_prefer_longer:.1%} of the pairs of different length, "
        f"the model in {length.model_prefers_longer:.1%}; correlation of score with length {length.correlation:+.2f}",
        *(_share(one) for one in (length.chosen_longer, length.chosen_shorter) if one.pairs),
    ]


def _uncertainty(told: Report) -> list[str]:
    one = told.uncertainty
    if one is None:
        return []
    return [
        "",
        f"Spread of the heads' gaps {one.mean_std:.3f}: {one.wrong_std:.3f} where it is wrong, "
        f"{one.right_std:.3f} where it is right; a wrong pair has the larger spread in "
        f"{one.larger_on_wrong:.1%} of the comparisons "
        "(50% says nothing)",
    ]


def _wrong(found: JudgedModel) -> list[str]:
    wrong = found.report.confident_and_wrong
    if not wrong:
        return ["", "No pair is judged confidently and wrongly."]
    made = ["", f"Confident and wrong: {many(len(wrong), 'pair')}"]
    for one in wrong[:SHOWN_WRONG]:
        made.append(f"  gap {one.gap:+.2f}, {one.confidence:.0%} sure  {one.id}")
        row = found.rows.get(one.id)
        if row is not None:
            said = (("prompt", row.prompt[-1].content), ("chosen", row.chosen), ("rejected", row.rejected))
            made += [f"    {what:<8}  {_short(text)}" for what, text in said]
    return made + _rest(wrong)


def _rest(wrong: Sequence[object]) -> list[str]:
    return [f"  and {len(wrong) - SHOWN_WRONG} more (--json has them all)"] if len(wrong) > SHOWN_WRONG else []


def _short(text: str) -> str:
    words = " ".join(text.split())
    return words if len(words) <= _TEXT_WIDTH else words[: _TEXT_WIDTH - 1] + "…"
