"""An ensemble of heads: one head is as ever, the mean is a linear head, coins by ranking, and a spread that warns."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import pytest
import torch

from engine import ppo, reward
from engine.adapters import Adapters
from engine.base_model import load_base
from engine.heads import HEADS_FILE, ScalarHead, bootstrap_weights, load_head, mean_head
from engine.masking import pair_examples
from engine.model_export import export_model
from engine.pairs import EncodedPair, ranking_weights
from engine.ppo_models import open_players
from engine.reward import pair_loss, pair_scores
from engine.score import RewardModel, RewardStats, load_reward, score, spread
from engine.session import Session
from tests.engine.conftest import with_adapter
from tests.engine.rows import LEARNS, QUICK, pair_rows, prompts
from workbench.errors import UserError
from workbench.judgement import Judgement
from workbench.metrics import GLOSSARY
from workbench.protocol import Metrics, ModelRef, Warned
from workbench.recipes import RewardRecipe
from workbench.run_folder import RunFolder

ROWS = [[5, 6, 2], [7, 8, 9, 10, 11, 12, 2], [13, 2]]


def encoded(tokenizer, count=8):
    made = []
    for one in pair_rows(count):
        chosen, rejected = pair_examples(tokenizer, one.prompt, one.chosen, one.rejected, 256)
        made.append(EncodedPair(one.id, one.ranking_id, chosen, rejected))
    return made


@pytest.fixture
def model(make_base):
    return with_adapter(make_base(dtype=torch.float64), "reward"), ScalarHead(64, seed=1, heads=4).double()


# ---- one head is as it always was ------------------------------------------------------------------------------


def test_the_first_of_several_heads_starts_as_a_single_one_and_the_others_elsewhere():
    for size in (64, 50):
        one, four = ScalarHead(size, seed=7).weight, ScalarHead(size, seed=7, heads=4).weight
        source = torch.Generator().manual_seed(7)
        assert torch.equal(one, torch.randn(1, size, generator=source) * (size + 1) ** -0.5)  # as without ensembles
        assert torch.equal(four[:1], one)
        assert len({tuple(row.tolist()) for row in four.detach()}) == 4


def test_a_single_head_scores_to_the_last_bit_as_a_product_with_its_weights():
    head, hidden = ScalarHead(64, seed=1), torch.randn(7, 64, generator=torch.Generator().manual_seed(0))
    assert torch.equal(head(hidden), hidden @ head.weight[0])
    assert not spread(head.each(hidden)).any()
    assert bootstrap_weights(["a", "b", "a"], 1, 0) == {"a": torch.ones(1), "b": torch.ones(1)}


def test_more_heads_than_the_rankings_can_tell_apart_are_told(runs):
    # {a}, {b} and {a, b}: two rankings make three choices, and a fourth head repeats one
    for rankings, heads, told in ((2, 4, True), (2, 3, False), (1, 2, True), (1, 1, False)):
        run_id = f"{rankings}-{heads}"
        runs.run(runs.create("reward", pair_rows(rankings), heads=heads, max_steps=1, batch=2, run_id=run_id))
        folder = RunFolder(runs.runs_dir / run_id)
        said = [one.message for one in folder.events() if isinstance(one, Warned) and one.code == "heads"]
        assert [one.startswith(f"{heads} heads are too many for {rankings} rankings") for one in said] == [True] * told


# ---- many heads: formulas --------------------------------------------------------------------------------------


def test_the_mean_of_linear_heads_is_a_linear_head():
    head, hidden = ScalarHead(64, seed=1, heads=5).double(), torch.randn(7, 64, dtype=torch.float64)
    torch.testing.assert_close(head(hidden), hidden @ mean_head(head.weight)[0], rtol=0, atol=1e-12)


def test_the_spread_forgets_the_level_of_each_head():
    # heads 1, 3 and 101, 103: they differ by 100 throughout, and agree on which response is better by how much
    by_head = torch.tensor([[1.0, 101.0], [3.0, 103.0]])
    assert spread(by_head).tolist() == [50, 50]
    assert spread(by_head, (2.0, 102.0)).tolist() == [0, 0]
    # 0, 0, 3: mean 1, sqrt((1 + 1 + 4) / 3)
    assert float(spread(torch.tensor([0.0, 0.0, 3.0]))) == pytest.approx(math.sqrt(2))


def table(rankings, heads, seed):
    """The weights of all rankings, [N, K]."""
    return torch.stack(list(bootstrap_weights(rankings, heads, seed).values()))


@pytest.mark.parametrize("heads", [2, 3, 8])
def test_coins_fall_by_ranking_and_head_for_good_and_weigh_1_in_the_mean(heads):
    units = [f"k{number:04}" for number in range(4000)]
    weights = table(units, heads, 3)
    # p = P(a head's coin | not all K are tails) = 2^(K-1) / (2^K - 1); weights 1/p or 0: variance 1/p - 1
    p = 2 ** (heads - 1) / (2**heads - 1)
    assert sorted(weights.unique().tolist()) == pytest.approx([0, 1 / p])
    assert weights.mean(0).tolist() == pytest.approx([1] * heads, abs=4 * math.sqrt((1 / p - 1) / 4000))
    assert torch.equal(weights, table(units[::-1] * 2, heads, 3))  # whatever the order, and how many pairs each has
    assert torch.equal(weights[:100], table(units[:100], heads, 3))  # a ranking's coins are its own
    assert not torch.equal(weights, table(units, heads, 4))


def test_the_coins_of_two_heads_are_independent_but_for_the_toss_that_is_tossed_again():
    drawn = table([f"k{number}" for number in range(8000)], 2, 0) > 0
    for first, second in itertools.product((True, False), repeat=2):
        share = float((drawn == torch.tensor([first, second])).all(1).double().mean())
        assert share == pytest.approx((first or second) / 3, abs=4 * math.sqrt(2 / 9 / 8000))


@pytest.mark.parametrize(("rankings", "heads"), [(1, 1), (1, 4), (2, 2), (2, 16), (3, 4), (8, 2), (40, 2)])
def test_every_head_gets_a_ranking_and_every_ranking_a_head(rankings, heads):
    units = [f"k{number}" for number in range(rankings)]
    for seed in range(300):
        drawn = table(units, heads, seed) > 0
        assert drawn.any(0).all()
        assert drawn.any(1).all()
        assert torch.equal(drawn, table(units, heads, seed) > 0)


def test_the_loss_is_the_mean_over_heads_of_bradley_terry_on_the_pairs_of_each(tokenizer):
    pairs = encoded(tokenizer, 3)
    source = torch.Generator().manual_seed(4)
    chosen, rejected = (torch.randn(3, 4, generator=source, dtype=torch.float64) for _ in range(2))
    recipe = RewardRecipe(heads=4, seed=9, center_coefficient=0.1)
    weights = bootstrap_weights([one.unit for one in pairs], 4, 9)
    found = pair_loss(chosen, rejected, pairs, recipe, ranking_weights(pairs), weights).tolist()
    for pair in range(3):
        expected = 0.0
        for head in range(4):
            c, r = float(chosen[pair, head]), float(rejected[pair, head])
            expected += float(weights[pairs[pair].unit][head]) * (math.log1p(math.exp(r - c)) + 0.1 * (c + r) ** 2) / 4
        assert found[pair] == pytest.approx(expected, rel=1e-12)


def test_one_step_of_eight_equals_eight_accumulated_steps_of_one(model, tokenizer):
    adapters, head = model
    # rankings of three, two, two and one pair: micro-batches of one and of three cut them
    pairs = [replace(one, unit=unit) for one, unit in zip(encoded(tokenizer), "aaabbccd", strict=True)]
    recipe, alike = RewardRecipe(heads=4, center_coefficient=0.1), ranking_weights(pairs)
    trained = [*adapters.parameters("reward"), *head.parameters()]
    weights = bootstrap_weights([one.unit for one in pairs], 4, 0)

    def gradients(size):
        for one in trained:
            one.grad = None
        for start in range(0, 8, size):
            part = pairs[start : start + size]
            chosen, rejected, _ = pair_scores(adapters, head, part)
            (pair_loss(chosen, rejected, part, recipe, alike, weights).sum() / 8).backward()
        return [one.grad.clone() for one in trained]

    at_once = gradients(8)
    for size in (1, 3):
        for one, other in zip(at_once, gradients(size), strict=True):
            torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-5)


def test_a_head_learns_nothing_from_a_pair_that_its_coin_took_away(model, tokenizer):
    adapters, head = model
    pair = encoded(tokenizer, 1)
    chosen, rejected, _ = pair_scores(adapters, head, pair)
    coins = torch.tensor([1.875, 0, 0, 1.875])
    alike = ranking_weights(pair)
    pair_loss(chosen, rejected, pair, RewardRecipe(heads=4), alike, {pair[0].unit: coins}).sum().backward()
    assert torch.equal(head.weight.grad.abs().sum(1) > 0, coins > 0)


# ---- a run, its file, and the same score by every path ---------------------------------------------------------


@pytest.fixture
def trained(runs):
    folder = runs.create(
        "reward", pair_rows(), pair_rows(6, "held"), heads=4, epochs=9, max_steps=6, learning_rate=5e-3
    )
    runs.run(folder)
    return folder


def test_a_run_with_heads_learns_judges_with_spreads_and_names_its_numbers(runs, metric):
    folder = runs.create(
        "reward",
        pair_rows(),
        pair_rows(4, "held"),
        heads=4,
        **LEARNS,
    )
    runs.run(folder)
    losses = [value for _, value in metric(folder, "loss")]
    assert sum(losses[-5:]) < 0.4 * sum(losses[:5])
    assert metric(folder, "eval_accuracy")[-1] == (25, 1.0)
    sent = {key for one in folder.events() if isinstance(one, Metrics) for key in one.values}
    assert all("reward" in GLOSSARY[key].methods for key in sent)
    judged = Judgement.read(folder.path / "final").pairs
    mean = sum(one.gap_std for one in judged) / 4
    assert mean > 0
    assert metric(folder, "eval_margin_std_heads")[-1][1] == pytest.approx(mean, rel=1e-3)


def test_a_response_scores_the_same_alone_in_a_batch_in_training_and_in_other_programs(
    trained, tiny_model_dir, tmp_path
):
    from peft import PeftModel
    from transformers import AutoModelForSequenceClassification

    adapters = Adapters(load_base(tiny_model_dir, quantisation="fp32", device=torch.device("cpu")))
    ours = load_reward(adapters, trained.path / "final")
    assert ours.head.count == 4
    batch = ours.score_ids(ROWS)
    torch.testing.assert_close(torch.cat([ours.score_ids([row]) for row in ROWS]), batch)
    layout = adapters.lay_out([reward.Example.plain(row) for row in ROWS])
    torch.testing.assert_close(score(adapters, "reward", ours.head, layout).detach(), batch)
    measured = ours.measure_ids(ROWS)
    assert torch.equal(measured.scores, batch)
    assert (measured.stds > 0).all()
    # other programs see one linear head, the mean of the four
    theirs = AutoModelForSequenceClassification.from_pretrained(tiny_model_dir, num_labels=1)
    theirs = PeftModel.from_pretrained(theirs, str(trained.path / "final")).eval()
    theirs.config.pad_token_id = None
    model = ModelRef(model_id="r", name="r", base=str(tiny_model_dir), adapter=str(trained.path / "final"))
    export_model(model, tmp_path / "merged", "merged")
    whole = AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged", dtype=torch.float32)
    for row, value in zip(ROWS, batch, strict=True):
        ids = torch.tensor([row])
        with torch.no_grad():
            torch.testing.assert_close(theirs(ids).logits[0, 0], value)
            merged = whole(ids, attention_mask=torch.ones_like(ids)).logits
        assert float(merged) == pytest.approx(float(value), abs=0.1)  # rounded to bf16 once
    export_model(model, tmp_path / "plain", "adapter")
    assert torch.equal(load_head(tmp_path / "plain").weight, ours.head.weight)


def test_each_heads_level_is_known_from_the_calibration_set(trained, tiny_model_dir):
    adapters = Adapters(load_base(tiny_model_dir, quantisation="bf16", device=torch.device("cpu")))
    ours = load_reward(adapters, trained.path / "final")
    responses = {(one.prompt, text) for one in pair_rows() for text in (one.chosen, one.rejected)}
    by_head = ours.ids_by_head([ours.encode(prompt, text) for prompt, text in responses])
    assert ours.stats.head_means == pytest.approx(by_head.mean(0).tolist(), abs=1e-4)
    assert ours.stats.mean == pytest.approx(sum(ours.stats.head_means) / 4, abs=1e-5)


def test_a_model_of_one_head_is_the_file_it_always_was(runs, tmp_path):
    folder = runs.create("reward", pair_rows(), max_steps=1)
    runs.run(folder)
    assert not (folder.path / "final" / HEADS_FILE).exists()
    assert load_head(folder.path / "final").count == 1
    old = b'{"mean": 0.5, "std": 2.0, "count": 8, "reference": "demonstrations"}'  # written before there were heads
    (tmp_path / "reward_stats.json").write_bytes(old)
    assert RewardStats.read(tmp_path) == RewardStats(0.5, 2.0, 8, "demonstrations")


def test_heads_of_another_model_and_damaged_ones_are_refused(trained):
    from safetensors.torch import save_file

    final = trained.path / "final"
    save_file({"heads": torch.zeros(4, 64)}, str(final / HEADS_FILE))
    with pytest.raises(UserError, match="are of another model"):
        load_head(final)
    (final / HEADS_FILE).write_bytes(b"no tensors")
    with pytest.raises(UserError, match="damaged"):
        load_head(final)


def test_the_resumed_run_is_the_uninterrupted_one_bit_for_bit(runs, metric):
    settings = {"epochs": 2, "batch": 4, "micro_batch": 2, "learning_rate": 5e-3, "heads": 3}
    whole, broken = (
        runs.create("reward", pair_rows(), **settings),
        runs.create("reward", pair_rows(), run_id="2", **settings),
    )
    runs.run(whole)
    runs.run(broken, stop_at=2)
    runs.run(broken)
    for key in ("loss", "accuracy", "margin", "grad_norm"):
        assert metric(broken, key) == metric(whole, key)
    for name in ("adapter_model.safetensors", HEADS_FILE):
        assert (broken.path / "final" / name).read_bytes() == (whole.path / "final" / name).read_bytes()


def test_training_further_keeps_the_heads_and_says_so(runs, trained):
    again = runs.create("reward", pair_rows(), run_id="2", max_steps=1, heads=2, adapter=trained.path / "final")
    runs.run(again)
    assert load_head(again.path / "final").count == 4
    [said] = [one for one in again.events() if isinstance(one, Warned) and one.code == "heads"]
    assert "has 4 heads" in said.message


# ---- PPO -------------------------------------------------------------------------------------------------------

SHORT = QUICK | {"rule": "", "episodes": 8, "ppo_epochs": 1, "mini_batches": 1, "response_length": 8}


def ppo_run(runs, adapter, run_id="ppo", **changes):
    judge = ModelRef(model_id="r", name="judge", base=str(runs.base), adapter=str(adapter))
    return runs.create("ppo", prompts(), prompts(2), reward=judge, run_id=run_id, **(SHORT | changes))


def test_what_the_heads_disagree_on_is_taken_off_the_score(runs, trained, metric):
    plain = ppo_run(runs, trained.path / "final")
    wary = ppo_run(runs, trained.path / "final", "wary", uncertainty_penalty=2.0)
    runs.run(plain)
    runs.run(wary)
    std = metric(plain, "objective/score_std_heads")[0][1]
    assert std > 0
    assert metric(wary, "objective/score_std_heads")[0][1] == std  # the same first rollout
    expected = metric(plain, "objective/scores")[0][1] - 2.0 * std
    assert metric(wary, "objective/scores")[0][1] == pytest.approx(expected, abs=1e-5)
    assert [step for step, _ in metric(plain, "eval_objective/score_std_heads")] == [0, 1]
    session = Session(plain.path)
    players = open_players(session)
    episodes = ppo.rollout(
        session, ppo._trainer(players, players.recipe, 1), ppo.encode_prompts(session, players, "train"), 5
    ).episodes
    _, stds = players.scores(episodes)
    by_head = players.reward.ids_by_head([[*one.prompt_ids, *one.ids] for one in episodes])
    levelled = by_head - torch.tensor(players.reward.stats.head_means)
    assert stds == pytest.approx((levelled.std(-1, correction=0) / players.reward.stats.std).tolist(), rel=1e-4)


def test_scores_of_a_run_are_clipped_and_the_share_is_told(runs, trained, metric):
    folder = ppo_run(runs, trained.path / "final", score_clip=0.01, missing_eos_penalty=0.0)
    runs.run(folder)
    assert all(abs(one.score) <= 0.01 for one in folder.samples())
    [(_, share)] = metric(folder, "objective/scores_clipped")
    at_the_edge = [abs(one.score) == 0.01 for one in folder.samples()]
    assert 0 < share == sum(at_the_edge) / len(at_the_edge)
    assert "ppo" in GLOSSARY["objective/scores_clipped"].methods


def test_the_value_starts_as_the_mean_of_the_heads(runs, trained):
    players = open_players(Session(ppo_run(runs, trained.path / "final").path))
    expected = players.reward.head.weight.mean(0, keepdim=True) / players.reward.stats.std
    torch.testing.assert_close(players.head.weight, expected)


def test_a_penalty_without_an_ensemble_is_told(runs):
    single = runs.create("reward", pair_rows(), run_id="single", max_steps=1)
    runs.run(single)
    folder = ppo_run(runs, single.path / "final", uncertainty_penalty=1.0)
    runs.run(folder)
    assert [one.code for one in folder.events() if isinstance(one, Warned)] == ["one-head"]


def test_heads_are_further_apart_on_what_they_never_saw():
    """Sixteen heads on fixed states, fitted to half the pairs each: their spread is larger off the training pairs."""
    source = torch.Generator().manual_seed(0)
    truth = torch.randn(32, generator=source)
    difference = torch.randn(400, 32, generator=source)
    difference[:, 16:] *= 0.05  # what the training responses hardly differ in
    difference = difference * torch.sign(difference @ truth)[:, None]
    head = ScalarHead(32, seed=1, heads=16)
    coins = table([str(number) for number in range(400)], 16, 0)
    optimiser = torch.optim.Adam(head.parameters(), 0.02)
    for _ in range(200):
        loss = (coins * -torch.nn.functional.logsigmoid(head.each(difference))).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    with torch.no_grad():
        strange = torch.randn(400, 32, generator=source)
        strange[:, :16] = 0
        seen = head.each(difference)
        near = (spread(seen) / seen.mean(-1).abs()).median()
        far = head.each(strange)
        assert (spread(far) / far.mean(-1).abs()).median() > 3 * near


def test_a_reward_model_of_a_single_head_has_no_spread(model):
    adapters, _ = model
    one = RewardModel(adapters, "reward", ScalarHead(64, seed=1).double(), RewardStats())
    assert not one.measure_ids(ROWS).stds.any()
