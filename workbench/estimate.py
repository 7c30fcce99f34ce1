"""What a run will cost: memory and time, from the model's shape, the recipe and the rows. Rough, and says so.

The time's constants were fitted to measured runs of a 135 M model on a CPU; a project's own finished runs correct time
and memory (:mod:`workbench.memory_plan`).
"""

from __future__ import annotations

import os
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field

import psutil

from workbench.machine_memory import available_bytes, held_bytes
from workbench.memory_choice import Choice, choose
from workbench.memory_plan import Peak, Phase, cpu_has_bf16, trained_adapters
from workbench.model_shape import Shape
from workbench.nvidia import gpu_free_bytes, gpu_held_bytes, has_gpu
from workbench.recipes import DpoRecipe, KtoRecipe, PpoRecipe, Recipe
from workbench.records import Method
from workbench.rows import PairRow, PromptRow, SftRow, responses_of_rankings
from workbench.run_folder import Row
from workbench.terminal import in_time
from workbench.training_data import texts_of

CHARACTERS_PER_TOKEN = 4.0
TEMPLATE_TOKENS = 24  # what a chat template adds around a turn or two
START_S = 10.0  # libraries and model
CPU_FLOPS_PER_CORE = 4.5e10  # reached in training, not promised by the vendor; twice as much where the CPU has bf16
GPU_FLOPS = 2.5e13
RESPONSE_SHARE = 0.7  # of the longest response, on average


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a run will take."""

    memory_bytes: int = 0
    memory_available: int = 0
    seconds: float = 0.0
    lines: list[str] = field(default_factory=list)  # how it was arrived at
    checkpoint_bytes: int = 0
    total_steps: int = 0
    tokens: int = 0  # real tokens of the whole run
    tokens_per_s: float = 0.0
    measured: bool = False  # whether the project's own runs corrected the time
    phases: tuple[Phase, ...] = ()  # memory by phase
    memory_measured: bool = False  # whether the project's own runs corrected the memory
    memory_last_bytes: int = 0  # what the newest run most like this one held; 0 where there is none
    choice: Choice | None = None  # the settings that the memory plan chose, and why
    long_rows: int = 0  # rows that seem longer than max_length


@dataclass(frozen=True, slots=True)
class Pace:
    """What an earlier run of the project reached, beside what would have been foretold for it."""

    method: Method
    measured: float  # real tokens a second
    foretold: float


def tokens_of(text: str) -> int:
    """Guess the tokens of a text with its template: four characters each, fewer in scripts of many bytes."""
    return int(max(len(text) / CHARACTERS_PER_TOKEN, len(text.encode("utf-8", "replace")) / 6)) + TEMPLATE_TOKENS


def estimate(
    method: Method,
    recipe: Recipe,
    shape: Shape,
    rows: Sequence[Row],
    *,
    heldout: int = 0,
    demonstrations: int = 0,
    mixed_in: Sequence[SftRow] = (),
    start_rank: int = 0,
    paces: Sequence[Pace] = (),
    peaks: Sequence[Peak] = (),
    base: str = "",
    leaving: int = 0,
) -> Estimate:
    """Estimate a run's memory, time, steps and checkpoint size, with the settings that the memory plan chooses.

    Args:
        method: which method.
        recipe: its settings.
        shape: of the base model.
        rows: what trains.
        heldout: rows that are measured on.
        demonstrations: rows that are scored once, to set the zero of a reward model.
        mixed_in: the demonstrations that PPO-ptx passes in its updates.
        start_rank: of the adapter that training continues; 0 for a new one.
        paces: what earlier runs of the project reached.
        peaks: what earlier runs of the project held, newest first.
        base: the base model's folder, to find the runs that are most like this one.
        leaving: a process that ends as the run starts: what it holds counts as free; 0 for none.
    """
    by_row = [row_tokens(row, recipe) for row in rows]
    lengths = [tokens for row in by_row for tokens in row] or [0]
    rank = start_rank or recipe.lora_rank
    available = memory_available(recipe.device) + held_by(leaving, recipe.device)
    rankings = [len(one) for one in responses_of_rankings(rows).values()]
    choice = choose(
        method,
        recipe,
        shape,
        by_row,
        available,
        prompts=[shared_tokens(row, recipe) for row in rows],
        mixed_in=[row_tokens(row, recipe) for row in mixed_in],
        start_rank=start_rank,
        peaks=peaks,
        base=base,
        rankings=rankings,
    )
    recipe, memory = choice.recipe, choice.plan
    lines = [*([f"chosen: {choice.reason}"] if choice.reason else []), *memory.lines]
    units = len(rankings) if recipe.batch_counts_rankings else len(rows)
    steps = total_steps(recipe, units)
    rows_trained = _trained_units(recipe, units, steps) * len(rows) / max(1, units)
    tokens = _run_tokens(recipe, by_row, heldout, steps, rows_trained * _passed_once(rows, by_row))
    tokens += int(0.5 * demonstrations * sum(lengths) / len(lengths)) if method == "reward" else 0
    foretold = foretold_pace(method, recipe, shape)
    ratios = [pace.measured / pace.foretold for pace in paces if pace.method == method and pace.foretold > 0]
    ratios = ratios or [pace.measured / pace.foretold for pace in paces if pace.foretold > 0]
    pace = foretold * (statistics.median(ratios) if ratios else 1.0)
    seconds = START_S + tokens / max(pace, 1e-9)
    lines.append(
        f"time: {tokens:,} tokens in {steps:,} steps at about {pace:,.0f} tokens/s "
        + ("(measured in this project's runs)" if ratios else "(a rough rate for this machine)")
        + f", {in_time(seconds)}"
    )
    trained = shape.adapter_parameters(rank) * trained_adapters(recipe)
    return Estimate(
        memory_bytes=memory.peak.bytes,
        memory_available=available,
        seconds=seconds,
        lines=lines,
        checkpoint_bytes=trained * 12,
        total_steps=steps,
        tokens=tokens,
        tokens_per_s=pace,
        measured=bool(ratios),
        phases=memory.phases,
        memory_measured=memory.measured,
        memory_last_bytes=int(memory.last.measured) if memory.last else 0,
        choice=choice,
        long_rows=sum(1 for row in by_row if max(row) >= recipe.max_length),
    )


def row_tokens(row: Row, recipe: Recipe) -> list[int]:
    """Guess the tokens of each sequence of a row, cut as the recipe cuts them; a prompt gets PPO's longest response."""
    extra = recipe.response_length if isinstance(recipe, PpoRecipe) and isinstance(row, PromptRow) else 0
    return [min(recipe.max_length, tokens_of(text) + extra) for text in texts_of(row)]


def shared_tokens(row: Row, recipe: Recipe) -> int:
    """Guess the tokens of the prompt that several sequences of a row begin with; 0 where there is one sequence."""
    sequences = row_tokens(row, recipe)
    if len(sequences) < 2:
        return 0
    return min(*sequences, tokens_of("\n".join(one.content for one in row.prompt)) - TEMPLATE_TOKENS)


def total_steps(recipe: Recipe, rows: int) -> int:
    """Return how many steps a run has: optimiser steps, or rollouts for PPO. ``rows``: of what its batch counts."""
    if isinstance(recipe, PpoRecipe):
        steps = -(-recipe.episodes // recipe.batch)
    else:
        steps = max(1, round(-(-rows // recipe.batch) * recipe.epochs)) if rows else 0
    return min(steps, recipe.max_steps) if recipe.max_steps else steps


def _trained_units(recipe: Recipe, units: int, steps: int) -> float:
    """How many of what the batch counts a run passes: whole batches, and no more than its epochs have."""
    if isinstance(recipe, PpoRecipe):
        return steps * recipe.batch
    return min(steps * recipe.batch, max(min(recipe.batch, units), recipe.epochs * units))


def _run_tokens(recipe: Recipe, by_row: Sequence[Sequence[int]], heldout: int, steps: int, trained: float) -> int:
    """Guess the tokens of a run that passes so many rows in so many steps."""
    if not by_row:
        return 0
    mean = sum(map(sum, by_row)) / len(by_row)
    share = 0.5  # an evaluation has no backward pass
    if isinstance(recipe, PpoRecipe):
        mean -= recipe.response_length * (1 - RESPONSE_SHARE)
        share = 0.2  # nor updates
    evaluations = 2 + (steps // recipe.eval_every if recipe.eval_every else 0)
    return int(mean * (trained + share * evaluations * heldout))


def _passed_once(rows: Sequence[Row], by_row: Sequence[Sequence[int]]) -> float:
    """Which share of the tokens of some rows passes, since the pairs of a ranking share their responses."""
    passed: dict[tuple[str, str, bool], int] = {}
    for row, lengths in zip(rows, by_row, strict=True):
        if not isinstance(row, PairRow):
            return 1.0
        ranking, sides = row.ranking_id or row.id, ((row.chosen, row.chosen_ended), (row.rejected, row.rejected_ended))
        passed |= {(ranking, *side): length for side, length in zip(sides, lengths, strict=True)}
    return sum(passed.values()) / max(1, sum(map(sum, by_row)))


def foretold_pace(method: Method, recipe: Recipe, shape: Shape) -> float:
    """Foretell the real tokens a second: the machine's rate over the work that a token costs."""
    passes = {"sft": 4.0, "reward": 4.0, "dpo": 4.0, "kto": 6.0, "ppo": 0.0}[method]
    if isinstance(recipe, DpoRecipe) and recipe.needs_reference:
        passes += 2.0 / max(1.0, recipe.epochs)
    if isinstance(recipe, KtoRecipe):  # the reference reads each response and each mismatched one
        passes += 4.0 / max(1.0, recipe.epochs)
    if recipe.gradient_checkpointing:
        passes += 2.0
    if isinstance(recipe, PpoRecipe):
        update = 6.0 if recipe.gradient_checkpointing else 4.0
        updated = trained_adapters(recipe) + (recipe.ptx_coefficient > 0)  # a demonstration beside every episode
        passes = 12.0 + 6.0 + 2.0 * recipe.has_value + recipe.ppo_epochs * updated * update
    if recipe.device != "cpu" and has_gpu():
        return GPU_FLOPS / (passes * shape.parameters)
    cores = psutil.cpu_count(logical=False) or 1
    if hasattr(os, "sched_getaffinity"):
        cores = min(cores, len(os.sched_getaffinity(0)))
    return CPU_FLOPS_PER_CORE * (1 + cpu_has_bf16()) * cores / (passes * shape.parameters)


def memory_available(device: str) -> int:
    """Return the free memory of the device that will train, in bytes: the GPU's, or the machine's."""
    if device != "cpu" and has_gpu():
        return gpu_free_bytes() or available_bytes()
    return available_bytes()


def held_by(pid: int, device: str) -> int:
    """What a process would give back of a device's memory by ending, in bytes; 0 for no process (0)."""
    if not pid:
        return 0
    return gpu_held_bytes(pid) if device != "cpu" and has_gpu() else held_bytes(pid)
