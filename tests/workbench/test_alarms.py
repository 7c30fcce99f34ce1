import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workbench.alarms import ALARM_KEYS, KL_LIMIT_NATS, reward_hacking
from workbench.metrics import GLOSSARY

STEPS = list(range(1, 41))


def line(start, end, noise=0.0, seed=0):
    rng = random.Random(seed)
    return STEPS, [start + (end - start) * i / 39 + rng.gauss(0, noise) for i in range(40)]


HEALTHY = {
    "objective/scores": line(0.1, 1.2, 0.1),
    "objective/kl": line(0.0, 4.0, 0.2),
    "ppo/mean_length": line(30, 34, 1),
    "ppo/repetition": line(0.02, 0.03, 0.005),
    "ppo/eos_missing": line(0.2, 0.1, 0.02),
    "eval_objective/scores": line(0.1, 1.0, 0.1),
}


def test_a_healthy_run_raises_no_alarm():
    assert reward_hacking(HEALTHY) is None


def test_a_rising_score_with_a_kl_past_ten_nats_names_kl_and_the_step_where_it_crossed():
    alarm = reward_hacking(HEALTHY | {"objective/kl": line(0, 20)})
    assert [one.key for one in alarm.signals] == ["objective/kl"]
    assert alarm.signals[0].limit == KL_LIMIT_NATS
    assert alarm.step == next(s for s, v in zip(*line(0, 20), strict=True) if v > 10)
    assert "KL passed 10 nats a response" in alarm.headline
    assert f"rollout {alarm.step} " in alarm.advice


def test_kl_of_long_responses_is_judged_by_the_token_and_a_set_limit_comes_first():
    lines = HEALTHY | {"objective/kl": line(0, 20), "ppo/mean_length": line(200, 210)}
    assert reward_hacking(lines) is None
    assert reward_hacking(lines, max_kl=12).signals[0].limit == 12


def test_length_that_grew_by_half_is_named():
    alarm = reward_hacking(HEALTHY | {"ppo/mean_length": line(30, 60)})
    assert [one.key for one in alarm.signals] == ["ppo/mean_length"]
    assert "tokens" in alarm.headline


def test_responses_that_stop_ending_are_named():
    alarm = reward_hacking(HEALTHY | {"ppo/eos_missing": line(0.1, 0.9)}, response_length=64)
    assert [one.key for one in alarm.signals] == ["ppo/eos_missing"]
    assert "cut off at 64 tokens" in alarm.headline


def test_repetition_that_doubled_is_named():
    alarm = reward_hacking(HEALTHY | {"ppo/repetition": line(0.03, 0.5)})
    assert [one.key for one in alarm.signals] == ["ppo/repetition"]


def test_a_validation_score_that_falls_meanwhile_is_named():
    alarm = reward_hacking(HEALTHY | {"eval_objective/scores": line(1, -1, 0.1)})
    assert [one.key for one in alarm.signals] == ["eval_objective/scores"]
    assert "fell" in alarm.headline


def test_heads_that_move_apart_on_the_policys_samples_are_named_with_the_penalty_as_a_way_out():
    apart = line(0.2, 0.8, 0.02)
    alarm = reward_hacking(HEALTHY | {"objective/score_std_heads": apart})
    [signal] = alarm.signals
    assert signal.key in GLOSSARY
    assert "the reward model's heads moved apart" in alarm.headline
    before = sum(apart[1][:10]) / 10  # the first quarter
    assert signal.limit == pytest.approx(1.5 * before)
    assert apart[1][alarm.step - 1] > signal.limit >= apart[1][alarm.step - 2]
    assert "an uncertainty_penalty" in alarm.advice
    other = reward_hacking(HEALTHY | {"objective/kl": line(0, 30)})
    assert "penalty" not in other.advice


@pytest.mark.parametrize(
    "spread",
    [
        line(0.4, 0.55, 0.02),  # by less than half
        line(0.01, 0.05, 0.001),  # five times next to nothing
        line(0.8, 0.2, 0.02),
        (STEPS, [0.1] * 30 + [0.01, 0.5] * 5),  # a few wild responses: within two standard errors
    ],
    ids=["little", "tiny", "falling", "noise"],
)
def test_heads_that_agree_as_much_as_before_are_no_sign(spread):
    assert reward_hacking(HEALTHY | {"objective/score_std_heads": spread}) is None


def test_several_signals_make_one_sentence():
    alarm = reward_hacking(HEALTHY | {"ppo/repetition": line(0.03, 0.5), "objective/kl": line(0, 30)})
    assert len(alarm.signals) == 2
    assert " and " in alarm.headline
    assert alarm.headline.endswith(".")


def test_no_alarm_while_the_score_does_not_rise():
    assert reward_hacking(HEALTHY | {"objective/scores": line(1, 0, 0.1), "objective/kl": line(0, 50)}) is None
    assert reward_hacking(HEALTHY | {"objective/scores": line(1, 1.01, 0.5), "objective/kl": line(0, 50)}) is None


def test_no_alarm_before_there_is_enough_to_judge():
    short = {key: (steps[:4], values[:4]) for key, (steps, values) in HEALTHY.items()}
    assert reward_hacking(short | {"objective/kl": ([1, 2, 3, 4], [0, 50, 90, 99])}) is None
    assert reward_hacking({}) is None
    assert reward_hacking({"objective/scores": line(0, 1)}) is None


def test_a_value_back_under_its_limit_at_the_end_points_to_the_newest_step():
    steps, values = line(0, 40)
    values = [*values[:-1], 9.0]
    assert reward_hacking(HEALTHY | {"objective/kl": (steps, values)}).step == 40


def test_every_key_it_reads_is_in_the_glossary():
    assert set(HEALTHY) < set(ALARM_KEYS) <= set(GLOSSARY)


finite = st.lists(st.floats(-1e6, 1e6), min_size=0, max_size=60)


@given(finite, finite, finite)
def test_it_never_fails_on_any_history(scores, kl, length):
    lines = {
        "objective/scores": (list(range(len(scores))), scores),
        "objective/kl": (list(range(len(kl))), kl),
        "ppo/mean_length": (list(range(len(length))), length),
    }
    alarm = reward_hacking(lines)
    assert alarm is None or alarm.signals
