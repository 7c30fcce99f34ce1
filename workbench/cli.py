"""The command line: what the window does without a person's eyes, for scripts and for machines with no screen.

Writing, ranking, comparing, chat, editing prompts and plots are the window's alone.

Exit codes: 0 done, 1 failed, 2 misuse, 130 interrupted. Errors are one sentence, the cause, and what to do.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from workbench.cli_parser import make_parser
from workbench.cli_shared import Misuse
from workbench.errors import UserError
from workbench.terminal import Terminal

OpenWindow = Callable[[Path | None], int]
Command = Callable[[argparse.Namespace, Terminal], int]


def main(arguments: Sequence[str], open_window: OpenWindow) -> int:
    """Run one command. Returns its exit code; a user's error is printed as a sentence, a bug keeps its traceback."""
    options = make_parser().parse_args(list(arguments))
    terminal = Terminal(json=getattr(options, "json", False))
    aside = Terminal(stream=sys.stderr)
    try:
        if options.command in (None, "open"):
            return open_window(getattr(options, "dir", None))
        if options.command == "start":
            return _start(terminal, open_window)
        return _commands()[options.command](options, terminal)
    except UserError as error:
        terminal.done()
        if terminal.json:
            terminal.result({"error": error.what, "cause": error.cause, "remedy": error.remedy})
        aside.say(f"tastemaker: {error}")
        return 2 if isinstance(error, Misuse) else 1
    except KeyboardInterrupt:
        terminal.done()
        aside.say("tastemaker: interrupted")
        return 130
    except BrokenPipeError:
        return 1


def _commands() -> dict[str, Command]:
    from workbench import (
        cli_agreement,
        cli_data,
        cli_judge,
        cli_models,
        cli_project,
        cli_runs,
        cli_sample,
        demo,
        doctor,
    )

    return {
        "new": cli_project.new,
        "check": cli_project.check,
        "restore": cli_project.restore,
        "undo": cli_project.undo,
        "redo": cli_project.redo,
        "import": cli_data.import_,
        "export": cli_data.export,
        "model": cli_models.model,
        "train": cli_runs.train,
        "runs": cli_runs.runs,
        "watch": cli_runs.watch,
        "stop": cli_runs.stop,
        "pause": cli_runs.pause,
        "resume": cli_runs.resume,
        "save": cli_runs.save,
        "checkpoints": cli_runs.checkpoints,
        "sample-now": cli_runs.sample_now,
        "sample": cli_sample.sample,
        "score": cli_sample.score,
        "judge": cli_judge.judge,
        "agreement": cli_agreement.agreement,
        "demo": demo.demo,
        "doctor": doctor.doctor,
    }


def _start(terminal: Terminal, open_window: OpenWindow) -> int:
    from workbench import demo
    from workbench.__main__ import has_display

    if has_display():
        return open_window(demo.ensure_sample_project(terminal))
    terminal.say("There is no display, so here is the whole loop on the terminal (`tastemaker demo`).")
    return demo.demo(argparse.Namespace(dir=Path("tastemaker-demo"), quick=False, json=False), terminal)
