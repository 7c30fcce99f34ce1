"""A model's card, written from its lineage: what it is, what it learned from, how it was measured, what to mind.

The window shows it, and every export carries it as README.md with the front matter that the Hugging Face hub reads.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import PurePath

from workbench import comparisons
from workbench.errors import UserError
from workbench.metrics import GLOSSARY
from workbench.model_folders import HEADS_FILE
from workbench.project import Project
from workbench.protocol import RunSpec
from workbench.recipes import RECIPES
from workbench.records import METHODS, ROLE_WORDS, Method, ModelRecord, RunState
from workbench.run_folder import RunFolder, join_segments
from workbench.settings_fields import settings_of

METHOD_TITLES: dict[Method, str] = {
    "sft": "SFT",
    "reward": "a reward model",
    "dpo": "DPO",
    "kto": "KTO",
    "ppo": "PPO",
}
ROW_WORDS: dict[Method, str] = {
    "sft": "demonstrations",
    "reward": "pairs",
    "dpo": "pairs",
    "kto": "judged responses",
    "ppo": "prompts",
}
DEMO_ID, DEMO_LICENCE = "HuggingFaceTB/SmolLM2-135M-Instruct", "apache-2.0"
FEW_ROWS = 1000  # below so many trained rows the card says that they are few
FEW_HELD_OUT = 50
_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
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
    "eval_objective/scores_gain",
    "eval_objective/scores_gain_low",
    "eval_objective/scores_gain_high",
    "objective/kl",
    "ppo/mean_length",
)


@dataclass(frozen=True, slots=True)
class Origin:
    """One model of the lineage and the run that made it, as far as its folder tells."""

    model: ModelRecord
    spec: RunSpec | None = None
    rows: Mapping[str, int] = field(default_factory=dict)  # by data file, without its suffix
    metrics: Mapping[str, float] = field(default_factory=dict)  # the last of each, as measured up to the model's step
    state: RunState = "done"  # how its run ended
    run_step: int = 0  # how far its run went, which is further than the model where it is an earlier checkpoint
    votes: int = 0  # on prompts of comparisons in which it took part


def read_origins(project: Project, model: ModelRecord) -> list[Origin]:
    """Read a model's lineage, newest first, from the run folders; off the window's thread."""
    votes = sum(len(one.votes) for one in comparisons.listed(project.path) if model.id in one.header.model_ids)
    return [_origin(project, one, votes if one.id == model.id else 0) for one in project.lineage(model.id)]


def _origin(project: Project, model: ModelRecord, votes: int) -> Origin:
    if not model.run_id:
        return Origin(model, votes=votes)
    try:
        folder = RunFolder(project.run_dir(model.run_id))
        spec = folder.spec()
    except (UserError, OSError):
        return Origin(model, votes=votes)
    paths = sorted((folder.path / "data").glob("*.jsonl"), key=lambda path: path.stem != "train")
    rows = {path.stem: path.read_bytes().count(b"\n") for path in paths}
    metrics: dict[str, float] = {}
    run_step = model.step
    for measured in join_segments(folder.events()):
        run_step = max(run_step, measured.step)
        if measured.step <= model.step:
            metrics |= measured.values
    return Origin(model, spec, rows, metrics, folder.state().state, run_step, votes)


# ---- the file of an export -----------------------------------------------------------------------------------


def readme(origins: Sequence[Origin], what: str) -> str:
    """Write the README.md of an export: front matter, the card, and how to load it.

    Args:
        origins: the lineage, newest first.
        what: "adapter", "merged" or "gguf".
    """
    loading = f"## How to load it\n\n{_loading(origins, what)}"
    return f"---\n{front_matter(origins, what)}---\n\n{card(origins, what)}\n{loading}"


def front_matter(origins: Sequence[Origin], what: str) -> str:
    """Write the metadata that the hub reads, as YAML whose texts are quoted as JSON's are: only what is known."""
    model, base = origins[0].model, origins[-1].model
    tags = ["tastemaker", *dict.fromkeys(one.spec.method for one in origins if one.spec is not None)]
    found: dict[str, str] = {}
    if base_id := _base_id(base):
        found["base_model"] = base_id
    if model.role != "base":
        found["base_model_relation"] = "adapter" if what == "adapter" else "finetune"
        tags.insert(1, "lora")
    found["library_name"] = {"adapter": "peft", "gguf": "gguf"}.get(what, "transformers")
    if base.source == "demo":
        found["license"] = DEMO_LICENCE
    found["pipeline_tag"] = "text-classification" if model.role == "reward" else "text-generation"
    lines = [f"{key}: {json.dumps(value)}\n" for key, value in found.items()]
    return "".join([*lines, "tags:\n", *(f"- {json.dumps(tag)}\n" for tag in tags)])


def _base_id(base: ModelRecord) -> str:
    """What the hub calls the base; its name here where that could be one, else ""."""
    if base.source == "demo":
        return DEMO_ID
    name = base.source.removeprefix("hub:") if base.source.startswith("hub:") else base.name
    return name if _HUB_ID.fullmatch(name) else ""


def _loading(origins: Sequence[Origin], what: str) -> str:
    model, base = origins[0].model, origins[-1].model
    if what == "gguf":
        return "Give the `.gguf` file to llama.cpp or a program built on it; it holds the chat template.\n"
    kind, more = "AutoModelForCausalLM", ""
    if model.role == "reward":
        kind, more = "AutoModelForSequenceClassification", ", num_labels=1"
    code = [f"from transformers import {kind}, AutoTokenizer", ""]
    if what == "adapter":
        code.insert(0, "from peft import PeftModel")
        code.append(f"base = {kind}.from_pretrained({json.dumps(_base_id(base) or base.name)}{more})")
        code.append('model = PeftModel.from_pretrained(base, "FOLDER")')
    else:
        code.append(f'model = {kind}.from_pretrained("FOLDER"{more})')
        code.append('tokenizer = AutoTokenizer.from_pretrained("FOLDER")')
    said = f"The score of an ensemble is the mean of its heads, which are in `{HEADS_FILE}`.\n"
    return "\n".join(["```python", *code, "```", ""]) + (said if model.role == "reward" and what == "adapter" else "")


# ---- the card ------------------------------------------------------------------------------------------------


def card(origins: Sequence[Origin], what: str = "adapter") -> str:
    """Write the card as Markdown, from the newest model down to its base.

    Args:
        origins: the lineage, newest first.
        what: as what the model is shown or exported: "adapter", "merged" or "gguf".
    """
    model, base = origins[0].model, origins[-1].model
    kind = ROLE_WORDS[model.role] + (" model" if model.role in ("base", "sft") else "")
    lines = [f"# {_plain(model.name)}", "", f"A {kind}"]
    if model.role != "base":
        lines[-1] += ": a LoRA adapter on " if what == "adapter" else ": a LoRA adapter merged into "
        lines[-1] += f"**{_plain(base.name)}**"
    lines[-1] += "."
    if model.note:
        lines += ["", _plain(model.note)]
    if base.note and base is not model:
        lines += ["", f"Of the base: {_plain(base.note)}"]
    lines += ["", "## Where it comes from", ""]
    lines += [f"{number}. {_step(origin)}" for number, origin in enumerate(reversed(origins), 1)]
    for title, found in (
        ("How it measures", _measured(origins[0])),
        ("Settings that differ from the defaults", _settings(origins[0])),
        ("What to mind", _cautions(origins, what)),
        ("The data, as it was frozen", _data(origins)),
    ):
        if found:
            lines += ["", f"## {title}", "", *found]
    lines += ["", "## Identity", "", f"- added {_moment(model.created_at)}", f"- id `{model.id}`"]
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
        place = f"imported from {_code(_place(model.source))}"
        return f"{name}, {'trained here; its run folder is gone' if model.run_id else place}"
    spec = origin.spec
    rows = ", ".join(f"{count:,} {_row_word(stem)}" for stem, count in origin.rows.items() if count)
    wanted = ("tastemaker", "torch", "peft")
    versions = ", ".join(f"{key} {_plain(spec.versions[key])}" for key in wanted if key in spec.versions)
    told = f"{name}, {METHOD_TITLES[spec.method]} in run {_plain(spec.name)}, {model.step:,} steps"
    scored = f", scored by **{_plain(spec.reward.name)}**" if spec.reward is not None else ""
    return told + scored + (f", on {rows}" if rows else "") + (f" ({versions})" if versions else "")


def _row_word(stem: str) -> str:
    return {"train": "training rows", "heldout": "held-out rows", "demonstrations": "demonstrations"}.get(stem, stem)


def _source(source: str) -> str:
    if source == "demo":
        return "the demo model SmolLM2-135M-Instruct (Apache-2.0)"
    if source.startswith("hub:"):
        return f"downloaded from the hub: {_code(source.removeprefix('hub:'))}; its licence applies"
    return f"from {_code(_place(source))}; its licence applies" if source else "source unknown"


def _place(source: str) -> str:
    """The name of a file or folder, without where it lies: that is nobody's business where the card is read."""
    return PurePath(source).name


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
            found.append(f"- `{one.name}` {_plain(str(value))} (default {_plain(str(one.default))})")
    return found


def _data(origins: Sequence[Origin]) -> list[str]:
    """Each frozen data file of the lineage with its rows and sha256, so that the same labels can be told again."""
    return [
        f"- {_plain(one.spec.name)}, {_code(name)}: {one.rows.get(name.removesuffix('.jsonl'), 0):,} rows, "
        f"sha256 {_code(sha256)}"
        for one in origins
        if one.spec is not None
        for name, sha256 in one.spec.data_sha256.items()
    ]


def _cautions(origins: Sequence[Origin], what: str) -> list[str]:
    newest, base = origins[0], origins[-1].model
    role, spec = newest.model.role, newest.spec
    found = ["- It has the base's licence, knowledge and faults; training on taste adds no knowledge."]
    if spec is not None:
        count = newest.rows.get("train", 0)
        few = ": little to learn a taste from" if count < FEW_ROWS else ""
        found.append(f"- Trained on {count:,} {ROW_WORDS[spec.method]}{few}.")
        if newest.run_step > newest.model.step:
            found.append(
                f"- Its run went on to step {newest.run_step:,}: these are the weights of step {newest.model.step:,}, "
                "and the numbers here were measured no later."
            )
        elif newest.state != "done":
            found.append(f"- Its run did not reach its end (it is {newest.state}): these are the weights of that step.")
        found += _unmeasured(newest)
    if role == "reward":
        found.append("- Its score is a guess about one rater's taste, good only near the responses it has seen.")
    if role == "policy":
        found.append("- A higher score is not a better answer. Vote blind against its parent before relying on it.")
    if role == "sft":
        found.append("- It copies the form of its demonstrations, mistakes included.")
    if role in ("sft", "policy") and not newest.votes:
        found.append("- Nobody has compared its answers with another model's by vote.")
    if base.source == "demo" or base.source.lower().endswith(".gguf"):
        found.append("- Its base was unpacked from a GGUF file, whose weights had been quantised.")
    if what != "adapter" and spec is not None and spec.recipe.get("quantisation") == "nf4":
        found.append(
            "- It was trained on the base in 4 bits and merged into the base as it is: answers differ a little."
        )
    return found


def _unmeasured(newest: Origin) -> list[str]:
    held_out = newest.rows.get("heldout", 0)
    if not held_out:
        return ["- It was never validated: nothing was held out, so no number here says how it does on new prompts."]
    if not any(key.startswith("eval_") for key in newest.metrics):
        return [f"- It was never validated: its {held_out:,} held-out rows were not measured."]
    if held_out < FEW_HELD_OUT:
        return [f"- Measured on only {held_out} held-out rows: read the intervals, not the means."]
    return []


def _moment(at: str) -> str:
    """Say an ISO 8601 moment in UTC, to the minute: the card is read elsewhere too."""
    try:
        found = datetime.fromisoformat(at)
    except ValueError:
        return "at an unknown time"
    found = found if found.tzinfo else found.replace(tzinfo=UTC)
    return found.astimezone(UTC).strftime("%-d %b %Y, %H:%M UTC")


def _code(text: str) -> str:
    """Set a text in code, whose marks end only where it ends: the fence is longer than any run of backticks in it."""
    text = " ".join(text.split())
    fence = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{fence} {text} {fence}" if "`" in text else f"{fence}{text}{fence}"


def _plain(text: str) -> str:
    """Keep a name from turning into markup."""
    for mark in "\\`*_[]<>#|":
        text = text.replace(mark, f"\\{mark}")
    return " ".join(text.split())
