"""Commands that use a model: sample responses for ranking, score a file with a reward model."""

from __future__ import annotations

import argparse
import queue

from workbench.errors import UserError
from workbench.formats.reader import parse
from workbench.ids import new_id, now
from workbench.model_choice import find_model
from workbench.project import Project
from workbench.protocol import LAST_REPLIES, AnyReply, Failed, ResponseDone, SampleRequest, ScoreRequest, Scores
from workbench.records import Message, ModelRecord, Prompt, Response, Sampling
from workbench.serve_client import ServeClient
from workbench.terminal import Terminal

PROMPTS_A_REQUEST = 8


def sample(options: argparse.Namespace, terminal: Terminal) -> int:
    """Sample K responses to each prompt and keep them in the project, ready to be ranked."""
    if options.n < 1:
        raise UserError(f"--n must be at least 1, not {options.n}")
    project = Project.open(options.dir)
    client = ServeClient()
    try:
        model = find_model(project.store.models(), options.model)
        prompts = project.store.prompts(split=options.split, need="responses", limit=options.limit or 1_000_000)
        if not prompts:
            prompts = project.store.prompts(split=options.split, limit=options.limit or 1_000_000)
        sampling = Sampling(options.temperature, 1.0, 0, options.max_new_tokens, options.seed)
        count = 0
        for start in range(0, len(prompts), PROMPTS_A_REQUEST):
            chunk = prompts[start : start + PROMPTS_A_REQUEST]
            responses = draw(project, client, model, chunk, options.n, sampling)
            project.store.add_responses(responses).result()
            count += len(responses)
            terminal.progress("sampling", (start + len(chunk)) / len(prompts), f"{count} responses")
    finally:
        terminal.done()
        client.leave()
        project.close()
    terminal.result({"responses": count, "prompts": len(prompts)}, f"{count} responses to {len(prompts)} prompts.")
    return 0


def draw(
    project: Project, client: ServeClient, model: ModelRecord, prompts: list[Prompt], count: int, sampling: Sampling
) -> list[Response]:
    """Draw ``count`` responses to each prompt and return them as records. Raises UserError when the engine fails."""
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
                    sampling=sampling,
                    finish_reason="stop" if reply.finish_reason == "stop" else "length",
                    token_count=reply.token_count,
                    created_at=now(),
                )
            )
        elif isinstance(reply, Failed):
            raise UserError(reply.message, reply.cause, reply.remedy)
        elif isinstance(reply, LAST_REPLIES):
            return responses


def scores_of(
    project: Project, client: ServeClient, model: ModelRecord, rows: list[tuple[tuple[Message, ...], str]]
) -> Scores:
    """Score (prompt, response) rows with a reward model. Raises UserError when the engine fails."""
    request = ScoreRequest(id=new_id(), model=project.resolve(model), rows=tuple(rows))
    reply = client.call(request, timeout=60 + 30.0 * len(rows))
    if isinstance(reply, Scores):
        return reply
    if isinstance(reply, Failed):
        raise UserError(reply.message, reply.cause, reply.remedy)
    raise UserError("The engine gave an unexpected answer", type(reply).__name__, "update both parts of Tastemaker")


def score(options: argparse.Namespace, terminal: Terminal) -> int:
    """Score every row of a preferences, demonstrations or rankings file; one JSON line a row."""
    parsed = parse(options.file)
    rows: list[tuple[tuple[Message, ...], str]] = []
    labels: list[tuple[int, str]] = []
    for row in parsed.rows:
        sides = {"completion": row.completion, "chosen": row.chosen, "rejected": row.rejected}
        if row.ranking is not None:
            sides |= {one.id: one.text for one in row.ranking.responses}
        for side, text in sides.items():
            if text:
                rows.append((row.prompt, text))
                labels.append((row.line, side))
    if not rows:
        raise UserError(f"{options.file} has nothing to score", f"it holds {parsed.what}", "give a file with responses")
    project = Project.open(options.dir, read_only=True)
    client = ServeClient()
    try:
        model = find_model(project.store.models(), options.reward, ("reward",))
        found = scores_of(project, client, model, rows)
    finally:
        client.leave()
        project.close()
    lines: dict[int, dict[str, object]] = {}
    for index, (line, side) in enumerate(labels):
        lines.setdefault(line, {"line": line})[side] = found.scores[index]
    asked_json = Terminal(json=True)
    right = 0
    for data in lines.values():
        asked_json.result(data)
        right += "chosen" in data and float(str(data["chosen"])) > float(str(data["rejected"]))
    pairs = sum("chosen" in data for data in lines.values())
    if pairs and not terminal.json:
        terminal.say(f"# accuracy {right / pairs:.3f} on {pairs} pairs (model {model.name!r})")
    return 0
