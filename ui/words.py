"""The words and tones in which the window speaks of runs and models, alike in every place."""

from __future__ import annotations

from workbench.records import Counts, ModelRole, RunState

LIVE_STATES: tuple[RunState, ...] = ("queued", "running", "paused", "stopping")
"""The states of a run that is at work or waits."""
STATE_TONES: dict[RunState, str] = {
    "queued": "",
    "running": "accent",
    "paused": "warn",
    "stopping": "warn",
    "done": "good",
    "stopped": "",
    "failed": "bad",
    "interrupted": "bad",
}
ROLE_TONES: dict[ModelRole, str] = {"base": "", "sft": "accent", "reward": "warn", "policy": "good"}


def thumbs_said(counts: Counts) -> str:
    """Say how many thumbs a project has, of which kind: ``17 thumbs: 12 up, 5 down``; "" where nobody gave any."""
    up, down = counts.thumbs_up, counts.thumbs_down
    if up and down:
        return f"{counts.thumbs:,} thumbs: {up:,} up, {down:,} down"
    if not counts.thumbs:
        return ""
    return f"{counts.thumbs:,} {'thumb' if counts.thumbs == 1 else 'thumbs'} {'up' if up else 'down'}"


def judges_by_thumbs(counts: Counts) -> bool:
    """Whether thumbs were given; beside rankings, thumbs down alone may be no more than cards marked "all bad"."""
    return counts.thumbs_up > 0 or (counts.thumbs > 0 and not counts.rankings)
