"""What the demo found: verdicts in plain words, plots as PNG and a before/after page."""

from __future__ import annotations

import html
from dataclasses import dataclass
from pathlib import Path

from workbench.jsonl import encode, write_atomic
from workbench.metrics import GLOSSARY
from workbench.records import Method, Prompt
from workbench.statistics import wilson
from workbench.terminal import in_time

PAGE = "index.html"
History = list[tuple[int, dict[str, float]]]
PLOTS: dict[Method, tuple[tuple[str, ...], ...]] = {
    "sft": (("loss", "eval_loss"),),
    "reward": (("loss", "eval_loss"), ("accuracy", "eval_accuracy")),
    "dpo": (("loss", "eval_loss"), ("rewards/margins", "eval_rewards/margins")),
    "ppo": (
        ("objective/scores", "eval_objective/scores"),
        ("objective/kl", "eval_objective/kl"),
        ("ppo/mean_length", "eval_ppo/mean_length"),
    ),
}
NAMES = {"base": "before", "sft": "after SFT", "dpo": "after DPO", "ppo": "after PPO"}


@dataclass(slots=True)
class Answer:
    """One model's answer to one held-out prompt."""

    model: str
    prompt: Prompt
    text: str
    token_count: int
    ended: bool
    score: float = 0.0  # of the reward model, in standard deviations of its calibration set


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one training run changed."""

    method: Method
    title: str
    verdict: str
    history: History
    seconds: float

    @classmethod
    def of(
        cls, method: Method, title: str, history: History, held_out: int, seconds: float, trials: float = 0.0
    ) -> Outcome:
        """Judge a run by its metrics; ``held_out`` rows, or rankings of pairs, were never trained on.

        As evidence their pairs are worth so many ``trials`` (:func:`workbench.statistics.effective_trials`).
        """
        return cls(method, title, verdict_of(method, history, held_out, trials), history, seconds)


def verdict_of(method: Method, history: History, held_out: int, trials: float = 0.0) -> str:
    """Say in one or two sentences what changed, and that it did not where it did not."""
    if method == "sft":
        return _moved("held-out loss", _series(history, "eval_loss"), f"{held_out} rows")
    if method == "reward":
        return _reward_verdict(history, held_out)
    if method == "dpo":
        accuracies = _series(history, "eval_rewards/accuracies")
        text = _moved("held-out loss", _series(history, "eval_loss"), f"{held_out} rankings")
        if accuracies:
            low, high = wilson(accuracies[-1] * trials, trials)
            text += (
                f" It prefers the chosen response in {accuracies[-1]:.0%} of held-out pairs"
                f" (95 % {low:.0%} to {high:.0%})."
            )
        return text
    return _ppo_verdict(history)


def _series(history: History, key: str) -> list[float]:
    return [values[key] for _, values in history if key in values]


def _moved(what: str, values: list[float], rows: str) -> str:
    if len(values) < 2:
        return f"the {what} was not measured twice, so nothing can be said of it."
    first, last = values[0], values[-1]
    if abs(last - first) < 0.01 * max(abs(first), 1e-9):
        return f"the {what} did not change ({first:.3f} to {last:.3f} on {rows})."
    return f"the {what} {'fell' if last < first else 'rose'} from {first:.3f} to {last:.3f} ({rows})."


def _reward_verdict(history: History, rankings: int) -> str:
    accuracies = _series(history, "eval_accuracy")
    low, high = _series(history, "eval_accuracy_low"), _series(history, "eval_accuracy_high")
    if not (accuracies and low and high) or rankings == 0:
        return "there were no held-out pairs, so nothing is known of its accuracy on new ones."
    text = (
        f"it agrees with {accuracies[-1]:.0%} of the held-out pairs, which are of {rankings} rankings"
        f" (95 % {low[-1]:.0%} to {high[-1]:.0%})"
    )
    return text + ("." if low[-1] > 0.5 else ": that cannot be told apart from guessing; rank more.")


def _ppo_verdict(history: History) -> str:
    """By the held-out prompts where they were answered twice: every rollout has other ones, easier or harder."""
    scores, kl = _series(history, "objective/scores"), _series(history, "objective/kl")
    lengths, missing = _series(history, "ppo/mean_length"), _series(history, "ppo/eos_missing")
    if len(scores) < 2:
        return "there were too few rollouts to say anything."
    span = max(1, len(scores) // 4)
    first, last = sum(scores[:span]) / span, sum(scores[-span:]) / span
    of, interval, chance = "the mean score of its rollouts", "", ""
    held_out = _series(history, "eval_objective/scores")
    if len(held_out) > 1:
        of, first, last = "the mean score on the same held-out prompts", held_out[0], held_out[-1]
    low, high = (_series(history, f"eval_objective/scores_gain_{end}") for end in ("low", "high"))
    if low and high:
        interval = f", 95 % {low[-1]:+.2f} to {high[-1]:+.2f}"
        chance = " So few prompts cannot tell that from chance." if low[-1] <= 0 <= high[-1] else ""
    moved = "rose" if last > first + 0.05 else "fell" if last < first - 0.05 else "did not change"
    text = f"{of} {moved} ({first:.2f} to {last:.2f}{interval}) at a KL of {kl[-1]:.2f} nats a response"
    text += (
        f"; mean length {lengths[0]:.0f} to {lengths[-1]:.0f} tokens, cut off {missing[0]:.0%} to {missing[-1]:.0%}."
    )
    if moved == "rose" and lengths[-1] > 1.5 * lengths[0]:
        text += " The length ran with the score: read the answers before believing it."
    return text if moved == "did not change" else text + chance


def write_report(folder: Path, outcomes: list[Outcome], answers: list[Answer], seconds: float) -> Path:
    """Write ``index.html``, one PNG a plot and ``summary.json``. Returns the page's path."""
    folder.mkdir(parents=True, exist_ok=True)
    images = [(one, _plot(folder, one)) for one in outcomes]
    write_atomic(folder / "summary.json", encode(_summary(outcomes, answers, seconds)))
    page = folder / PAGE
    write_atomic(page, _page(images, answers, seconds).encode())
    return page


def _summary(outcomes: list[Outcome], answers: list[Answer], seconds: float) -> dict[str, object]:
    return {
        "seconds": round(seconds, 1),
        "runs": [
            {
                "method": one.method,
                "verdict": one.verdict,
                "seconds": round(one.seconds, 1),
                "first": one.history[0][1] if one.history else {},
                "last": one.history[-1][1] if one.history else {},
            }
            for one in outcomes
        ],
        "models": {name: _means(answers, name) for name in NAMES if any(one.model == name for one in answers)},
    }


def _means(answers: list[Answer], model: str) -> dict[str, float]:
    own = [one for one in answers if one.model == model]
    count = max(1, len(own))
    return {
        "answers": len(own),
        "mean_score": sum(one.score for one in own) / count,
        "mean_length_tokens": sum(one.token_count for one in own) / count,
        "share_ended": sum(one.ended for one in own) / count,
    }


def _plot(folder: Path, outcome: Outcome) -> str:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    groups = [[key for key in keys if _series(outcome.history, key)] for keys in PLOTS[outcome.method]]
    groups = [keys for keys in groups if keys]
    figure, axes = pyplot.subplots(1, max(1, len(groups)), figsize=(4.6 * max(1, len(groups)), 3.0), squeeze=False)
    for axis, keys in zip(axes[0], groups, strict=False):
        for index, key in enumerate(keys):
            points = [(step, values[key]) for step, values in outcome.history if key in values]
            style = "--" if key.startswith("eval_") else "-"
            axis.plot(
                *zip(*points, strict=True),
                style,
                marker="o",
                markersize=3,
                label=GLOSSARY[key].label,
                color=f"C{index}",
            )
        axis.set_xlabel("step")
        axis.set_title(GLOSSARY[keys[0]].plot, fontsize=10)
        axis.spines[["top", "right"]].set_visible(False)
        axis.legend(frameon=False, fontsize=8)
    figure.tight_layout()
    name = f"{outcome.method}.png"
    figure.savefig(folder / name, dpi=130)
    pyplot.close(figure)
    return name


_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem; color: #1c2430; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.1rem; margin-top: 2.2rem; }
img { max-width: 100%; } table { border-collapse: collapse; } td, th { text-align: left; padding: .3rem 1rem .3rem 0; }
.answers { display: grid; grid-template-columns: repeat(auto-fit, minmax(15rem, 1fr)); gap: 1rem; }
.answer { border: 1px solid #d5dbe4; border-radius: 6px; padding: .7rem;
  white-space: pre-wrap; overflow-wrap: anywhere; }
.small { color: #5a6675; font-size: .85rem; white-space: normal; }
@media (prefers-color-scheme: dark) { body { background: #14181f; color: #e3e8ef; } .answer { border-color: #364152; }
.small { color: #9aa7b8; } img { background: #fff; } }
"""


def _page(images: list[tuple[Outcome, str]], answers: list[Answer], seconds: float) -> str:
    parts = [
        "<!doctype html><html lang='en'><meta charset='utf-8'><title>Tastemaker: before and after</title>",
        f"<style>{_STYLE}</style><h1>Before and after</h1>",
        f"<p>The whole loop on the sample project, in {html.escape(in_time(seconds))}.</p>",
    ]
    for outcome, image in images:
        parts.append(f"<h2>{html.escape(outcome.title)}</h2><p>{html.escape(_capitalised(outcome.verdict))}</p>")
        parts.append(f"<img src='{image}' alt='{html.escape(outcome.title)}: its curves'>")
    parts.append(
        "<h2>Held-out prompts, all models</h2><table><tr><th></th><th>mean score</th><th>mean length</th>"
        "<th>ended by itself</th></tr>"
    )
    for name, title in NAMES.items():
        if any(one.model == name for one in answers):
            mean = _means(answers, name)
            parts.append(
                f"<tr><th>{title}</th><td>{mean['mean_score']:+.2f}</td>"
                f"<td>{mean['mean_length_tokens']:.0f} tokens</td><td>{mean['share_ended']:.0%}</td></tr>"
            )
    parts.append("</table><p class='small'>Scores are the reward model's, in standard deviations from the mean of the ")
    parts.append("demonstrations. It was trained on this project's few rankings: read the answers too.</p>")
    for prompt in {one.prompt.id: one.prompt for one in answers}.values():
        parts.append(f"<h2 dir='auto'>{html.escape(prompt.title)}</h2><div class='answers'>")
        for one in answers:
            if one.prompt.id == prompt.id:
                cut = "" if one.ended else ", cut off"
                head = f"{NAMES[one.model]} &middot; {one.score:+.2f} &middot; {one.token_count} tokens{cut}"
                text = html.escape(one.text) or "(empty)"
                parts.append(f"<div class='answer' dir='auto'><div class='small'>{head}</div>{text}</div>")
        parts.append("</div>")
    return "\n".join(parts) + "</html>\n"


def _capitalised(text: str) -> str:
    return text[:1].upper() + text[1:]
