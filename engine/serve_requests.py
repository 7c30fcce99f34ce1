"""What a serving process does for each kind of request."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar

from engine.generate import Cancelled, Completion, end_ids, generate
from engine.masking import Example, prompt_ids, sft_example
from engine.model_export import export_model
from engine.model_import import ImportCancelled, import_model
from engine.score import TooLong
from engine.serve import RequestCancelled, Ticket
from engine.serve_models import tokenizers, warm
from engine.templates import encode_pair, encode_prompt
from engine.text_stream import TextStream, decode, token_texts
from workbench.errors import UserError
from workbench.protocol import (
    AnyReply,
    CountTokensRequest,
    ExportModelRequest,
    Finished,
    Imported,
    ImportModelRequest,
    LogpsRequest,
    Rendered,
    RenderRequest,
    ResponseDone,
    SampleRequest,
    ScoreRequest,
    Scores,
    ServeProgress,
    Token,
    TokenCounts,
    TokenLogps,
)
from workbench.records import Message

T = TypeVar("T")
Row = tuple[tuple[Message, ...], str]
SCORE_ROWS = 8


class InTime(Protocol):
    """Runs something in the main thread, for a limited time."""

    def __call__(self, work: Callable[[], T], /) -> T:
        """Return what ``work`` returns."""


def carry_out(ticket: Ticket, in_time: InTime) -> AnyReply:
    """Do what a request asks and return its last reply; earlier replies are sent on the way."""
    match ticket.request:
        case SampleRequest() as request:
            return _sample(ticket, request, in_time)
        case ScoreRequest() as request:
            return _score(ticket, request, in_time)
        case LogpsRequest() as request:
            return _logps(ticket, request, in_time)
        case RenderRequest() as request:
            return _render(ticket, request, in_time)
        case CountTokensRequest() as request:
            return _count_tokens(ticket, request, in_time)
        case ImportModelRequest() as request:
            return _import(ticket, request)
        case ExportModelRequest() as request:
            return _export(ticket, request)
        case _:
            raise UserError("The engine has no answer to this request", type(ticket.request).__name__, "update it")


def _progress(ticket: Ticket) -> Callable[[str, float], None]:
    def say(what: str, fraction: float = -1.0) -> None:
        ticket.reply(ServeProgress(id=ticket.request.id, what=what, fraction=fraction))

    return say


def _say(ticket: Ticket) -> Callable[[str], None]:
    return lambda what: _progress(ticket)(what, -1.0)


# ---- what needs a model --------------------------------------------------------------------------------------


def _sample(ticket: Ticket, request: SampleRequest, in_time: InTime) -> AnyReply:
    _check_sampling(request)
    base, adapters, name = warm.policy(request.model, request.quantisation, _say(ticket))
    adapters.hold_halves(sampling=True)
    tokenizer = base.tokenizer
    room = max(1, base.context - min(request.sampling.max_new_tokens, base.context // 2))
    prompts = []
    for messages in request.prompts:
        ticket.check()
        ids, cut = in_time(lambda given=messages: prompt_ids(tokenizer, given, room))  # type: ignore[misc]
        prompts.append(ids)
        if cut:
            _say(ticket)(f"Prompt {len(prompts)} is longer than the context: its first {cut} tokens were left out")
    streams = {
        (prompt, response): TextStream(tokenizer) for prompt in range(len(prompts)) for response in range(request.count)
    }
    ends = set(end_ids(base))

    def on_token(prompt: int, response: int, token: int) -> None:
        if token not in ends and (text := streams[prompt, response].add(token)):
            ticket.reply(Token(id=request.id, prompt_index=prompt, response_index=response, text=text))

    def on_done(prompt: int, response: int, completion: Completion) -> None:
        if rest := streams.pop((prompt, response)).rest():
            ticket.reply(Token(id=request.id, prompt_index=prompt, response_index=response, text=rest))
        ticket.reply(
            ResponseDone(
                id=request.id,
                prompt_index=prompt,
                response_index=response,
                text=response_text(tokenizer, completion),
                finish_reason="stop" if completion.ended else "length",
                token_count=len(completion.ids),
                seed=completion.seed,
            )
        )

    try:
        with adapters.use(name):
            generate(
                base,
                prompts,
                request.sampling,
                count=request.count,
                on_token=on_token,
                on_done=on_done,
                cancelled=lambda: ticket.cancelled,
            )
    except Cancelled:
        raise RequestCancelled from None
    return Finished(id=request.id)


def response_text(tokenizer: Any, completion: Completion) -> str:
    """The text of a response, without what ended it."""
    ids = completion.ids[:-1] if completion.ended else completion.ids
    return decode(tokenizer, ids)


def _check_sampling(request: SampleRequest) -> None:
    given = request.sampling
    faults = [
        (given.temperature >= 0, "temperature must not be negative"),
        (0 < given.top_p <= 1, "top_p must be above 0 and at most 1"),
        (given.top_k >= 0, "top_k must not be negative"),
        (given.max_new_tokens >= 1, "max_new_tokens must be at least 1"),
        (request.count >= 1, "count must be at least 1"),
        (0 <= given.seed < 2**31, "seed must lie between 0 and 2147483647"),
    ]
    wrong = [message for fine, message in faults if not fine]
    if wrong:
        raise UserError("The responses cannot be drawn", "; ".join(wrong), "change the sampling settings")


def _score(ticket: Ticket, request: ScoreRequest, in_time: InTime) -> AnyReply:
    if not request.model.adapter:
        raise UserError(
            f"The model {request.model.name} gives no scores", "it is a base model", "choose a reward model"
        )
    if request.ended and len(request.ended) != len(request.rows):
        raise UserError(
            "The responses cannot be scored",
            f"of {len(request.rows)} rows {len(request.ended)} say whether they ended",
            "say it of each, or of none",
        )
    reward = warm.reward(request.model, request.quantisation, _say(ticket))
    encoded: dict[int, list[int]] = {}
    refused: dict[int, str] = {}
    for index, (messages, text) in enumerate(request.rows):
        ticket.check()
        encode = partial(reward.encode, messages, text, ended=request.ended[index] if request.ended else True)
        try:
            encoded[index] = in_time(encode)
        except TooLong as error:
            refused[index] = error.cause
    order = sorted(encoded, key=lambda index: -len(encoded[index]))
    scores: list[float | None] = [None] * len(request.rows)
    standardised, stds = list(scores), list(scores)
    for start in range(0, len(order), SCORE_ROWS):
        ticket.check()
        part = order[start : start + SCORE_ROWS]
        measured = reward.measure_ids([encoded[one] for one in part])
        for index, value, std in zip(part, measured.scores.tolist(), measured.stds.tolist(), strict=True):
            scores[index], standardised[index], stds[index] = value, reward.stats.standardise(value), std
        _progress(ticket)("Scoring", (start + len(part)) / len(order))
    return Scores(
        id=request.id,
        scores=tuple(scores),
        standardised=tuple(standardised),
        stds=tuple(stds) if reward.head.count > 1 else (),
        refused=refused,
    )


def _logps(ticket: Ticket, request: LogpsRequest, in_time: InTime) -> AnyReply:
    import torch

    base, adapters, name = warm.policy(request.model, request.quantisation, _say(ticket))
    texts: list[tuple[str, ...]] = []
    logps: list[tuple[float, ...]] = []
    for messages, text in request.rows:
        ticket.check()
        prompt, answer = in_time(lambda given=messages, said=text: encode_pair(base.tokenizer, given, said))  # type: ignore[misc]
        answer = answer[: max(0, base.context - len(prompt))]
        if not prompt or not answer:
            texts.append(())
            logps.append(())
            continue
        with torch.inference_mode():
            layout = adapters.lay_out([Example.plain([*prompt, *answer], len(prompt))])
            found, *_ = adapters.token_stats(name, layout)
        texts.append(tuple(token_texts(base.tokenizer, answer)))
        logps.append(tuple(found.tolist()))
        _progress(ticket)("Measuring", len(logps) / len(request.rows))
    return TokenLogps(id=request.id, tokens=tuple(texts), logps=tuple(logps))


# ---- what needs a tokenizer only -----------------------------------------------------------------------------


def _render(ticket: Ticket, request: RenderRequest, in_time: InTime) -> AnyReply:
    if request.train_on not in ("completion", "conversation"):
        raise UserError(f"There is no loss on {request.train_on!r}", "", "choose completion or conversation")
    tokenizer, note = tokenizers.get(request.model.base)
    limit = context_of(request.model.base)
    rows = []
    counts = []
    for messages, completion in request.rows:
        ticket.check()
        spans, count = in_time(
            lambda given=messages, said=completion: _spans(tokenizer, given, said, limit, request.train_on)  # type: ignore[misc]
        )
        rows.append(spans)
        counts.append(count)
    return Rendered(id=request.id, rows=tuple(rows), token_counts=tuple(counts), template_note=note)


def _spans(
    tokenizer: Any, messages: Sequence[Message], completion: str, limit: int, train_on: str
) -> tuple[tuple[tuple[str, bool], ...], int]:
    """Render one row as runs of text that are trained or not, and count its tokens."""
    if not completion:
        ids = encode_prompt(tokenizer, messages)
        return ((decode(tokenizer, ids, special=True), False),), len(ids)
    example = sft_example(tokenizer, messages, completion, limit, train_on)
    spans: list[tuple[str, bool]] = []
    start = 0
    for place in range(1, len(example.input_ids) + 1):
        if place == len(example.input_ids) or example.mask[place] != example.mask[start]:
            spans.append((decode(tokenizer, example.input_ids[start:place], special=True), example.mask[start]))
            start = place
    return tuple(spans), len(example.input_ids)


def _count_tokens(ticket: Ticket, request: CountTokensRequest, in_time: InTime) -> AnyReply:
    tokenizer, _ = tokenizers.get(request.model.base)

    def count(messages: Sequence[Message], completion: str) -> int:
        if not completion:
            return len(encode_prompt(tokenizer, messages))
        return sum(len(part) for part in encode_pair(tokenizer, messages, completion))

    counts = []
    for messages, completion in request.rows:
        ticket.check()
        counts.append(in_time(lambda given=messages, said=completion: count(given, said)))  # type: ignore[misc]
    return TokenCounts(id=request.id, counts=tuple(counts), context=context_of(request.model.base))


def context_of(folder: str) -> int:
    """The context of a base in tokens, from its configuration alone."""
    try:
        config = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"There is no model in {folder}", str(error), "import it again") from error
    config = config.get("text_config") or config
    return int(config.get("max_position_embeddings") or config.get("n_positions") or 2048)


def _export(ticket: Ticket, request: ExportModelRequest) -> AnyReply:
    say = _progress(ticket)

    def on_progress(what: str, fraction: float) -> None:
        ticket.check()
        say(what, fraction)

    done = export_model(
        request.model,
        Path(request.destination),
        request.what,
        on_progress,
        numbers=request.numbers,
        card=request.card,
    )
    return Finished(id=request.id, detail=done)


def _import(ticket: Ticket, request: ImportModelRequest) -> AnyReply:
    try:
        done = import_model(
            request.source,
            Path(request.destination),
            token=request.token,
            on_progress=_progress(ticket),
            cancelled=lambda: ticket.cancelled,
        )
    except ImportCancelled:
        raise RequestCancelled from None
    return Imported(
        id=request.id,
        path=str(done.path),
        parameters=done.parameters,
        sha256=done.sha256,
        template_note=done.template_note,
    )
