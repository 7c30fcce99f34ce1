from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from engine.batching import Schedule, by_length, cut_within

SOURCE = random.Random(0)
LENGTHS = [SOURCE.randint(5, 200) for _ in range(83)]


def test_every_row_comes_once_an_epoch_and_the_last_batch_may_be_short():
    schedule = Schedule(LENGTHS, batch=8, epochs=2)
    assert schedule.total_steps == 22  # ceil(83 / 8) = 11 steps an epoch
    for epoch in range(2):
        rows = [row for step in range(11) for row in schedule.rows(11 * epoch + step)]
        assert sorted(rows) == list(range(83))
    assert schedule.epoch(0) == 0
    assert schedule.epoch(11) == 1
    assert schedule.epoch(22) == 2


def test_the_order_follows_from_the_seed_alone():
    first = Schedule(LENGTHS, batch=8, epochs=2, seed=1)
    again = Schedule(LENGTHS, batch=8, epochs=2, seed=1)
    other = Schedule(LENGTHS, batch=8, epochs=2, seed=2)
    assert [first.rows(step) for step in range(22)] == [again.rows(step) for step in range(22)]
    assert [first.rows(step) for step in range(22)] != [other.rows(step) for step in range(22)]
    assert first.rows(0) != first.rows(11)


def test_batches_hold_rows_of_like_length_in_random_order():
    schedule = Schedule(LENGTHS, batch=8, epochs=1)
    batches = [[LENGTHS[row] for row in schedule.rows(step)] for step in range(10)]
    spread = sum(max(batch) - min(batch) for batch in batches) / 10
    assert spread < (max(LENGTHS) - min(LENGTHS)) / 3
    longest = [max(batch) for batch in batches]
    assert longest != sorted(longest)
    assert longest != sorted(longest, reverse=True)


def test_fixed_batches_keep_their_rows_and_change_their_order():
    schedule = Schedule(LENGTHS, batch=8, epochs=2, fixed=True)
    first = [tuple(schedule.rows(step)) for step in range(11)]
    second = [tuple(schedule.rows(step)) for step in range(11, 22)]
    assert set(first) == set(second)
    assert first != second


def test_pairs_of_one_ranking_stay_together():
    units = [str(index // 6) for index in range(78)]
    schedule = Schedule(LENGTHS[:78], batch=6, epochs=1, units=units)
    assert all(len({units[row] for row in schedule.rows(step)}) == 1 for step in range(13))


def test_a_fraction_of_an_epoch_and_max_steps_end_early():
    assert Schedule(LENGTHS, batch=8, epochs=0.5).total_steps == 6  # ceil(41.5 / 8)
    assert Schedule(LENGTHS, batch=8, epochs=3, max_steps=4).total_steps == 4
    assert Schedule([], batch=8, epochs=3).total_steps == 0


@given(st.lists(st.integers(1, 500), max_size=60), st.integers(1, 9), st.integers(0, 3), st.booleans())
def test_any_lengths_make_an_epoch_of_every_row(lengths, batch, seed, fixed):
    schedule = Schedule(lengths, batch=batch, epochs=1, seed=seed, fixed=fixed)
    rows = [row for step in range(schedule.total_steps) for row in schedule.rows(step)]
    assert sorted(rows) == list(range(len(lengths)))
    assert all(len(schedule.rows(step)) <= batch for step in range(schedule.total_steps))


def test_evaluation_takes_every_row_once_longest_first():
    batches = by_length([3, 9, 5, 9], 3)
    assert batches == [[1, 3, 2], [0]]


def test_a_unit_is_never_cut_though_batches_then_differ_in_size():
    units = [str(index // 6) for index in range(60)]  # ten rankings of six pairs each
    schedule = Schedule(LENGTHS[:60], batch=8, epochs=1, units=units)
    steps = [schedule.rows(step) for step in range(schedule.total_steps)]
    homes: dict[str, set[int]] = {}
    for step, rows in enumerate(steps):
        for row in rows:
            homes.setdefault(units[row], set()).add(step)
    assert all(len(home) == 1 for home in homes.values())
    assert sorted(row for rows in steps for row in rows) == list(range(60))
    assert {len(rows) for rows in steps} == {6}  # 12 is further from 8 than 6 is


def test_a_batch_may_count_units_of_any_size():
    units = ["large"] * 36 + [str(index) for index in range(36)]  # a ranking of 36 pairs and 36 of one
    schedule = Schedule([9] * 72, batch=8, epochs=1, units=units, by_unit=True)
    steps = [schedule.rows(step) for step in range(schedule.total_steps)]
    assert sorted(len({units[row] for row in rows}) for rows in steps) == [5, 8, 8, 8, 8]  # 37 units
    assert sorted(row for rows in steps for row in rows) == list(range(72))
    assert schedule.epoch(schedule.total_steps) == 1
    # units of one row each are rows
    plain, alone = (
        Schedule(LENGTHS, batch=8, epochs=1, seed=3, units=one, by_unit=bool(one)) for one in (None, range(83))
    )
    assert [plain.rows(step) for step in range(11)] == [alone.rows(step) for step in range(11)]


def test_micro_batches_hold_so_many_padded_tokens_at_most():
    # rows of 5, 4, 3 and 9 tokens: 2 x 5 = 10 fit, a third would make 15; the last stands alone
    assert cut_within([5, 4, 3, 9], int, 8, 10) == [[5, 4], [3], [9]]
    assert cut_within([5, 4, 3], int, 2, None) == [[5, 4], [3]]
    assert cut_within([50], int, 2, 10) == [[50]]
    assert cut_within([], int, 2, 10) == []
    assert cut_within([5, 4, 1, 9], int, 8, 10, packed=True) == [[5, 4, 1], [9]]  # nothing is padded


@given(st.lists(st.integers(1, 40), max_size=30), st.integers(1, 5), st.integers(1, 100), st.booleans())
def test_cutting_loses_no_row_and_keeps_the_order(lengths, rows, tokens, packed):
    parts = cut_within(lengths, int, rows, tokens, packed=packed)
    assert [one for part in parts for one in part] == lengths
    passed = [sum(part) if packed else len(part) * max(part) for part in parts]
    assert all(
        len(part) <= rows and (len(part) == 1 or sum_ <= tokens) for part, sum_ in zip(parts, passed, strict=True)
    )
