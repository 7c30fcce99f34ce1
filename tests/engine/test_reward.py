from __future__ import annotations

import itertools
import math
from dataclasses import replace

import pytest
import torch

from engine import reward
from engine.adapters import Adapters
from engine.base_model import load_base
from engine.heads import ScalarHead, load_head
from engine.masking import Example
from engine.meters import calibration_error
from engine.packing import lay_out
from engine.pairs import ranking_weights
from engine.reward import pair_loss, pair_scores
from engine.score import RewardModel, RewardStats, load_reward, score
from engine.session import Session
from tests.engine.conftest import with_adapter
from tests.engine.rows import GOOD, LEARNS, pair_rows, ranked, scores_in_words
from workbench.errors import UserError
from workbench.judgement import Judgement, report
from workbench.protocol import Metrics, Phase, Stop, Warned
from workbench.recipes import RewardRecipe
from workbench.records import Message
from workbench.rows import PairRow, SftRow

ALONE = {"k": 1.0}
"""The weights of a step of one ranking."""


@pytest.fixture
def model(make_base):
    return with_adapter(make_base(dtype=torch.float64), "reward"), ScalarHead(64, seed=1).double()


def test_the_reward_model_learns_what_is_preferred(runs, metric):
    folder = runs.create(
        "reward",
        pair_rows(),
        pair_rows(4, "held"),
        **LEARNS,
    )
    runs.run(folder)
    losses = [value for _, value in metric(folder, "loss")]
    assert sum(losses[-5:]) < 0.4 * sum(losses[:5])
    assert metric(folder, "accuracy")[-1][1] == 1
    last = metric(folder, "eval_accuracy")[-1]
    assert last == (25, 1.0)
    assert metric(folder, "eval_accuracy_low")[-1][1] == pytest.approx(4 / (4 + 1.96**2), abs=1e-3)  # Wilson, 4 of 4
    first, *_, last = (value for _, value in metric(folder, "eval_ece"))
    assert last < 0.05 < 0.2 < first  # it was as sure of a random order, and is right to be sure of the learnt one


def test_at_the_end_every_held_out_pair_is_judged_once_by_the_finished_model(runs, tiny_model_dir, monkeypatch):
    monkeypatch.setattr(reward, "EVAL_ROWS", 2)  # a measurement on the way looks at some, the judgement at all
    held = pair_rows(6, "held")
    folder = runs.create("reward", pair_rows(), held, epochs=9, max_steps=3, learning_rate=5e-3)
    runs.run(folder)
    judgement = Judgement.read(folder.path / "final")
    assert judgement.step == 3
    assert [one.id for one in judgement.pairs] == [row.id for row in held]
    trained = load_reward(
        Adapters(load_base(tiny_model_dir, quantisation="bf16", device=torch.device("cpu"))), folder.path / "final"
    )
    for one, row in zip(judgement.pairs, held, strict=True):
        chosen, rejected = scores_in_words(trained, [(row.prompt, row.chosen), (row.prompt, row.rejected)])
        assert one.gap == pytest.approx(chosen - rejected, abs=1e-4)
        difference = len(trained.encode(row.prompt, row.chosen)) - len(trained.encode(row.prompt, row.rejected))
        assert (one.unit, one.tier_distance, one.rater) == (row.ranking_id, row.tier_distance, row.rater_id)
        assert one.length_difference == difference
    gaps = torch.tensor([one.gap for one in judgement.pairs], dtype=torch.float64)
    assert report(judgement.pairs).calibration_error == pytest.approx(calibration_error(gaps))


def test_a_judgement_that_fails_is_told_and_takes_no_model(runs, monkeypatch):
    whole = reward.pair_scores

    def broken(adapters, head, part):
        if any(one.id.startswith("held") for one in part):
            raise RuntimeError("out of memory")
        return whole(adapters, head, part)

    monkeypatch.setattr(reward, "pair_scores", broken)
    monkeypatch.setattr(reward, "eval_due", lambda *_: False)
    folder = runs.create("reward", pair_rows(), pair_rows(3, "held"), max_steps=1)
    runs.run(folder)
    assert folder.final_dir() is not None
    assert Judgement.read(folder.path / "final") is None
    assert any(one.code == "judgement" for one in folder.events() if isinstance(one, Warned))


def test_scores_that_are_not_finite_judge_nothing_and_a_stop_waits_for_nothing(runs, model, tokenizer):
    adapters, head = model
    session = Session(runs.create("reward", pair_rows(), [row_of(pair) for pair in ranked(tokenizer)]).path)
    pairs = ranked(tokenizer)
    assert len(reward.judge(session, adapters, head, pairs, 1, 4).pairs) == 6
    assert reward.judge(session, adapters, head, [], 1, 4) is None
    with torch.no_grad():
        head.weight.fill_(math.nan)
    assert reward.judge(session, adapters, head, pairs, 1, 4) is None
    session._stepped = True
    session.control.obey(Stop(save=True))
    with torch.no_grad():
        head.weight.zero_()
    assert reward.judge(session, adapters, head, pairs, 1, 4) is None


def row_of(pair):
    return PairRow(pair.id, "g", pair.unit, "r", (Message("user", "say"),), "a", "b")


def test_every_number_sent_is_in_the_glossary(runs):
    from workbench.metrics import GLOSSARY

    folder = runs.create("reward", pair_rows(), pair_rows(4, "held"), max_steps=2)
    runs.run(folder)
    sent = {key for one in folder.events() if isinstance(one, Metrics) for key in one.values}
    assert {key for key in sent if key not in GLOSSARY or "reward" not in GLOSSARY[key].methods} == set()
    assert {"loss", "accuracy", "margin", "min_reward", "mean_reward", "max_reward", "chosen_reward"} <= sent


def test_k_responses_pass_once_and_give_all_their_pairs(model, tokenizer):
    adapters, head = model
    pairs = ranked(tokenizer)
    chosen, rejected, tokens = pair_scores(adapters, head, pairs)
    singles = {}
    for pair in pairs:
        for side in (pair.chosen, pair.rejected):
            singles[side.input_ids] = score(adapters, "reward", head, adapters.lay_out([side]))
    # 4 sequences for 6 pairs, and their prompt once
    assert tokens == sum(len(ids) for ids in singles) - 3 * pairs[0].chosen.prompt_length
    torch.testing.assert_close(chosen, torch.stack([singles[one.chosen.input_ids] for one in pairs]))
    torch.testing.assert_close(rejected, torch.stack([singles[one.rejected.input_ids] for one in pairs]))


def test_one_step_of_eight_equals_eight_accumulated_steps_of_one(model, tokenizer):
    adapters, head = model
    # a ranking of six pairs and one of two: micro-batches of one and of three cut both
    pairs = ranked(tokenizer) + [replace(one, unit="m") for one in ranked(tokenizer, ("in", "tea", "jj"))[:2]]
    recipe = RewardRecipe(margin_per_tier=0.5, center_coefficient=0.1)
    weights = [*adapters.parameters("reward"), *head.parameters()]
    alike = ranking_weights(pairs)

    def gradients(size):
        for weight in weights:
            weight.grad = None
        for start in range(0, 8, size):
            part = pairs[start : start + size]
            chosen, rejected, _ = pair_scores(adapters, head, part)
            (pair_loss(chosen, rejected, part, recipe, alike).sum() / 8).backward()
        return [weight.grad.clone() for weight in weights]

    at_once = gradients(8)
    for size in (1, 3):
        for one, other in zip(at_once, gradients(size), strict=True):
            torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-5)
    # and it is the gradient of the mean over the two rankings of the mean over their pairs
    for weight in weights:
        weight.grad = None
    for ranking in (pairs[:6], pairs[6:]):
        chosen, rejected, _ = pair_scores(adapters, head, ranking)
        (pair_loss(chosen, rejected, ranking, recipe, ranking_weights(ranking)).mean() / 2).backward()
    for one, weight in zip(at_once, weights, strict=True):
        torch.testing.assert_close(one, weight.grad, atol=1e-6, rtol=1e-5)


def test_a_ranking_of_36_pairs_weighs_as_much_as_one_of_a_single_pair(tokenizer):
    # InstructGPT, eq. 1: -1/(K choose 2) sum log sigmoid(r_w - r_l). Nine responses with gaps of 2 and one pair with a
    # gap of -1: (log(1 + e^-2) + log(1 + e)) / 2 = (0.126928 + 1.313262) / 2, and not (36 x 0.127 + 1.313) / 37 = 0.159
    nine = ranked(tokenizer, tuple("abcdefghi"))
    pairs = [*nine, replace(ranked(tokenizer, ("the hat", "xx"))[0], unit="m")]
    assert len(nine) == 36
    chosen, rejected = torch.tensor([[2.0]] * 36 + [[0.0]]), torch.tensor([[0.0]] * 36 + [[1.0]])
    loss = pair_loss(chosen, rejected, pairs, RewardRecipe(center_coefficient=0), ranking_weights(pairs))
    assert float(loss.sum() / 37) == pytest.approx((0.12692801 + 1.31326169) / 2)


@pytest.mark.parametrize("micro_batch", [1, 8])
def test_a_run_steps_on_rankings_and_its_loss_is_their_mean(runs, metric, micro_batch):
    texts = ("the hat", "an ant", "zz", "xx")
    four = [
        PairRow(f"q{a}{b}", "q", "q", "r", (Message("user", "say"),), texts[a], texts[b])
        for a, b in itertools.combinations(range(4), 2)
    ]
    rows = [*four, *pair_rows(3)]  # six pairs and three times one
    still = {"learning_rate": 1e-8, "head_learning_rate": 1e-8, "center_coefficient": 0.0}  # the start is judged
    folder = runs.create("reward", rows, rows, batch=4, micro_batch=micro_batch, epochs=1.0, **still)
    runs.run(folder)
    gaps = {}
    for one in Judgement.read(folder.path / "final").pairs:
        gaps.setdefault(one.unit, []).append(one.gap)
    of_ranking = [sum(math.log1p(math.exp(-gap)) for gap in found) / len(found) for found in gaps.values()]
    expected = pytest.approx(sum(of_ranking) / 4, abs=1e-4)
    assert metric(folder, "loss") == [(1, expected)]  # one step: four rankings make a batch, not four pairs
    assert [value for _, value in metric(folder, "eval_loss")] == [expected] * 2
    over_pairs = sum(math.log1p(math.exp(-gap)) for found in gaps.values() for gap in found) / 9
    assert metric(folder, "loss")[0][1] != pytest.approx(over_pairs, abs=1e-3)


def test_margin_and_centering_by_hand(tokenizer):
    pairs = ranked(tokenizer)[:1]
    chosen, rejected = torch.tensor([[1.5]]), torch.tensor([[1.0]])
    # -log sigmoid(1.5 - 1.0 - 0.5) + 0.1 (1.5 + 1.0)^2 = log 2 + 0.625
    loss = pair_loss(chosen, rejected, pairs, RewardRecipe(margin_per_tier=0.5, center_coefficient=0.1), ALONE)
    assert float(loss) == pytest.approx(0.69314718 + 0.625)
    plain = pair_loss(chosen, rejected, pairs, RewardRecipe(center_coefficient=0), ALONE)
    assert float(plain) == pytest.approx(0.47407698)


def test_smoothing_and_ties_by_hand(tokenizer):
    better, tie = ranked(tokenizer)[:2]
    pairs = [better, replace(tie, tier_distance=0)]
    chosen, rejected = torch.tensor([[1.5], [2.0]]), torch.tensor([[1.0], [1.0]])
    recipe = RewardRecipe(center_coefficient=0, label_smoothing=0.2, ties=True, margin_per_tier=0.0)
    # -log sigmoid(0.5) + 0.2 * 0.5, and the tie -log sigmoid(1) + 0.5 * 1
    expected = [math.log1p(math.exp(-0.5)) + 0.1, math.log1p(math.exp(-1)) + 0.5]
    assert pair_loss(chosen, rejected, pairs, recipe, ALONE).tolist() == pytest.approx(expected)


def test_ties_draw_scores_together_and_are_no_preference(runs, metric):
    # each ranking: GOOD over BAD, and GOOD beside another GOOD
    tied = [
        replace(row, id=f"{row.id}-tie", rejected=GOOD[(index + 1) % 4], tier_distance=0)
        for index, row in enumerate(pair_rows())
    ]
    mixed = sorted([*pair_rows(), *tied], key=lambda row: row.ranking_id)
    settings = {"epochs": 100, "max_steps": 25, "batch": 12, "micro_batch": 6, "learning_rate": 5e-3}
    folder = runs.create("reward", mixed, pair_rows(4, "held"), ties=True, label_smoothing=0.1, **settings)
    runs.run(folder)
    assert metric(folder, "accuracy")[-1][1] == 1  # of the preferences: the ties are not counted
    # half the pairs want 0.9 (least loss 0.325), half are ties (least loss log 2)
    least = (-0.9 * math.log(0.9) - 0.1 * math.log(0.1) + math.log(2)) / 2
    assert metric(folder, "loss")[-1][1] == pytest.approx(least, abs=0.1)
    assert metric(folder, "loss")[-1][1] < metric(folder, "loss")[0][1]
    assert metric(folder, "eval_accuracy")[-1] == (25, 1.0)
    shown = {one.prompt_id for one in folder.samples()}
    assert not any(one.endswith("-tie") for one in shown)


def test_padding_never_changes_a_score(model):
    adapters, head = model
    reward_model = RewardModel(adapters, "reward", head, RewardStats())
    lengths = [[5, 6, 2], [7, 8, 9, 10, 11, 12, 2], [13, 2]]
    alone = torch.cat([reward_model.score_ids([one]) for one in lengths])
    torch.testing.assert_close(reward_model.score_ids(lengths), alone)


def test_the_score_is_read_at_eos_even_where_pad_is_eos(model):
    adapters, head = model
    rows = [Example.plain((5, 6, 2)), Example.plain((5, 6, 2, 2, 2))]
    with adapters.use("reward"), torch.no_grad():
        hidden = adapters.base.decoder(input_ids=torch.tensor([[5, 6, 2, 2, 2]])).last_hidden_state[0]
    for packed in (True, False):
        layout = lay_out(rows, torch.device("cpu"), packed=packed)
        torch.testing.assert_close(score(adapters, "reward", head, layout), head(hidden[[2, 4]]))


@pytest.mark.parametrize("stop_at", [1, 4])
def test_the_resumed_loss_curve_is_the_uninterrupted_one_bit_for_bit(runs, metric, stop_at):
    settings = {"epochs": 2, "batch": 4, "micro_batch": 2, "learning_rate": 5e-3}
    whole = runs.create("reward", pair_rows(), **settings)
    runs.run(whole)
    broken = runs.create("reward", pair_rows(), run_id="run-2", **settings)
    runs.run(broken, stop_at=stop_at)
    assert RewardStats.read(broken.checkpoints()[0]).count > 0
    runs.run(broken)
    for key in ("loss", "accuracy", "margin", "grad_norm", "learning_rate", "max_reward"):
        assert metric(broken, key) == metric(whole, key)
    ours, theirs = ((one.path / "final" / "adapter_model.safetensors").read_bytes() for one in (whole, broken))
    assert ours == theirs


def test_scores_are_centred_on_the_demonstrations(runs, tiny_model_dir):
    shown = [SftRow(f"d{index}", "g", (Message("user", f"say {index}"),), GOOD[index % 4]) for index in range(6)]
    folder = runs.create("reward", pair_rows(), (), shown, max_steps=3, learning_rate=5e-3)
    runs.run(folder)
    adapters = Adapters(load_base(tiny_model_dir, quantisation="bf16", device=torch.device("cpu")))
    trained = load_reward(adapters, folder.path / "final")
    assert (trained.stats.reference, trained.stats.count) == ("demonstrations", 6)
    scores = scores_in_words(trained, [(one.prompt, one.completion) for one in shown])
    centred = [trained.stats.standardise(value) for value in scores]
    assert sum(centred) / 6 == pytest.approx(0, abs=1e-4)
    # The unit is the spread of ranked responses: good answers lie close together and would make it tiny.
    ranked_rows = [(one.prompt, text) for one in pair_rows() for text in (one.chosen, one.rejected)]
    spread = torch.tensor(scores_in_words(trained, list(dict.fromkeys(ranked_rows)))).std(correction=0)
    assert trained.stats.std == pytest.approx(float(spread), rel=1e-3)


def test_without_demonstrations_scores_are_centred_on_the_training_responses(runs):
    folder = runs.create("reward", pair_rows(), max_steps=1)
    runs.run(folder)
    stats = RewardStats.read(folder.path / "final")
    assert stats.reference == "ranked responses"
    assert stats.count == len({(one.prompt, text) for one in pair_rows() for text in (one.chosen, one.rejected)})


def test_a_demonstration_that_would_lose_its_ending_sets_no_zero_and_is_told(runs):
    """Read in mid-answer its score says nothing: the zero is that of the other two, or of the ranked responses."""
    short = [SftRow(f"d{index}", "g", (Message("user", f"say {index}"),), GOOD[index]) for index in range(2)]
    long = SftRow("long", "g", (Message("user", "say"),), "y" * 100)
    stats = []
    for name, shown in (("short", short), ("both", [*short, long]), ("long", [long]), ("none", [])):
        folder = runs.create("reward", pair_rows(4), (), shown, run_id=name, max_steps=1, max_length=64)
        runs.run(folder)
        stats.append(RewardStats.read(folder.path / "final"))
        told = [one.message for one in folder.events() if isinstance(one, Warned) and one.code == "rows-dropped"]
        assert [one.split(" were")[0] for one in told] == {
            "both": ["1 of 3 demonstrations"],
            "long": ["1 of 1 demonstrations"],
        }.get(name, [])
    assert (stats[1].mean, stats[1].count) == pytest.approx((stats[0].mean, 2), abs=1e-5)
    assert stats[2] == stats[3]
    assert stats[3].reference == "ranked responses"


def test_a_pair_that_would_lose_its_ending_is_not_shown_among_the_scored_ones(runs):
    long = PairRow("long", "g", "k", "r", (Message("user", "a"),), "no", "y" * 100)
    folder = runs.create("reward", pair_rows(4), [long], max_steps=1, max_length=64)
    runs.run(folder)
    assert [one.prompt_id for one in folder.samples()] == [f"g{index // 2}" for index in range(8)]


def test_a_run_from_an_sft_adapter_starts_as_a_copy_of_it(runs, adapters, tmp_path, tiny_model_dir):
    start = Adapters(load_base(tiny_model_dir, quantisation="fp32", device=torch.device("cpu")))
    start.add("sft", rank=2, alpha=4, trainable=True, seed=5)
    start.save("sft", tmp_path / "sft")
    folder = runs.create("reward", pair_rows(), max_steps=1, learning_rate=1e-8, adapter=tmp_path / "sft")
    runs.run(folder)
    final = Adapters(start.base)
    final.load("final", folder.path / "final", trainable=False)
    for one, other in zip(start.parameters("sft"), final.parameters("final"), strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=0)


def test_training_a_reward_model_further_keeps_its_head(runs):
    first = runs.create("reward", pair_rows(), max_steps=2, head_learning_rate=0.1)
    runs.run(first)
    again = runs.create(
        "reward",
        pair_rows(),
        run_id="run-2",
        max_steps=1,
        adapter=first.path / "final",
        learning_rate=1e-8,
        head_learning_rate=1e-8,
    )
    runs.run(again)
    heads = [load_head(one.path / "final").weight for one in (first, again)]
    torch.testing.assert_close(heads[0], heads[1], atol=1e-6, rtol=0)


def test_a_pair_that_would_lose_its_ending_is_left_out_and_counted(runs):
    long = PairRow("long", "g", "k", "r", (Message("user", "a"),), "y" * 100, "no")
    folder = runs.create("reward", [*pair_rows(4), long], max_steps=1, max_length=64)
    runs.run(folder)
    said = [one.message for one in folder.events() if isinstance(one, Warned)]
    assert any("1 of 5 pairs were left out" in one for one in said)


def test_a_model_without_a_head_is_no_reward_model(adapters, tmp_path):
    adapters.add("policy", rank=2, alpha=4, trainable=False)
    adapters.save("policy", tmp_path)
    with pytest.raises(UserError, match="gives no scores"):
        load_reward(adapters, tmp_path)
    assert reward.has_head(tmp_path) is False
    assert reward.has_head(tmp_path / "nowhere") is False


@pytest.mark.demo_model
def test_scores_of_the_demo_model_are_the_reference_scores(golden, demo_model_dir):
    g = golden("rm_model")
    base = load_base(demo_model_dir, quantisation="fp32", device=torch.device("cpu"))
    adapters = Adapters(base)
    adapters.add("reward", rank=4, alpha=8, trainable=False)
    model = RewardModel(adapters, "reward", ScalarHead(576, seed=g["head_seed"]), RewardStats())
    for side, rows in enumerate((g["chosen"], g["rejected"])):
        newline = model.score_ids(rows)  # as TRL reads it: behind <|im_end|>
        at_eos = model.score_ids([row[:-1] for row in rows])  # as Tastemaker reads it
        expected = torch.tensor([pair[side] for pair in g["scores_last"]])
        torch.testing.assert_close(newline, expected, atol=g["tolerance"], rtol=0)
        expected = torch.tensor([pair[side] for pair in g["scores_eos"]])
        torch.testing.assert_close(at_eos, expected, atol=g["tolerance"], rtol=0)


def test_every_checkpoint_has_a_zero_and_a_unit_since_it_may_be_kept_as_a_model_and_training_does_not_notice(
    runs, metric
):
    settings = {"max_steps": 3, "batch": 4, "keep_checkpoints": 3}
    saving = runs.create("reward", pair_rows(), **settings, save_every=1)
    runs.run(saving)
    plain = runs.create("reward", pair_rows(), **settings, run_id="run-2")
    runs.run(plain)
    stats = [RewardStats.read(one) for one in saving.checkpoints()]
    assert len(stats) == 3
    assert all(one.count > 0 and one.reference == "ranked responses" for one in stats)
    assert metric(saving, "loss") == metric(plain, "loss")  # to the last bit
    phases = [one.name for one in saving.events() if isinstance(one, Phase)]
    after = [phases[at + 1] for at, name in enumerate(phases) if name == "evaluating"]
    assert after[:3] == ["training"] * 3  # whoever watches sees that it goes on
