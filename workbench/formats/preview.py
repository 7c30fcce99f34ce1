"""The first rows of a file as they were understood, and as the model's chat template will render them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from workbench.formats.checks import Repeats
from workbench.formats.parsed import ImportRow, Parsed
from workbench.protocol import ModelRef, Rendered, RenderRequest
from workbench.records import Message

Span = tuple[str, bool]  # text, and whether it is trained


@dataclass(frozen=True, slots=True)
class PreviewRow:
    """One row, read. A demonstration has a completion; a preference chosen and rejected; a prompt neither."""

    line: int
    prompt: tuple[Message, ...]
    completion: str = ""
    chosen: str = ""
    rejected: str = ""
    note: str = ""
    desirable: bool | None = None  # of a completion that was judged

    @property
    def answers(self) -> tuple[tuple[str, str], ...]:
        """The texts that follow the prompt, each with its field's name; a prompt alone has one, empty."""
        judged = "completion" if self.desirable is None else "wanted" if self.desirable else "unwanted"
        fields = ((judged, self.completion), ("chosen", self.chosen), ("rejected", self.rejected))
        return tuple((name, text) for name, text in fields if text) or (("prompt", ""),)


@dataclass(frozen=True, slots=True)
class RenderedAnswer:
    """One conversation of a preview row through the chat template."""

    name: str  # "prompt", "completion", "wanted", "unwanted", "chosen" or "rejected"
    spans: tuple[Span, ...]
    tokens: int


def preview(parsed: Parsed, limit: int = 5) -> list[PreviewRow]:
    """Show the first rows that can be imported, each with a note on what is odd about it."""
    repeats = Repeats()
    return [_preview(row, repeats.first(row), parsed.numbered_by) for row in parsed.rows[:limit]]


def render_request(rows: Sequence[PreviewRow], model: ModelRef, request_id: str) -> RenderRequest:
    """Ask the engine to render every conversation of a preview; needs no weights."""
    return RenderRequest(
        id=request_id, model=model, rows=tuple((row.prompt, text) for row in rows for _, text in row.answers)
    )


def rendered_rows(rows: Sequence[PreviewRow], reply: Rendered) -> list[tuple[RenderedAnswer, ...]]:
    """Give each preview row its part of the engine's reply to :func:`render_request`.

    Raises ValueError when the reply is of another request.
    """
    found = iter(zip(reply.rows, reply.token_counts, strict=True))
    names = [[name for name, _ in row.answers] for row in rows]
    if sum(map(len, names)) != len(reply.rows):
        raise ValueError(f"{len(reply.rows)} rendered conversations for {sum(map(len, names))} asked")
    return [tuple(RenderedAnswer(name, *next(found)) for name in row) for row in names]


def _preview(row: ImportRow, repeats: int, word: str) -> PreviewRow:
    notes = [row.note] if row.note else []
    if repeats:
        notes.append(f"repeats {word} {repeats}")
    chosen, rejected = row.chosen, row.rejected
    if row.ranking is not None:
        native = row.ranking
        texts = {response.id: response.text for response in native.responses}
        tiers = native.ranking.tiers
        tied = " with ties" if any(len(tier) > 1 for tier in tiers) else ""
        judged = f"{len(tiers)} tiers{tied}" if native.ranking.outcome == "ranked" else native.ranking.outcome
        notes.append(f"{len(texts)} responses, {judged}, by {native.rater.name}")
        if len(tiers) > 1:
            chosen, rejected = texts[tiers[0][0]], texts[tiers[-1][0]]
    if row.tiers:
        tied = " with ties" if any(len(tier) > 1 for tier in row.tiers) else ""
        notes.append(f"{sum(map(len, row.tiers))} responses, {len(row.tiers)} tiers{tied}")
        if len(row.tiers) > 1:
            chosen, rejected = row.tiers[0][0], row.tiers[-1][0]
    if row.split:
        notes.append(row.split)
    return PreviewRow(row.line, row.prompt, row.completion, chosen, rejected, "; ".join(notes), row.desirable)
