"""Cards that are asked for by name, without Qt: a prompt's, or that of one label that a run was given."""

from __future__ import annotations

from dataclasses import dataclass

from ui.rank_choice import unjudged
from ui.rank_session import RankItem, load_item
from workbench.errors import UserError
from workbench.records import Ranking
from workbench.store import Store


@dataclass(frozen=True, slots=True)
class Opened:
    """A card, None where the prompt has fewer than two responses; and what is to be said of it, if anything."""

    item: RankItem | None
    said: str = ""


def open_prompt(store: Store, prompt_id: str, rater_id: str, ranking_id: str = "") -> Opened:
    """Read the card of a label to correct it, as it stands now; without one, what waits or else the newest ranking.

    A label that was corrected since is followed to its correction. May run on any thread.

    Args:
        store: the project's store.
        prompt_id: whose card.
        rater_id: who judges. Another rater's label cannot be corrected: the card is then that of the prompt.
        ranking_id: the label; "" for the prompt's card.

    Raises:
        UserError: the prompt is archived, where no label counts.
    """
    if store.prompt(prompt_id) is not None and not store.live_prompts([prompt_id]):
        raise UserError(
            "this prompt cannot be ranked",
            "it is archived, so that its labels count and train no more",
            "take its archiving back (Edit, Undo), or judge other prompts",
        )
    if not ranking_id:
        return Opened(load_waiting(store, prompt_id, rater_id))
    label = _as_it_stands(store, prompt_id, ranking_id)
    if label is not None and label.rater_id == rater_id:
        return Opened(load_again(store, label))
    if label is None:
        said = "The label was taken back since; this is the prompt's card as it is now."
    else:
        name = next((one.name for one in store.raters() if one.id == label.rater_id), "another rater")
        said = f"The label is by {name}, who alone can correct it; this is your own card of the prompt."
    return Opened(load_waiting(store, prompt_id, rater_id), said)


def load_waiting(store: Store, prompt_id: str, rater_id: str) -> RankItem | None:
    """Read the card of what waits for a rater; where nothing does, that of their newest ranking, to correct it."""
    judgements = store.rankings(prompt_id=prompt_id, rater_id=rater_id)
    ranked = [one for one in judgements if one.outcome == "ranked"]
    waits = bool(unjudged([one.id for one in store.responses(prompt_id)], judgements))
    return load_item(store, prompt_id, rater_id=rater_id, corrects=ranked[-1] if ranked and not waits else None)


def load_again(store: Store, ranking: Ranking) -> RankItem | None:
    """Read the card of a current ranking as its rater left it; what is saved then supersedes it."""
    ranked = ranking.outcome == "ranked"
    return load_item(
        store,
        ranking.prompt_id,
        rater_id=ranking.rater_id,
        corrects=ranking if ranked else None,
        places_of=None if ranked else ranking,
    )


def _as_it_stands(store: Store, prompt_id: str, ranking_id: str) -> Ranking | None:
    known = {one.id: one for one in store.rankings(prompt_id=prompt_id, include_superseded=True)}
    later = store.superseded_by()
    label = known.get(ranking_id)
    while label is not None and label.id in later:
        label = known.get(later[label.id])
    return label
