"""What reading a file yields: rows that can be imported, rows that cannot with the reason, and warnings."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from workbench.records import ForeignModel, Message, Prompt, Ranking, Rater, Response, Split

What = Literal["prompts", "demonstrations", "preferences", "thumbs", "rankings"]
WHATS: tuple[What, ...] = ("prompts", "demonstrations", "preferences", "thumbs", "rankings")


class RowError(ValueError):
    """A row cannot be taken; its text is the plain reason that the researcher reads."""


@dataclass(frozen=True, slots=True)
class Rejected:
    """A row that was not taken. ``line`` is the line, or in a JSON array the row, counted from 1."""

    line: int
    reason: str
    excerpt: str


@dataclass(frozen=True, slots=True)
class NativeRanking:
    """A row of our own ranking file: the prompt, all of its responses, who judged, and the judgement."""

    prompt: Prompt
    responses: tuple[Response, ...]
    rater: Rater
    ranking: Ranking
    superseded_by: str = ""  # id of the ranking that took its place
    models: tuple[ForeignModel, ...] = ()  # that wrote the responses


@dataclass(frozen=True, slots=True)
class ImportRow:
    """One row that can be imported. Which fields are filled follows from :attr:`Parsed.what`."""

    line: int
    prompt: tuple[Message, ...]
    completion: str = ""
    chosen: str = ""
    rejected: str = ""
    desirable: bool | None = None  # whether the completion is wanted; None for a demonstration
    ranking: NativeRanking | None = None
    tiers: tuple[tuple[str, ...], ...] = ()  # of another program's ranking: the texts, the best tier first
    tags: tuple[str, ...] = ()
    split: Split | None = None  # None: the file does not say
    source: str | None = None  # None: the file does not say
    rater: str = ""  # name of the rater, or of a demonstration's author; "" when the file does not say
    ranking_id: str = ""  # of the ranking from which a preference was exported
    tier_distance: int = 1  # how many tiers lie from chosen to rejected there
    note: str = ""  # a remark on this row for the preview: what was inferred or is odd


@dataclass(slots=True)
class Parsed:
    """A whole file, read."""

    what: What
    format: str
    rows: list[ImportRow] = field(default_factory=list)
    rejected: list[Rejected] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    rejected_more: int = 0  # rows rejected beyond those that ``rejected`` lists
    numbered_by: Literal["line", "row"] = "line"  # what the numbers count: lines, or elements of a JSON array

    @property
    def rejected_count(self) -> int:
        """How many rows were rejected, listed or not."""
        return len(self.rejected) + self.rejected_more


@dataclass(frozen=True, slots=True)
class FormatInfo:
    """One file format, for the dialogs and the command line."""

    name: str
    title: str
    description: str
    extensions: tuple[str, ...]
    can_import: bool = True
    can_export: bool = True


def excerpt(value: object, length: int = 120) -> str:
    """Return the start of a row on one line, with control characters made visible."""
    text = value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
    shown = "".join(c if c.isprintable() else " " if c in "\r\n\t" else "�" for c in text[: length + 1])
    return shown[:length] + "…" if len(shown) > length else shown


FORMATS: dict[What, tuple[FormatInfo, ...]] = {
    "prompts": (
        FormatInfo(
            "jsonl",
            "JSON lines",
            'One JSON value a line: a string, {"prompt": …} or {"messages": […]}; also a JSON array of these',
            (".jsonl", ".json", ".jsonl.gz"),
        ),
        FormatInfo("text", "Plain text", "One prompt a line", (".txt", ".txt.gz"), can_export=False),
        FormatInfo(
            "csv",
            "CSV table",
            "A header with a prompt or instruction column; comma, semicolon or tab",
            (".csv", ".tsv", ".csv.gz"),
            can_export=False,
        ),
    ),
    "demonstrations": (
        FormatInfo(
            "messages",
            "Messages (OpenAI, TRL)",
            '{"messages": [{"role", "content"}, …]} whose last turn is the demonstration',
            (".jsonl", ".json", ".jsonl.gz"),
        ),
        FormatInfo(
            "alpaca",
            "Alpaca",
            "{instruction, input, output} and, where present, system and history",
            (".json", ".jsonl", ".csv", ".jsonl.gz"),
        ),
        FormatInfo(
            "sharegpt",
            "ShareGPT",
            '{"conversations": [{"from": "human", "value": …}, {"from": "gpt", …}], "system"}',
            (".json", ".jsonl", ".jsonl.gz"),
        ),
        FormatInfo(
            "prompt-completion",
            "Prompt and completion (TRL)",
            "{prompt, completion}, as strings or as message lists; written as message lists",
            (".jsonl", ".json", ".csv", ".jsonl.gz"),
        ),
        FormatInfo(
            "kiln",
            "Input and output (Kiln)",
            "{input, output} and, where present, tags; a reasoning column is not kept",
            (".csv", ".jsonl", ".json"),
            can_export=False,
        ),
        FormatInfo(
            "prompt-completion-plain",
            "Prompt and completion, plain text",
            "{prompt, completion} as strings; prompts of one user turn only",
            (".jsonl", ".jsonl.gz"),
            can_import=False,
        ),
    ),
    "preferences": (
        FormatInfo(
            "trl",
            "Prompt, chosen, rejected (TRL)",
            "{prompt, chosen, rejected}, as message lists or as strings; written as message lists",
            (".jsonl", ".json", ".csv", ".jsonl.gz"),
        ),
        FormatInfo(
            "plain",
            "Prompt, chosen, rejected, plain text",
            "{prompt, chosen, rejected} as strings; prompts of one user turn only",
            (".jsonl", ".jsonl.gz"),
            can_import=False,
        ),
        FormatInfo(
            "implicit",
            "Chosen and rejected with a shared start (TRL)",
            "{chosen, rejected} without a prompt: what both begin with is the prompt",
            (".jsonl", ".json", ".jsonl.gz"),
            can_export=False,
        ),
        FormatInfo(
            "hh",
            "HH transcripts (Anthropic)",
            "{chosen, rejected}, each a whole dialogue: \\n\\nHuman: … \\n\\nAssistant: …",
            (".jsonl", ".jsonl.gz"),
        ),
        FormatInfo(
            "sharegpt",
            "ShareGPT preferences (LLaMA-Factory)",
            '{"conversations": […], "chosen": {"from", "value"}, "rejected": {"from", "value"}}',
            (".json", ".jsonl", ".jsonl.gz"),
        ),
        FormatInfo(
            "alpaca",
            "Alpaca preferences (LLaMA-Factory)",
            "{instruction, input, chosen, rejected} and, where present, system and history",
            (".json", ".jsonl", ".csv", ".jsonl.gz"),
            can_export=False,
        ),
        FormatInfo(
            "h2o",
            "Answer and rejected_response (H2O LLM Studio)",
            "{prompt, answer or chosen_response, rejected_response} and, where present, system; no threads",
            (".csv", ".jsonl", ".json"),
            can_export=False,
        ),
    ),
    "thumbs": (
        FormatInfo(
            "trl",
            "Prompt, completion, label (TRL, unpaired)",
            "{prompt, completion, label}: label true for a wanted completion; written as message lists",
            (".jsonl", ".json", ".csv", ".jsonl.gz"),
        ),
        FormatInfo(
            "sharegpt",
            "ShareGPT with kto_tag (LLaMA-Factory)",
            '{"conversations": […], "kto_tag"}: the last turn is judged; kto_tag true where it is wanted',
            (".json", ".jsonl", ".jsonl.gz"),
        ),
        FormatInfo(
            "alpaca",
            "Alpaca with kto_tag (LLaMA-Factory)",
            "{instruction, input, output, kto_tag} and, where present, system and history",
            (".json", ".jsonl", ".csv", ".jsonl.gz"),
        ),
    ),
    "rankings": (
        FormatInfo(
            "native",
            "Tastemaker rankings",
            "Everything about each ranking: all responses, tiers with ties, flags, note, rater, order shown, ids",
            (".jsonl", ".jsonl.gz"),
        ),
        FormatInfo(
            "oasst",
            "Message trees (OpenAssistant)",
            "{message_tree_id, prompt: {text, role, replies}}: ranked replies; without flags, notes and times",
            (".jsonl", ".json", ".jsonl.gz"),
        ),
        FormatInfo(
            "argilla",
            "Records with a ranking question (Argilla)",
            '{"fields": {prompt, …}, "responses": {question: [{value, user_id}]}}; equal ranks are ties',
            (".json", ".jsonl"),
            can_export=False,
        ),
        FormatInfo(
            "label-studio",
            "Pairwise and Ranker (Label Studio)",
            '{"data": {prompt, answer1, answer2}} or {"data": {prompt, items}}, with "annotations"',
            (".json", ".jsonl"),
            can_export=False,
        ),
    ),
}


def format_info(what: What, name: str) -> FormatInfo | None:
    """Return the format of that name, or None."""
    return next((info for info in FORMATS[what] if info.name == name), None)
