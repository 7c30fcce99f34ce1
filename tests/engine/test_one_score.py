"""A response has one score, however it ended: in training, judgement, PPO, ``tastemaker score`` and other programs."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from engine import ppo
from engine.adapters import Adapters
from engine.base_model import compute_dtype, load_base
from engine.generate import Completion
from engine.model_export import export_model
from engine.pairs import encode_pairs
from engine.ppo_models import open_players
from engine.reward import pair_scores, unusable
from engine.score import RewardModel, load_reward
from engine.session import Session
from tests.engine.rows import QUICK
from workbench import cli
from workbench.formats.exporter import export_file
from workbench.ids import new_id
from workbench.judgement import Judgement
from workbench.pairs import current_pairs
from workbench.project import Project
from workbench.protocol import ModelRef
from workbench.records import Message, ModelRecord, Prompt, Ranking, Rater, Response
from workbench.rows import PromptRow
from workbench.run_folder import RunFolder

pytestmark = pytest.mark.native_arithmetic  # one of the paths is a process of its own
END, OTHER_END = 2, 0  # <|im_end|>, the template's own; <|endoftext|>, another EOS of the model's folder
TEXTS = {"finished": "the hat", "cut": "an ant in the he", "other end": "then tea"}
SAME = 1e-5 if compute_dtype(torch.device("cpu")) == torch.float32 else 0.05  # 0.05 where products are made in bf16
PENALTY = 0.75


@dataclass
class Judged:
    """A project with one ranking, best first as in TEXTS, and the reward model that learnt from it and judged it."""

    project: Path
    prompt: Prompt
    kinds: dict[str, str]  # by the id of a response
    run: RunFolder
    model: RewardModel
    ref: ModelRef

    def ids(self, kind: str) -> list[int]:
        return self.model.encode(self.prompt.messages, TEXTS[kind], ended=kind != "cut")

    @property
    def scores(self) -> dict[str, float]:
        return dict(zip(TEXTS, self.model.score_ids([self.ids(kind) for kind in TEXTS]).tolist(), strict=True))


def responses_to(prompt: Prompt) -> list[Response]:
    reasons = {"cut": "length"}
    return [
        Response(new_id(), prompt.id, text, finish_reason=reasons.get(kind, "stop"))  # type: ignore[arg-type]
        for kind, text in TEXTS.items()
    ]


@pytest.fixture
def judged(runs: Any, tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Judged:
    monkeypatch.setenv("TASTEMAKER_RUNTIME", str(tmp_path / "runtime"))
    monkeypatch.setenv("TASTEMAKER_CACHE", str(tmp_path / "cache"))
    with Project.create(tmp_path / "project") as project:
        prompt = Prompt(new_id(), (Message("user", "say"),))
        given = responses_to(prompt)
        ranking = Ranking(new_id(), prompt.id, "ann", tuple((one.id,) for one in given))
        card = {"prompts": [prompt], "responses": given, "rankings": [ranking], "raters": [Rater("ann", "Ann")]}
        project.store.add_batch(**card, label="card").result()  # type: ignore[arg-type]
        rows = current_pairs(project.store).rows
        folder = runs.create("reward", rows, rows, heads=2, epochs=9, max_steps=3, learning_rate=5e-3)
        runs.run(folder)
        final = folder.path / "final"
        base = ModelRecord(new_id(), "tiny", "base", str(tiny_model_dir))
        made = ModelRecord(new_id(), "judge", "reward", "models/judge", base_id=base.id)
        shutil.copytree(final, project.path / made.path)
        for one in (base, made):
            project.store.save_model(one).result()
        ref = project.resolve(made)
    adapters = Adapters(load_base(tiny_model_dir, quantisation="bf16", device=torch.device("cpu")))
    kinds = dict(zip([one.id for one in given], TEXTS, strict=True))
    return Judged(tmp_path / "project", prompt, kinds, folder, load_reward(adapters, final), ref)


def test_a_cut_off_response_is_read_at_its_last_word_and_every_other_at_the_templates_end(judged: Judged) -> None:
    tokenizer = judged.model.adapters.base.tokenizer
    for kind, text in TEXTS.items():
        words = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert judged.ids(kind)[-len(words) - 1 :][-1] == (words[-1] if kind == "cut" else END)
    whole = judged.model.score_ids([[*judged.ids("cut"), END]])
    assert abs(float(whole) - judged.scores["cut"]) > 0.1  # the end is no trifle


def test_reward_training_and_its_judgement_give_that_score(judged: Judged) -> None:
    adapters, scores = judged.model.adapters, judged.scores
    pairs = encode_pairs(Session(judged.run.path), adapters, "train", 256, unusable)
    chosen, rejected, _ = pair_scores(adapters, judged.model.head, pairs)
    gaps = {one.id: one.gap for one in Judgement.read(judged.run.path / "final").pairs}  # type: ignore[union-attr]
    assert len(pairs) == len(gaps) == 3
    for pair, better, worse in zip(pairs, chosen.mean(-1).tolist(), rejected.mean(-1).tolist(), strict=True):
        first, second = (judged.kinds[id_] for id_ in pair.id.split(":")[1:])
        assert better == pytest.approx(scores[first], abs=SAME)
        assert worse == pytest.approx(scores[second], abs=SAME)
        assert gaps[pair.id] == pytest.approx(scores[first] - scores[second], abs=2 * SAME)
    shown = {(one.response, one.ended): one.score for one in judged.run.samples()}
    assert shown == {(text, kind != "cut"): pytest.approx(scores[kind], abs=SAME) for kind, text in TEXTS.items()}


def test_a_rollout_is_paid_that_score_whichever_end_was_sampled(
    judged: Judged, runs: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Score of a response = (raw - mean) / std, less the penalty where it was cut off and only there."""
    tokenizer = judged.model.adapters.base.tokenizer
    ends = {"finished": (END,), "cut": (), "other end": (OTHER_END,)}
    drawn = [
        Completion((*tokenizer(text, add_special_tokens=False)["input_ids"], *ends[kind]), kind != "cut", 0)
        for kind, text in TEXTS.items()
    ]
    monkeypatch.setattr(ppo, "generate", lambda *_, **__: [drawn])
    settings = QUICK | {"rule": "", "missing_eos_penalty": PENALTY, "response_length": 32}
    rows = [PromptRow(judged.prompt.id, judged.prompt.messages)]
    session = Session(runs.create("ppo", rows, reward=judged.ref, run_id="ppo", **settings).path)
    players = open_players(session)
    trainer = ppo._trainer(players, players.recipe, 1)
    batch = ppo.rollout(session, trainer, ppo.encode_prompts(session, players, "train"), 5, count=3)
    ppo.score(session, trainer, batch)
    found = {one.text: value for one, value in zip(batch.episodes, batch.scores.tolist(), strict=True)}
    stats = judged.model.stats
    for kind, text in TEXTS.items():
        expected = stats.standardise(judged.scores[kind]) - PENALTY * (kind == "cut")
        assert found[text] == pytest.approx(expected, abs=SAME / stats.std)
    by_text = {one.text: one for one in batch.episodes}
    assert by_text[TEXTS["other end"]].ids[-1] == OTHER_END  # policy and value go on with what was sampled


def test_tastemaker_score_gives_that_score_to_an_exported_ranking(
    judged: Judged, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "rankings.jsonl"
    with Project.open(judged.project) as project:
        export_file(project, file, what="rankings")
    assert cli.main(["score", str(judged.project), str(file), "--reward", "judge"], lambda _: 0) == 0
    [row] = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {judged.kinds[id_]: row[id_] for id_ in judged.kinds} == pytest.approx(judged.scores, abs=SAME)


def test_the_merged_export_gives_that_score_up_to_its_own_rounding(judged: Judged, tmp_path: Path) -> None:
    from transformers import AutoModelForSequenceClassification

    export_model(judged.ref, tmp_path / "merged", "merged")
    merged = AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged", dtype=torch.float32)
    for kind, expected in judged.scores.items():
        ids = torch.tensor([judged.ids(kind)])
        with torch.no_grad():
            found = merged(ids, attention_mask=torch.ones_like(ids)).logits
        assert float(found) == pytest.approx(expected, abs=0.1)  # rounded to bf16 once


@pytest.mark.parametrize("method", ["dpo", "kto"])
def test_policies_learn_no_end_behind_a_cut_off_response_and_keep_its_log_probabilities_apart(
    runs: Any, method: str
) -> None:
    """The end is no trained token there, and the reference is another one: it is of other sequences."""
    from engine.completions import encode_completions
    from tests.engine.rows import rows_of

    rows = rows_of(method, 4)
    field = "chosen_ended" if method == "dpo" else "ended"
    cut = [replace(one, **{field: False}) for one in rows]
    kept, hashes = [], []
    for name, given in (("whole", rows), ("cut", cut)):
        folder = runs.create(method, given, run_id=name, max_steps=1, batch=4)
        runs.run(folder)
        kept.append([one.name for one in (folder.path / "cache").iterdir()])
        hashes.append(folder.spec().data_sha256["train.jsonl"])
        session = Session(folder.path)
        adapters = Adapters(load_base(runs.base, quantisation="bf16", device=torch.device("cpu")))
        if method == "dpo":
            examples = [one.chosen for one in encode_pairs(session, adapters, "train", 256, lambda *_: "")]
        else:
            examples = [one for _, one in encode_completions(session, adapters, "train", "rows", 256)]
        assert all((one.input_ids[-1] == END) == (name == "whole") and one.mask[-1] for one in examples)
    assert kept[0] != kept[1]
    assert hashes[0] != hashes[1]
