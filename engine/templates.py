"""Chat templates: from messages to text and token ids, the same for training, scoring, rollouts and serving.

Three rules hold everywhere:

* A conversation is rendered once, whole, by the model's own template and tokenised with
  ``add_special_tokens=False``: the template prints the one BOS, if there is one.
* A completion starts where the rendered conversation parts from its own generation prompt (their longest common
  prefix of token ids), since templates may render the two differently and tokens may merge over the boundary.
* **A completion ends at its end-of-turn token** (EOS), inclusive. What a template prints behind it (ChatML's
  newline) is never sampled in a rollout, so it is neither trained nor scored. A response that was cut off ends at
  its last word: an EOS there would teach to stop in mid-sentence, and no rollout that was cut off has one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from workbench.errors import UserError
from workbench.records import Message

DEFAULT_TEMPLATE = (
    "{% if bos_token is defined and bos_token and print_bos %}{{ bos_token }}{% endif %}"
    "{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>\\n' + message['content'] + eos_token + '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}"
)
"""Used, and said so, when a model brings no template: role lines, and every turn closed by the model's own EOS."""

DEFAULT_TEMPLATE_NOTE = (
    "This model brings no chat template. Turns are written as <|user|> and <|assistant|> lines, each closed by the "
    "model's end-of-text token; it is a base model and learns the form from your demonstrations."
)
_PROBE = (Message("user", "Hello"), Message("assistant", "Yes"))
_HALF_CHARACTER = "\ufffd"


@dataclass(frozen=True, slots=True)
class Ending:
    """How the template closes an assistant turn."""

    token: int  # the end-of-turn token: EOS of every completion
    suffix: tuple[int, ...]  # what the template prints behind it, e.g. ChatML's newline
    printed: bool  # False: the template closes no turn, and the token is appended by us
    bos: int | None = None  # what opens every sequence; None where a turn marker doubles as BOS (ChatML)
    text: str = ""  # all that the template prints behind an answer


def ensure_template(tokenizer: Any) -> str:
    """Give the tokenizer the stated default where it has no template. Returns the note to show, "" for none."""
    if getattr(tokenizer, "chat_template", None):
        return ""
    if not tokenizer.eos_token:
        raise UserError(
            "This model cannot be used for conversations",
            "its tokenizer has neither a chat template nor an end-of-text token",
            "choose a model that has one of them",
        )
    bos = "true" if _adds_bos(tokenizer) else "false"
    tokenizer.chat_template = DEFAULT_TEMPLATE.replace("print_bos", bos)
    return DEFAULT_TEMPLATE_NOTE


def render(tokenizer: Any, messages: Sequence[Message], *, generation_prompt: bool) -> str:
    """Render a conversation as text; with ``generation_prompt`` up to where the assistant's answer begins.

    Raises UserError when the template refuses the conversation (for instance a system turn it has no place for).
    """
    turns = [{"role": message.role, "content": message.content} for message in messages]
    try:
        return str(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=generation_prompt))
    except Exception as error:  # jinja raises its own kinds, and templates raise what they like
        roles = ", ".join(message.role for message in messages)
        raise UserError(
            f"The model's chat template refuses a conversation of the turns {roles}",
            str(error),
            "change the turns, for instance put the system message into the first user turn",
        ) from error


def encode_text(tokenizer: Any, text: str) -> list[int]:
    """Tokenise rendered text: no special tokens added, and never two BOS in a row."""
    ids: list[int] = list(tokenizer(text, add_special_tokens=False, return_attention_mask=False)["input_ids"])
    bos = tokenizer.bos_token_id
    if bos is not None and len(ids) > 1 and ids[0] == ids[1] == bos and bos != tokenizer.eos_token_id:
        return ids[1:]
    return ids


def encode_prompt(tokenizer: Any, messages: Sequence[Message]) -> list[int]:
    """Token ids of a prompt, up to where the assistant's answer begins."""
    return encode_text(tokenizer, render(tokenizer, messages, generation_prompt=True))


def encode_pair(
    tokenizer: Any, messages: Sequence[Message], completion: str, *, ended: bool = True, ending: str = "eos"
) -> tuple[list[int], list[int]]:
    """Token ids of a prompt and of its completion, its EOS included where it ``ended`` and was not cut off.

    ``ending="template"`` keeps what the template prints behind EOS, as TRL trains it; everything in Tastemaker
    uses ``"eos"``. Concatenated, the two are one render of the whole conversation.
    """
    end = end_of_turn(tokenizer)
    if not ended:
        completion = completion.rstrip(_HALF_CHARACTER)  # the cut went through it: its bytes cannot be had again
    text = render(tokenizer, [*messages, Message("assistant", completion)], generation_prompt=False)
    if not ended:
        text = _without_end(text, completion, end)
    whole = encode_text(tokenizer, text)
    start = common_prefix_length(encode_prompt(tokenizer, messages), whole)
    prompt, answer = whole[:start], whole[start:]
    if not ended:
        return prompt, answer
    if not end.printed:
        return prompt, [*answer, end.token]
    if ending == "eos":
        answer = _cut_behind_last(answer, end.token)
    return prompt, answer


def generation_gap(tokenizer: Any) -> str:
    """What the template adds to its generation prompt but not to a finished turn, "" for nothing.

    Rollouts then begin behind that text and trained completions before it (templates of thinking models do so).
    """
    asked = render(tokenizer, _PROBE[:1], generation_prompt=True)
    whole = render(tokenizer, _PROBE, generation_prompt=False)
    return asked[common_prefix_length(asked, whole) :]


def common_prefix_length(first: Sequence[object], second: Sequence[object]) -> int:
    """How many leading ids (or letters) two sequences share."""
    for index, (a, b) in enumerate(zip(first, second, strict=False)):
        if a != b:
            return index
    return min(len(first), len(second))


def end_of_turn(tokenizer: Any) -> Ending:
    """Find the token that closes an assistant turn, from one render of the template.

    It is the first special token (or EOS) behind the answer's text; the tokenizer's EOS where the template
    prints none. Cached on the tokenizer, by template.
    """
    template = tokenizer.chat_template
    cached: tuple[Any, Ending] | None = getattr(tokenizer, "_tastemaker_ending", None)
    if cached is not None and cached[0] == template:
        return cached[1]
    text = render(tokenizer, _PROBE, generation_prompt=False)
    whole = encode_text(tokenizer, text)
    prompt = encode_prompt(tokenizer, _PROBE[:1])
    start = common_prefix_length(prompt, whole)
    bos = tokenizer.bos_token_id
    if bos is None or bos == tokenizer.eos_token_id or prompt[:1] != [bos] or prompt.count(bos) != 1:
        bos = None
    behind = text.rpartition(_PROBE[-1].content)[2]
    special = set(tokenizer.all_special_ids) | {
        index for index, token in getattr(tokenizer, "added_tokens_decoder", {}).items() if token.special
    }
    found = next((place for place in range(start, len(whole)) if whole[place] in special), None)
    if found is not None:
        ending = Ending(whole[found], tuple(whole[found + 1 :]), True, bos, behind)
    elif tokenizer.eos_token_id is not None:
        ending = Ending(int(tokenizer.eos_token_id), (), False, bos, behind)
    else:
        raise UserError(
            "This model cannot be trained to stop",
            "its chat template closes no turn and its tokenizer has no end-of-text token",
            "choose a model that has one of them",
        )
    tokenizer._tastemaker_ending = (template, ending)
    return ending


def stop_ids(tokenizer: Any) -> tuple[int, ...]:
    """Token ids at which sampling stops: the end of an assistant turn, and the tokenizer's EOS."""
    ids = [end_of_turn(tokenizer).token]
    if tokenizer.eos_token_id is not None and tokenizer.eos_token_id not in ids:
        ids.append(int(tokenizer.eos_token_id))
    return tuple(ids)


def _without_end(text: str, completion: str, end: Ending) -> str:
    """A rendered conversation up to the last letter of its answer, space that the template trims there included."""
    text = text.removesuffix(end.text)
    space = completion[len(completion.rstrip()) :]
    return text if text.endswith(space) else text + space


def _cut_behind_last(ids: list[int], token: int) -> list[int]:
    for place in range(len(ids) - 1, -1, -1):
        if ids[place] == token:
            return ids[: place + 1]
    return [*ids, token]


def _adds_bos(tokenizer: Any) -> bool:
    plain = tokenizer("x")["input_ids"]
    return tokenizer.bos_token_id is not None and len(plain) > 1 and plain[0] == tokenizer.bos_token_id
