"""What can be said to a run from its page, and what is made of its numbers and samples elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from PySide6.QtCore import Qt
from PySide6.QtWidgets import QMessageBox, QWidget

from ui.run_history import RunHistory
from ui.widgets import plural
from workbench.alarms import ALARM_KEYS, Line
from workbench.ids import new_id, now
from workbench.protocol import Cancel, Command, Pause, Resume, Sample, SampleNow, SaveNow, Stop
from workbench.records import ModelRecord, Response, RunRecord, step_word
from workbench.store import Store

ALARM_POINTS = 400
COMMANDS: dict[str, tuple[Command, str]] = {
    "pause": (Pause(), "It pauses at the end of this {step}"),
    "unpause": (Resume(), "It goes on"),
    "save": (SaveNow(), "A checkpoint is written at the end of this {step}"),
    "sample": (SampleNow(), "Samples are drawn at the end of this {step}"),
    "stop-save": (Stop(save=True), "It saves and ends at the end of this {step}"),
    "stop": (Cancel(), "It ends now, without saving"),
    "unqueue": (Cancel(), "It was taken out of the queue"),
}
GOES_ON = ("save", "sample")
"""What does not change the state of a run, so that no new state will be seen after it."""


def alarm_lines(history: RunHistory) -> dict[str, Line]:
    """Return what the alarm looks at, thinned to a few hundred points however long the run is."""
    lines: dict[str, Line] = {}
    for key in ALARM_KEYS:
        line = history.lines.get(key)
        if line:
            stride = -(-len(line) // ALARM_POINTS)
            lines[key] = (line.x[::stride].tolist(), line.y[::stride].tolist())
    return lines


def response_of(sample: Sample, record: RunRecord, model: ModelRecord | None) -> Response:
    """Make a sample a response of its prompt, to be ranked; the policy of a step in mid-run is no listed model."""
    return Response(
        new_id(),
        sample.prompt_id,
        sample.response,
        model_id="",
        finish_reason="stop" if sample.ended else "length",
        token_count=len(sample.tokens),
        source=f"{record.name}, {step_word(record.method)} {sample.step}" + (f" ({model.name})" if model else ""),
        created_at=now(),
    )


@dataclass(frozen=True, slots=True)
class ToRank:
    """What comes of samples that are sent to be ranked."""

    responses: list[Response]
    repeated: int = 0  # samples that say what another response of their prompt says
    lonely: int = 0  # prompts that have no second response to compare with
    lost: int = 0  # samples whose prompt is not in the project

    def said(self) -> str:
        """Say it in one sentence."""
        parts = [f"{plural(len(self.responses), 'response')} sent to Rank"]
        parts += [f"{self.repeated} left out that say what another one says"] if self.repeated else []
        parts += [f"{plural(self.lonely, 'prompt')} can be ranked once there is a second response"] * bool(self.lonely)
        return "; ".join(parts)


def to_rank(store: Store, samples: Sequence[Sample], record: RunRecord, model: ModelRecord | None) -> ToRank:
    """Make responses of samples. Two of a prompt that are alike cannot be ranked: the second is left out."""
    known = store.prompts_by_id([one.prompt_id for one in samples])
    texts: dict[str, set[str]] = {id_: {one.text.strip() for one in store.responses(id_)} for id_ in known}
    found = [one for one in samples if one.prompt_id in known]
    made = []
    for one in found:
        if one.response.strip() not in texts[one.prompt_id]:
            texts[one.prompt_id].add(one.response.strip())
            made.append(response_of(one, record, model))
    lonely = sum(len(texts[id_]) < 2 for id_ in {one.prompt_id for one in made})
    return ToRank(made, len(found) - len(made), lonely, len(samples) - len(found))


def ask(parent: QWidget, text: str, more: str, yes: str, no: str, then: Callable[[], None]) -> QMessageBox:
    """Ask before something that cannot be taken back, without stopping the window; Enter and Escape mean no."""
    box = QMessageBox(parent)
    box.setAttribute(Qt.WidgetAttribute.WA_DeleteOnClose)
    box.setIcon(QMessageBox.Icon.Warning)
    box.setWindowTitle(yes)
    box.setTextFormat(Qt.TextFormat.PlainText)
    box.setText(text)
    box.setInformativeText(more)
    agreed = box.addButton(yes, QMessageBox.ButtonRole.DestructiveRole)
    refused = box.addButton(no, QMessageBox.ButtonRole.RejectRole)
    box.setDefaultButton(refused)
    box.setEscapeButton(refused)
    box.buttonClicked.connect(lambda clicked: then() if clicked is agreed else None)
    box.open()
    return box
