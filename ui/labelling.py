"""Sends what was seen in a comparison or a chat to the labels: the prompt, and the responses to rank."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass

from workbench.ids import new_id, now
from workbench.records import Change, Message, Prompt, Response, Sampling
from workbench.store import Store

READ_ONLY = "The project is open for reading only"
"""Why nothing can be sent to the labels."""


@dataclass(frozen=True, slots=True)
class Given:
    """One answer that a model gave."""

    text: str
    model_id: str
    model_name: str
    finish_reason: str = "stop"  # "length" or "stopped" (by hand) where it is not whole
    token_count: int = 0
    sampling: Sampling | None = None


def send(
    store: Store, messages: Sequence[Message], answers: Sequence[Given], *, source: str, prompt_id: str = ""
) -> tuple[str, Future[Change]]:
    """Add a prompt (where the project has none that says the same) with responses, as one act that undo takes back.

    Returns:
        The prompt's id, and the future of the commit.
    """
    if not prompt_id:
        same = store.find_duplicates(messages)
        prompt_id = same[0].id if same else ""
    prompts = []
    if not prompt_id:
        prompts = [Prompt(new_id(), tuple(messages), source=source, created_at=now())]
        prompt_id = prompts[0].id
    responses = [
        Response(
            new_id(),
            prompt_id,
            one.text,
            model_id=one.model_id,
            sampling=one.sampling,
            finish_reason="stop" if one.finish_reason == "stop" else "length",
            token_count=one.token_count,
            source=source,
            created_at=now(),
        )
        for one in answers
    ]
    if not prompts:
        return prompt_id, store.add_responses(responses)
    title = prompts[0].title
    label = f"Send “{title if len(title) <= 40 else title[:39] + '…'}” to labelling"
    return prompt_id, store.add_batch(prompts=prompts, responses=responses, label=label)
