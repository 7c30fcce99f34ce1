"""Commands about models: list, add, locate, remove, export, card."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path

from workbench.cli_shared import open_to_read
from workbench.model_card import card, read_origins
from workbench.model_choice import SHOWN_OF_ID, find_model
from workbench.models import add_model, export_model, import_adapter, remove_model
from workbench.moved_bases import locate_base
from workbench.project import Project
from workbench.records import ModelRecord
from workbench.run_registry import refresh_runs
from workbench.serve_client import ServeClient
from workbench.terminal import Terminal


def model(options: argparse.Namespace, terminal: Terminal) -> int:
    """Dispatch ``tastemaker model DEED``."""
    writes = options.deed in ("add", "locate", "remove")
    with Project.open(options.dir) if writes else open_to_read(options.dir) as project:
        refresh_runs(project)
        return _DEEDS[options.deed](project, options, terminal)


def _list(project: Project, _options: argparse.Namespace, terminal: Terminal) -> int:
    models = project.store.models()
    if terminal.json:
        for one in models:
            terminal.result(asdict(one))
        return 0
    if not models:
        terminal.say("No models yet. `tastemaker model add DIR demo` adds the demo model.")
    for one, depth in _as_tree(models):
        origin = one.source or one.run_id[-SHOWN_OF_ID:]
        terminal.say(f"{'  ' * depth}{one.name}  [{one.role}]  {one.id[-SHOWN_OF_ID:]}  {origin}")
    return 0


def _as_tree(models: list[ModelRecord]) -> list[tuple[ModelRecord, int]]:
    known = {one.id for one in models}
    rows: list[tuple[ModelRecord, int]] = []

    def walk(parent: str, depth: int) -> None:
        for one in models:
            origin = one.parent_id or one.base_id
            if (origin if origin in known else "") == parent:
                rows.append((one, depth))
                walk(one.id, depth + 1)

    walk("", 0)
    return rows


def _add(project: Project, options: argparse.Namespace, terminal: Terminal) -> int:
    if options.base:
        base = find_model(project.store.models(), options.base, ("base",))
        added = import_adapter(project, Path(options.source), base.id)
    else:
        client = ServeClient()
        try:
            added = add_model(project, options.source, client, lambda what, fraction: terminal.progress(what, fraction))
        finally:
            terminal.done()
            client.leave()
    terminal.result(asdict(added), f"Added {added.name!r} ({added.role}). {added.note}".rstrip())
    return 0


def _locate(project: Project, options: argparse.Namespace, terminal: Terminal) -> int:
    base = find_model(project.store.models(), options.model, ("base",))
    try:
        moved = locate_base(project, base.id, options.folder, lambda what, share: terminal.progress(what, share))
    finally:
        terminal.done()
    terminal.result(asdict(moved), f"{moved.name!r} is at {moved.path} now; what was trained on it works again.")
    return 0


def _remove(project: Project, options: argparse.Namespace, terminal: Terminal) -> int:
    gone = find_model(project.store.models(), options.model, whole=True)
    remove_model(project, gone.id)
    terminal.result({"removed": gone.id}, f"Removed {gone.name!r} from the project.")
    return 0


def _export(project: Project, options: argparse.Namespace, terminal: Terminal) -> int:
    wanted = find_model(project.store.models(), options.model)
    client = ServeClient()
    try:
        export_model(
            project,
            wanted,
            options.out,
            client,
            what="gguf" if options.gguf else "merged" if options.merged else "adapter",
            numbers=options.gguf or "f16",
            on_progress=lambda what, fraction: terminal.progress(what, fraction),
        )
    finally:
        terminal.done()
        client.leave()
    terminal.result({"path": str(options.out)}, f"Wrote {wanted.name!r} to {options.out}.")
    return 0


def _card(project: Project, options: argparse.Namespace, terminal: Terminal) -> int:
    text = card(read_origins(project, find_model(project.store.models(), options.model)))
    terminal.result({"card": text}, text)
    return 0


_DEEDS = {"list": _list, "add": _add, "locate": _locate, "remove": _remove, "export": _export, "card": _card}
