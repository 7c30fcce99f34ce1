"""``tastemaker demo``: the whole loop on the sample project and the demo model, without a screen.

SFT on the demonstrations, responses sampled from the result, a reward model on the rankings, DPO and PPO, then the
same held-out prompts answered by every model; it ends in plots and a before/after page that say honestly what
changed and what did not. A demo that was interrupted goes on where it was; a finished one says where its page is.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
from platformdirs import user_data_path

from workbench.cli_runs import model_of_run
from workbench.cli_sample import draw, keep, scores_of
from workbench.demo_report import PAGE, Answer, Outcome, write_report
from workbench.errors import UserError
from workbench.jsonl import decode, encode, write_atomic
from workbench.models import add_model
from workbench.project import DATABASE, Project
from workbench.protocol import Progress
from workbench.recipes import preset
from workbench.records import Method, ModelRecord, Prompt, RunRecord, Sampling
from workbench.rows import PairRow, rankings_of
from workbench.run_folder import EventTail, RunFolder, join_segments
from workbench.sample_project import fill_with_sample
from workbench.serve_client import ServeClient
from workbench.settings_fields import with_settings
from workbench.statistics import effective_trials
from workbench.supervisor import kill, resume
from workbench.terminal import Terminal, in_time
from workbench.training import MEASURED_ROWS, plan_run, refresh_runs, start_run

REPORT = "report"
NOTE = "demo.json"
TITLES: dict[Method, str] = {
    "sft": "Supervised fine-tuning on the demonstrations",
    "reward": "A reward model on the rankings",
    "dpo": "DPO straight from the pairs",
    "ppo": "PPO against the reward model, on a KL leash",
}
SETTINGS: dict[Method, dict[str, str]] = {
    "sft": {"epochs": "1.5", "max_length": "384", "learning_rate": "4e-4", "eval_every": "0"},
    "reward": {"epochs": "0.8", "max_steps": "0", "max_length": "384", "eval_every": "0"},
    "dpo": {"max_steps": "8", "max_length": "384", "learning_rate": "1e-4", "eval_every": "0"},
    "ppo": {"episodes": "64", "ppo_epochs": "1", "max_length": "384", "response_length": "40", "eval_every": "0"},
}
QUICK: dict[Method, dict[str, str]] = {
    "sft": {"max_steps": "3", "eval_every": "0"},
    "reward": {"max_steps": "3", "eval_every": "0"},
    "dpo": {"max_steps": "2", "eval_every": "0"},
    "ppo": {"episodes": "16", "batch": "8", "micro_batch": "8", "response_length": "24", "eval_every": "0"},
}
"""Changes to the preset; sized so that the whole demo stays within 15 minutes on two cores."""


class _Note(msgspec.Struct, kw_only=True):
    """``demo.json`` in the project's folder: that it is a demo, and what its runs do not tell of how far it is."""

    quick: bool
    sampled: bool = False
    seconds: float = 0.0  # of all sittings


@dataclass(slots=True)
class _Loop:
    """What the demo carries from stage to stage."""

    project: Project
    terminal: Terminal
    note: _Note
    models: dict[str, ModelRecord] = field(default_factory=dict)
    outcomes: list[Outcome] = field(default_factory=list)
    noted: float = field(default_factory=time.monotonic)  # when the time was last added up

    @property
    def quick(self) -> bool:
        return self.note.quick

    def write_note(self) -> None:
        now = time.monotonic()
        self.note.seconds += now - self.noted
        self.noted = now
        write_atomic(self.project.path / NOTE, encode(self.note))


def demo(options: argparse.Namespace, terminal: Terminal) -> int:
    """Run the whole loop, or what is missing of it, in a project of its own and write ``report/index.html``."""
    page = options.dir / REPORT / PAGE
    if (options.dir / NOTE).is_file() and page.is_file():
        text = f"This demo is done: {page}\nFor another one, name a new folder: tastemaker demo DIR"
        terminal.result({"report": str(page), "done_before": True}, text)
        return 0
    with _opened(options.dir) as project:
        loop = _Loop(project, terminal, _note(project, options.quick))
        try:
            answers = _stages(loop)
        finally:
            loop.write_note()
        seconds = loop.note.seconds
        write_report(project.path / REPORT, loop.outcomes, answers, seconds)
    terminal.say("")
    for outcome in loop.outcomes:
        terminal.say(f"{outcome.title}: {outcome.verdict}")
    terminal.result(
        {
            "report": str(page),
            "seconds": round(seconds),
            "verdicts": {one.method: one.verdict for one in loop.outcomes},
        },
        f"\nDone in {in_time(seconds)}. Before and after, with plots: {page}\n"
        f"Open the project in the window: tastemaker open {options.dir}",
    )
    return 0


def _opened(path: Path) -> Project:
    """Make the demo's project, or open the one that an interrupted demo left. Raises UserError for any other."""
    if not (path / DATABASE).exists():
        return Project.create(path)
    project = Project.open(path)
    if (path / NOTE).is_file() or not (project.store.journal(1) or project.store.models()):
        return project
    project.close()
    raise UserError(f"No demo can be made in {path}", "it is a project of your own", "name a new folder")


def _note(project: Project, quick: bool) -> _Note:
    try:
        return decode((project.path / NOTE).read_bytes(), _Note)
    except (OSError, msgspec.DecodeError, msgspec.ValidationError):
        return _Note(quick=quick)


def _stages(loop: _Loop) -> list[Answer]:
    project, terminal = loop.project, loop.terminal
    loop.write_note()
    if project.store.journal(1):
        terminal.say(f"Project {project.path}: a demo that goes on{', a quick one' if loop.quick else ''}.")
    else:
        terminal.say(f"Project {project.path}: the sample project, {fill_with_sample(project)} prompts.")
    base = loop.models["base"] = add_demo_model(project, terminal)
    sft = loop.models["sft"] = _train(loop, "sft", base)
    _sample_for_ranking(loop)
    reward = loop.models["reward"] = _train(loop, "reward", sft)
    loop.models["dpo"] = _train(loop, "dpo", sft)
    loop.models["ppo"] = _train(loop, "ppo", sft, reward)
    return _compare(loop)


def ensure_sample_project(terminal: Terminal) -> Path:
    """Make the sample project with the demo model in the user's data folder, or add what it lacks; return its path."""
    path = user_data_path("tastemaker") / "Sample project"
    try:
        project = Project.open(path) if (path / DATABASE).exists() else Project.create(path)
    except UserError:
        if not (path / DATABASE).exists():
            raise
        return path  # in use or damaged: the window says so, with what to do
    with project:
        if not project.store.journal(1):
            fill_with_sample(project)
        if not project.store.models():
            try:
                add_demo_model(project, terminal)
            except UserError as error:  # labelling works without it, and the next start tries again
                terminal.say(f"The sample project is without its model. {error}")
    return path


def add_demo_model(project: Project, terminal: Terminal) -> ModelRecord:
    """Add SmolLM2-135M-Instruct to the project; converted once into the cache, which takes seconds."""
    client = ServeClient()
    try:
        return add_model(project, "demo", client, lambda what, fraction: terminal.progress(what, fraction))
    finally:
        terminal.done()
        client.leave()


def _train(loop: _Loop, method: Method, start: ModelRecord, reward: ModelRecord | None = None) -> ModelRecord:
    """Train as the demo does, or take what an earlier sitting trained, or go on where it was."""
    project, terminal = loop.project, loop.terminal
    name = f"demo {method}"
    terminal.say(f"\n{TITLES[method]}")
    run = next((one for one in refresh_runs(project) if one.name == name), None)
    if run is None:
        run = _start(loop, method, name, start, reward)
    folder = RunFolder(project.run_dir(run.id))
    if folder.state().resumable:
        resume(folder.path)
    try:
        _wait(folder, method, terminal)
    except KeyboardInterrupt:
        kill(folder.path)
        raise
    status = folder.state()
    if status.state != "done":
        terminal.done()
        raise UserError(f"The {method} run {status.state}", status.cause or status.detail, status.remedy)
    refresh_runs(project)
    made = model_of_run(project, run.id)
    if made is None:
        raise UserError(f"The {method} run left no model", f"see {folder.path / 'engine.log'}")
    events = list(folder.events())
    history = [(one.step, one.values) for one in join_segments(events)]
    measured = folder.rows("heldout")[:MEASURED_ROWS]
    trials = effective_trials(one.group for one in measured if isinstance(one, PairRow))
    held_out = rankings_of(measured) or len(measured)
    outcome = Outcome.of(method, TITLES[method], history, held_out, events[-1].elapsed_s, trials)
    loop.outcomes.append(outcome)
    loop.write_note()
    terminal.say(f"  {outcome.verdict} ({in_time(outcome.seconds)})")
    return made


def _start(loop: _Loop, method: Method, name: str, start: ModelRecord, reward: ModelRecord | None) -> RunRecord:
    project = loop.project
    counts = project.store.counts()
    rows = {"sft": counts.demonstrations_final, "ppo": counts.prompts, "reward": counts.rankings}.get(
        method, counts.pairs
    )
    recipe = preset(method, "Quick look", rows, 135_000_000)
    recipe = with_settings(recipe, SETTINGS[method] | (QUICK[method] if loop.quick else {}))
    plan = plan_run(
        project,
        method,
        start_model_id=start.id,
        reward_model_id=reward.id if reward else "",
        recipe=recipe,
        name=name,
    )
    loop.terminal.say(f"  {plan.summary}\n  {plan.command_line}")
    return start_run(project, plan)


def _wait(folder: RunFolder, method: str, terminal: Terminal) -> None:
    tail = EventTail(folder.path)
    while True:
        live = folder.state().alive
        for event in tail.read_new():
            if isinstance(event, Progress):
                left = f"{in_time(event.eta_s)} left" if event.eta_s >= 0 else ""
                terminal.progress(method, event.step / max(1, event.total_steps), left)
        if not live:
            terminal.done()
            return
        time.sleep(0.2)


def _sample_for_ranking(loop: _Loop) -> None:
    """Draw responses from the new SFT model to prompts that have none: the next thing to rank in the window."""
    project, terminal = loop.project, loop.terminal
    prompts = project.store.prompts(split="train", need="responses", limit=2 if loop.quick else 6)
    if loop.note.sampled or not prompts:
        return
    terminal.say("\nResponses of the SFT model, ready to be ranked")
    client = ServeClient()
    try:
        sampling = Sampling(temperature=0.8, max_new_tokens=16 if loop.quick else 96)
        drawn = draw(project, client, loop.models["sft"], prompts, 3, sampling, terminal.say)
    finally:
        client.leave()
    terminal.say(f"  {keep(project, drawn)} responses to {len(prompts)} prompts.")
    loop.note.sampled = True
    loop.write_note()


def _compare(loop: _Loop) -> list[Answer]:
    """Let every model answer the same held-out prompts and score all answers with the reward model."""
    loop.terminal.say("\nThe same held-out prompts, answered before and after")
    prompts = loop.project.store.prompts(split="held-out", limit=2 if loop.quick else 6)
    client = ServeClient()
    answers: list[Answer] = []
    try:
        for name in ("base", "sft", "dpo", "ppo"):
            answers.extend(_answers(loop, client, name, prompts))
            loop.terminal.progress("comparing", len(answers) / (4 * max(1, len(prompts))))
        rows = [(one.prompt.messages, one.text, one.ended) for one in answers]
        found = scores_of(loop.project, client, loop.models["reward"], rows)
    finally:
        loop.terminal.done()
        client.leave()
    scored = []
    for answer, value in zip(answers, found.standardised or found.scores, strict=True):
        if value is not None:  # always, in a context of thousands of tokens
            answer.score = value
            scored.append(answer)
    return scored


def _answers(loop: _Loop, client: ServeClient, name: str, prompts: list[Prompt]) -> list[Answer]:
    sampling = Sampling(temperature=0.7, max_new_tokens=16 if loop.quick else 96, seed=1)
    drawn = draw(loop.project, client, loop.models[name], prompts, 1, sampling, _quiet)
    by_prompt = {one.prompt_id: one for one in drawn}
    return [
        Answer(
            name, one, by_prompt[one.id].text, by_prompt[one.id].token_count, by_prompt[one.id].finish_reason == "stop"
        )
        for one in prompts
        if one.id in by_prompt
    ]


def _quiet(_what: str) -> None:
    """The bar says enough while answers are compared."""
