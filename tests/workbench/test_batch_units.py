"""Runs of versions whose reward batches counted pairs: read and of use, never resumed with batches of rankings."""

import itertools
import json

import pytest

from workbench import supervisor
from workbench.batch_units import refuse_batch_of_pairs
from workbench.errors import UserError
from workbench.ids import new_id
from workbench.jsonl import encode
from workbench.protocol import Ended, ModelRef, RunSpec
from workbench.records import Message
from workbench.rows import PairRow
from workbench.run_folder import RunFolder


def run_of(tmp_path, method, responses, *, old=True):
    """A run of three rankings of so many responses; an ``old`` one does not say what its batch counts."""
    rows = [
        PairRow(f"{name}:{a}:{b}", name, name, "me", (Message("user", "Hi"),), f"{a}", f"{b}")
        for name in "abc"
        for a, b in itertools.combinations(range(responses), 2)
    ]
    model = ModelRef(model_id="m", name="m", base="/nowhere")
    spec = RunSpec(run_id=new_id(), method=method, name="mine", recipe={"batch": 2}, model=model)
    folder = RunFolder.create(tmp_path / "runs", spec, rows, [])
    if old:
        path = folder.path / "recipe.json"
        read = json.loads(path.read_bytes())
        assert read.pop("batch_of") == ("rankings" if method == "reward" else "rows")
        path.write_text(json.dumps(read))
    return folder


def test_an_old_run_whose_steps_would_be_others_is_refused_before_anything_is_written_and_can_be_read(tmp_path):
    folder = run_of(tmp_path, "reward", 4)
    folder.events_path.write_bytes(encode(Ended(state="stopped", step=5)) + b"\n")
    for deed in (supervisor.launch, supervisor.resume):
        with pytest.raises(
            UserError, match=r"'mine' cannot be taken up.*18 pairs are of 3 rankings.*[Ss]tart a new run"
        ):
            deed(folder.path)
    assert not (folder.path / "engine.log").exists()
    assert not folder.lock_path.exists()
    assert (folder.recipe().batch, len(folder.rows("train"))) == (2, 18)
    assert [one.step for one in folder.events()] == [5]


@pytest.mark.parametrize(
    ("method", "responses", "old"),
    [("reward", 2, True), ("dpo", 4, True), ("reward", 4, False)],
    ids=["of one pair each", "of a method that counts pairs", "new"],
)
def test_a_run_whose_steps_are_what_they_were_is_taken_up(tmp_path, method, responses, old):
    folder = run_of(tmp_path, method, responses, old=old)
    refuse_batch_of_pairs(folder, folder.spec())
