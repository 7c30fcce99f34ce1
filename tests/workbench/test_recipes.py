"""Recipes: presets, ranges, rules, and settings read from text."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workbench.errors import UserError
from workbench.metrics import GLOSSARY, plots_for
from workbench.recipes import (
    PRESETS,
    RECIPES,
    DpoRecipe,
    KtoRecipe,
    PpoRecipe,
    SftRecipe,
    methods_with,
    parse_rule,
    preset,
    thumb_weights,
)
from workbench.records import METHODS, Method
from workbench.settings_fields import Setting, parse_value, settings_of, with_settings


@pytest.mark.parametrize("method", METHODS)
def test_every_field_of_a_recipe_is_a_setting_with_help(method: Method) -> None:
    names = {one.name for one in settings_of(RECIPES[method])}
    unheeded = (
        {"epochs"} if method == "ppo" else set()
    )  # episodes takes its place: a setting that does nothing misleads
    assert names == {one.name for one in dataclasses.fields(RECIPES[method])} - unheeded
    assert all(one.help for one in settings_of(RECIPES[method]))


@given(
    st.sampled_from(METHODS),
    st.sampled_from(PRESETS),
    st.integers(1, 100_000),
    st.sampled_from([0, 135_000_000, 8_000_000_000]),
    st.booleans(),
)
def test_every_preset_is_free_of_problems(method: Method, name: str, rows: int, parameters: int, cuda: bool) -> None:
    recipe = preset(method, name, rows, parameters, cuda=cuda)
    assert recipe.problems() == []


def test_a_small_base_is_held_in_bf16_and_a_large_one_in_nf4() -> None:
    assert preset("sft", "Balanced", 60, 135_000_000).quantisation == "bf16"
    assert preset("sft", "Balanced", 60, 8_000_000_000).quantisation == "nf4"


def test_a_preset_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ValueError, match="choose one of Quick look, Balanced, Thorough"):
        preset("sft", "Heroic", 60)


def test_a_value_outside_its_range_is_a_problem_of_its_field() -> None:
    problems = SftRecipe(learning_rate=5.0, batch=8, micro_batch=16).problems()
    assert {one.field for one in problems} == {"learning_rate", "micro_batch"}
    assert "outside 1e-08 to 0.1" in problems[0].message


def test_a_misspelt_choice_is_a_problem_that_names_the_near_one() -> None:
    (problem,) = SftRecipe(quantisation="nf5").problems()
    assert problem.field == "quantisation"
    assert "nf4" in problem.remedy


def test_nan_is_outside_every_range() -> None:
    assert [one.field for one in DpoRecipe(beta=float("nan")).problems()] == ["beta"]


def test_a_whole_number_too_long_for_a_float_is_outside_its_range() -> None:
    recipe = with_settings(SftRecipe(), {"batch": "9" * 400})
    assert "batch is a number of 400 digits" in recipe.problems()[0].message


def test_no_mini_batches_are_a_problem_and_no_division() -> None:
    assert [one.field for one in PpoRecipe(mini_batches=0).problems()] == ["mini_batches"]


def test_robust_dpo_without_smoothing_is_only_a_warning() -> None:
    (problem,) = DpoRecipe(loss_type="robust").problems()
    assert problem.severity == "warning"


def test_smoothing_where_the_loss_has_none_is_an_error() -> None:
    (problem,) = DpoRecipe(loss_type="ipo", label_smoothing=0.1).problems()
    assert (problem.field, problem.severity) == ("label_smoothing", "error")


def test_a_setting_of_another_loss_is_said_to_have_no_effect() -> None:
    (problem,) = DpoRecipe(simpo_gamma=1.0).problems()
    assert (problem.field, problem.severity) == ("simpo_gamma", "warning")
    assert DpoRecipe(loss_type="simpo", simpo_gamma=1.0, beta=2.0).problems() == []
    (problem,) = DpoRecipe(loss_type="simpo", simpo_gamma=1.0, beta=2.0, orpo_lambda=1.0).problems()
    assert problem.message == "orpo_lambda has no effect while loss_type is simpo"


def test_orpo_has_no_beta_but_a_lambda() -> None:
    (problem,) = DpoRecipe(loss_type="orpo", beta=0.5).problems()
    assert (problem.field, problem.severity) == ("beta", "warning")
    assert problem.message == "beta has no effect while loss_type is orpo"
    assert DpoRecipe(loss_type="orpo", orpo_lambda=0.5).problems() == []


@pytest.mark.parametrize("method", METHODS)
def test_every_setting_of_what_is_learnt_says_whose_default_it_is(method: Method) -> None:
    groups = ("Loss", "Optimiser", "Reward", "KL leash", "PPO", "Rollout")
    assert [one.name for one in settings_of(RECIPES[method]) if one.group in groups and not one.source] == []


def test_simpo_wants_a_larger_beta_than_dpo() -> None:
    (problem,) = DpoRecipe(loss_type="simpo").problems()
    assert (problem.field, problem.severity) == ("beta", "warning")


def test_ppo_refuses_uneven_mini_batches_a_response_without_a_prompt_and_an_unknown_rule() -> None:
    recipe = PpoRecipe(batch=10, mini_batches=3, micro_batch=2, response_length=64, max_length=64, rule="be-nice")
    assert {one.field for one in recipe.problems()} == {"mini_batches", "response_length", "rule"}


@pytest.mark.parametrize("advantage", ["rloo", "grpo"])
def test_advantages_within_a_group_want_a_group_and_a_whole_reward(advantage: str) -> None:
    recipe = PpoRecipe(advantage=advantage, whiten_rewards=True)
    assert [one.field for one in recipe.problems()] == ["responses_per_prompt", "whiten_rewards"]
    recipe = PpoRecipe(advantage=advantage, responses_per_prompt=5)
    assert "32 episodes do not split into 5 responses" in recipe.problems()[0].message
    recipe = PpoRecipe(advantage=advantage, responses_per_prompt=4)
    assert (recipe.problems(), recipe.prompts_per_rollout, recipe.has_value) == ([], 8, False)


@pytest.mark.parametrize("advantage", ["rloo", "grpo"])
def test_without_a_value_model_its_settings_have_no_effect_and_only_changed_ones_are_told(advantage: str) -> None:
    standard = dataclasses.replace(preset("ppo", "Balanced", 60), advantage=advantage, responses_per_prompt=4)
    assert standard.problems() == []  # the preset's own value_learning_rate is nobody's wish
    changed = dataclasses.replace(
        standard, gamma=0.9, gae_lambda=0.5, value_clip_range=1.0, value_coefficient=1.0, value_learning_rate=1e-3
    )
    found = changed.problems()
    names = {"gamma", "gae_lambda", "value_clip_range", "value_coefficient", "value_learning_rate"}
    assert {one.field for one in found} == names
    assert {one.severity for one in found} == {"warning"}
    assert f"gamma has no effect while advantage is {advantage}" in [one.message for one in found]
    assert dataclasses.replace(changed, advantage="gae").problems() == []


def test_a_setting_that_needs_a_number_above_0_names_it() -> None:
    (problem,) = PpoRecipe(kl_horizon=5).problems()
    assert (problem.field, problem.remedy) == ("kl_horizon", "set kl_target above 0, or kl_horizon back")
    assert PpoRecipe(kl_horizon=5, kl_target=6.0).problems() == []


@pytest.mark.parametrize("method", METHODS)
def test_what_a_setting_depends_on_is_a_setting_of_the_same_recipe(method: Method) -> None:
    known = {one.name: one for one in settings_of(RECIPES[method])}
    for one in known.values():
        if one.applies is not None:
            other = known[one.applies.field]
            assert not other.choices or set(one.applies.values) <= set(other.choices)


@pytest.mark.parametrize(
    ("rule", "parsed"), [("shorter-than:40", ("shorter-than", "40")), ("contains:a:b", ("contains", "a:b"))]
)
def test_a_rule_is_a_name_and_an_argument(rule: str, parsed: tuple[str, str]) -> None:
    assert parse_rule(rule) == parsed


@pytest.mark.parametrize(
    "rule",
    ["shorter-than", "shorter-than:", "shorter-than:0", "shorter-than:many", "shorter-than:²", "nicer:1"],
)
def test_a_rule_that_means_nothing_is_refused(rule: str) -> None:
    with pytest.raises(ValueError, match=r"rule|needs a"):
        parse_rule(rule)


def test_settings_are_read_from_text() -> None:
    recipe = with_settings(DpoRecipe(), {"beta": "0.3", "gradient_checkpointing": "yes", "loss_type": "ipo"})
    assert (recipe.beta, recipe.gradient_checkpointing, recipe.loss_type) == (0.3, True, "ipo")


def test_all_faults_of_given_settings_are_told_at_once() -> None:
    with pytest.raises(UserError) as caught:
        with_settings(DpoRecipe(), {"bta": "0.3", "batch": "many", "gradient_checkpointing": "maybe"})
    assert "did you mean beta" in str(caught.value)
    assert "batch wants a whole number" in str(caught.value)
    assert "gradient_checkpointing wants true or false" in str(caught.value)
    assert "tastemaker train --help" in str(caught.value)


def test_a_setting_of_other_methods_is_said_to_be_theirs_and_no_like_name_is_offered() -> None:
    with pytest.raises(UserError) as caught:
        with_settings(KtoRecipe(), {"heads": "3"}, methods_with)  # head_rows is no answer to heads
    assert "'heads' is a setting of reward, not of this method" in str(caught.value)
    assert "did you mean" not in str(caught.value)
    assert methods_with("episodes") == ("ppo",)
    assert "ppo" not in methods_with("epochs")


def test_kto_whose_weights_are_both_0_has_nothing_to_learn() -> None:
    [problem] = KtoRecipe(desirable_weight=0, undesirable_weight=0).problems()
    assert (problem.field, problem.severity) == ("desirable_weight", "error")
    assert KtoRecipe(desirable_weight=0).problems() == []  # unwanted responses alone still teach


def test_a_weight_is_advised_in_plain_numbers_and_within_its_range() -> None:
    # gain 1 x 1, loss 5 x 1000: desirable_weight would have to be 5,000 to 6,667, above its 1,000;
    # so undesirable_weight is lowered: 3/4 (1 / 1000) to 1 / 1000
    [problem] = thumb_weights(KtoRecipe(undesirable_weight=5), 1, 1000)
    assert "1 : 5,000" in problem.message
    assert (problem.field, problem.remedy) == ("undesirable_weight", "set undesirable_weight between 0.00075 and 0.001")


def test_an_optional_setting_can_be_switched_off() -> None:
    one = Setting("limit", float, None, "a limit", optional=True)
    assert parse_value(one, "off") is None
    assert parse_value(one, "2.5") == 2.5


def test_every_metric_is_in_exactly_one_plot_of_its_methods() -> None:
    for method in METHODS:
        shown = [metric.key for metrics in plots_for(method).values() for metric in metrics]
        assert sorted(shown) == sorted(key for key, metric in GLOSSARY.items() if method in metric.methods)


def test_ppo_shows_what_the_researcher_watches_first() -> None:
    assert list(plots_for("ppo"))[:3] == ["Score", "KL", "Reward"]


def test_an_adaptive_kl_coefficient_cannot_start_at_nothing() -> None:
    found = PpoRecipe(kl_coefficient=0.0, kl_target=6.0).problems()
    assert [one.field for one in found] == ["kl_coefficient"]
    assert PpoRecipe(kl_coefficient=0.05, kl_target=6.0).problems() == []
