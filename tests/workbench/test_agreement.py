"""How consistent labels are: agreement between raters and of one asked twice, what sways them, and the ceiling."""

import json
import math

import pytest

from workbench import cli
from workbench.agreement import agreement, flips_of, measure
from workbench.agreement_words import findings
from workbench.chance_corrected import cohens_kappa, interval, krippendorffs_alpha, nominal
from workbench.ids import new_id
from workbench.re_asks import ReAsk
from workbench.records import Ranking, Rater

TEXTS = {"a": "a text", "b": "a longer text", "c": "the longest text of all"}


def ranked(rater, *tiers, prompt="p", shown=()):
    return Ranking(new_id(), prompt, rater, tuple(tuple(tier) for tier in tiers), shown_order=tuple(shown))


# ---- beyond chance ----


def canonical_units():
    """Four observers of twelve units, with gaps: the example of Krippendorff (2011)."""
    rows = (
        [1, 2, 3, 3, 2, 1, 4, 1, 2, None, None, None],
        [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, None, 3],
        [None, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, None],
        [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, None],
    )
    return [[value for value in unit if value is not None] for unit in zip(*rows, strict=True)]


def test_alpha_is_krippendorffs_on_his_own_example():
    units = canonical_units()
    assert krippendorffs_alpha(units, nominal).value == pytest.approx(0.743, abs=5e-4)
    assert krippendorffs_alpha(units, interval).value == pytest.approx(0.849, abs=5e-4)


def test_kappa_takes_chance_off():
    """20 yes-yes, 15 no-no, 15 apart of 50: p_o = 0.7, p_e = 0.5 x 0.6 + 0.5 x 0.4 = 0.5, kappa = 0.2 / 0.5."""
    pairs = [(1, 1)] * 20 + [(1, 0)] * 5 + [(0, 1)] * 10 + [(0, 0)] * 15
    assert cohens_kappa(pairs).value == pytest.approx(0.4)


def test_nothing_is_beyond_chance_where_everybody_always_says_the_same():
    assert cohens_kappa([(1, 1), (1, 1)]) is None
    assert cohens_kappa([]) is None
    assert krippendorffs_alpha([[0, 0], [0, 0]]) is None
    assert krippendorffs_alpha([[1], [0]]) is None


def test_the_interval_of_perfect_agreement_on_three_prompts_is_wide():
    low, high = cohens_kappa([(1, 1), (-1, -1)]).between(3)
    assert high == 1.0
    assert low < 0.2  # Wilson's 0.44 of three in three is below a coin's half: 1 - 0.56 / 0.5


# ---- raters ----


def test_two_raters_are_compared_on_the_pairs_that_both_judged_and_ties_are_told_apart():
    """Ann: a > b > c. Ben: a > b = c, and swaps a and b elsewhere: same 2, one tied 1, opposite 1."""
    told = agreement(
        [
            ranked("ann", "a", "b", "c"),
            ranked("ben", "a", "bc"),
            ranked("ann", "a", "b", prompt="q"),
            ranked("ben", "b", "a", prompt="q"),
            ranked("ann", "a", "b", prompt="only hers"),
        ],
        TEXTS,
        names={"ann": "Ann", "ben": "Ben"},
    )
    one = told.between
    assert (one.same, one.opposite, one.one_tied, one.both_tied) == (2, 1, 1, 0)
    assert (one.exact.share, one.exact.pairs, one.exact.prompts) == (0.5, 4, 2)
    assert one.preferences.share == pytest.approx(2 / 3)
    [two] = told.by_raters
    assert (two.first, two.second) == ("Ann", "Ben")
    # each pair both ways round: p_e = 2 x (4/8)(3/8) + 0 x 2/8 = 3/8, kappa = (1/2 - 3/8) / (5/8)
    assert two.told.beyond_chance == pytest.approx(0.2)


def test_the_order_in_which_a_pair_is_written_changes_nothing():
    def kappa(one, other):
        both = [ranked("ann", one, other), ranked("ben", one, other), ranked("ann", "a", "bc", prompt="q")]
        return agreement([*both, ranked("ben", "ab", "c", prompt="q")], TEXTS).between.beyond_chance

    assert kappa("a", "b") == pytest.approx(kappa("b", "a"))


def test_a_reversal_weighs_more_in_alpha_than_a_tie_against_a_preference():
    def alpha(*other):
        common = [ranked(who, "a", "b", prompt=f"p{n}") for n in range(4) for who in ("ann", "ben")]
        return agreement([*common, ranked("ann", "a", "b"), ranked("ben", *other)], TEXTS).between.beyond_chance

    assert alpha("b", "a") < alpha("ab") < 1


def test_of_overlapping_rankings_of_one_rater_the_newest_counts():
    told = agreement([ranked("ann", "a", "b"), ranked("ann", "b", "a", "c"), ranked("ben", "b", "a")], TEXTS)
    assert (told.between.same, told.between.opposite) == (1, 0)


def test_a_pair_that_one_rater_ranked_twice_counts_once_in_what_sways():
    """b, c are new and a, d the old ends: 6 pairs of the first card and 6 of the second, of which a, d is in both."""
    texts = {one: one * length for length, one in enumerate("abcdef", 1)}
    told = agreement(
        [ranked("ann", "a", "b", "c", "d", shown="abcd"), ranked("ann", "d", "e", "f", "a", shown="dfea")], texts
    )
    assert told.pairs == 11
    assert (told.earlier_wins.pairs, told.longer_wins.pairs) == (11, 11)
    assert told.longer_wins.share == pytest.approx(3 / 11)  # d, e and f > a


def test_identical_and_empty_texts_say_nothing():
    told = agreement([ranked("ann", "a", "b", "c")], {"a": "the same", "b": " the same", "c": " "})
    assert (told.pairs, told.ties, told.longer_wins) == (0, None, None)


def test_one_rater_alone_is_compared_with_nobody():
    told = agreement([ranked("ann", "a", "b")], TEXTS)
    assert (told.between, told.by_raters, told.oneself, told.noise) == (None, (), None, None)


# ---- what sways ----


def test_the_response_shown_first_and_the_longer_one_are_counted():
    """Shown a, b, c and ranked a > c > b: first wins 2 of 2, earlier 2 of 3; longer wins c > b only, 1 of 3."""
    told = agreement([ranked("ann", "a", "c", "b", shown="abc")], TEXTS)
    assert (told.first_wins.share, told.first_wins.pairs) == (1.0, 2)
    assert told.earlier_wins.share == pytest.approx(2 / 3)
    assert told.longer_wins.share == pytest.approx(1 / 3)
    assert told.first_wins.prompts == 1  # pairs of one card go together: the interval is that of one
    assert not told.first_wins.leans


def test_ties_and_rankings_of_unknown_order_tell_nothing_of_place():
    assert agreement([ranked("ann", "ab", shown="ab")], TEXTS).first_wins is None
    assert agreement([ranked("ann", "a", "b")], TEXTS).first_wins is None


def test_a_hundred_cards_of_which_the_first_always_wins_lean():
    told = agreement([ranked("ann", "a", "b", prompt=str(n), shown="ab") for n in range(100)], TEXTS)
    assert told.first_wins.leans
    [said] = [one for one in findings(told) if one.key == "position"]
    assert (said.number, said.tone) == ("100%", "warn")


# ---- oneself, and the ceiling ----


@pytest.mark.parametrize("flips", [0.0, 0.1, 0.25, 0.5])
def test_flips_solve_the_chance_that_two_answers_agree(flips):
    assert flips_of(1 - 2 * flips * (1 - flips)) == pytest.approx(flips)


def test_agreement_below_a_coin_is_a_coin():
    assert flips_of(0.3) == 0.5


def asked_twice(same, opposite):
    asked = []
    for n in range(same + opposite):
        first = ranked("ann", "a", "b", prompt=str(n))
        again = ranked("ann", *("ab" if n < same else "ba"), prompt=str(n))
        asked.append(ReAsk(first, again))
    return asked


def test_self_agreement_of_82_in_100_bounds_a_reward_model_at_90_percent():
    """a = 0.82 = 1 - 2e(1 - e) at e = 0.1; the ends of the interval go the same way, the other way round."""
    told = agreement([], TEXTS, asked=asked_twice(82, 18))
    assert told.oneself.exact.share == pytest.approx(0.82)
    assert told.noise.flips == pytest.approx(0.1)
    assert told.noise.ceiling == pytest.approx(0.9)
    assert told.noise.low < 0.1 < told.noise.high
    assert told.noise.low == pytest.approx((1 - math.sqrt(2 * told.oneself.preferences.high - 1)) / 2)
    assert told.noise.source == "re-asks"
    [said] = [one for one in findings(told) if one.key == "ceiling"]
    assert (said.number, "label_smoothing 0.10" in said.advice) == ("90%", True)


def test_without_re_asks_the_ceiling_comes_of_the_raters():
    told = agreement([ranked("ann", "a", "b"), ranked("ben", "a", "b")], TEXTS)
    assert (told.noise.source, told.noise.flips) == ("raters", 0.0)


def test_every_finding_says_what_is_missing_and_what_to_do():
    for one in findings(agreement([], {})):
        assert one.number == ""
        assert one.evidence.startswith("Not known")
        assert one.advice


# ---- a project, and the command ----


@pytest.fixture
def judged(project, make):
    prompt, responses = make.rankable()
    project.store.save_rater(Rater("ben", "Ben")).result()
    project.store.save_rater(Rater("cy", "Cy")).result()
    for rater in ("ann", "ben", "cy"):
        project.store.save_ranking(make.ranking(prompt, *([one] for one in responses), rater=rater)).result()
    return project


def test_a_project_is_measured_by_its_current_rankings(judged, make):
    told = measure(judged.store)
    assert (told.rankings, told.raters, told.pairs) == (3, 3, 9)
    assert told.between.exact.pairs == 9
    [prompt] = judged.store.prompts()
    responses = judged.store.responses(prompt.id)
    judged.store.save_ranking(make.ranking(prompt, *([one] for one in reversed(responses)))).result()
    assert measure(judged.store).between.opposite == 6  # Ann's correction against both others


def test_the_command_tells_it_to_people_and_to_programs(judged, capsys):
    path = str(judged.path)
    judged.close()

    def run(*more):
        assert cli.main(("agreement", path, *more), lambda _: pytest.fail("the window must not open")) == 0
        return capsys.readouterr().out

    shown = run()
    assert "3 rankings by 3 raters, 9 judged pairs." in shown
    assert "Raters with each other: 100%" in shown
    assert "Ann and Ben: 100%" in shown
    assert "One rater, asked twice\n  Not known" in shown
    told = json.loads(run("--json"))
    assert told["between"]["exact"]["share"] == 1.0
    assert told["noise"]["ceiling"] == 1.0
    assert told["oneself"] is None
