"""Samples for the eye, at the end and when they are asked for: answers to fixed prompts, or scores of fixed pairs."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import cast

from engine.adapters import Adapters
from engine.generate import generate
from engine.masking import prompt_ids
from engine.score import RewardModel, TooLong
from engine.session import Session
from workbench.errors import UserError
from workbench.protocol import Sample
from workbench.records import Message, Sampling, step_word
from workbench.rows import PairRow, PromptRow
from workbench.run_folder import Row

PROMPTS = 4
SCORED_PAIRS = 8
NEW_TOKENS = 64


def write_final_samples(session: Session, write: Callable[[], None]) -> None:
    """Write samples of the finished model, which is saved by now: what goes wrong here is told and takes nothing."""
    _try(session, write, "No samples were drawn from the finished model", "draw some in Compare")


def write_asked_samples(session: Session, step: int, write: Callable[[], None]) -> None:
    """Write samples of a run at work if the researcher asked for some."""
    if session.sample_asked():
        try_samples(session, step, write)


def try_samples(session: Session, step: int, write: Callable[[], None]) -> None:
    """Write samples of a run at work that somebody asked for: to look must never end what is looked at."""
    remedy = "training goes on; keep a checkpoint as a model and draw some in Compare"
    _try(session, write, f"No samples were drawn at {step_word(session.spec.method)} {step}", remedy)


def _try(session: Session, write: Callable[[], None], what: str, remedy: str) -> None:
    try:
        write()
    except (UserError, RuntimeError, MemoryError) as error:
        session.warn("samples", f"{what}: {error}", remedy)


def write_scored_pairs(session: Session, model: RewardModel, step: int, micro_batch: int) -> None:
    """Score both responses of the first held-out pairs (training pairs where none is held out) and keep the scores.

    Pairs of which a side does not fit into the window are passed over, as in training.
    """
    rows = iter(cast(list[PairRow], [*session.rows("heldout"), *session.rows("train")]))
    shown: list[tuple[PairRow, str, bool]] = []
    encoded: list[list[int]] = []
    while len(shown) < 2 * SCORED_PAIRS and (row := next(rows, None)) is not None:
        if not row.tier_distance:  # a tie has nothing to show
            continue
        sides = [(row, row.chosen, row.chosen_ended), (row, row.rejected, row.rejected_ended)]
        with contextlib.suppress(TooLong):
            encoded += [model.encode(row.prompt, text, ended=ended) for _, text, ended in sides]
            shown += sides
    scores = model.score_ids(encoded, micro_batch).tolist()
    session.write_samples(
        step,
        [
            Sample(
                step=step,
                prompt_id=row.group,
                prompt=_question(row.prompt),
                response=text,
                score=round(value, 5),
                ended=ended,
            )
            for (row, text, ended), value in zip(shown, scores, strict=True)
        ],
    )


def write_eval_samples(session: Session, adapters: Adapters, name: str, step: int) -> None:
    """Answer the first held-out prompts (the first training prompts where none is held out) and keep the answers.

    The same prompts and seeds at every step, so that answers can be compared over a run. Draws from generators of its
    own: training does not notice.
    """
    rows = _first_prompts([*session.rows("heldout"), *session.rows("train")])
    if not rows:
        return
    base = adapters.base
    length = min(NEW_TOKENS, base.context // 2)
    prompts = [prompt_ids(base.tokenizer, row.prompt, base.context - length)[0] for row in rows]
    sampling = Sampling(temperature=0.7, max_new_tokens=length, seed=session.recipe.seed)
    with adapters.use(name):
        answers = generate(base, prompts, sampling)
    ends = set(base.tokenizer.all_special_ids)
    samples = []
    for row, (answer, *_) in zip(rows, answers, strict=True):
        kept = [one for one in answer.ids if one not in ends]
        text = base.tokenizer.decode(kept)
        samples.append(
            Sample(
                step=step, prompt_id=_prompt_id(row), prompt=_question(row.prompt), response=text, ended=answer.ended
            )
        )
    session.write_samples(step, samples)


def _first_prompts(rows: Sequence[Row]) -> list[Row]:
    found: dict[tuple[Message, ...], Row] = {}
    for row in rows:
        found.setdefault(row.prompt, row)
        if len(found) == PROMPTS:
            break
    return list(found.values())


def _prompt_id(row: Row) -> str:
    return row.id if isinstance(row, PromptRow) else row.group


def _question(messages: Sequence[Message]) -> str:
    return next((one.content for one in reversed(messages) if one.role == "user"), "")
