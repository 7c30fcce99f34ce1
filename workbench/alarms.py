"""Advice on a PPO run: does the score rise while the responses go astray?

A policy can raise its score by writing what the reward model mistakes for good: endless, repetitive or strange text.
Such a run often shows a rising score together with a KL, a length or a repetition that runs away. These signals are
stated thresholds on logged means: they audit well and prove nothing, so the alarm names what it saw and sends the
researcher to the samples. It never claims that reward hacking was detected.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from workbench.records import step_word

KL_LIMIT_NATS = 10.0
"""KL per response that is far from the reference; Ziegler et al. 2019 aimed at 6."""
KL_LIMIT_NATS_PER_TOKEN = 0.25
"""For long responses the limit grows with them."""
LENGTH_FACTOR = 1.5
REPETITION_LIMIT = 0.15
REPETITION_FACTOR = 2.0
CUT_OFF_LIMIT = 0.5
DISAGREEMENT_FACTOR = 1.5
LEAST_DISAGREEMENT = 0.1
"""Heads that are closer than a tenth of the spread of ranked responses agree, however close they began."""
LEAST_POINTS = 6
"""Fewer reports than this say nothing."""
DISAGREEMENT = "objective/score_std_heads"
ALARM_KEYS = (
    "objective/scores",
    "objective/kl",
    "ppo/mean_length",
    "ppo/eos_missing",
    "ppo/repetition",
    "eval_objective/scores",
    DISAGREEMENT,
)
"""The metrics that :func:`reward_hacking` reads."""

Line = tuple[Sequence[float], Sequence[float]]
"""Steps and values of one metric, as logged."""


@dataclass(frozen=True, slots=True)
class Signal:
    """One number that ran away: what happened in words, since which step, and against which limit."""

    key: str
    text: str
    step: int
    value: float
    limit: float


@dataclass(frozen=True, slots=True)
class Alarm:
    """The score rose while at least one signal ran away. ``step`` has the samples worth reading first."""

    score_before: float
    score_now: float
    signals: tuple[Signal, ...]
    step: int

    @property
    def headline(self) -> str:
        """One sentence naming every signal."""
        return (
            f"The score rose from {self.score_before:.2f} to {self.score_now:.2f} while "
            + _listed([one.text for one in self.signals])
            + "."
        )

    @property
    def advice(self) -> str:
        """What to do about it, without a claim that cannot be kept."""
        penalty = "an uncertainty_penalty, " if any(one.key == DISAGREEMENT for one in self.signals) else ""
        return (
            "This can mean that the policy exploits the reward model. Read the samples of "
            f"{step_word('ppo')} {self.step} before you trust the score; a stronger KL leash, {penalty}more rankings "
            "of such samples or an earlier checkpoint (kept as a model under Checkpoints) may help."
        )


def reward_hacking(lines: Mapping[str, Line], *, response_length: int = 0, max_kl: float = 0.0) -> Alarm | None:
    """Return the alarm of a PPO run, or None when nothing is wrong or too little is known.

    Compares the last reports with the first ones. The score has risen when its mean over the last quarter exceeds
    the first quarter's by more than two standard errors. KL has run away above 10 nats a response (or 0.25 nats a
    token, or ``max_kl``); length when it grew by half, or when half the responses are cut off at
    ``response_length``; repetition above 0.15 and twice what it was; the validation score when it fell meanwhile.
    The heads of an ensemble have when the spread of their scores of the policy's own samples grew by half, by more than
    two standard errors and above 0.1: there the reward model guesses, and to charge for it is what holds
    over-optimisation back in Coste et al. 2024 (arXiv 2310.02743).
    """
    risen = _risen(lines.get("objective/scores"))
    if risen is None:
        return None
    before, now = risen
    found = [
        one
        for one in (
            _kl(lines, max_kl),
            _length(lines, response_length),
            _repetition(lines),
            _validation(lines),
            _disagreement(lines),
        )
        if one is not None
    ]
    if not found:
        return None
    return Alarm(before, now, tuple(found), max(one.step for one in found))


def _kl(lines: Mapping[str, Line], max_kl: float) -> Signal | None:
    spread = _ends(lines.get("objective/kl"))
    if spread is None:
        return None
    before, now = spread
    length = _ends(lines.get("ppo/mean_length"))
    limit = max_kl or max(KL_LIMIT_NATS, KL_LIMIT_NATS_PER_TOKEN * (length[1] if length else 0.0))
    if now <= limit or now <= before:
        return None
    step = _crossing(lines["objective/kl"], limit)
    return Signal("objective/kl", f"KL passed {limit:.3g} nats a response ({now:.1f} now)", step, now, limit)


def _length(lines: Mapping[str, Line], response_length: int) -> Signal | None:
    spread = _ends(lines.get("ppo/mean_length"))
    if spread is None:
        return None
    before, now = spread
    if before > 0 and now > LENGTH_FACTOR * before:
        limit = LENGTH_FACTOR * before
        step = _crossing(lines["ppo/mean_length"], limit)
        text = f"responses grew from {before:.0f} to {now:.0f} tokens"
        return Signal("ppo/mean_length", text, step, now, limit)
    cut = _ends(lines.get("ppo/eos_missing"))
    if cut is not None and cut[1] > CUT_OFF_LIMIT and cut[1] > 1.5 * cut[0]:
        step = _crossing(lines["ppo/eos_missing"], CUT_OFF_LIMIT)
        room = f" at {response_length} tokens" if response_length else ""
        text = f"{cut[1]:.0%} of responses are cut off{room} ({cut[0]:.0%} at first)"
        return Signal("ppo/eos_missing", text, step, cut[1], CUT_OFF_LIMIT)
    return None


def _repetition(lines: Mapping[str, Line]) -> Signal | None:
    spread = _ends(lines.get("ppo/repetition"))
    if spread is None:
        return None
    before, now = spread
    limit = max(REPETITION_LIMIT, REPETITION_FACTOR * before)
    if now <= limit:
        return None
    step = _crossing(lines["ppo/repetition"], limit)
    text = f"repetition rose from {before:.0%} to {now:.0%} of 4-grams"
    return Signal("ppo/repetition", text, step, now, limit)


def _validation(lines: Mapping[str, Line]) -> Signal | None:
    line = lines.get("eval_objective/scores")
    fallen = None if line is None else _risen((line[0], [-value for value in line[1]]))
    if line is None or fallen is None:
        return None
    before, now = -fallen[0], -fallen[1]
    text = f"the score of the validation prompts fell from {before:.2f} to {now:.2f}"
    return Signal("eval_objective/scores", text, int(line[0][-1]), now, before)


def _disagreement(lines: Mapping[str, Line]) -> Signal | None:
    risen = _risen(lines.get(DISAGREEMENT))
    if risen is None:
        return None
    before, now = risen
    limit = max(LEAST_DISAGREEMENT, DISAGREEMENT_FACTOR * before)
    if now <= limit:
        return None
    text = f"the reward model's heads moved apart on the policy's responses (from {before:.2f} to {now:.2f})"
    return Signal(DISAGREEMENT, text, _crossing(lines[DISAGREEMENT], limit), now, limit)


def _ends(line: Line | None) -> tuple[float, float] | None:
    """Means of the first and of the last quarter; None for too few reports."""
    if line is None or len(line[1]) < LEAST_POINTS:
        return None
    part = max(2, len(line[1]) // 4)
    return _mean(line[1][:part]), _mean(line[1][-part:])


def _risen(line: Line | None) -> tuple[float, float] | None:
    ends = _ends(line)
    if line is None or ends is None:
        return None
    part = max(2, len(line[1]) // 4)
    error = math.sqrt((_variance(line[1][:part]) + _variance(line[1][-part:])) / part)
    before, now = ends
    return ends if now - before > max(2 * error, 1e-9) else None


def _crossing(line: Line, limit: float) -> int:
    """First step of the last stretch above the limit; the newest step when it came down in between."""
    steps, values = line
    crossed = int(steps[-1])
    for step, value in zip(reversed(steps), reversed(values), strict=True):
        if value <= limit:
            break
        crossed = int(step)
    return crossed


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def _variance(values: Sequence[float]) -> float:
    mean = _mean(values)
    return math.fsum((value - mean) ** 2 for value in values) / max(1, len(values) - 1)


def _listed(texts: list[str]) -> str:
    return texts[0] if len(texts) == 1 else ", ".join(texts[:-1]) + " and " + texts[-1]
