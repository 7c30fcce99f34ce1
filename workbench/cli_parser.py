"""The parser of every command and option."""

from __future__ import annotations

import argparse
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from workbench.cli_shared import at_least, key_value, one_in, seed, temperature
from workbench.formats.parsed import WHATS
from workbench.protocol import GGUF_NUMBERS
from workbench.recipes import PRESETS, RECIPES, CommonRecipe
from workbench.records import METHODS
from workbench.settings_fields import Setting, settings_of

_Commands = argparse._SubParsersAction  # argparse has no public name for it
_RUN = "the run's name, id, or the beginning of either"


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
    _project_parsers(commands)
    _data_parsers(commands)
    _model_parsers(commands)
    _train_parser(commands)
    _serve_parsers(commands)
    _run_parsers(commands)

    one = commands.add_parser("demo", help="the whole loop on the sample project and the demo model")
    one.add_argument("dir", type=Path, nargs="?", default=Path("tastemaker-demo"))
    one.add_argument("--quick", action="store_true", help="a few steps of everything, to see that it works")
    _json(one)
    one = commands.add_parser("doctor", help="what this machine can do, with remedies")
    one.add_argument("--plan", action="store_true", help="what memory training needs, by model, method and phase")
    one.add_argument("--model", default="", metavar="M", help="with --plan: this model only, by name or folder")
    one.add_argument("--method", action="append", choices=METHODS, help="with --plan: this method, or several")
    one.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"), help="with --plan: train on this")
    one.add_argument(
        "--length", type=at_least(16), default=1024, metavar="N", help="with --plan: tokens of every sequence"
    )
    _json(one)
    return parser


def _project_parsers(commands: _Commands[argparse.ArgumentParser]) -> None:
    one = _command(commands, "new", "make a project")
    one.add_argument("--sample", action="store_true", help="fill it with the sample project")
    _command(commands, "check", "check a project's database and every label in it")
    one = _command(commands, "restore", "list a project's backups, or put one in the place of its database")
    one.add_argument(
        "backup",
        nargs="?",
        default="",
        metavar="BACKUP",
        help="the backup's number or file name; what it replaces is set aside, never overwritten",
    )
    _command(commands, "undo", "take back the newest act on the labels")
    _command(commands, "redo", "do again what was undone last")


def _data_parsers(commands: _Commands[argparse.ArgumentParser]) -> None:
    one = _command(commands, "import", "import prompts, demonstrations, preferences, thumbs or rankings")
    one.add_argument("file", type=Path)
    one.add_argument("--as", dest="what", default="auto", choices=("auto", *WHATS))
    one.add_argument("--format", default="auto")
    one.add_argument("--hold-out", type=one_in, default=0, metavar="N", help="hold out one prompt in N for evaluation")
    one.add_argument("--rater", default="import", help="whose judgement the labels are")
    one.add_argument("--preview", type=at_least(1), metavar="N", help="show N parsed rows and import nothing")
    one.add_argument(
        "--model",
        default="",
        metavar="M",
        help="with --preview: through this model's chat template, with the loss mask",
    )

    one = _command(commands, "export", "export labels")
    one.add_argument("out", type=Path)
    one.add_argument("--what", required=True, choices=WHATS)
    one.add_argument("--format", default="auto")
    one.add_argument("--split", choices=("train", "held-out"))
    one.add_argument(
        "--pairs",
        choices=("all", "best-vs-rest"),
        help="of preferences: every ordered pair across tiers (the default), or the best tier against the rest",
    )
    one.add_argument("--force", action="store_true", help="overwrite the file if it is there")


def _model_parsers(commands: _Commands[argparse.ArgumentParser]) -> None:
    model = commands.add_parser("model", help="list, add, locate, remove or export models")
    deeds = model.add_subparsers(dest="deed", required=True, metavar="DEED")
    _command(deeds, "list", "models with their lineage")
    one = _command(deeds, "add", "add a base model or an adapter")
    one.add_argument("source", help="a folder, a .gguf file, a hub id (hub:owner/name), or `demo`")
    one.add_argument("--base", default="", metavar="MODEL", help="the source is a peft adapter on this base")
    one = _command(deeds, "locate", "say where a base's folder is now, after it was moved")
    one.add_argument("model", help="the base, by its name or id, or the beginning of either")
    one.add_argument("folder", type=Path, help="a folder with the same weights, configuration and tokenizer")
    one = _command(deeds, "remove", "remove a model that nothing descends from")
    one.add_argument("model", help="its whole name or id, or the end of its id as `model list` shows it")
    one = _command(deeds, "export", "write a model as a folder for other programs")
    one.add_argument("model")
    one.add_argument("out", type=Path)
    how = one.add_mutually_exclusive_group()
    how.add_argument("--merged", action="store_true", help="one folder of merged safetensors instead of the adapter")
    how.add_argument("--gguf", choices=GGUF_NUMBERS, help="merged as one GGUF file for llama.cpp, in these numbers")
    one = _command(deeds, "card", "what a model is, where it comes from and what to mind, as Markdown")
    one.add_argument("model")


def _train_parser(commands: _Commands[argparse.ArgumentParser]) -> None:
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
    one.add_argument(
        "--set", action="append", default=[], type=key_value, metavar="KEY=VALUE", help="change a setting (below)"
    )
    one.add_argument(
        "--tag", action="append", default=[], help="train only on prompts with this tag, or with one of several"
    )
    one.add_argument("--name", default="")
    one.add_argument("--plan", action="store_true", help="say what it would do and stop")
    one.add_argument("--detach", action="store_true", help="start it and return at once")
    _json(one)


def _serve_parsers(commands: _Commands[argparse.ArgumentParser]) -> None:
    one = _command(commands, "sample", "sample responses to the project's prompts, for ranking")
    one.add_argument("--model", required=True)
    one.add_argument("--n", type=at_least(1), default=4, metavar="K", help="responses a prompt")
    one.add_argument("--split", choices=("train", "held-out"))
    one.add_argument(
        "--limit",
        type=at_least(0),
        default=0,
        metavar="N",
        help="at most so many prompts, 0 for all; while any has fewer than two responses, only such prompts",
    )
    one.add_argument("--temperature", type=temperature, default=0.8)
    one.add_argument("--max-new-tokens", type=at_least(1), default=256, metavar="N")
    one.add_argument("--seed", type=seed, metavar="N", help="draw the same again; by default another one each time")

    one = _command(commands, "score", "score a preferences or responses file with a reward model")
    one.description = (
        "Score a preferences or responses file with a reward model. Each row becomes a JSON line: its line in the "
        "file and the raw score of each side (chosen, rejected; completion; or the ids of ranked responses). A model "
        "with several heads adds std: for each side the standard deviation over the heads, in the unit of the score, "
        "once each head's own level is taken off. Where it is large the heads disagree. A side is null where its "
        "response does not fit into the model's context with its ending, where a score is read; a response that a "
        "file of rankings says was cut off is scored without an end, as in training."
    )
    one.add_argument("file", type=Path)
    one.add_argument("--reward", required=True, metavar="MODEL")
    one = _command(commands, "judge", "how good a reward model is on the held-out pairs, and where it is wrong")
    one.add_argument("model", help="a reward model that a run made: its name, id, or the beginning of either")
    _command(
        commands, "agreement", "how consistent the labels are: between raters, of one asked twice, and what sways them"
    )


def _run_parsers(commands: _Commands[argparse.ArgumentParser]) -> None:
    one = _command(commands, "runs", "list the runs of a project")
    one.add_argument(
        "--delete", default="", metavar="RUN", help="remove a run that ended, by its whole name or id, with its folder"
    )
    one = _command(commands, "watch", "follow a run")
    one.add_argument("run", help=_RUN)
    one = _command(commands, "stop", "save a run and end it at the end of its step")
    one.add_argument("run", help=_RUN)
    one.add_argument(
        "--cancel", "--no-save", action="store_true", help="end it at once, in mid-step, without a checkpoint"
    )
    one = _command(commands, "pause", "let a run wait at the end of its step, in memory, until `resume`")
    one.add_argument("run", help=_RUN)
    one = _command(commands, "resume", "resume a run that was paused or has ended early")
    one.add_argument("run", help=_RUN)
    one.add_argument("--detach", action="store_true", help="return at once")
    one = _command(commands, "save", "let a run write a checkpoint at the end of its step and go on")
    one.add_argument("run", help=_RUN)
    one = _command(commands, "checkpoints", "list a run's checkpoints with what was measured, or keep one as a model")
    one.add_argument("run", help=_RUN)
    one.add_argument(
        "--keep", type=at_least(0), metavar="STEP", help="make the checkpoint of this step a model of the project"
    )
    one = _command(commands, "sample-now", "let a run draw samples at the end of its step and go on")
    one.add_argument("run", help=_RUN)


def _command(commands: _Commands[argparse.ArgumentParser], name: str, help: str) -> argparse.ArgumentParser:
    """Add a command on a project."""
    parser = commands.add_parser(name, help=help)
    parser.add_argument("dir", type=Path)
    _json(parser)
    return parser


def _json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON lines")


def _preset_name(text: str) -> str:
    for name in PRESETS:
        if text.lower().replace("-", " ") in (name.lower(), name.split()[0].lower()):
            return name
    raise argparse.ArgumentTypeError(f"no preset {text!r}; choose one of {', '.join(PRESETS)}")


SANITY = 1e6
"""A bound from here on keeps numbers sane and is no advice."""


def _settings_help() -> str:
    """List the settings: those of every method once, and for each method what is its own or has another default."""
    of = {method: settings_of(RECIPES[method]) for method in METHODS}
    everywhere = set.intersection(*({one.name for one in settings} for settings in of.values()))
    common = {one.name: one for one in settings_of(CommonRecipe) if one.name in everywhere}
    lines = ["settings for --set, with their defaults (presets have some of their own):", "  every method:"]
    lines += [_setting_help(one) for one in common.values()]
    for method, settings in of.items():
        lines.append(f"  {method}:")
        lines += [_setting_help(one) for one in settings if one != common.get(one.name)]
    return "\n".join(lines)


def _setting_help(one: Setting) -> str:
    room = ", ".join(one.choices)
    if one.low is not None and one.high is not None:
        room = f"{one.low:g} to {one.high:g}" if one.high < SANITY else f"at least {one.low:g}"
    default = "empty" if one.default == "" else one.default
    only = f" (only while {one.applies.field} is {one.applies.wish})" if one.applies else ""
    return f"    {one.name} = {default}  {one.help}{only}" + (f" [{room}]" if room else "")


def _version() -> str:
    try:
        return version("tastemaker")
    except PackageNotFoundError:
        return "0 (not installed)"
