"""The words and tones in which the window speaks of runs and models, alike in every place."""

from __future__ import annotations

from workbench.records import ModelRole, RunState

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
ROLE_WORDS: dict[ModelRole, str] = {"base": "base", "sft": "SFT", "reward": "reward model", "policy": "policy"}
ROLE_TONES: dict[ModelRole, str] = {"base": "", "sft": "accent", "reward": "warn", "policy": "good"}
