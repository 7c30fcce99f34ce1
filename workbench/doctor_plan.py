"""``tastemaker doctor --plan``: what training would need, for Llama models of three sizes and for those at hand."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Iterator
from pathlib import Path

from workbench.errors import UserError
from workbench.estimate import memory_available
from workbench.memory_choice import Choice, choose
from workbench.memory_plan import PHASES, MemoryPlan, on_gpu
from workbench.model_shape import LLAMAS, Shape, read_shape
from workbench.models import cached_bases
from workbench.recipes import PpoRecipe, Recipe, preset
from workbench.records import METHODS, Method
from workbench.terminal import Terminal, in_bytes

LENGTH = 1024
"""Tokens of every sequence: prompt and response. The two sides of a pair are counted whole, as with two prompts."""
PROMPT_SHARE = 4
"""One token in so many is the prompt's."""
ROWS = 1000
"""Rows of a project that a preset is chosen for."""


def plan(options: argparse.Namespace, terminal: Terminal) -> int:
    """Print the memory of each phase by model and method, in NF4, with the micro-batch that fits."""
    gpu = on_gpu("auto") if options.device == "auto" else options.device == "cuda"
    available = memory_available("auto" if gpu else "cpu")
    shapes = _shapes(options.model)
    methods: tuple[Method, ...] = tuple(options.method or METHODS)
    if not terminal.json:
        where = f"a {'GPU' if gpu else 'CPU'} with {in_bytes(available)} free"
        if gpu and not on_gpu("auto"):
            where = f"a GPU (there is none here) that had as much free as this machine has, {in_bytes(available)}"
        terminal.say(f"Memory to train on {where}: NF4 base, every sequence of {options.length} tokens.")
        head = "".join(f"{phase:>11}" for phase in PHASES)
        terminal.say(f"{'model':<24} {'method':<7}{head}  {'micro-batch':>11}  fits")
    for name, shape in shapes:
        for method in methods:
            choice = planned(method, shape, available, gpu=gpu, length=options.length)
            recipe, found = choice.recipe, choice.plan
            fits = found.peak.bytes <= available
            terminal.result(_data(name, method, recipe, found, fits), _line(name, method, recipe, found, fits))
    if not terminal.json:
        terminal.say("* with gradient checkpointing. Reckoned, not measured; a project's own runs correct it there.")
    return 0


def planned(method: Method, shape: Shape, available: int, *, gpu: bool, length: int = LENGTH) -> Choice:
    """Plan a method with the preset's settings in NF4 at the full length, and with the micro-batch that fits."""
    chosen = preset(method, "Balanced", ROWS, shape.parameters, cuda=gpu)
    recipe: Recipe = dataclasses.replace(chosen, quantisation="nf4", max_length=length)
    if isinstance(recipe, PpoRecipe):
        recipe = dataclasses.replace(recipe, response_length=length - length // PROMPT_SHARE)
    rows = [[length] * (2 if method in ("reward", "dpo") else 1)] * recipe.batch
    return choose(method, recipe, shape, rows, available, gpu=gpu)


def _shapes(model: str) -> Iterator[tuple[str, Shape]]:
    """The three Llamas and then the models at hand; with ``model``, a name in the cache or a folder, that one alone."""
    bases = cached_bases()
    if not model:
        yield from LLAMAS.items()
        for base in bases:
            yield base.name, read_shape(base.path)
        return
    known = {name.lower(): (name, shape) for name, shape in LLAMAS.items()}
    if model.lower() in known:
        yield known[model.lower()]
        return
    path = next((base.path for base in bases if base.name == model), Path(model).expanduser())
    if not path.is_dir():
        names = ", ".join([*LLAMAS, *(base.name for base in bases)])
        raise UserError(f"There is no model {model!r}", "it is no folder and not in the cache", f"choose of {names}")
    yield path.name, read_shape(path)


def _data(name: str, method: Method, recipe: Recipe, found: MemoryPlan, fits: bool) -> dict[str, object]:
    return {
        "model": name,
        "method": method,
        "quantisation": recipe.quantisation,
        "micro_batch": recipe.micro_batch,
        "gradient_checkpointing": recipe.gradient_checkpointing,
        "head_rows": recipe.head_rows,
        "bytes": {phase.name: phase.bytes for phase in found.phases},
        "peak_bytes": found.peak.bytes,
        "peak_phase": found.peak.name,
        "fits": fits,
        "lines": found.lines,
    }


def _line(name: str, method: Method, recipe: Recipe, found: MemoryPlan, fits: bool) -> str:
    sizes = {phase.name: in_bytes(phase.bytes) for phase in found.phases}
    cells = "".join(f"{sizes.get(phase, '–'):>11}" for phase in PHASES)
    bites = f"{recipe.micro_batch} of {recipe.batch}{'*' if recipe.gradient_checkpointing else ' '}"
    return f"{name[:24]:<24} {method:<7}{cells}  {bites:>11}  {'yes' if fits else 'no'}"
