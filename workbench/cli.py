"""The command line: the window's every deed without a window, for scripts and for machines with no screen.

Exit codes: 0 done, 1 failed, 2 misuse, 130 interrupted. Errors are one sentence, the cause, and what to do.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from workbench.errors import UserError
from workbench.recipes import PRESETS, RECIPES
from workbench.records import METHODS
from workbench.settings_fields import settings_of
from workbench.terminal import Terminal

OpenWindow = Callable[[Path | None], int]
Command = Callable[[argparse.Namespace, Terminal], int]


def main(arguments: Sequence[str], open_window: OpenWindow) -> int:
    """Run one command. Returns its exit code; a user's error is printed as a sentence, a bug keeps its traceback."""
    options = make_parser().parse_args(list(arguments))
    terminal = Terminal(json=getattr(options, "json", False))
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
        print(f"tastemaker: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        terminal.done()
        print("tastemaker: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        return 1


def make_parser() -> argparse.ArgumentParser:
    """Build the parser of every command."""
    parser = argparse.ArgumentParser(
        prog="tastemaker",
        description="Teach a language model your own taste, on your own machine. Without a command: open the window.",
    )
    parser.add_argument("--version", action="version", version=f"tastemaker {_version()}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")

    one = commands.add_parser("open", help="open the window on a project")
    one.add_argument("dir", type=Path, nargs="?")
    commands.add_parser("start", help="open the window on the sample project; without a display, run the demo")

    one = commands.add_parser("new", help="make a project")
    one.add_argument("dir", type=Path)
    one.add_argument("--sample", action="store_true", help="fill it with the sample project")
    _json(one)

    one = commands.add_parser("import", help="import prompts, demonstrations, preferences or rankings")
    one.add_argument("dir", type=Path)
    one.add_argument("file", type=Path)
    one.add_argument(
        "--as", dest="what", default="auto", choices=("auto", "prompts", "demonstrations", "preferences", "rankings")
    )
    one.add_argument("--format", default="auto")
    one.add_argument("--hold-out", type=int, default=0, metavar="N", help="hold out one prompt in N for evaluation")
    one.add_argument("--rater", default="import", help="whose judgement the labels are")
    one.add_argument("--preview", type=int, default=0, metavar="N", help="show N parsed rows and import nothing")
    _json(one)

    one = commands.add_parser("export", help="export labels")
    one.add_argument("dir", type=Path)
    one.add_argument("out", type=Path)
    one.add_argument("--what", required=True, choices=("prompts", "demonstrations", "preferences", "rankings"))
    one.add_argument("--format", default="auto")
    one.add_argument("--split", choices=("train", "held-out"))
    _json(one)

    _model_parsers(commands)

    one = commands.add_parser(
        "train",
        help="train a model and follow the run",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=_settings_help(),
    )
    one.add_argument("dir", type=Path)
    one.add_argument("method", choices=METHODS)
    one.add_argument("--from", dest="start", default="", metavar="MODEL", help="start from this model")
    one.add_argument("--reward", default="", metavar="MODEL", help="PPO's reward model")
    one.add_argument("--preset", default="Balanced", type=_preset_name, metavar="P", help=", ".join(PRESETS))
    one.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change a setting (below)")
    one.add_argument("--name", default="")
    one.add_argument("--plan", action="store_true", help="say what it would do and stop")
    one.add_argument("--detach", action="store_true", help="start it and return at once")
    _json(one)

    one = commands.add_parser("sample", help="sample responses to the project's prompts, for ranking")
    one.add_argument("dir", type=Path)
    one.add_argument("--model", required=True)
    one.add_argument("--n", type=int, default=4, metavar="K", help="responses a prompt")
    one.add_argument("--split", choices=("train", "held-out"))
    one.add_argument("--limit", type=int, default=0, help="at most so many prompts; prompts without responses first")
    one.add_argument("--temperature", type=float, default=0.8)
    one.add_argument("--max-new-tokens", type=int, default=256)
    one.add_argument("--seed", type=int, default=0)
    _json(one)

    one = commands.add_parser("score", help="score a preferences or responses file with a reward model")
    one.add_argument("dir", type=Path)
    one.add_argument("file", type=Path)
    one.add_argument("--reward", required=True, metavar="MODEL")
    _json(one)

    one = commands.add_parser("runs", help="list the runs of a project")
    one.add_argument("dir", type=Path)
    _json(one)
    for name, help_text in (("watch", "follow a run"), ("stop", "stop a run"), ("resume", "resume a run")):
        one = commands.add_parser(name, help=help_text)
        one.add_argument("dir", type=Path)
        one.add_argument("run", help="the run's name, id, or the beginning of either")
        if name == "stop":
            one.add_argument("--no-save", action="store_true", help="end it at once, without a checkpoint")
        if name == "resume":
            one.add_argument("--detach", action="store_true", help="return at once")
        _json(one)

    one = commands.add_parser("demo", help="the whole loop on the sample project and the demo model")
    one.add_argument("dir", type=Path, nargs="?", default=Path("tastemaker-demo"))
    one.add_argument("--quick", action="store_true", help="a few steps of everything, to see that it works")
    _json(one)

    one = commands.add_parser("check", help="check a project's database and every label in it")
    one.add_argument("dir", type=Path)
    _json(one)

    one = commands.add_parser("doctor", help="what this machine can do, with remedies")
    _json(one)
    return parser


def _model_parsers(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    model = commands.add_parser("model", help="list, add, remove or export models")
    deeds = model.add_subparsers(dest="deed", required=True, metavar="DEED")
    one = deeds.add_parser("list", help="models with their lineage")
    one.add_argument("dir", type=Path)
    _json(one)
    one = deeds.add_parser("add", help="add a base model or an adapter")
    one.add_argument("dir", type=Path)
    one.add_argument("source", help="a folder, a .gguf file, a hub id (hub:owner/name), or `demo`")
    one.add_argument("--base", default="", metavar="MODEL", help="the source is a peft adapter on this base")
    _json(one)
    one = deeds.add_parser("remove", help="remove a model that nothing descends from")
    one.add_argument("dir", type=Path)
    one.add_argument("model")
    _json(one)
    one = deeds.add_parser("export", help="write a model as a folder for other programs")
    one.add_argument("dir", type=Path)
    one.add_argument("model")
    one.add_argument("out", type=Path)
    one.add_argument("--merged", action="store_true", help="one folder of merged safetensors instead of the adapter")
    _json(one)


def _commands() -> dict[str, Command]:
    from workbench import cli_data, cli_models, cli_runs, cli_sample, demo, doctor

    return {
        "new": cli_data.new,
        "import": cli_data.import_,
        "export": cli_data.export,
        "check": cli_data.check,
        "model": cli_models.model,
        "train": cli_runs.train,
        "runs": cli_runs.runs,
        "watch": cli_runs.watch,
        "stop": cli_runs.stop,
        "resume": cli_runs.resume,
        "sample": cli_sample.sample,
        "score": cli_sample.score,
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


def _json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON lines")


def _preset_name(text: str) -> str:
    for name in PRESETS:
        if text.lower().replace("-", " ") in (name.lower(), name.split()[0].lower()):
            return name
    raise argparse.ArgumentTypeError(f"no preset {text!r}; choose one of {', '.join(PRESETS)}")


def _settings_help() -> str:
    lines = ["settings for --set:"]
    shared: set[str] = set()
    for method in METHODS:
        lines.append(f"  {method}:")
        for one in settings_of(RECIPES[method]):
            about = (one.default, one.help)
            if f"{one.name}{about}" in shared:
                continue
            shared.add(f"{one.name}{about}")
            lines.append(f"    {one.name} = {one.default}  {one.help}".replace("%", "%%"))
    return "\n".join(lines)


def _version() -> str:
    try:
        return version("tastemaker")
    except PackageNotFoundError:
        return "0 (not installed)"
