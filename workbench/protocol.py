"""What the workbench and the engine say to each other: run files, events and commands, all typed, in one place.

A run folder holds ``recipe.json`` (:class:`RunSpec`), ``events.jsonl`` (:data:`Event`, one a line, written by
the engine alone), ``samples.jsonl`` (:class:`Sample`) and ``exit.json`` (:class:`Exit`, written by the reaper).
Commands and, for a ``serve`` process, requests and replies travel as JSON lines over a private Unix socket.
Unknown fields are ignored; unknown event types are skipped, so a newer engine never breaks an older window.
"""

from __future__ import annotations

from typing import Any, cast

import msgspec

from workbench.jsonl import decode
from workbench.records import Message, Method, Sampling

PROTOCOL_VERSION = 1


class _Message(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", omit_defaults=True):
    pass


# ---- recipe.json -------------------------------------------------------------------------------------------


class ModelRef(msgspec.Struct, frozen=True, kw_only=True):
    """Where a model's files are. ``adapter`` is "" for the bare base."""

    model_id: str
    name: str
    base: str  # absolute folder of a Hugging Face model (safetensors)
    adapter: str = ""  # absolute folder of a peft adapter
    base_sha256: str = ""
    adapter_sha256: str = ""


class RunSpec(msgspec.Struct, frozen=True, kw_only=True):
    """``recipe.json``: everything a run needs and everything it takes to reproduce it."""

    run_id: str
    method: Method
    name: str
    recipe: dict[str, Any]  # the fields of workbench.recipes.RECIPES[method]
    model: ModelRef  # the start, and the frozen reference
    reward: ModelRef | None = None  # PPO's reward model; None when a rule scores
    tags: tuple[str, ...] = ()  # only prompts with one of these trained; all of them where it is empty
    automatic: tuple[str, ...] = ()  # settings of the recipe that the memory plan chose
    notes: tuple[str, ...] = ()  # sentences about it that the run says at its first start
    data_sha256: dict[str, str] = {}  # by file name under data/
    batch_of: str = ""  # what the recipe's batch counts: "rankings", or "rows"; "" of versions that counted rows alone
    versions: dict[str, str] = {}
    created_at: str = ""
    protocol: int = PROTOCOL_VERSION


class Exit(msgspec.Struct, frozen=True, kw_only=True):
    """``exit.json``: how the engine process ended, as its reaper saw it."""

    code: int | None  # exit status; None when a signal ended it
    signal: int | None = None
    peak_rss_bytes: int = 0  # of its last phase: the engine sets the mark back as a phase begins (see Memory)
    ended_at: str = ""
    reason: str = ""  # in plain words: "killed (signal 9): most likely out of memory"


# ---- events.jsonl ------------------------------------------------------------------------------------------


class Event(_Message, frozen=True, kw_only=True):
    """What every event carries: a number that only grows, and seconds since the run's first start."""

    seq: int = 0
    at: str = ""
    elapsed_s: float = 0.0


class Started(Event, frozen=True, kw_only=True, tag="started"):
    """A process took up the run; ``resumed_from`` is the step of the checkpoint, or -1 at a first start."""

    pid: int
    device: str
    resumed_from: int = -1
    available_bytes: int = 0  # that it may hold in all; 0 where that was not told
    total_steps: int = 0
    protocol: int = 1  # as long as it is 1 the line leaves it out, so the default must stay what it is
    versions: dict[str, str] = {}


class Phase(Event, frozen=True, kw_only=True, tag="phase"):
    """What the engine does now: loading, reference, training, rollout, score, update, evaluating, saving."""

    name: str
    detail: str = ""


class Progress(Event, frozen=True, kw_only=True, tag="progress"):
    """How far it is; ``eta_s`` is -1 while unknown."""

    step: int
    total_steps: int
    eta_s: float = -1.0


class Metrics(Event, frozen=True, kw_only=True, tag="metrics"):
    """Values at an optimiser step (a rollout for PPO), by the names in :mod:`workbench.metrics`. Never NaN."""

    step: int
    values: dict[str, float]


class Checkpoint(Event, frozen=True, kw_only=True, tag="checkpoint"):
    """A checkpoint is on disk and verified. ``path`` is relative to the run folder."""

    step: int
    path: str
    bytes: int = 0


class SampleBatch(Event, frozen=True, kw_only=True, tag="samples"):
    """``count`` rows were appended to samples.jsonl, from byte ``offset``."""

    step: int
    offset: int
    count: int


class Warned(Event, frozen=True, kw_only=True, tag="warning"):
    """Something the researcher should know; ``code`` names the kind (oom, rows-dropped, ratio, ...)."""

    code: str
    message: str
    remedy: str = ""


class Noted(Event, frozen=True, kw_only=True, tag="note"):
    """Something to know that is no fault: what the memory plan chose, what memory was measured."""

    code: str
    message: str


class Memory(Event, frozen=True, kw_only=True, tag="memory"):
    """What the process held at most so far, by phase (the names of :class:`Phase`), with the GPU's context left out."""

    peaks: dict[str, int]
    model_bytes: int = 0  # held when the model was loaded and the rows encoded, before the first step


class Diverged(Event, frozen=True, kw_only=True, tag="diverged"):
    """A loss or gradient was NaN or infinite; the run ends at its last good checkpoint."""

    step: int
    metric: str
    kind: str  # "nan" or "inf"
    rows: tuple[str, ...] = ()  # ids of the batch


class Paused(Event, frozen=True, kw_only=True, tag="paused"):
    """Training waits at a step's end; memory is held."""

    step: int


class Unpaused(Event, frozen=True, kw_only=True, tag="unpaused"):
    """Training goes on."""

    step: int


class Ended(Event, frozen=True, kw_only=True, tag="ended"):
    """The engine's own last word: done, stopped or failed. A killed process says nothing: see exit.json."""

    state: str  # "done", "stopped", "failed"
    step: int = 0
    message: str = ""  # one sentence
    cause: str = ""
    remedy: str = ""


AnyEvent = (
    Started
    | Phase
    | Progress
    | Metrics
    | Checkpoint
    | SampleBatch
    | Warned
    | Noted
    | Memory
    | Diverged
    | Paused
    | Unpaused
    | Ended
)


class Sample(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A row of samples.jsonl: one rollout (PPO) or evaluation sample, with per-token numbers where they exist."""

    step: int
    prompt_id: str
    prompt: str  # the last user turn
    response: str
    score: float | None = None
    kl: float | None = None  # nats, summed over the response
    ended: bool = True  # by EOS
    tokens: tuple[str, ...] = ()
    token_logps: tuple[float, ...] = ()
    token_kl: tuple[float, ...] = ()
    token_rewards: tuple[float, ...] = ()
    token_values: tuple[float, ...] = ()
    token_advantages: tuple[float, ...] = ()


# ---- commands to a training run ----------------------------------------------------------------------------


class Stop(_Message, frozen=True, kw_only=True, tag="stop"):
    """End at the next step's end; with ``save`` after a checkpoint that can be resumed."""

    save: bool = True


class Cancel(_Message, frozen=True, kw_only=True, tag="cancel"):
    """End at once, in mid-step, without saving."""


class Pause(_Message, frozen=True, kw_only=True, tag="pause"):
    """Wait at the next step's end."""


class Resume(_Message, frozen=True, kw_only=True, tag="resume"):
    """Go on after a pause."""


class SaveNow(_Message, frozen=True, kw_only=True, tag="save"):
    """Write a checkpoint at the next step's end and go on."""


class SampleNow(_Message, frozen=True, kw_only=True, tag="sample"):
    """Write evaluation samples at the next step's end."""


class Ping(_Message, frozen=True, kw_only=True, tag="ping"):
    """Ask for a :class:`Pong`."""


Command = Stop | Cancel | Pause | Resume | SaveNow | SampleNow | Ping


class Pong(_Message, frozen=True, kw_only=True, tag="pong"):
    """The answer to every command and, each second unasked, the heartbeat of a connected engine."""

    seq: int = 0  # newest event
    step: int = 0
    phase: str = ""
    error: str = ""  # why a command was refused
    answers: str = ""  # the command's tag; "" for a heartbeat


# ---- requests to a serve process ---------------------------------------------------------------------------


class Request(_Message, frozen=True, kw_only=True):
    """What every request carries; replies name the same id."""

    id: str


class SampleRequest(Request, frozen=True, kw_only=True, tag="sample-responses"):
    """Draw ``count`` responses to each prompt from one model; streamed as they come."""

    model: ModelRef
    prompts: tuple[tuple[Message, ...], ...]
    count: int = 1
    sampling: Sampling = Sampling()
    quantisation: str = "bf16"


class ScoreRequest(Request, frozen=True, kw_only=True, tag="score"):
    """Score each (prompt, response) with a reward model."""

    model: ModelRef
    rows: tuple[tuple[tuple[Message, ...], str], ...]
    ended: tuple[bool, ...] = ()  # of each row, False for a response that was cut off; () where all are whole
    quantisation: str = "bf16"


class LogpsRequest(Request, frozen=True, kw_only=True, tag="logps"):
    """Per-token log-probabilities of each response under a model."""

    model: ModelRef
    rows: tuple[tuple[tuple[Message, ...], str], ...]
    quantisation: str = "bf16"


class RenderRequest(Request, frozen=True, kw_only=True, tag="render"):
    """Render conversations through the model's chat template, with the loss mask as spans. Needs no weights."""

    model: ModelRef
    rows: tuple[tuple[tuple[Message, ...], str], ...]  # completion "" renders the prompt alone
    train_on: str = "completion"


class CountTokensRequest(Request, frozen=True, kw_only=True, tag="count-tokens"):
    """How many tokens each conversation has, and how many the context holds. Needs no weights."""

    model: ModelRef
    rows: tuple[tuple[tuple[Message, ...], str], ...]


class ImportModelRequest(Request, frozen=True, kw_only=True, tag="import-model"):
    """Bring a base model into the cache: convert a GGUF file, copy and check a folder, or download a hub id."""

    source: str  # folder, .gguf file, "hub:owner/name" or "demo"
    destination: str  # absolute folder in the cache that must not exist yet
    token: str = ""  # hub token, never logged


EXPORTS = ("adapter", "merged", "gguf")
GGUF_NUMBERS = ("f16", "bf16", "f32")


class ExportModelRequest(Request, frozen=True, kw_only=True, tag="export-model"):
    """Write a model as one folder: the peft adapter, the merged weights as safetensors, or these as a GGUF file."""

    model: ModelRef
    destination: str
    what: str = "adapter"  # one of EXPORTS
    numbers: str = "f16"  # of a GGUF file's matrices: one of GGUF_NUMBERS
    card: str = ""  # the text of README.md; "" for none


class CancelRequest(Request, frozen=True, kw_only=True, tag="cancel-request"):
    """Give up the request ``id``; its reply is :class:`Failed` with code "cancelled"."""


class Leave(Request, frozen=True, kw_only=True, tag="leave"):
    """End the process and give its memory back."""


AnyRequest = (
    SampleRequest
    | ScoreRequest
    | LogpsRequest
    | RenderRequest
    | CountTokensRequest
    | ImportModelRequest
    | ExportModelRequest
    | CancelRequest
    | Leave
)


class Reply(_Message, frozen=True, kw_only=True):
    """What every reply carries: the request it answers."""

    id: str


class ServeProgress(Reply, frozen=True, kw_only=True, tag="serve-progress"):
    """What a request is doing; ``fraction`` is -1 where unknown."""

    what: str
    fraction: float = -1.0


class Token(Reply, frozen=True, kw_only=True, tag="token"):
    """New text of one response being drawn: ``text`` is to be appended."""

    prompt_index: int
    response_index: int
    text: str


class ResponseDone(Reply, frozen=True, kw_only=True, tag="response"):
    """One response is whole."""

    prompt_index: int
    response_index: int
    text: str
    finish_reason: str  # "stop" or "length"
    token_count: int
    seed: int


class Scores(Reply, frozen=True, kw_only=True, tag="scores"):
    """Raw scores, in the order asked, and each in standard deviations of the calibration set (0 = its mean).

    None for a row that has no score; ``refused`` says why, by its place.
    """

    scores: tuple[float | None, ...]
    standardised: tuple[float | None, ...] = ()
    stds: tuple[float | None, ...] = ()  # over the heads of an ensemble, in raw score; () where the model has one head
    refused: dict[int, str] = {}


class TokenLogps(Reply, frozen=True, kw_only=True, tag="token-logps"):
    """Per row: the tokens of the response as text, and their log-probabilities in nats."""

    tokens: tuple[tuple[str, ...], ...]
    logps: tuple[tuple[float, ...], ...]


class Rendered(Reply, frozen=True, kw_only=True, tag="rendered"):
    """Per row: spans of rendered text, each with whether it is trained; and the token count."""

    rows: tuple[tuple[tuple[str, bool], ...], ...]
    token_counts: tuple[int, ...]
    template_note: str = ""  # said when the template is our stated default


class TokenCounts(Reply, frozen=True, kw_only=True, tag="token-counts"):
    """Tokens of each row, and the model's context."""

    counts: tuple[int, ...]
    context: int


class Imported(Reply, frozen=True, kw_only=True, tag="imported"):
    """A base model is in the cache."""

    path: str
    parameters: int
    sha256: str
    template_note: str = ""


class Finished(Reply, frozen=True, kw_only=True, tag="finished"):
    """The last reply to every request that succeeded and has no other last reply (sampling, export, leave)."""

    detail: str = ""


class Failed(Reply, frozen=True, kw_only=True, tag="failed"):
    """The last reply to a request that did not succeed."""

    message: str
    cause: str = ""
    remedy: str = ""
    code: str = "error"  # "error", "cancelled", "busy", "died"


AnyReply = (
    ServeProgress | Token | ResponseDone | Scores | TokenLogps | Rendered | TokenCounts | Imported | Finished | Failed
)
LAST_REPLIES = (Scores, TokenLogps, Rendered, TokenCounts, Imported, Finished, Failed)


def decode_event(line: bytes) -> AnyEvent | None:
    """Read an event line; None for a damaged line or a type that a newer engine speaks."""
    try:
        return cast(AnyEvent, msgspec.json.decode(line, type=AnyEvent, strict=False))
    except (msgspec.DecodeError, msgspec.ValidationError):
        return None


def decode_command(line: bytes) -> Command:
    """Read a command. Raises msgspec.ValidationError or DecodeError."""
    return cast(Command, msgspec.json.decode(line, type=Command))


def decode_request(line: bytes) -> AnyRequest:
    """Read a serve request. Raises msgspec.ValidationError or DecodeError."""
    return cast(AnyRequest, msgspec.json.decode(line, type=AnyRequest))


def decode_reply(line: bytes) -> AnyReply | None:
    """Read a serve reply; None for a type that a newer engine speaks."""
    try:
        return cast(AnyReply, msgspec.json.decode(line, type=AnyReply))
    except (msgspec.DecodeError, msgspec.ValidationError):
        return None


def decode_spec(raw: bytes) -> RunSpec:
    """Read recipe.json. Raises msgspec.ValidationError or DecodeError."""
    return decode(raw, RunSpec)
