from __future__ import annotations

import itertools

import pytest
import torch

from engine.masking import Example
from engine.packing import lay_out, tokens_passed
from engine.pairs import EncodedPair, ranking_weights, unique_sides, whole_rankings


def response(ranking, number):
    return Example((ranking, number, 2), (False, True, True), 1)


def ranking(name, responses):
    sides = [response(name, number) for number in range(10, 10 + responses)]
    return [
        EncodedPair(f"{name}/{a}{b}", str(name), sides[a], sides[b])
        for a, b in itertools.combinations(range(responses), 2)
    ]


def sizes(parts):
    return [len(unique_sides(part)[0]) for part in parts]


def test_k_responses_of_a_ranking_pass_once_whatever_the_number_of_pairs():
    pairs = ranking(7, 4)
    unique, where = unique_sides(pairs)
    assert (len(pairs), len(unique)) == (6, 4)
    assert [unique[place] for place in where[:6]] == [one.chosen for one in pairs]
    assert [unique[place] for place in where[6:]] == [one.rejected for one in pairs]


def test_rankings_weigh_alike_however_many_pairs_they_have():
    # 36 pairs and 1 pair, P = 37 of R = 2 rankings: 37 / (2 x 36) and 37 / (2 x 1), so that sum(w l) / 37 is
    # half the mean over the 36 and half the one
    pairs = [*ranking(1, 9), *ranking(2, 2)]
    weights = ranking_weights(pairs)
    assert weights == {"1": 37 / 72, "2": 37 / 2}
    assert sum(weights[one.unit] for one in pairs) / 37 == pytest.approx(1)
    assert ranking_weights([*ranking(1, 4), *ranking(2, 4)]) == {"1": 1.0, "2": 1.0}


def test_micro_batches_hold_whole_rankings_within_their_sequences():
    # 4 + 4 responses fit into 2 x 4 sequences, the third ranking begins another micro-batch
    parts = whole_rankings([*ranking(1, 4), *ranking(2, 4), *ranking(3, 4)], 4)
    assert sizes(parts) == [8, 4]
    assert [len({one.unit for one in part}) for part in parts] == [2, 1]


def test_a_ranking_that_is_larger_than_a_micro_batch_is_cut_without_losing_a_pair():
    pairs = [*ranking(1, 2), *ranking(2, 5)]
    parts = whole_rankings(pairs, 1)
    assert [one for part in parts for one in part] == pairs
    assert max(sizes(parts)) <= 2


def test_plain_pairs_fill_a_micro_batch():
    pairs = [one for name in range(5) for one in ranking(name, 2)]
    assert [len(part) for part in whole_rankings(pairs, 2)] == [2, 2, 1]
    assert whole_rankings([], 2) == []


def test_micro_batches_of_pairs_hold_so_many_padded_tokens_at_most():
    pairs = [one for name in range(4) for one in ranking(name, 2)]  # two sequences of three tokens each
    assert [len(part) for part in whole_rankings(pairs, 8, 13)] == [2, 2]
    assert [len(part) for part in whole_rankings(pairs, 8, 1)] == [1, 1, 1, 1]


def test_packed_pairs_count_the_prompt_that_their_sides_share_once():
    pairs = [one for name in range(4) for one in ranking(name, 2)]  # a prompt of one token, answers of two and two
    assert [len(part) for part in whole_rankings(pairs, 8, 13, packed=True)] == [2, 2]
    assert [len(part) for part in whole_rankings(pairs, 8, 15, packed=True)] == [3, 1]
    sides = unique_sides(pairs[:3])[0]
    assert (tokens_passed(sides, packed=True), tokens_passed(sides, packed=False)) == (15, 18)
    assert tokens_passed(sides, packed=True) == lay_out(sides, torch.device("cpu"), packed=True).tokens
    bare = [Example((7,), (False,), 1), Example((7, 5), (False, True), 1), Example((7, 6), (False, True), 1)]
    for few in (bare, bare[:2]):  # one has no answer, and is laid out whole
        assert tokens_passed(few, packed=True) == lay_out(few, torch.device("cpu"), packed=True).tokens
    assert (tokens_passed([], packed=True), tokens_passed([], packed=False)) == (0, 0)
