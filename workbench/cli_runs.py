"""Commands about runs: train, list, delete, watch, stop, pause, resume, save, sample now.

A project is let go of while a run is followed, and only read by what watches or commands one: other commands, and the
window, go on beside it.
"""

from __future__ import annotations

import argparse
import shlex
import time
from dataclasses import asdict, replace
from pathlib import Path

from workbench import supervisor
from workbench.cli_shared import Misuse, open_to_read
from workbench.errors import UserError
from workbench.kept_checkpoints import keep_checkpoint, list_checkpoints
from workbench.model_choice import (
    SHOWN_OF_ID,
    START_ROLES,
    default_reward,
    default_start,
    find_model,
    furthest_of_run,
    named,
)
from workbench.moved_runs import resume_run
from workbench.project import Project
from workbench.protocol import (
    AnyEvent,
    Cancel,
    Checkpoint,
    Command,
    Diverged,
    Metrics,
    Noted,
    Pause,
    Phase,
    Progress,
    Resume,
    SampleNow,
    SaveNow,
    Stop,
    Warned,
)
from workbench.recipes import methods_with
from workbench.records import ModelRecord, RunRecord, step_word
from workbench.run_folder import EventTail, RunFolder, RunStatus
from workbench.settings_fields import with_settings
from workbench.terminal import Terminal, in_age, in_bytes, in_time
from workbench.training import READ_ONLY, RunPlan, delete_run, plan_run, preset_for, refresh_runs, start_run

HEADLINES = (
    "loss",
    "eval_loss",
    "eval_accuracy",
    "rewards/accuracies",
    "rewards/margins",
    "eval_rewards/margins",
    "objective/scores",
    "objective/kl",
)


def train(options: argparse.Namespace, terminal: Terminal) -> int:
    """Plan a run, start it and follow it to its end."""
    if options.plan:
        with open_to_read(options.dir) as project:
            plan = _plan(project, options)
        plan = replace(plan, problems=tuple(one for one in plan.problems if one != READ_ONLY))  # planning only reads
        _say_plan(plan, terminal)
        return 1 if plan.errors else 0
    with Project.open(options.dir) as project:
        refresh_runs(project)
        plan = _plan(project, options)
        _say_plan(plan, terminal)
        run = start_run(project, plan)
    if options.detach:
        terminal.result({"run": run.id, "name": run.name}, f"Started {run.name!r}; `tastemaker watch` follows it.")
        return 0
    return follow(options.dir, run, terminal)


def _plan(project: Project, options: argparse.Namespace) -> RunPlan:
    models = project.store.models()
    start = (
        find_model(models, options.start, START_ROLES[options.method])
        if options.start
        else default_start(models, options.method)
    )
    if start is None:
        raise UserError(
            "There is nothing to train",
            "this project has no model yet",
            f"add one first: tastemaker model add {shlex.quote(str(options.dir))} demo",
        )
    settings = dict(options.set)
    standard = preset_for(project, options.method, options.preset, start.id, tuple(options.tag))
    try:
        recipe = with_settings(standard, settings, methods_with)
    except UserError as error:
        raise Misuse(error.what, error.cause, error.remedy) from error
    reward_id = ""
    if options.method == "ppo" and not settings.get("rule"):
        found = find_model(models, options.reward, ("reward",)) if options.reward else default_reward(models, start)
        reward_id = found.id if found else ""
    return plan_run(
        project,
        options.method,
        start_model_id=start.id,
        reward_model_id=reward_id,
        recipe=recipe,
        name=options.name,
        tags=tuple(options.tag),
    )


def _say_plan(plan: RunPlan, terminal: Terminal) -> None:
    if terminal.json:
        terminal.result(
            {
                "plan": plan.command_line,
                "problems": [asdict(one) for one in plan.problems],
                "memory_bytes": plan.estimate.memory_bytes,
                "memory_by_phase": {one.name: one.bytes for one in plan.estimate.phases},
                "memory_measured_last_time": plan.estimate.memory_last_bytes,
                "chosen": {name: getattr(plan.settled, name) for name in plan.automatic},
                "chosen_because": plan.chosen,
                "seconds": plan.estimate.seconds,
            }
        )
        return
    terminal.say(plan.summary)
    last = in_bytes(plan.estimate.memory_last_bytes) if plan.estimate.memory_last_bytes else ""
    if plan.estimate.memory_bytes:
        terminal.say(
            f"About {in_time(plan.estimate.seconds)} and {in_bytes(plan.estimate.memory_bytes)} of memory"
            f" ({in_bytes(plan.estimate.memory_available)} available"
            + (f", {last} measured last time)." if last else ").")
        )
        if plan.chosen:
            terminal.say(f"Chosen: {plan.chosen}.")
    for one in plan.problems:
        terminal.say(f"  {one.severity}: {one.message}" + (f" ({one.remedy})" if one.remedy else ""))


def follow(path: Path, run: RunRecord, terminal: Terminal) -> int:
    """Print a run's events until it ends. The first interrupt stops and saves it; a second one leaves at once."""
    folder = RunFolder(path / "runs" / run.id)
    tail = EventTail(folder.path)
    interrupted = False
    while True:
        try:
            status = folder.state()  # before the events: the last ones are read after the end is seen
            for event in tail.read_new():
                _say_event(event, status, run, terminal)
            if not status.alive:
                break
            time.sleep(0.2)
        except KeyboardInterrupt:
            if interrupted:
                raise
            interrupted = True
            terminal.say("Stopping at the end of this step and saving; press Ctrl+C again to leave at once.")
            supervisor.send(folder.path, Stop(save=True))
    with open_to_read(path) as project:
        made = model_of_run(project, run.id)
    return _say_end(path, run, folder.state(), made, terminal, interrupted=interrupted)


def _say_event(event: AnyEvent, status: RunStatus, run: RunRecord, terminal: Terminal) -> None:
    if terminal.json:
        terminal.result({"run": run.id, "event": event})
        return
    word = step_word(run.method)
    if isinstance(event, Phase):
        terminal.progress(run.method, -1 if status.total_steps == 0 else status.step / status.total_steps, event.name)
    elif isinstance(event, Progress):
        left = f"{in_time(event.eta_s)} left" if event.eta_s >= 0 else ""
        terminal.progress(run.method, event.step / max(1, event.total_steps), left)
    elif isinstance(event, Metrics):
        shown = [f"{key} {event.values[key]:.4g}" for key in HEADLINES if key in event.values]
        if shown:
            terminal.say(f"  {word} {event.step:>5}  " + "  ".join(shown))
    elif isinstance(event, Noted):
        terminal.say(f"  {event.message}")
    elif isinstance(event, Warned):
        terminal.say(f"  note: {event.message}" + (f" ({event.remedy})" if event.remedy else ""))
    elif isinstance(event, Diverged):
        terminal.say(f"  {event.metric} became {event.kind} at {word} {event.step}; rows {', '.join(event.rows)}")
    elif isinstance(event, Checkpoint):
        terminal.say(f"  checkpoint at {word} {event.step} ({in_bytes(event.bytes)})")


def _say_end(
    path: Path,
    run: RunRecord,
    status: RunStatus,
    made: ModelRecord | None,
    terminal: Terminal,
    *,
    interrupted: bool,
) -> int:
    terminal.done()
    data = {"run": run.id, "state": status.state, "step": status.step, "model": made.name if made else ""}
    if status.state == "done":
        terminal.result(data, f"Done: {run.name}. New model: {made.name!r}." if made else f"Done: {run.name}.")
        return 0
    detail = " ".join(part for part in (status.detail, status.cause, status.remedy) if part)
    again = f" Resume it with: tastemaker resume {shlex.quote(str(path))} {run.id[-SHOWN_OF_ID:]}"
    text = f"{run.name} {status.state} at {step_word(run.method)} {status.step}. {detail}" + (
        again if status.resumable else ""
    )
    terminal.result(data | {"detail": detail, "resumable": status.resumable}, text)
    return 130 if interrupted else 0 if status.state == "stopped" else 1


def model_of_run(project: Project, run_id: str) -> ModelRecord | None:
    """Return the model that a run ended with so far, or None."""
    return furthest_of_run(project.store.models(), run_id)


def runs(options: argparse.Namespace, terminal: Terminal) -> int:
    """List the runs, newest last; or delete one."""
    if options.delete:
        return _delete(options, terminal)
    with Project.open(options.dir, read_only=True) as project:
        records = refresh_runs(project)
        for one in records:
            status = RunFolder(project.run_dir(one.id)).state()
            data = asdict(one) | {"state": status.state, "step": status.step, "total_steps": status.total_steps}
            steps = f"{status.step}/{status.total_steps}" if status.total_steps else ""
            text = f"{one.id[-SHOWN_OF_ID:]}  {status.state:<11}  {one.method:<6}  {steps:>9}  {one.name}"
            terminal.result(data, text)
        if not records and not terminal.json:
            terminal.say("No runs yet.")
    return 0


def checkpoints(options: argparse.Namespace, terminal: Terminal) -> int:
    """List a run's sound checkpoints, newest first; or keep one as a model."""
    if options.keep is not None:
        with Project.open(options.dir) as project:
            run = named(refresh_runs(project), options.run, "run")
            made = keep_checkpoint(project, run, options.keep)
        terminal.result(asdict(made), f"Kept as the model {made.name!r} ({made.id[-SHOWN_OF_ID:]}).")
        return 0
    with open_to_read(options.dir) as project:
        run = named(refresh_runs(project), options.run, "run")
        found = list_checkpoints(project, run)
    for one in found:
        values = "  ".join(f"{part.key} {part.value:.4g}" for part in one.measured)
        kept = f"  kept as {one.model.name!r}" if one.model else ""
        text = (
            f"{step_word(run.method)} {one.step:>6}  {in_age(one.created_at)}  {in_bytes(one.model_bytes):>9}  {values}"
        )
        terminal.result(asdict(one), text.rstrip() + kept)
    if not found and not terminal.json:
        terminal.say("No checkpoint yet; `tastemaker save` writes one while the run is at work.")
    return 0


def _delete(options: argparse.Namespace, terminal: Terminal) -> int:
    with Project.open(options.dir) as project:
        run = named(refresh_runs(project), options.delete, "run", whole=True)
        delete_run(project, run.id)
    terminal.result({"deleted": run.id}, f"Deleted {run.name!r} and its folder.")
    return 0


def watch(options: argparse.Namespace, terminal: Terminal) -> int:
    """Follow a run from its first event."""
    return follow(options.dir, _run(options)[0], terminal)


def stop(options: argparse.Namespace, terminal: Terminal) -> int:
    """Save a run and end it at its step's end, or end it at once."""
    when = "ends now, without a checkpoint" if options.cancel else "saves and ends at the end of its step"
    return _command(options, terminal, Cancel() if options.cancel else Stop(save=True), "stopping", when)


def pause(options: argparse.Namespace, terminal: Terminal) -> int:
    """Let a run wait at its step's end until it is resumed."""
    return _command(options, terminal, Pause(), "pausing", "pauses at the end of its step; `tastemaker resume` goes on")


def save(options: argparse.Namespace, terminal: Terminal) -> int:
    """Let a run write a checkpoint and go on."""
    return _command(options, terminal, SaveNow(), "saving", "writes a checkpoint at the end of its step and goes on")


def sample_now(options: argparse.Namespace, terminal: Terminal) -> int:
    """Let a run draw samples and go on."""
    when = "draws samples at the end of its step and goes on; they are added to its samples.jsonl"
    return _command(options, terminal, SampleNow(), "sampling", when)


def _command(options: argparse.Namespace, terminal: Terminal, command: Command, key: str, what: str) -> int:
    run, folder = _run(options)
    status = folder.state()
    if not status.alive:
        remedy = "`tastemaker resume` takes it up again" if status.resumable else "there is nothing to do"
        raise UserError(f"{run.name!r} is not at work", f"it is {status.state} already", remedy)
    supervisor.send(folder.path, command)
    if status.state == "queued" and not folder.alive():
        what = "was taken out of the queue"
    terminal.result({"run": run.id, key: True}, f"{run.name!r} {what}.")
    return 0


def resume(options: argparse.Namespace, terminal: Terminal) -> int:
    """Let a paused run go on, or take up an ended one from its newest good checkpoint."""
    run, folder = _run(options)
    if folder.state().state == "paused":
        supervisor.send(folder.path, Resume())
    else:
        with Project.open(options.dir, read_only=True) as project:
            resume_run(project, run.id)
    if options.detach:
        terminal.result({"run": run.id, "resumed": True}, f"{run.name} goes on.")
        return 0
    return follow(options.dir, run, terminal)


def _run(options: argparse.Namespace) -> tuple[RunRecord, RunFolder]:
    """The run that the command names, and its folder. Raises UserError."""
    with Project.open(options.dir, read_only=True) as project:
        run = named(refresh_runs(project), options.run, "run")
        return run, RunFolder(project.run_dir(run.id))
