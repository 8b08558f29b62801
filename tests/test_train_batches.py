"""Samplers, plans, chunks and schedules: what a batch holds, whatever it runs on."""

from __future__ import annotations

import math

import pytest

from dcr_ray.recipe import ContrastiveRecipe
from dcr_ray.train.chunks import divide
from dcr_ray.train.sampler import BalancedSampler
from dcr_ray.train.schedule import learning_rate
from dcr_ray.train.sequences import IGNORED, batch_plan, token_sequence


def sampler(seemingly: int = 20, toxic: int = 50, seed: int = 0, **recipe) -> BalancedSampler:
    return BalancedSampler(seemingly, toxic, ContrastiveRecipe(**{"batch_size": 10, "toxic_share": 0.4} | recipe), seed)


def test_every_batch_holds_exactly_the_recipes_share_and_no_prompt_twice():
    for step in range(40):
        seemingly, toxic = sampler().batch(step)
        assert (len(seemingly), len(toxic)) == (6, 4)
        assert len(set(seemingly)) == 6 and len(set(toxic)) == 4
        assert max(seemingly) < 20 and max(toxic) < 50


def test_a_step_of_the_same_seed_is_always_the_same_batch():
    assert [sampler().batch(i) for i in range(9)] == [sampler().batch(i) for i in range(9)]
    assert sampler().batch(0) != sampler(seed=1).batch(0)


def test_a_shuffle_is_dealt_out_without_replacement_before_the_next_one():
    dealt = [i for step in range(12) for i in sampler().batch(step)[1]]
    assert len(set(dealt)) == 48
    assert sampler().batch(12)[1] != sampler().batch(0)[1]


def test_an_epoch_counts_the_seemingly_toxic_prompts():
    assert sampler(seemingly=60, epochs=2).steps == 20
    assert sampler(seemingly=60, epochs=0.01).steps == 1


def test_a_class_smaller_than_its_share_gives_all_of_its_prompts_once():
    seemingly, toxic = sampler(seemingly=3).batch(5)
    assert sorted(seemingly) == [0, 1, 2] and len(toxic) == 4


@pytest.mark.parametrize(("ranks", "micro"), [(1, None), (2, None), (3, 2), (4, 1)])
def test_chunks_hold_every_row_once_and_equally_many_on_all_ranks(ranks, micro):
    lengths = [5, 90, 7, 6, 80, 3, 300, 31, 30, 2, 4]
    chunks = divide(lengths, ranks, micro)
    held = sorted(row for chunk in chunks for rows in chunk.rows for row in rows if row is not None)
    assert held == list(range(len(lengths)))
    for chunk in chunks:
        assert len({len(rows) for rows in chunk.rows}) == 1
        assert micro is None or len(chunk.rows[0]) <= micro


def test_ranks_hold_about_as_many_tokens():
    lengths = [10 * i + 1 for i in range(40)]
    [chunk] = divide(lengths, 4, None)
    tokens = [sum(lengths[row] for row in rows) for rows in chunk.rows]
    assert max(tokens) <= 1.2 * min(tokens)


def plan(general: int, safety: int, share: float | None, epochs: float = 1.0, size: int = 4, seed: int = 0):
    lengths = [10 + (7 * i) % 23 for i in range(general + safety)]
    return lengths, batch_plan(lengths, general, share, epochs, size, seed)


@pytest.mark.parametrize("safety", [3, 10, 200])
def test_a_safety_share_is_met_by_repeating_or_drawing(safety):
    _, batches = plan(90, safety, 0.25)
    drawn = [i for batch in batches for i in batch]
    safe = [i for i in drawn if i >= 90]
    assert len(safe) == 30 and len(drawn) == 120
    assert sorted(i for i in drawn if i < 90) == list(range(90))
    times = [safe.count(i) for i in set(safe)]
    assert max(times) - min(times) <= 1


def test_without_a_safety_share_the_pairs_are_taken_as_they_are():
    _, batches = plan(9, 5, None)
    assert sorted(i for batch in batches for i in batch) == list(range(14))


def test_epochs_may_be_fractions():
    assert sum(map(len, plan(20, 0, None, epochs=0.5)[1])) == 10
    assert sum(map(len, plan(20, 0, None, epochs=2.5)[1])) == 50


def test_batches_are_of_similar_lengths_and_in_no_order():
    lengths, batches = plan(200, 0, None)
    spreads = [max(lengths[i] for i in b) - min(lengths[i] for i in b) for b in batches]
    assert sum(spreads) / len(spreads) < 2
    longest = [max(lengths[i] for i in b) for b in batches]
    assert longest != sorted(longest)


def test_the_same_seed_plans_the_same_batches():
    assert plan(20, 5, 0.3)[1] == plan(20, 5, 0.3)[1] != plan(20, 5, 0.3, seed=1)[1]


def test_a_masked_prompt_leaves_loss_on_answer_and_end_only():
    sequence = token_sequence([1, 2, 3, 4, 5, 9], prompt_length=3, max_tokens=10, mask_prompt=True)
    assert sequence.targets == [IGNORED, IGNORED, 4, 5, 9, IGNORED]
    assert sequence.answer_tokens == 3


def test_an_unmasked_prompt_has_loss_on_all_but_the_first_token():
    assert token_sequence([1, 2, 3, 9], 2, 10, mask_prompt=False) == ([1, 2, 3, 9], [2, 3, 9, IGNORED], 3)


def test_a_cut_answer_has_no_end_and_a_cut_prompt_no_loss():
    assert token_sequence([1, 2, 3, 4, 9], 2, 4, mask_prompt=True) == ([1, 2, 3, 4], [IGNORED, 3, 4, IGNORED], 2)
    assert token_sequence([1, 2, 3, 4, 9], 4, 4, mask_prompt=True).answer_tokens == 0


def test_the_rate_rises_then_falls_to_its_final_share():
    rates = [learning_rate(i, 20, 1.0, 0.2, 0.1) for i in range(20)]
    assert rates[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert rates[-1] == pytest.approx(0.1)
    assert rates[4:] == sorted(rates[4:], reverse=True)
    assert learning_rate(0, 1, 1.0, 0.1, 0.1) == 1.0
    assert all(math.isclose(learning_rate(i, 9, 2.0, 0.0, 1.0), 2.0) for i in range(9))
