"""OpenAssistant's message trees: a conversation that branches, whose replies are ranked beside each other.

Source: oasst-data/oasst_data/schemas.py of LAION-AI/Open-Assistant (ExportMessageTree). ``rank`` 0 is the best reply;
an event of type "ranking" is one person's list of ids, the best first.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any

from workbench.formats.conversation import checked_prompt, text_of
from workbench.formats.parsed import RowError
from workbench.formats.tiers import Ranked, checked_tiers
from workbench.formats.values import kind
from workbench.records import ForeignModel, Message, ModelRecord, Prompt, Ranking, Response, Role

USED = frozenset({"message_tree_id", "tree_state", "prompt", "origin"})
_ROLES: dict[str, Role] = {"prompter": "user", "assistant": "assistant"}
_NAMES = {"user": "prompter", "assistant": "assistant"}


def read_tree(row: dict[str, Any]) -> list[Ranked]:
    """Read one tree: a ranking for every place where two or more replies of the assistant have ranks.

    Equal ranks are ties. Where replies have no rank, each ranking event of their parent is a ranking.
    """
    id_ = row.get("message_tree_id")
    found = list(_rankings(_node(row.get("prompt"), "prompt"), ()))
    if not found:
        raise RowError("no two replies of its assistant are ranked")
    if len(found) == 1 and isinstance(id_, str):
        found[0] = found[0]._replace(ranking_id=id_)
    return found


def _rankings(node: dict[str, Any], before: tuple[Message, ...]) -> Iterator[Ranked]:
    path = (*before, _message(node))
    replies = [one for one in _replies(node) if not one.get("deleted")]
    if path[-1].role == "user":
        answers = [one for one in replies if one.get("role") == "assistant"]
        events = _events(node)
        by_rank: defaultdict[int, list[str]] = defaultdict(list)
        for one in answers:
            if isinstance(one.get("rank"), int):
                by_rank[one["rank"]].append(_message(one).content)
        if sum(map(len, by_rank.values())) > 1:
            rater = events[0][1] if len(events) == 1 else ""
            tiers = checked_tiers(tuple(tuple(by_rank[rank]) for rank in sorted(by_rank)))
            yield Ranked(checked_prompt(path), tiers, rater)
        else:
            named = [(one.get("message_id"), _message(one).content) for one in answers]
            texts = {id_: text for id_, text in named if isinstance(id_, str) and id_}
            for order, rater in events:
                tiers = tuple((texts[id_],) for id_ in order if isinstance(id_, str) and id_ in texts)
                if len(tiers) > 1:
                    yield Ranked(checked_prompt(path), checked_tiers(tiers), rater)
    for one in replies:
        yield from _rankings(one, path)


def _events(node: dict[str, Any]) -> list[tuple[list[Any], str]]:
    """Each ranking event of a message: the ids, the best first, and who ranked them."""
    events = node.get("events")
    found = events.get("ranking") if isinstance(events, dict) else None
    return [
        (one["ranked_message_ids"], str(one.get("user_id") or ""))
        for one in (found if isinstance(found, list) else ())
        if isinstance(one, dict) and isinstance(one.get("ranked_message_ids"), list) and not one.get("not_rankable")
    ]


def _node(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise RowError(f'"{where}" is {kind(value)}, not a message')
    return value


def _replies(node: dict[str, Any]) -> list[dict[str, Any]]:
    replies = node.get("replies") or []
    if not isinstance(replies, list):
        raise RowError(f'"replies" is {kind(replies)}, not a list')
    return [_node(one, "replies") for one in replies]


def _message(node: dict[str, Any]) -> Message:
    role = _ROLES.get(str(node.get("role")))
    if role is None:
        raise RowError(f'a message has the role "{str(node.get("role"))[:40]}", not prompter or assistant')
    return Message(role, text_of(node.get("text"), "text"))


def write_tree(
    ranking: Ranking,
    prompt: Prompt,
    responses: Mapping[str, Response],
    rater: str,
    models: Mapping[str, ModelRecord | ForeignModel],
) -> dict[str, Any]:
    """Write a ranking as a tree of its own.

    The ranking list of whoever ranked is written beside the ranks where it has no ties, which such a list cannot say.

    Raises:
        RowError: fewer than two responses in order, or a system turn.
    """
    placed = [(id_, rank) for rank, tier in enumerate(ranking.tiers) for id_ in tier]
    if ranking.outcome != "ranked" or len(placed) < 2:
        raise RowError("it is no order of two responses")
    if any(message.role == "system" for message in prompt.messages):
        raise RowError("this format has no system turn")
    replies = [
        _written(id_, prompt.id, "assistant", responses[id_].text)
        | {"rank": rank, "synthetic": bool(responses[id_].model_id), "model_name": _model_name(responses[id_], models)}
        for id_, rank in placed
    ]
    tree: dict[str, Any] = {}
    for number, message in reversed(list(enumerate(prompt.messages))):
        last = number == len(prompt.messages) - 1
        id_ = prompt.id if last else f"{prompt.id}-{number}"
        parent = f"{prompt.id}-{number - 1}" if number else None
        tree = _written(id_, parent, _NAMES[message.role], message.content) | {"replies": replies if last else [tree]}
        if last and len(ranking.tiers) == len(placed):
            tree["events"] = {"ranking": [_event(ranking, prompt, [one for one, _ in placed], rater)]}
    return {
        "message_tree_id": ranking.id,
        "tree_state": "ready_for_export",
        "prompt": tree,
        "origin": "tastemaker",
        "tags": prompt.tags,
        "split": prompt.split,
        "source": prompt.source,
    }


def _written(id_: str, parent: str | None, role: str, text: str) -> dict[str, Any]:
    return {"message_id": id_, "parent_id": parent, "text": text, "role": role, "lang": None, "replies": []}


def _event(ranking: Ranking, prompt: Prompt, order: list[str], rater: str) -> dict[str, Any]:
    return {
        "type": "ranking",
        "user_id": rater,
        "ranking": list(range(len(order))),  # the replies are written in this order
        "ranked_message_ids": order,
        "ranking_parent_id": prompt.id,
        "message_tree_id": ranking.id,
        "not_rankable": False,
    }


def _model_name(response: Response, models: Mapping[str, ModelRecord | ForeignModel]) -> str | None:
    model = models.get(response.model_id)
    return model.name if model else None
