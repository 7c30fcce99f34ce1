"""A model's card, written from its lineage: what it is, what it learned from, how it was measured, what to mind."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ui.times import moment
from ui.words import ROLE_WORDS
from workbench.errors import UserError
from workbench.metrics import GLOSSARY
from workbench.project import Project
from workbench.protocol import Metrics, RunSpec
from workbench.recipes import RECIPES
from workbench.records import METHODS, ModelRecord
from workbench.run_folder import RunFolder
from workbench.settings_fields import settings_of

METHOD_TITLES = {"sft": "SFT", "reward": "a reward model", "dpo": "DPO", "kto": "KTO", "ppo": "PPO"}
_SHOWN = (
    "eval_loss",
    "eval_accuracy",
    "eval_accuracy_low",
    "eval_accuracy_high",
    "eval_ece",
    "eval_rewards/accuracies",
    "eval_rewards/margins",
    "objective/scores",
    "eval_objective/scores",
    "objective/kl",
    "ppo/mean_length",
)


@dataclass(frozen=True, slots=True)
class Origin:
    """One model of the lineage and the run that made it, as far as its folder tells."""

    model: ModelRecord
    spec: RunSpec | None = None
    rows: Mapping[str, int] = field(default_factory=dict)  # by data file
    metrics: Mapping[str, float] = field(default_factory=dict)  # the last of each


def read_origins(project: Project, model: ModelRecord) -> list[Origin]:
    """Read a model's lineage, newest first, from the run folders; off the window's thread."""
    return [_origin(project, one) for one in project.lineage(model.id)]


def _origin(project: Project, model: ModelRecord) -> Origin:
    if not model.run_id:
        return Origin(model)
    try:
        folder = RunFolder(project.run_dir(model.run_id))
        spec = folder.spec()
    except (UserError, OSError):
        return Origin(model)
    paths = sorted((folder.path / "data").glob("*.jsonl"), key=lambda path: path.stem != "train")
    rows = {path.stem: _count_lines(path.read_bytes()) for path in paths}
    metrics: dict[str, float] = {}
    for event in folder.events():
        if isinstance(event, Metrics):
            metrics |= event.values
    return Origin(model, spec, rows, metrics)


def _count_lines(raw: bytes) -> int:
    return raw.count(b"\n")


def card(origins: Sequence[Origin]) -> str:
    """Write the card as Markdown, from the newest model down to its base."""
    model = origins[0].model
    base = origins[-1].model
    kind = ROLE_WORDS[model.role] + (" model" if model.role in ("base", "sft") else "")
    lines = [f"# {_plain(model.name)}", "", f"A {kind}"]
    if model.role != "base":
        lines[-1] += f": a LoRA adapter on **{_plain(base.name)}**"
    lines[-1] += "."
    if model.note:
        lines += ["", _plain(model.note)]
    if base.note and base is not model:
        lines += ["", f"Of the base: {_plain(base.note)}"]
    lines += ["", "## Where it comes from", ""]
    lines += [f"{number}. {_step(origin)}" for number, origin in enumerate(reversed(origins), 1)]
    measured = _measured(origins[0])
    if measured:
        lines += ["", "## How it measures", "", *measured]
    settings = _settings(origins[0])
    if settings:
        lines += ["", "## Settings that differ from the defaults", "", *settings]
    lines += ["", "## What to mind", "", *_cautions(model, origins)]
    lines += ["", "## Identity", "", f"- added {moment(model.created_at)}", f"- id `{model.id}`"]
    if model.sha256:
        lines.append(f"- fingerprint `{model.sha256}`")
    if base is not model and base.sha256:
        lines.append(f"- fingerprint of the base `{base.sha256}`")
    return "\n".join(lines) + "\n"


def _step(origin: Origin) -> str:
    model = origin.model
    name = f"**{_plain(model.name)}**"
    if model.role == "base":
        return f"{name}, {_source(model.source)}"
    if origin.spec is None:
        kind = "trained here; its run folder is gone" if model.run_id else f"imported from `{model.source}`"
        return f"{name}, {kind}"
    rows = ", ".join(f"{count:,} {_row_word(stem)}" for stem, count in origin.rows.items() if count)
    versions = ", ".join(f"{key} {value}" for key, value in origin.spec.versions.items() if key in ("torch", "peft"))
    told = f"{name}, {METHOD_TITLES[origin.spec.method]} in run {_plain(origin.spec.name)}, {model.step:,} steps"
    return told + (f", on {rows}" if rows else "") + (f" ({versions})" if versions else "")


def _row_word(stem: str) -> str:
    return {"train": "training rows", "heldout": "held-out rows", "demonstrations": "demonstrations"}.get(stem, stem)


def _source(source: str) -> str:
    if source == "demo":
        return "the demo model SmolLM2-135M-Instruct (Apache-2.0)"
    if source.startswith("hub:"):
        return f"downloaded from the hub: `{source.removeprefix('hub:')}`; its licence applies"
    return f"from `{source}`; its licence applies" if source else "source unknown"


def _measured(origin: Origin) -> list[str]:
    return [
        f"- {GLOSSARY[key].label}: {origin.metrics[key]:.4g} {GLOSSARY[key].unit}".rstrip()
        for key in _SHOWN
        if key in origin.metrics
    ]


def _settings(origin: Origin) -> list[str]:
    spec = origin.spec
    if spec is None or spec.method not in METHODS:
        return []
    found = []
    for one in settings_of(RECIPES[spec.method]):
        value = spec.recipe.get(one.name, one.default)
        if value != one.default and one.name not in spec.automatic:  # nobody changed what the memory plan chose
            found.append(f"- `{one.name}` {value} (default {one.default})")
    return found


def _cautions(model: ModelRecord, origins: Sequence[Origin]) -> list[str]:
    found = ["- It has the base's licence, knowledge and faults; training on taste adds no knowledge."]
    held_out = origins[0].rows.get("heldout", 0)
    if origins[0].spec is not None and not held_out:
        found.append("- Nothing was held out, so no number here says how it does on new prompts.")
    elif 0 < held_out < 50:
        found.append(f"- Measured on only {held_out} held-out rows: read the intervals, not the means.")
    if model.role == "reward":
        found.append("- Its score is a guess about one rater's taste, good only near the responses it has seen.")
    if model.role == "policy":
        found.append("- A higher score is not a better answer. Vote blind against its parent before relying on it.")
    if model.role == "sft":
        found.append("- It copies the form of its demonstrations, mistakes included.")
    return found


def _plain(text: str) -> str:
    """Keep a name from turning into markup."""
    for mark in "\\`*_[]<>#|":
        text = text.replace(mark, f"\\{mark}")
    return " ".join(text.split())
