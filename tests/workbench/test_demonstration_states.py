from __future__ import annotations

import contextlib
from pathlib import Path

from workbench.ids import new_id
from workbench.project import Project
from workbench.records import Demonstration, Message, Prompt


def test_prompts_can_be_asked_for_by_the_state_of_their_demonstration(tmp_path: Path) -> None:
    with contextlib.closing(Project.create(tmp_path / "states")) as project:
        store = project.store
        none, draft, final = (Prompt(new_id(), (Message("user", text),)) for text in ("none", "draft", "final"))
        store.add_prompts([none, draft, final]).result(10)
        store.save_demonstration(Demonstration(new_id(), draft.id, "words", "me")).result(10)
        store.save_demonstration(Demonstration(new_id(), final.id, "words", "me", "final")).result(10)
        assert [one.id for one in store.prompts(need="draft")] == [draft.id]
        assert [one.id for one in store.prompts(need="final")] == [final.id]
        assert [one.id for one in store.prompts(need="demonstration")] == [none.id, draft.id]
        states = store.demonstration_states([final.id, none.id, draft.id, "unknown"])
        assert states == {none.id: "", draft.id: "draft", final.id: "final"}
