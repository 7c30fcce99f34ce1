"""Plan a run, start it, and bring the project's list of runs and models up to the truth of the run folders.

The window and the command line use exactly these functions.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import platform
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from workbench import supervisor
from workbench.errors import UserError
from workbench.estimate import Estimate, estimate
from workbench.ids import new_id, now
from workbench.memory_choice import without_plan
from workbench.model_choice import START_ROLES
from workbench.model_folders import count_parameters, refuse_changed_model
from workbench.model_shape import read_shape
from workbench.nvidia import has_gpu
from workbench.preflight import (
    ROWS_ARE,
    as_problem,
    balance_problems,
    cost_problems,
    label_problems,
    many,
    rank_of,
    resolved,
    resolved_reward,
)
from workbench.project import Project
from workbench.protocol import ModelRef, RunSpec
from workbench.recipes import RECIPES, Recipe, preset
from workbench.records import Method, ModelRecord, RunRecord
from workbench.rows import SftRow, rankings_of
from workbench.run_folder import Row, RunFolder
from workbench.run_registry import delete_run, measured_paces, measured_peaks, refresh_runs
from workbench.settings_fields import Problem, range_problems
from workbench.training_data import AUTO_HELD_OUT_ONE_IN, Selected, select

__all__ = ["RunPlan", "delete_run", "plan_run", "preset_for", "refresh_runs", "start_run"]

DEFAULT_PRESET = "Balanced"
READ_ONLY = Problem("", "The project is open for reading only", "close the other window on it")
MEASURED_ROWS = 256
"""The engine measures on at most so many held-out rows at a time."""


@dataclass(frozen=True, slots=True)
class RunPlan:
    """Everything that Start would do, decided and checked. ``problems`` says what stands in its way."""

    method: Method
    name: str  # "" leaves it to start_run
    recipe: Recipe  # as asked: what it leaves automatic is settled in ``settled``
    start: ModelRecord | None
    reward: ModelRecord | None  # None when a rule scores
    train: tuple[Row, ...] = ()
    heldout: tuple[Row, ...] = ()
    demonstrations: tuple[SftRow, ...] = ()
    problems: tuple[Problem, ...] = ()
    estimate: Estimate = field(default_factory=Estimate)
    command_line: str = ""
    summary: str = ""  # what it trains on, in a sentence or two
    auto_held_out: bool = False
    tags: tuple[str, ...] = ()  # only prompts with one of these train
    model: ModelRef | None = None
    reward_ref: ModelRef | None = None

    @property
    def settled(self) -> Recipe:
        """The recipe with everything chosen that was automatic: what the run gets."""
        return self.estimate.choice.recipe if self.estimate.choice else without_plan(self.recipe)

    @property
    def automatic(self) -> tuple[str, ...]:
        """The settings that the memory plan chose."""
        return self.estimate.choice.chosen if self.estimate.choice else ()

    @property
    def chosen(self) -> str:
        """What the memory plan chose and why; "" where nothing was left to it."""
        return self.estimate.choice.reason if self.estimate.choice else ""

    @property
    def chosen_settings(self) -> str:
        """What the memory plan chose, without what that takes; "" where nothing was left to it."""
        return self.estimate.choice.settings if self.estimate.choice else ""

    @property
    def errors(self) -> tuple[Problem, ...]:
        """The problems that block Start."""
        return tuple(one for one in self.problems if one.severity == "error")

    @property
    def warnings(self) -> tuple[Problem, ...]:
        """The problems that do not."""
        return tuple(one for one in self.problems if one.severity != "error")


def preset_for(project: Project, method: Method, name: str, start_model_id: str, tags: tuple[str, ...] = ()) -> Recipe:
    """Resolve a preset against the project's labels, the start model's size and the machine.

    Raises UserError for an unknown preset.
    """
    rows = _counted(method, select(project, method, RECIPES[method](), tags).train)
    parameters = 0
    start = project.store.model(start_model_id)
    base = project.store.model(start.base_id) if start and start.base_id else start
    if base is not None:
        try:
            parameters = count_parameters(Path(base.path))
        except (UserError, OSError):
            parameters = 0  # plan_run names what is missing
    try:
        return preset(method, name, rows, parameters, cuda=has_gpu())
    except ValueError as error:
        raise UserError("The preset cannot be used", str(error)) from error


def plan_run(
    project: Project,
    method: Method,
    *,
    start_model_id: str,
    reward_model_id: str = "",
    recipe: Recipe,
    name: str = "",
    tags: tuple[str, ...] = (),
    leaving: int = 0,
) -> RunPlan:
    """Decide and check a run without starting it. What the user must mend comes back as problems, never raised.

    What a process ``leaving`` as the run starts (an idle engine) holds counts as free.
    """
    problems: list[Problem] = []
    start, model = resolved(project, start_model_id, "start_model", problems)
    if start is not None and start.role not in START_ROLES[method]:
        wanted = " or ".join(START_ROLES[method])
        problems.append(
            Problem(
                "start_model",
                f"The model {start.name} is a {start.role} model",
                f"start {method} from a {wanted} model",
            )
        )
    reward, reward_ref = resolved_reward(project, method, recipe, reward_model_id, start, problems)
    if not isinstance(recipe, RECIPES[method]):
        problems.append(Problem("", f"These settings are not those of {method}", "choose a preset of this method"))
        recipe = RECIPES[method]()
    problems += recipe.problems()
    try:
        chosen = select(project, method, recipe, tags)
    except UserError as error:
        problems.append(Problem("data", error.what, error.remedy or error.cause))
        chosen = Selected()
    if tags and not chosen.train:
        what = f"Nothing that can train has the {'tag' if len(tags) == 1 else 'tags'} {' or '.join(tags)}"
        problems.append(Problem("tags", what, "choose other tags, or all prompts"))
    else:
        problems += label_problems(method, recipe, chosen) + balance_problems(recipe, chosen)
    cost = Estimate()
    if model is not None and not range_problems(recipe):  # with a batch of 0 there is nothing to reckon
        try:
            shape = read_shape(Path(model.base))
            cost = estimate(
                method,
                recipe,
                shape,
                chosen.train,
                heldout=min(MEASURED_ROWS, len(chosen.heldout)),
                demonstrations=min(MEASURED_ROWS, len(chosen.demonstrations)),
                mixed_in=chosen.demonstrations if method == "ppo" else (),
                start_rank=rank_of(model),
                paces=measured_paces(project),
                peaks=measured_peaks(project),
                base=model.base,
                leaving=leaving,
            )
            problems += cost_problems(project, recipe, shape, cost, chosen)
        except UserError as error:
            problems.append(as_problem("start_model", error))
    if project.read_only:
        problems.append(READ_ONLY)
    if recipe.device == "cuda" and not has_gpu():
        problems.append(Problem("device", "This machine has no GPU that can be used", "choose the device auto or cpu"))
    return RunPlan(
        method=method,
        name=name,
        recipe=recipe,
        start=start,
        reward=reward,
        train=tuple(chosen.train),
        heldout=tuple(chosen.heldout),
        demonstrations=tuple(chosen.demonstrations),
        problems=tuple(problems),
        estimate=cost,
        command_line=_command_line(project, method, start, reward, recipe, name, tags, _counted(method, chosen.train)),
        summary=_summary(method, chosen, tags),
        auto_held_out=chosen.auto_held_out,
        tags=tags,
        model=model,
        reward_ref=reward_ref,
    )


def _counted(method: Method, rows: Sequence[Row]) -> int:
    """How many of what the method's batch counts there are: rankings, or rows."""
    return rankings_of(rows) if RECIPES[method]().batch_counts_rankings else len(rows)


def start_run(project: Project, plan: RunPlan) -> RunRecord:
    """Freeze the plan's data into a run folder, list the run, and launch it.

    Raises UserError when the plan has errors, a model changed on disk, or the folder cannot be written.
    """
    if plan.errors:
        first = plan.errors[0]
        rest = f" (and {len(plan.errors) - 1} more)" if len(plan.errors) > 1 else ""
        raise UserError(f"This {plan.method} run cannot start", first.message + rest, first.remedy)
    assert plan.start is not None
    assert plan.model is not None
    refuse_changed_model(plan.model)
    run_id = new_id()
    record = RunRecord(
        id=run_id,
        method=plan.method,
        name=plan.name or _next_name(project, plan.method),
        state="queued",
        start_model_id=plan.start.id,
        reward_model_id=plan.reward.id if plan.reward else "",
        created_at=now(),
    )
    spec = RunSpec(
        run_id=run_id,
        method=plan.method,
        name=record.name,
        recipe=dataclasses.asdict(plan.settled),
        automatic=plan.automatic,
        notes=(f"Chosen by the memory plan: {plan.chosen}",) if plan.chosen else (),
        model=plan.model,
        reward=plan.reward_ref,
        tags=plan.tags,
        versions=_versions(),
        created_at=record.created_at,
    )
    project.runs_dir.mkdir(exist_ok=True)
    folder = RunFolder.create(project.runs_dir, spec, plan.train, plan.heldout, plan.demonstrations)
    project.store.save_run(record).result()
    supervisor.launch(folder.path)
    return record


# ---- the words -------------------------------------------------------------------------------------------------


def _summary(method: Method, chosen: Selected, tags: tuple[str, ...]) -> str:
    what = ROWS_ARE[method][0]
    text = f"Trains on {many(len(chosen.train), what)}"
    if tags:
        text += ("" if method == "ppo" else " of prompts") + f" tagged {' or '.join(tags)}"
    if chosen.auto_held_out:
        text += (
            f"; {len(chosen.heldout)} more are held out to measure on (a fixed tenth of the prompts, one in "
            f"{AUTO_HELD_OUT_ONE_IN} by the hash of its text, since no labelled prompt is marked held-out)"
        )
    elif chosen.heldout:
        text += f" and measures on {len(chosen.heldout)} held out"
    else:
        text += "; nothing is held out"
    if method == "reward" and chosen.demonstrations:
        text += f"; {many(len(chosen.demonstrations), 'demonstration')} set the zero of the scores"
    if method == "ppo" and chosen.demonstrations:
        text += f"; {many(len(chosen.demonstrations), 'demonstration')} of other prompts than the held-out are mixed in"
    dropped = [f"{count} because {reason}" for reason, count in sorted(chosen.dropped.items())]
    return text + "." + (f" Left out: {'; '.join(dropped)}." if dropped else "")


def _command_line(
    project: Project,
    method: Method,
    start: ModelRecord | None,
    reward: ModelRecord | None,
    recipe: Recipe,
    name: str,
    tags: tuple[str, ...],
    rows: int,
) -> str:
    """The ``tastemaker train`` command that does the same; only settings that its preset would not give are named."""
    words = ["tastemaker", "train", str(project.path), method]
    if start is not None:
        words += ["--from", _said(project, start)]
    if reward is not None:
        words += ["--reward", _said(project, reward)]
    if name:
        words += ["--name", name]
    for tag in tags:
        words += ["--tag", tag]
    parameters = 0
    base = project.store.model(start.base_id) if start and start.base_id else start
    if base is not None:
        try:
            parameters = count_parameters(Path(base.path))
        except (UserError, OSError):
            parameters = 0
    standard = preset(method, DEFAULT_PRESET, rows, parameters, cuda=has_gpu())
    for one in dataclasses.fields(recipe):
        value = getattr(recipe, one.name)
        if value != getattr(standard, one.name):
            words += ["--set", f"{one.name}={str(value).lower() if isinstance(value, bool) else value}"]
    return shlex.join(words)


def _said(project: Project, model: ModelRecord) -> str:
    """A model's name, or its id where another has the same name."""
    return model.name if sum(one.name == model.name for one in project.store.models()) == 1 else model.id


def _next_name(project: Project, method: Method) -> str:
    taken = {one.name for one in project.store.runs()}
    number = 1 + sum(1 for one in project.store.runs() if one.method == method)
    while f"{method} {number}" in taken:
        number += 1
    return f"{method} {number}"


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in ("tastemaker", "torch", "transformers", "peft", "bitsandbytes"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
