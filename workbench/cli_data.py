"""Commands about a project's data: new, import, export, check."""

from __future__ import annotations

import argparse
from dataclasses import asdict

from workbench.formats.exporter import export_file
from workbench.formats.importer import import_file
from workbench.formats.parsed import Rejected
from workbench.formats.preview import preview
from workbench.formats.reader import parse
from workbench.project import Project
from workbench.sample_project import fill_with_sample
from workbench.terminal import Terminal

SHOWN_REJECTED = 20


def new(options: argparse.Namespace, terminal: Terminal) -> int:
    """Make a project, empty or with the sample in it."""
    project = Project.create(options.dir)
    try:
        count = fill_with_sample(project) if options.sample else 0
    finally:
        project.close()
    text = f"Made {options.dir}" + (f" with the sample project: {count} prompts" if count else "")
    terminal.result({"project": str(options.dir), "prompts": count}, text + ".")
    return 0


def import_(options: argparse.Namespace, terminal: Terminal) -> int:
    """Import a file as one undoable batch and report every rejected row."""
    if options.preview:
        return _preview(options, terminal)
    project = Project.open(options.dir)
    try:
        report = import_file(
            project,
            options.file,
            what=options.what,
            format=options.format,
            split_every=options.hold_out,
            rater_name=options.rater,
        )
    finally:
        project.close()
    _say_rejected(report.rejected, report.warnings, terminal)
    terminal.result(
        {"added": report.added, "duplicates": report.duplicates, "rejected": [asdict(one) for one in report.rejected]},
        f"Added {report.added}; {report.duplicates} were there already; {len(report.rejected)} rejected.",
    )
    return 0 if report.added or report.duplicates else 1


def _preview(options: argparse.Namespace, terminal: Terminal) -> int:
    parsed = parse(options.file, what=options.what, format=options.format, limit=options.preview)
    terminal.say(f"This is a file of {parsed.what}, format {parsed.format}.", what=parsed.what, format=parsed.format)
    for row in preview(parsed, limit=options.preview):
        data = asdict(row)
        text = "\n".join(f"  {name}: {value}" for name, value in data.items() if value)
        terminal.result(data, f"line {row.line}\n{text}")
    _say_rejected(parsed.rejected, parsed.warnings, terminal)
    return 0


def _say_rejected(rejected: list[Rejected], warnings: list[str], terminal: Terminal) -> None:
    if terminal.json:
        return
    for warning in warnings:
        terminal.say(f"Note: {warning}")
    for one in rejected[:SHOWN_REJECTED]:
        terminal.say(f"  line {one.line}: {one.reason}")
    if len(rejected) > SHOWN_REJECTED:
        terminal.say(f"  and {len(rejected) - SHOWN_REJECTED} more (all of them with --json)")


def export(options: argparse.Namespace, terminal: Terminal) -> int:
    """Export labels to a file."""
    project = Project.open(options.dir, read_only=True)
    try:
        report = export_file(project, options.out, what=options.what, format=options.format, split=options.split)
    finally:
        project.close()
    terminal.result({"rows": report.rows, "path": str(report.path)}, f"Wrote {report.rows} rows to {report.path}.")
    return 0


def check(options: argparse.Namespace, terminal: Terminal) -> int:
    """Check the database and the checksum of every label."""
    project = Project.open(options.dir, read_only=True)
    try:
        faults = project.check()
    finally:
        project.close()
    text = "\n".join(faults) if faults else "The project is sound: the database and every label in it."
    terminal.result({"sound": not faults, "faults": faults}, text)
    return 1 if faults else 0
