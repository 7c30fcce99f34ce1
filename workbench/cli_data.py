"""Commands about a project's labels: import, with its preview, and export."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from workbench.cli_shared import Misuse, open_to_read
from workbench.errors import NothingToDo, UserError
from workbench.formats.exporter import export_file
from workbench.formats.importer import ImportReport, import_file
from workbench.formats.parsed import FORMATS, Parsed
from workbench.formats.preview import PreviewRow, RenderedAnswer, preview, render_request, rendered_rows
from workbench.formats.reader import parse
from workbench.ids import new_id
from workbench.model_choice import find_model
from workbench.project import Project
from workbench.protocol import Failed, Rendered
from workbench.serve_client import ServeClient
from workbench.terminal import Terminal

SHOWN_REJECTED = 20
RENDER_TIMEOUT_S = 120.0
_MAKE = {
    "prompts": "write some in the window, or import them",
    "demonstrations": "write some and mark them final, or import them",
    "preferences": "rank the responses to some prompts, or import preferences",
    "thumbs": "give responses thumbs up or down in Rank, or import thumbs",
    "rankings": "rank the responses to some prompts, or import rankings",
}


def import_(options: argparse.Namespace, terminal: Terminal) -> int:
    """Import a file as one undoable batch and report every rejected row."""
    _check_format(options.what, options.format, "can_import")
    if options.preview:
        return _preview(options, terminal)
    if options.model:
        raise Misuse("--model only says how a preview is shown", "there is no --preview", "add --preview N")
    with Project.open(options.dir) as project:
        report = import_file(
            project,
            options.file,
            what=options.what,
            format=options.format,
            split_every=options.hold_out,
            rater_name=options.rater,
        )
    _say_rejected(report, terminal)
    held_out = f"; {report.held_out} of its prompts are held out" if report.held_out else ""
    terminal.result(
        asdict(report),
        f"Read as {report.what}, format {report.format}. Added {report.added}; {report.duplicates} were there already; "
        f"{report.rejected_count} rejected{held_out}.",
    )
    return 0 if report.added or report.duplicates else 1


def _check_format(what: str, name: str, can: str) -> None:
    whats = [one for one in FORMATS if what in ("auto", one)]
    names = dict.fromkeys(info.name for one in whats for info in FORMATS[one] if getattr(info, can))
    if name not in ("auto", *names):
        of = "" if what == "auto" else f" of {what}"
        raise Misuse(f"There is no format {name!r}{of}", f"there are {', '.join(names)}", "choose one of them, or auto")


# ---- the preview -----------------------------------------------------------------------------------------------


def _preview(options: argparse.Namespace, terminal: Terminal) -> int:
    parsed = parse(options.file, what=options.what, format=options.format, limit=options.preview)
    terminal.say(f"This is a file of {parsed.what}, format {parsed.format}.", what=parsed.what, format=parsed.format)
    rows = preview(parsed, limit=options.preview)
    if options.model and rows:
        _show_rendered(options.dir, options.model, parsed, rows, terminal)
    else:
        for row in rows:
            said = [f"  {one.role}: {one.content}" for one in row.prompt]
            said += [f"  {name}: {text}" for name, text in row.answers if name != "prompt"]
            terminal.result(asdict(row), "\n".join([_head(parsed, row), *said]))
    _say_rejected(parsed, terminal)
    if not rows and not terminal.json:
        terminal.say("No row of it can be imported.")
    return 0 if rows else 1


def _show_rendered(path: Path, model: str, parsed: Parsed, rows: Sequence[PreviewRow], terminal: Terminal) -> None:
    """Show what the model's tokenizer makes of the rows, and which of it the loss is on."""
    with open_to_read(path) as project:
        found = find_model(project.store.models(), model)
        request = render_request(rows, project.resolve(found), new_id())
    client = ServeClient()
    try:
        reply = client.call(request, timeout=RENDER_TIMEOUT_S)
    finally:
        client.leave()
    if isinstance(reply, Failed):
        raise UserError(reply.message, reply.cause, reply.remedy)
    assert isinstance(reply, Rendered)
    terminal.say(
        f"Through the template of {found.name!r}; lines with > are what is trained, lines with | are what leads to it.",
        model=found.name,
        template_note=reply.template_note,
    )
    if reply.template_note and not terminal.json:
        terminal.say(f"Note: {reply.template_note}")
    for row, answers in zip(rows, rendered_rows(rows, reply), strict=True):
        data = {"line": row.line, "note": row.note, "rendered": [asdict(one) for one in answers]}
        terminal.result(data, "\n".join([_head(parsed, row), *(_marked(one) for one in answers)]))


def _head(parsed: Parsed, row: PreviewRow) -> str:
    return f"{parsed.numbered_by} {row.line}" + (f"  ({row.note})" if row.note else "")


def _marked(answer: RenderedAnswer) -> str:
    lines = [f"  {answer.name}, {answer.tokens:,} tokens"]
    for text, trained in answer.spans:
        mark = ">" if trained else "|"
        lines += [f"    {mark} {line}" for line in text.removesuffix("\n").split("\n")]
    return "\n".join(lines)


def _say_rejected(read: Parsed | ImportReport, terminal: Terminal) -> None:
    if terminal.json:
        return
    for warning in read.warnings:
        terminal.say(f"Note: {warning}")
    for one in read.rejected[:SHOWN_REJECTED]:
        terminal.say(f"  line {one.line}: {one.reason}")
    if read.rejected_count > SHOWN_REJECTED:
        listed = "all of them" if not read.rejected_more else f"{len(read.rejected):,} of them"
        terminal.say(f"  and {read.rejected_count - SHOWN_REJECTED:,} more ({listed} with --json)")


# ---- export ----------------------------------------------------------------------------------------------------


def export(options: argparse.Namespace, terminal: Terminal) -> int:
    """Export labels to a file, and say what of them the format could not hold."""
    _check_format(options.what, options.format, "can_export")
    if options.pairs and options.what != "preferences":
        raise Misuse("--pairs says which preferences are written", f"these are {options.what}", "leave it out")
    if not options.force and options.out.is_file():
        raise UserError(
            f"Nothing was exported to {options.out}", "that file is there already", "name another one, or add --force"
        )
    with Project.open(options.dir, read_only=True) as project:
        try:
            report = export_file(
                project,
                options.out,
                what=options.what,
                format=options.format,
                split=options.split,
                which=options.pairs or "all",
                overwrite=options.force,
            )
        except NothingToDo as error:
            none = f"the project has none{f' that are {options.split}' if options.split else ''}"
            raise NothingToDo(error.what, error.cause or none, error.remedy or _MAKE[options.what]) from error
    left_out = [f"  {count} left out: {reason}" for reason, count in report.skipped.items()]
    caution = [f"  {report.caution}"] if report.caution else []
    terminal.result(
        {"rows": report.rows, "path": str(report.path), "skipped": report.skipped, "cut_off": report.cut_off},
        "\n".join([f"Wrote {report.rows} rows to {report.path}.", *left_out, *caution]),
    )
    return 0
