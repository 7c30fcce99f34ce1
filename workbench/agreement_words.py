"""What the consistency of the labels means, in words: for the window and the command line."""

from __future__ import annotations

from dataclasses import dataclass

from workbench.agreement import Agreement, Comparison, Rate
from workbench.preflight import many

RELIABLE, TENTATIVE = 0.8, 0.667
"""Krippendorff's own bounds: above the first data are reliable, between them only for tentative conclusions."""

PEER = 0.73
"""How often InstructGPT's labellers agreed with each other (Ouyang et al. 2022, section 3.4)."""

NOISY = 0.3
"""More labels flipped than this, and two answers to one pair agree in fewer than 58 % of the cases: nearly a coin."""

ENOUGH_PROMPTS = 20
"""Fewer prompts than this say little, whatever the share: the interval is some 40 points wide."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is told of the labels."""

    key: str
    title: str
    number: str  # "" where there is no evidence
    evidence: str  # what the number says, with its interval; or what is missing
    advice: str  # what to do
    tone: str = ""  # good, warn, or "" for neither
    rate: Rate | None = None


def findings(told: Agreement) -> list[Finding]:
    """Return what there is to say, the most telling first; also of what there is no evidence for yet."""
    return [_raters(told), _oneself(told), _ceiling(told), _position(told), _length(told), _ties(told)]


def spread(one: Rate) -> str:
    """Say a share's interval and what it rests on."""
    return f"{one.low:.0%} to {one.high:.0%} with 95% confidence, {of_pairs(one)}"


def of_pairs(one: Rate) -> str:
    """Say how much a share rests on."""
    return f"from {many(one.pairs, 'pair')} of {many(one.prompts, 'prompt')}"


def kinds(told: Comparison) -> str:
    """Say how two answers to the same pairs meet."""
    return (
        f"{told.same:,} the same way, {told.opposite:,} the opposite way, "
        f"{told.one_tied:,} where one ties and one does not, {told.both_tied:,} both tied"
    )


def beyond_chance(told: Comparison, name: str) -> str:
    """Say kappa or alpha with its interval."""
    if told.beyond_chance is None:
        return f"{name} says nothing here: by chance they would agree as well"
    return f"{name} {told.beyond_chance:.2f} ({told.low:.2f} to {told.high:.2f}), where 0 is chance and 1 perfect"


def _raters(told: Agreement) -> Finding:
    key, title = "raters", "Raters with each other"
    one = told.between
    if one is None:
        who = "nobody has ranked anything" if not told.raters else "no pair of responses was judged by two raters"
        return Finding(
            key,
            title,
            "",
            f"Not known: {who} yet.",
            "Let somebody else rank some of the same prompts under their own name, or import their rankings.",
        )
    evidence = f"{spread(one.exact)}: {kinds(one)}. {beyond_chance(one, 'Krippendorff’s alpha')}."
    alpha = one.beyond_chance
    if one.exact.prompts < ENOUGH_PROMPTS:
        advice, tone = f"Judge at least {ENOUGH_PROMPTS} prompts twice before you act on this.", ""
    elif alpha is None or alpha >= RELIABLE:
        advice, tone = "The raters mean the same by better: their labels can train one model together.", "good"
    elif alpha >= TENTATIVE:
        advice, tone = "Good enough to train on together; talk about the pairs where you differ.", ""
    else:
        advice, tone = (
            (
                "A model trained on all of them learns an average taste: write down what better means, and rank again. "
                f"(InstructGPT’s labellers agreed in {PEER:.0%} of the pairs.)"
            ),
            "warn",
        )
    return Finding(key, title, f"{one.exact.share:.0%}", evidence, advice, tone, one.exact)


def _oneself(told: Agreement) -> Finding:
    key, title = "oneself", "One rater, asked twice"
    one = told.oneself
    if one is None:
        return Finding(
            key,
            title,
            "",
            "Not known: no card was asked for twice yet.",
            "Go on ranking: now and then Rank brings an earlier card back, shuffled anew and without the old answer.",
        )
    evidence = (
        f"{spread(one.exact)}, {many(told.re_asked, 'card')} asked twice: {kinds(one)}. "
        f"{beyond_chance(one, 'Cohen’s kappa')}."
    )
    if one.exact.prompts < ENOUGH_PROMPTS:
        advice, tone = f"Go on: {ENOUGH_PROMPTS} cards asked twice begin to say something.", ""
    elif one.beyond_chance is not None and one.beyond_chance < TENTATIVE:
        advice, tone = "Rank in shorter sittings, tie what you cannot tell apart, and note your rules.", "warn"
    else:
        advice, tone = "You know what you like: more labels pay more than more care.", "good"
    return Finding(key, title, f"{one.exact.share:.0%}", evidence, advice, tone, one.exact)


def _ceiling(told: Agreement) -> Finding:
    key, title = "ceiling", "Ceiling of a reward model"
    noise = told.noise
    if noise is None:
        return Finding(
            key,
            title,
            "",
            "Not known: it follows from how often the same pair is judged the same way twice.",
            "Until then read a reward model’s accuracy against a coin’s 50%, not against 100%.",
        )
    agreed = 1 - 2 * noise.flips * (1 - noise.flips)
    who = "One rater asked twice agrees" if noise.source == "re-asks" else "Raters agree, if they share one taste,"
    evidence = (
        f"{1 - noise.high:.0%} to {1 - noise.low:.0%}. {who} in {agreed:.0%} of the preferences, as if "
        f"{noise.flips:.1%} of the labels were flipped by chance; no model can be expected to agree with more than "
        "the rest."
    )
    if noise.flips < 0.01:
        return Finding(key, title, f"{noise.ceiling:.0%}", evidence, "The labels hold a model back no further.", "good")
    if noise.flips > NOISY:
        advice = "So many flips cost more than smoothing can mend: write down what better means, and rank again."
        return Finding(key, title, f"{noise.ceiling:.0%}", evidence, advice, "warn")
    advice = f"Try label_smoothing {noise.flips:.2f} for the reward model, and for DPO with it loss_type robust."
    return Finding(key, title, f"{noise.ceiling:.0%}", evidence, advice)


def _position(told: Agreement) -> Finding:
    key, title, one, every = "position", "The one shown first wins", told.first_wins, told.earlier_wins
    if one is None:
        return Finding(
            key,
            title,
            "",
            "Not known: of no ranking is it known in which order its responses were shown.",
            "Rank here, where the order is shuffled and kept; files of pairs do not tell it.",
        )
    evidence = f"{spread(one)}, against a fair 50%."
    if every is not None and every.pairs > one.pairs:
        evidence += (
            f" Of any two, the one shown earlier wins in {every.share:.0%} ({every.low:.0%} to {every.high:.0%})."
        )
    where = "first" if one.share > 0.5 else "last"
    swayed = (
        f"What is shown {where} is preferred: read every response before you place one. Where the order of an import "
        "followed its ranking, this says nothing."
    )
    return _sway(key, title, one, evidence, "No sign that the place decides.", swayed)


def _length(told: Agreement) -> Finding:
    key, title, one = "length", "The longer one wins", told.longer_wins
    if one is None:
        return Finding(
            key,
            title,
            "",
            "Not known: no two responses of different length were ranked yet.",
            "Rank some prompts first.",
        )
    evidence = f"{spread(one)}, of different length in characters."
    what = "longer" if one.share > 0.5 else "shorter"
    swayed = (
        f"A model will learn that {what} is better: if you do not mean that, rank pairs of like length too, and watch "
        "the length in PPO."
    )
    return _sway(key, title, one, evidence, "No sign that length decides.", swayed)


def _sway(key: str, title: str, one: Rate, evidence: str, fair: str, swayed: str) -> Finding:
    """What is said of something that should not decide: one advice where it does not, another where it does."""
    advice, tone = (swayed, "warn") if one.leans else (fair, "good" if one.prompts >= ENOUGH_PROMPTS else "")
    return Finding(key, title, f"{one.share:.0%}", evidence, advice, tone, one)


def _ties(told: Agreement) -> Finding:
    key, title, one = "ties", "Ties", told.ties
    if one is None:
        return Finding(key, title, "", "Not known: nothing was ranked yet.", "Rank some prompts first.")
    evidence = f"{spread(one)}."
    if one.low > 0.5:
        advice, tone = "Most pairs teach nothing: sample at a higher temperature, or from different models.", "warn"
    else:
        advice, tone = (
            "Ties train nothing unless the reward model’s setting ties is on; then they train as half labels.",
            "",
        )
    return Finding(key, title, f"{one.share:.0%}", evidence, advice, tone, one)
