from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from PySide6.QtCore import Qt
from PySide6.QtGui import QTextDocument

from ui.explain_drawer import ALIASES, STAGES, ExplainDrawer, metric_names, read, with_values
from ui.safe_markdown import render
from ui.theme import Theme
from ui.window import STAGE_OF_PANE
from workbench.metrics import GLOSSARY


@pytest.mark.parametrize("stage", list(STAGES))
def test_every_stage_is_explained_in_full_and_shows_the_values_that_exist(stage: str) -> None:
    text = read(stage)
    assert 35 <= len(text.splitlines()) <= 70
    assert text.startswith("# ")
    assert "## What goes wrong" in text
    assert all(key in GLOSSARY for key in metric_names(text))
    if stage != "loop":
        assert "## Intuition" in text
        assert "## Mechanism" in text
        assert "## Mathematics" in text


def test_the_dangers_that_every_researcher_should_know_are_explained() -> None:
    whole = {stage: read(stage).lower() for stage in STAGES}
    for stage in ("reward-model", "dpo", "ppo", "compare"):
        assert "reward hacking" in whole[stage]
    for word in ("disagree", "alignment tax", "poor generalisation"):
        assert sum(word in text for text in whole.values()) >= 3, word


def test_formulas_fit_the_drawer() -> None:
    for stage in STAGES:
        inside = False
        for line in read(stage).splitlines():
            if line.startswith("```"):
                inside = not inside
            elif inside:
                assert len(line) <= 58, (stage, line)


def test_a_line_with_a_value_is_shown_only_when_the_run_gives_it() -> None:
    text = "Before\nKL {{objective/kl}} at {{ppo/kl_coefficient}}\nAfter"
    assert with_values(text, {}) == "Before\nAfter"
    assert with_values(text, {"objective/kl": 4.3129}) == "Before\nAfter"
    assert "KL 4.313 at 0.05" in with_values(text, {"objective/kl": 4.3129, "ppo/kl_coefficient": 0.05})


def test_every_pane_and_alias_leads_to_a_stage() -> None:
    assert set(STAGE_OF_PANE.values()) | set(ALIASES.values()) <= set(STAGES)


def test_the_drawer_shows_a_stage_from_its_start_and_an_unknown_one_as_the_whole_loop(qtbot: Any, theme: Theme) -> None:
    drawer = ExplainDrawer()
    qtbot.addWidget(drawer)
    drawer.resize(420, 500)
    drawer.show()
    drawer.show_stage("ppo", {"objective/scores": 1.5, "objective/kl": 2.0})
    assert "1.5, KL to the reference 2 nats" in drawer.text.toPlainText()
    assert drawer.text.verticalScrollBar().value() == 0
    drawer.show_stage("ppo")
    assert "In this run" in drawer.text.toPlainText()  # the values of the run stay while its stage is shown
    drawer.show_stage("dpo")
    assert "In this run" not in drawer.text.toPlainText()
    drawer.show_stage("reward")
    assert drawer.stage == "reward-model"
    drawer.show_stage("no such stage")
    assert drawer.stage == "loop"
    with qtbot.waitSignal(drawer.closed):
        qtbot.keyClick(drawer, Qt.Key.Key_Escape)
    assert drawer.isHidden()


def test_the_drawer_follows_theme_and_keeps_its_place(qtbot: Any, theme: Theme) -> None:
    drawer = ExplainDrawer()
    qtbot.addWidget(drawer)
    drawer.resize(420, 300)
    drawer.show()
    drawer.show_stage("ppo")
    drawer.text.verticalScrollBar().setValue(200)
    theme.set_mode("dark")
    drawer.refresh()
    assert drawer.text.verticalScrollBar().value() == 200
    theme.set_mode("light")


def test_the_drawer_keeps_up_with_the_values_of_a_run_while_it_is_seen(qtbot: Any, theme: Theme) -> None:
    drawer = ExplainDrawer()
    qtbot.addWidget(drawer)
    drawer._live.setInterval(0)
    now = {"objective/scores": 1.25, "objective/kl": 0.5}
    drawer.set_source(lambda stage: now if stage == "ppo" else {})
    drawer.show()
    drawer.show_stage("ppo")
    assert "score 1.25" in drawer.text.toPlainText()
    now["objective/scores"] = 1.5
    qtbot.waitUntil(lambda: "score 1.5," in drawer.text.toPlainText())
    drawer.show_stage("sft")
    assert "In this run" not in drawer.text.toPlainText()
    drawer.set_source(None)
    drawer.show_stage("ppo", {"objective/scores": 2.0, "objective/kl": 0.5})
    assert "score 2," in drawer.text.toPlainText()
    drawer.hide()
    assert not drawer._live.isActive()


class Watching(QTextDocument):
    """Fails when anything is loaded."""

    asked: list[str]

    def loadResource(self, kind: int, name: Any) -> Any:
        self.asked.append(name.toString())
        return None


HOSTILE = """# <b>Title</b>

<script>alert(1)</script> <img src="file:///etc/passwd">

![picture](file:///etc/passwd) and [a link](javascript:alert(1)) and <http://example.com>

- one *slanted* `<i>code</i>`
  - inner **strong**

> quoted

1. first

| a | b |
|---|---|
| 1 | <u>2</u> |

```html
<img src=x>
second
```
"""


def test_hostile_markdown_becomes_text_that_opens_and_loads_nothing(qtbot: Any, theme: Theme, tmp_path: Path) -> None:
    document = Watching()
    document.asked = []
    render(HOSTILE, document)
    document.setTextWidth(300)
    document.size()
    text = document.toPlainText()
    assert document.asked == []
    assert "<script>alert(1)</script>" in text
    assert "<b>Title</b>" in text
    assert "![picture]" not in document.toHtml() or "<img" not in document.toHtml()
    assert "<img" not in document.toHtml().replace("&lt;img", "")
    assert "<a " not in document.toHtml()
    assert "<i>code</i>" in text
    for word in ("slanted", "inner", "quoted", "first", "second"):
        assert word in text


def test_rendering_twice_leaves_only_the_second_text(theme: Theme) -> None:
    document = QTextDocument()
    render("# One\n\n```\ncode\n```\n\nafter", document)
    assert document.toPlainText().split("\n") == ["One", "code", "after"] or "after" in document.toPlainText()
    render("two", document)
    assert document.toPlainText() == "two"
