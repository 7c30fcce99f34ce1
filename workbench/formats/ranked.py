"""Rankings of other annotation tools: whole orders of texts, made with their web pages and exported as JSON.

A task of theirs can hold the judgement of several people; each becomes a ranking of its own.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

from workbench.formats.conversation import checked_prompt, filled, is_turns, messages_of, text_of
from workbench.formats.oasst import USED as OASST_USED
from workbench.formats.oasst import read_tree
from workbench.formats.parsed import RowError
from workbench.formats.tiers import Ranked, Tiers, checked_tiers
from workbench.formats.values import kind
from workbench.records import Message

_PROMPTS = ("prompt", "instruction", "question", "text")
USED: dict[str, frozenset[str]] = {
    "oasst": OASST_USED,
    "argilla": frozenset(
        {
            "fields",
            "responses",
            "suggestions",
            "metadata",
            "vectors",
            "status",
            "_server_id",
            "inserted_at",
            "updated_at",
        }
    ),
    "label-studio": frozenset(
        {"data", "annotations", "drafts", "predictions", "meta", "project", "inner_id", "file_upload", "updated_by"}
        | {"updated_at", "total_annotations", "cancelled_annotations", "total_predictions", "comment_count"}
        | {"unresolved_comment_count", "last_comment_updated_at", "comment_authors"}
    ),
}


class _Order(NamedTuple):
    """One person's order of named texts."""

    tiers: tuple[tuple[str, ...], ...]
    rater: str


def read_argilla(row: dict[str, Any]) -> list[Ranked]:
    """Read a record of Argilla: texts in ``fields``, orders in ``responses`` under the name of a ranking question.

    An order is a list of field names, the best first, or of {value, rank}, where equal ranks are ties.
    """
    fields = _object(row, "fields")
    prompt = _prompt_of(fields, "fields")
    answers = {name: value for name, value in fields.items() if name not in _PROMPTS and isinstance(value, str)}
    found = [
        one
        for said in _object(row, "responses").values()
        for response in _list(said)
        if isinstance(response, dict) and (one := _argilla_order(response, answers))
    ]
    return _ranked(prompt, answers, found)


def _argilla_order(response: dict[str, Any], answers: dict[str, str]) -> _Order | None:
    """An order where the response is one: of a person who submitted it, to a question that ranks fields."""
    value = response.get("value")
    if response.get("status", "submitted") not in (None, "submitted") or not isinstance(value, list) or not value:
        return None
    by_rank: defaultdict[int, list[str]] = defaultdict(list)
    for place, one in enumerate(value):
        name, rank = (one.get("value"), one.get("rank", place)) if isinstance(one, dict) else (one, place)
        if not isinstance(name, str) or name not in answers or not isinstance(rank, int):
            return None
        by_rank[rank].append(name)
    return _Order(tuple(tuple(by_rank[rank]) for rank in sorted(by_rank)), _name(response.get("user_id")))


def read_label_studio(row: dict[str, Any]) -> list[Ranked]:
    """Read a task of Label Studio: two answers judged with Pairwise, or a list of items ordered with Ranker."""
    data = _object(row, "data")
    prompt = _prompt_of(data, "data")
    answers = _studio_answers(data)
    annotations = row.get("annotations")
    if not isinstance(annotations, list):
        raise RowError(f'"annotations" is {kind(annotations)}, not a list')
    found = [
        _Order(tiers, _name(one.get("completed_by")))
        for one in annotations
        if isinstance(one, dict) and not one.get("was_cancelled")
        for result in _list(one.get("result"))
        if isinstance(result, dict) and (tiers := _studio_order(result, list(answers)))
    ]
    return _ranked(prompt, answers, found)


def _studio_answers(data: dict[str, Any]) -> dict[str, str]:
    items = data.get("items")
    if isinstance(items, list) and items:
        found = {}
        for number, item in enumerate(items, 1):
            if not isinstance(item, dict) or not isinstance(item.get("id"), str | int):
                raise RowError(f'item {number} of data has no "id"')
            body = item.get("body") or item.get("title")
            found[str(item["id"])] = filled(text_of(body, "body"), f"text of item {number}")
        return found
    return {name: text_of(data.get(name), name) for name in ("answer1", "answer2")}


def _studio_order(result: dict[str, Any], names: list[str]) -> tuple[tuple[str, ...], ...]:
    value = result.get("value")
    if not isinstance(value, dict):
        return ()
    if result.get("type") == "pairwise" and len(names) == 2:
        sides = {"left": (names[:1], names[1:]), "right": (names[1:], names[:1])}
        return tuple(tuple(side) for side in sides.get(str(value.get("selected")), ()))
    if result.get("type") == "ranker":
        buckets = value.get("ranker")
        if not isinstance(buckets, dict) or len(buckets) != 1:
            raise RowError("its ranker has several buckets, whose order the file does not tell")
        (order,) = buckets.values()
        if not isinstance(order, list) or not {str(one) for one in order} <= set(names):
            raise RowError("its ranker names items that are not in its data")
        return tuple((str(one),) for one in order)
    return ()


def _ranked(prompt: tuple[Message, ...], answers: dict[str, str], orders: Iterable[_Order]) -> list[Ranked]:
    found = [Ranked(prompt, _texts(one.tiers, answers), one.rater) for one in orders if sum(map(len, one.tiers)) > 1]
    if not found:
        raise RowError("nobody has put two of its answers in order")
    return found


def _texts(tiers: tuple[tuple[str, ...], ...], answers: dict[str, str]) -> Tiers:
    return checked_tiers(tuple(tuple(answers[name] for name in tier) for tier in tiers))


def _prompt_of(fields: dict[str, Any], where: str) -> tuple[Message, ...]:
    name = next((name for name in _PROMPTS if fields.get(name)), None)
    if name is None:
        raise RowError(f'"{where}" has no prompt')
    if is_turns(fields[name]):
        return checked_prompt(messages_of(fields[name], name))
    return (Message("user", filled(text_of(fields[name], name), "prompt")),)


def _object(row: dict[str, Any], name: str) -> dict[str, Any]:
    value = row.get(name)
    if not isinstance(value, dict):
        raise RowError(f'"{name}" is {kind(value)}, not an object')
    return value


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]


def _name(user: Any) -> str:
    """Who judged: an id, or an object with one."""
    if isinstance(user, dict):
        user = user.get("email") or user.get("username") or user.get("id")
    return str(user) if isinstance(user, str | int) else ""


RANKING_READERS: dict[str, Callable[[dict[str, Any]], list[Ranked]]] = {
    "oasst": read_tree,
    "argilla": read_argilla,
    "label-studio": read_label_studio,
}


def could_be(row: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the format that a row is in, with the reason, where it is one of these."""
    if isinstance(row.get("prompt"), dict) and "message_tree_id" in row:
        yield "oasst", "the rows are message trees of OpenAssistant"
    elif isinstance(row.get("data"), dict) and isinstance(row.get("annotations"), list):
        yield "label-studio", 'the rows have "data" and "annotations", as Label Studio writes them'
    elif isinstance(row.get("fields"), dict) and isinstance(row.get("responses"), dict):
        yield "argilla", 'the rows have "fields" and "responses", as Argilla writes them'
