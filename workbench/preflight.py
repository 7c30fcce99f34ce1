"""The checks before a run: labels, models, memory, disk. Each fault is a Problem with a remedy; none is raised."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from workbench.errors import UserError
from workbench.estimate import Estimate
from workbench.manifests import RESERVE_BYTES
from workbench.model_folders import HEADS_FILE, check_base_folder
from workbench.model_shape import Shape
from workbench.project import Project
from workbench.protocol import ModelRef
from workbench.recipes import KtoRecipe, PpoRecipe, Recipe, thumb_weights
from workbench.records import Method, ModelRecord
from workbench.rows import ThumbRow
from workbench.settings_fields import Problem, range_problems
from workbench.terminal import in_bytes
from workbench.training_data import Selected

FEW: dict[Method, int] = {"sft": 10, "reward": 20, "dpo": 20, "kto": 40, "ppo": 8}
"""Below so many training rows a run works and teaches little."""
ROWS_ARE: dict[Method, tuple[str, str]] = {
    "sft": ("final demonstration", "write a demonstration and mark it final, or import some"),
    "reward": ("preference pair", "rank the responses to some prompts, or import preferences"),
    "dpo": ("preference pair", "rank the responses to some prompts, or import preferences"),
    "kto": ("judged response", "press + or - on responses in Rank, import thumbs, or set rankings_as_thumbs"),
    "ppo": ("prompt", "add prompts, or import some"),
}


def resolved(
    project: Project, model_id: str, field_name: str, problems: list[Problem]
) -> tuple[ModelRecord | None, ModelRef | None]:
    """Find a model and its folders; what is missing is added to ``problems``."""
    record = project.store.model(model_id) if model_id else None
    if record is None:
        problems.append(Problem(field_name, "No model is chosen to start from", "add a model, or choose one"))
        return None, None
    try:
        ref = project.resolve(record)
        check_base_folder(Path(ref.base), Path(ref.base).name)
        return record, ref
    except (UserError, OSError) as error:
        problems.append(as_problem(field_name, error))
        return record, None


def resolved_reward(
    project: Project,
    method: Method,
    recipe: Recipe,
    reward_model_id: str,
    start: ModelRecord | None,
    problems: list[Problem],
) -> tuple[ModelRecord | None, ModelRef | None]:
    """Find what pays PPO; None where a rule does, or for another method."""
    if method != "ppo" or (isinstance(recipe, PpoRecipe) and recipe.rule):
        return None, None
    if not reward_model_id:
        problems.append(
            Problem(
                "reward_model",
                "PPO has nothing to be paid by: there is neither a reward model nor a rule",
                "train a reward model on rankings first, or set a rule such as shorter-than:40",
            )
        )
        return None, None
    record, ref = resolved(project, reward_model_id, "reward_model", problems)
    if record is not None and record.role != "reward":
        problems.append(
            Problem(
                "reward_model",
                f"The model {record.name} is a {record.role} model",
                "choose a model with the role reward",
            )
        )
    elif record is not None and start is not None and record.base_id != (start.base_id or start.id):
        problems.append(
            Problem(
                "reward_model",
                f"The models {record.name} and {start.name} stand on different bases",
                "choose two models of one base: PPO holds the base only once",
            )
        )
    penalised = isinstance(recipe, PpoRecipe) and recipe.uncertainty_penalty > 0
    if penalised and record is not None and ref is not None and not (Path(ref.adapter) / HEADS_FILE).is_file():
        problems.append(
            Problem(
                "uncertainty_penalty",
                f"The reward model {record.name} has one head, which disagrees with nobody: nothing is taken off",
                "train a reward model with heads of 4 or more, or set uncertainty_penalty to 0",
                "warning",
            )
        )
    return record, ref


def label_problems(method: Method, recipe: Recipe, chosen: Selected) -> list[Problem]:
    """Say what is wrong with the rows: none, few, nothing held out, nothing to mix in."""
    what, remedy = ROWS_ARE[method]
    count = len(chosen.train)
    found = []
    if isinstance(recipe, PpoRecipe) and recipe.ptx_coefficient > 0 and not chosen.demonstrations:
        found.append(
            Problem(
                "ptx_coefficient",
                "There is no final demonstration that may be mixed into PPO",
                "write one to a prompt that is not held out and mark it final, or set ptx_coefficient to 0",
            )
        )
    if count == 0:
        found.append(Problem("data", f"There is no {what} to train on", remedy))
    elif count < FEW[method]:
        found.append(
            Problem(
                "data",
                f"Only {many(count, what)}: the model will learn little that holds beyond them",
                f"{FEW[method]} or more are better; {remedy}",
                "warning",
            )
        )
    if count and not chosen.heldout:
        found.append(
            Problem(
                "data",
                "Nothing is held out: the run cannot show whether what it learns holds for new prompts",
                "mark some prompts as held-out",
                "warning",
            )
        )
    return found


def balance_problems(recipe: Recipe, chosen: Selected) -> list[Problem]:
    """Say where KTO's wanted and unwanted responses are out of balance; nothing while a setting is out of its range."""
    if not isinstance(recipe, KtoRecipe) or range_problems(recipe):
        return []
    wanted = [row.desirable for row in chosen.train if isinstance(row, ThumbRow)]
    return thumb_weights(recipe, sum(wanted), len(wanted) - sum(wanted))


def cost_problems(project: Project, recipe: Recipe, shape: Shape, cost: Estimate, chosen: Selected) -> list[Problem]:
    """Say what the machine lacks for the run: memory, disk, context."""
    found = []
    if cost.memory_bytes > cost.memory_available > 0:
        lower = "lower micro_batch or max_length, turn gradient checkpointing on"
        if not recipe.micro_batch:
            lower = "lower max_length"
        elif cost.choice is not None and not recipe.gradient_checkpointing:
            lower = "set micro_batch to 0, which lets the memory plan choose; lower max_length"
        remedy = lower + (", or hold the base in nf4" if recipe.quantisation != "nf4" else "")
        hopeless = shape.parameters * (0.5 if recipe.quantisation == "nf4" else 2.0) > 1.2 * cost.memory_available
        found.append(
            Problem(
                "micro_batch",
                f"About {in_bytes(cost.memory_bytes)} of memory are needed and {in_bytes(cost.memory_available)}"
                " are free",
                "choose a smaller base" if hopeless else remedy + "; or close other programs",
                "error" if hopeless else "warning",
            )
        )
    free = shutil.disk_usage(project.path).free
    needed = cost.checkpoint_bytes * (recipe.keep_checkpoints + 2)
    if free < needed + RESERVE_BYTES:
        found.append(
            Problem(
                "keep_checkpoints",
                f"Checkpoints need about {in_bytes(needed)} on disk and {in_bytes(free)} are free",
                "free space, or keep fewer checkpoints",
            )
        )
    elif free < needed + 1024**3:
        found.append(Problem("", f"Only {in_bytes(free)} are free on the project's disk", "free some space", "warning"))
    if cost.long_rows:
        found.append(
            Problem(
                "max_length",
                f"About {many(cost.long_rows, 'row')} of {len(chosen.train)} seem longer than {recipe.max_length}"
                " tokens and will be cut or left out",
                "raise max_length",
                "warning",
            )
        )
    if 0 < shape.context < recipe.max_length:
        found.append(
            Problem(
                "max_length",
                f"max_length {recipe.max_length} is more than the model's context of {shape.context} tokens",
                f"set it to {shape.context} or less",
                "warning",
            )
        )
    return found


def rank_of(model: ModelRef) -> int:
    """Return the LoRA rank of a model's adapter; 0 for a bare base."""
    if not model.adapter:
        return 0
    try:
        return int(json.loads((Path(model.adapter) / "adapter_config.json").read_text()).get("r") or 0)
    except (OSError, ValueError, AttributeError):
        return 0


def as_problem(field_name: str, error: Exception) -> Problem:
    """Turn an error into a problem of a field."""
    if isinstance(error, UserError):
        return Problem(field_name, f"{error.what}: {error.cause}" if error.cause else error.what, error.remedy)
    return Problem(field_name, str(error), "check the folder")


def many(count: int, what: str) -> str:
    """Count things in words: ``1 prompt``, ``1,200 prompts``."""
    return f"{count:,} {what}" + ("" if count == 1 else "s")
