"""Our own ranking file: one judgement a line with everything that belongs to it, so that nothing is lost.

Each line holds the prompt, all of its responses with the model, sampling and seed that made them, who judged, the
tiers, flags, note, time, the order in which they were shown, and a sha256 of all this.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any, Literal

import msgspec

from workbench.formats.conversation import checked_prompt
from workbench.formats.parsed import NativeRanking, RowError
from workbench.formats.values import kind
from workbench.jsonl import encode
from workbench.records import (
    ForeignModel,
    ModelRecord,
    Outcome,
    Prompt,
    Ranking,
    Rater,
    Response,
    ResponseFlag,
    Sampling,
)

FORMAT = "tastemaker-ranking/1"
_INTEGER_LIMIT = 1 << 53
_ID_LIMIT = 128


class RankedModel(msgspec.Struct, frozen=True, kw_only=True):
    """The model that wrote a response, as far as another project can know it."""

    id: str
    name: str = ""
    sha256: str = ""


class RankedResponse(msgspec.Struct, frozen=True, kw_only=True):
    """One response of the prompt, judged or not."""

    id: str
    text: str
    model: RankedModel | None = None
    sampling: Sampling | None = None
    finish_reason: Literal["stop", "length", "imported", "written"] = "imported"
    token_count: int = 0
    source: str = ""
    created_at: str = ""


class RankingLine(msgspec.Struct, frozen=True, kw_only=True):
    """One line of the file; field by field :class:`workbench.records.Ranking` and what it refers to."""

    format: str = FORMAT
    id: str
    prompt: Prompt
    responses: tuple[RankedResponse, ...]
    rater: Rater
    tiers: tuple[tuple[str, ...], ...]
    outcome: Outcome = "ranked"
    flags: tuple[ResponseFlag, ...] = ()
    note: str = ""
    seconds: float = 0.0
    shown_order: tuple[str, ...] = ()
    blind: bool = True
    touched: bool = True
    supersedes: str = ""
    superseded_by: str = ""
    created_at: str = ""
    sha256: str = ""


def ranking_line(
    ranking: Ranking,
    prompt: Prompt,
    responses: Iterable[Response],
    rater: Rater,
    models: Mapping[str, ModelRecord | ForeignModel],
    superseded_by: str = "",
) -> RankingLine:
    """Make the line of a ranking, with its sha256."""
    line = RankingLine(
        id=ranking.id,
        prompt=prompt,
        responses=tuple(_ranked_response(response, models) for response in responses),
        rater=rater,
        tiers=ranking.tiers,
        outcome=ranking.outcome,
        flags=ranking.flags,
        note=ranking.note,
        seconds=ranking.seconds,
        shown_order=ranking.shown_order,
        blind=ranking.blind,
        touched=ranking.touched,
        supersedes=ranking.supersedes,
        superseded_by=superseded_by,
        created_at=ranking.created_at,
    )
    return msgspec.structs.replace(line, sha256=line_hash(line))


def line_hash(line: RankingLine) -> str:
    """The sha256 over every field of a line but itself."""
    return hashlib.sha256(encode(msgspec.structs.replace(line, sha256=""))).hexdigest()


def read_native(value: Any) -> NativeRanking:
    """Check a decoded line whole and make its records.

    Raises:
        RowError: another format or version, a missing or mistyped field, a wrong sha256, or tiers that do not fit
            the responses.
    """
    if not isinstance(value, dict):
        raise RowError(f"is {kind(value)}, not an object")
    name = value.get("format", FORMAT)
    if name != FORMAT:
        newer = isinstance(name, str) and name.startswith(FORMAT.split("/")[0])
        raise RowError(f'is of the format "{name}", which {"this version does not know" if newer else "is not ours"}')
    try:
        line = msgspec.convert(value, RankingLine)
    except msgspec.ValidationError as error:
        raise RowError(f"not a ranking: {_plain(str(error))}") from None
    _check(line)
    if line.sha256 and line.sha256 != line_hash(line):
        raise RowError("its sha256 does not match: the row was changed or damaged since its export")
    prompt_id = line.prompt.id
    responses = tuple(
        Response(
            id=one.id,
            prompt_id=prompt_id,
            text=one.text,
            model_id=one.model.id if one.model else "",
            sampling=one.sampling,
            finish_reason=one.finish_reason,
            token_count=one.token_count,
            source=one.source,
            created_at=one.created_at,
        )
        for one in line.responses
    )
    ranking = Ranking(
        id=line.id,
        prompt_id=prompt_id,
        rater_id=line.rater.id,
        tiers=line.tiers,
        outcome=line.outcome,
        flags=line.flags,
        note=line.note,
        seconds=line.seconds,
        shown_order=line.shown_order,
        blind=line.blind,
        touched=line.touched,
        supersedes=line.supersedes,
        created_at=line.created_at,
    )
    models = tuple(ForeignModel(one.model.id, one.model.name, one.model.sha256) for one in line.responses if one.model)
    return NativeRanking(line.prompt, responses, line.rater, ranking, line.superseded_by, models)


def is_record_id(id_: str) -> bool:
    """Whether a file's id can be ours: not empty, of sensible length, and without the colon that ids of pairs have."""
    return bool(id_) and ":" not in id_ and len(id_) <= _ID_LIMIT


def _ranked_response(response: Response, models: Mapping[str, ModelRecord | ForeignModel]) -> RankedResponse:
    model = models.get(response.model_id)
    return RankedResponse(
        id=response.id,
        text=response.text,
        model=RankedModel(id=model.id, name=model.name, sha256=model.sha256)
        if model
        else (RankedModel(id=response.model_id) if response.model_id else None),
        sampling=response.sampling,
        finish_reason=response.finish_reason,
        token_count=response.token_count,
        source=response.source,
        created_at=response.created_at,
    )


def _check(line: RankingLine) -> None:
    known = [response.id for response in line.responses]
    placed = [id_ for tier in line.tiers for id_ in tier]
    for id_ in (line.id, line.prompt.id, line.rater.id, *known):
        if not is_record_id(id_):
            raise RowError(f'has the unusable id "{id_[:40]}"')
    checked_prompt(line.prompt.messages)
    if not line.rater.name.strip():
        raise RowError("the rater has no name")
    if len(set(known)) != len(known):
        raise RowError("two responses have one id")
    if len(set(placed)) != len(placed):
        raise RowError("the tiers name a response twice")
    if line.outcome == "ranked" and (not placed or not all(line.tiers)):
        raise RowError("is ranked and yet has no tiers, or an empty one")
    if line.outcome != "ranked" and placed:
        raise RowError(f"is {line.outcome} and yet has tiers")
    named = {*placed, *line.shown_order, *(flag.response_id for flag in line.flags if flag.response_id)}
    if strange := sorted(named - set(known)):
        raise RowError(f'names the response "{strange[0][:40]}", which is not among its responses')
    if line.seconds < 0:
        raise RowError("has a negative time")
    for response in line.responses:
        numbers = [response.token_count]
        if response.sampling:
            numbers += [response.sampling.top_k, response.sampling.max_new_tokens, response.sampling.seed]
        if any(abs(number) >= _INTEGER_LIMIT for number in numbers):
            raise RowError("has a whole number that is too large")


def _plain(message: str) -> str:
    return message.replace("Object ", "").replace(" - at `$.", " (at ").replace("`", "")[:200] + (
        ")" if " - at `$." in message else ""
    )
