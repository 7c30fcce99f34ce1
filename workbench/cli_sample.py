"""Commands that use a model: sample responses for ranking, score a file with a reward model."""

from __future__ import annotations

import argparse
import queue
import random
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace

from workbench.cli_data import SHOWN_REJECTED
from workbench.cli_shared import open_to_read
from workbench.errors import UserError
from workbench.formats.parsed import ImportRow, Parsed
from workbench.formats.reader import parse
from workbench.ids import new_id, now
from workbench.model_choice import START_ROLES, find_model
from workbench.preflight import many
from workbench.project import Project
from workbench.protocol import (
    LAST_REPLIES,
    AnyReply,
    Failed,
    ResponseDone,
    SampleRequest,
    ScoreRequest,
    Scores,
    ServeProgress,
)
from workbench.records import Message, ModelRecord, Prompt, Response, Sampling
from workbench.run_registry import refresh_runs
from workbench.serve_client import ServeClient
from workbench.statistics import wilson_of_groups
from workbench.terminal import Terminal

PROMPTS_A_REQUEST = 8
SCORES_A_REQUEST = 64
CHARACTERS_A_REQUEST = 4_000_000
SEED_LIMIT = 2**31
ScoreRow = tuple[tuple[Message, ...], str, bool]
"""A prompt, a response, and whether it ended: one that was cut off is scored without an end."""


def sample(options: argparse.Namespace, terminal: Terminal) -> int:
    """Sample K responses to each prompt and keep them in the project, ready to be ranked."""
    seed = random.getrandbits(31) if options.seed is None else options.seed
    sampling = Sampling(options.temperature, 1.0, 0, options.max_new_tokens, seed)
    drawn = kept = 0
    client = ServeClient()
    with Project.open(options.dir) as project:
        try:
            refresh_runs(project)
            model = find_model(project.store.models(), options.model, START_ROLES["ppo"])
            limit = options.limit or 1_000_000
            prompts = project.store.prompts(split=options.split, need="responses", limit=limit)
            prompts = prompts or project.store.prompts(split=options.split, limit=limit)
            for start in range(0, len(prompts), PROMPTS_A_REQUEST):
                chunk = prompts[start : start + PROMPTS_A_REQUEST]
                own = replace(sampling, seed=(seed + start * options.n) % SEED_LIMIT)  # as if all were one request
                responses = draw(project, client, model, chunk, options.n, own, terminal.say)
                drawn += len(responses)
                kept += keep(project, responses)
                terminal.progress("sampling", (start + len(chunk)) / len(prompts), f"{kept} responses")
        finally:
            terminal.done()
            client.leave()
    same = f" {drawn - kept} more said what another response says, and were left out." if drawn > kept else ""
    terminal.result(
        {"responses": kept, "repeated": drawn - kept, "prompts": len(prompts), "seed": seed},
        f"{many(kept, 'response')} to {many(len(prompts), 'prompt')} (seed {seed}).{same}",
    )
    return 0


def draw(
    project: Project,
    client: ServeClient,
    model: ModelRecord,
    prompts: Sequence[Prompt],
    count: int,
    sampling: Sampling,
    say: Callable[[str], None],
) -> list[Response]:
    """Draw ``count`` responses to each prompt and return them as records, each with the seed that draws it again.

    ``say`` is told what the engine says on the way, such as that a prompt was cut. Raises UserError when it fails.
    """
    request = SampleRequest(
        id=new_id(),
        model=project.resolve(model),
        prompts=tuple(one.messages for one in prompts),
        count=count,
        sampling=sampling,
    )
    replies: queue.SimpleQueue[AnyReply] = queue.SimpleQueue()
    client.request(request, replies.put)
    responses = []
    while True:
        reply = replies.get()
        if isinstance(reply, ResponseDone):
            responses.append(
                Response(
                    id=new_id(),
                    prompt_id=prompts[reply.prompt_index].id,
                    text=reply.text,
                    model_id=model.id,
                    sampling=replace(sampling, seed=reply.seed),
                    finish_reason="stop" if reply.finish_reason == "stop" else "length",
                    token_count=reply.token_count,
                    created_at=now(),
                )
            )
        elif isinstance(reply, ServeProgress):
            say(_with_title(reply.what, prompts))
        elif isinstance(reply, Failed):
            raise UserError(reply.message, reply.cause, reply.remedy)
        elif isinstance(reply, LAST_REPLIES):
            return responses


def _with_title(what: str, prompts: Sequence[Prompt]) -> str:
    """Name a prompt by its title where the engine counts within its request."""
    found = re.match(r"Prompt (\d+)\b", what)
    if not found or not 1 <= int(found[1]) <= len(prompts):
        return what
    return f"Prompt {prompts[int(found[1]) - 1].title!r}{what[found.end() :]}"


def keep(project: Project, responses: Sequence[Response]) -> int:
    """Save the responses that say something new of their prompt; returns how many. Two alike cannot be ranked."""
    known: dict[str, set[str]] = {}
    new = []
    for one in responses:
        if one.prompt_id not in known:
            known[one.prompt_id] = {old.text.strip() for old in project.store.responses(one.prompt_id)}
        if one.text.strip() not in known[one.prompt_id]:
            known[one.prompt_id].add(one.text.strip())
            new.append(one)
    if new:
        project.store.add_responses(new).result()
    return len(new)


def score(options: argparse.Namespace, terminal: Terminal) -> int:
    """Score every row of a preferences, demonstrations or rankings file; one JSON line a row.

    Where the reward model has several heads, ``std`` says of each side how far they are apart on it. A side that the
    engine cannot score is null. What is no row, the rejected rows, those nulls with their reason and the accuracy, goes
    to stderr; with ``--json`` it is a last object.
    """
    parsed = parse(options.file)
    sides = [(row.line, *one) for row in parsed.rows for one in _sides(row)]
    if not sides:
        raise UserError(
            f"There is nothing to score in {options.file}", f"it holds {parsed.what}", "give a file with responses"
        )
    with open_to_read(options.dir) as project:
        model = find_model(project.store.models(), options.reward, ("reward",))
        client = ServeClient()
        try:
            replies = [scores_of(project, client, model, part) for part in _chunks([row for _, _, row in sides])]
        finally:
            client.leave()
    unscored, first = [], 0
    for one in replies:
        places = [(sides[first + place], reason) for place, reason in sorted(one.refused.items())]
        unscored += [{"line": line, "side": side, "reason": reason} for (line, side, _), reason in places]
        first += len(one.scores)
    lines = _by_line(sides, [value for one in replies for value in one.scores])
    stds = [value for one in replies for value in one.stds]
    spreads = _by_line(sides, stds) if stds else {}
    rows_out = Terminal(json=True)
    for line, scores in lines.items():
        rows_out.result({"line": line} | scores | ({"std": spreads[line]} if spreads else {}))
    _sum_up(parsed, lines, unscored, model, terminal)
    return 0


def _by_line(
    sides: Sequence[tuple[int, str, ScoreRow]], values: Sequence[float | None]
) -> dict[int, dict[str, float | None]]:
    lines: dict[int, dict[str, float | None]] = {}
    for (line, side, _), value in zip(sides, values, strict=True):
        lines.setdefault(line, {})[side] = value
    return lines


def _sides(row: ImportRow) -> list[tuple[str, ScoreRow]]:
    """The responses of a row by name; only our own file of rankings knows of one that it was cut off."""
    sides = [("completion", row.completion, True), ("chosen", row.chosen, True), ("rejected", row.rejected, True)]
    if row.ranking is not None:
        sides += [(one.id, one.text, one.ended) for one in row.ranking.responses]
    return [(name, (row.prompt, text, ended)) for name, text, ended in sides if text]


def _chunks(rows: Sequence[ScoreRow]) -> Iterator[list[ScoreRow]]:
    """Cut rows into requests that the engine takes: its lines have a limit."""
    part: list[ScoreRow] = []
    size = 0
    for row in rows:
        length = len(row[1]) + sum(len(one.content) for one in row[0])
        if part and (len(part) >= SCORES_A_REQUEST or size + length > CHARACTERS_A_REQUEST):
            yield part
            part, size = [], 0
        part.append(row)
        size += length
    if part:
        yield part


def scores_of(project: Project, client: ServeClient, model: ModelRecord, rows: Sequence[ScoreRow]) -> Scores:
    """Score responses with a reward model. Raises UserError when the engine fails."""
    request = ScoreRequest(
        id=new_id(),
        model=project.resolve(model),
        rows=tuple((messages, text) for messages, text, _ in rows),
        ended=tuple(ended for *_, ended in rows),
    )
    reply = client.call(request, timeout=60 + 30.0 * len(rows))
    if isinstance(reply, Scores):
        return reply
    if isinstance(reply, Failed):
        raise UserError(reply.message, reply.cause, reply.remedy)
    raise UserError("The engine gave an unexpected answer", type(reply).__name__, "update both parts of Tastemaker")


def _sum_up(
    parsed: Parsed,
    lines: dict[int, dict[str, float | None]],
    unscored: Sequence[dict[str, object]],
    model: ModelRecord,
    terminal: Terminal,
) -> None:
    """Say how often the chosen side scored higher, and what was left out."""
    prompts = {row.line: row.prompt for row in parsed.rows}
    both = [(prompts[line], one.get("chosen"), one.get("rejected")) for line, one in lines.items()]
    judged = [(prompt, better > worse) for prompt, better, worse in both if better is not None and worse is not None]
    data: dict[str, object] = {"rows": len(lines), "rejected": [asdict(one) for one in parsed.rejected]}
    if unscored:
        data["unscored"] = list(unscored)
    aside = Terminal(stream=sys.stderr)
    if judged:
        accuracy, low, high = wilson_of_groups(judged)
        data |= {"pairs": len(judged), "accuracy": accuracy, "low": low, "high": high}
    if terminal.json:
        terminal.result({"summary": data})
        return
    for one in parsed.rejected[:SHOWN_REJECTED]:
        aside.say(f"  not scored, {parsed.numbered_by} {one.line}: {one.reason}")
    if parsed.rejected_count > SHOWN_REJECTED:
        aside.say(f"  and {parsed.rejected_count - SHOWN_REJECTED} more")
    for row in unscored:
        aside.say(f"  not scored, {parsed.numbered_by} {row['line']}, {row['side']}: {row['reason']}")
    if judged:
        of = f"{many(len(judged), 'pair')} of {many(len({prompt for prompt, _ in judged}), 'prompt')}"
        aside.say(f"accuracy {accuracy:.3f} (95 % {low:.3f} to {high:.3f}) on {of} (model {model.name!r})")
