"""Commands about a project as a whole: new, check, restore, undo, redo."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path

from workbench.backups import Backup, backups
from workbench.errors import UserError
from workbench.project import DATABASE, Project, restore_backup
from workbench.records import Change
from workbench.sample_project import fill_with_sample
from workbench.store_check import faults_of_file
from workbench.terminal import Terminal, in_bytes


def new(options: argparse.Namespace, terminal: Terminal) -> int:
    """Make a project, empty or with the sample in it."""
    with Project.create(options.dir) as project:
        count = fill_with_sample(project) if options.sample else 0
    text = f"Made {options.dir}" + (f" with the sample project: {count} prompts" if count else "")
    terminal.result({"project": str(options.dir), "prompts": count}, text + ".")
    return 0


def check(options: argparse.Namespace, terminal: Terminal) -> int:
    """Check the database and the checksum of every label."""
    with Project.open(options.dir, read_only=True) as project:
        faults = project.check()
    text = "\n".join(faults) if faults else "The project is sound: the database and every label in it."
    terminal.result({"sound": not faults, "faults": faults}, text)
    return 1 if faults else 0


def restore(options: argparse.Namespace, terminal: Terminal) -> int:
    """List the backups, or put one in the place of the database, which is set aside."""
    known = backups(options.dir / "backups")
    if not options.backup:
        return _list_backups(options.dir, known, terminal)
    chosen = _backup(options.dir, known, options.backup)
    aside = restore_backup(options.dir, chosen)
    kept = f" What was there before is in {aside}." if aside else ""
    data = {"restored": str(chosen), "set_aside": str(aside) if aside else ""}
    terminal.result(data, f"Restored {chosen.name}.{kept}")
    return 0


def _list_backups(folder: Path, known: list[Backup], terminal: Terminal) -> int:
    if not known and not (folder / DATABASE).exists():
        raise UserError(
            f"There is no project at {folder}", f"it has neither {DATABASE} nor backups", "name a project's folder"
        )
    for one in known:
        faults = faults_of_file(one.path)
        size = one.path.stat().st_size
        data = {"number": one.number, "name": one.path.name, "at": one.at.isoformat(), "bytes": size, "faults": faults}
        state = f"damaged: {faults[0]}" if faults else "sound"
        terminal.result(data, f"{one.number:>6}  {one.when}  {in_bytes(size):>10}  {state}  {one.path.name}")
    if not known and not terminal.json:
        terminal.say("No backups yet: one is made when labels have changed.")
    return 0


def _backup(folder: Path, known: list[Backup], text: str) -> Path:
    """Find a backup by its number or name; any other file by its path. Raises UserError."""
    number = int(text) if text.isdecimal() and len(text) < 12 else 0
    named = [one.path for one in known if text == one.path.name or number == one.number]
    if named:
        return named[0]
    if Path(text).is_file():
        return Path(text)
    there = ", ".join(str(one.number) for one in known[:5])
    raise UserError(
        f"There is no backup {text!r}",
        f"the newest ones are {there}" if known else f"there are none in {folder}",
        f"`tastemaker restore {folder}` lists them" if known else "give the path of a copy of your own",
    )


def undo(options: argparse.Namespace, terminal: Terminal) -> int:
    """Take back the newest act."""
    with Project.open(options.dir) as project:
        return _step("undone", project.store.undo_label(), project.store.undo, terminal)


def redo(options: argparse.Namespace, terminal: Terminal) -> int:
    """Do the act again that was undone last."""
    with Project.open(options.dir) as project:
        return _step("redone", project.store.redo_label(), project.store.redo, terminal)


def _step(done: str, label: str, act: Callable[[], Future[Change]], terminal: Terminal) -> int:
    change = act().result()
    terminal.result({done: label, "ids": list(change.ids)}, f"{done.capitalize()}: {label}.")
    return 0
