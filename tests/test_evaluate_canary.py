from __future__ import annotations

import math

import pytest

from dcr_ray.errors import StaleWeights
from dcr_ray.evaluate.canary import CanaryPrompt, largest_difference, read_canary, write_canary

CANARY = [CanaryPrompt([1, 2], {7: -0.5, 8: -1.5}), CanaryPrompt([3], {9: -0.25})]


def test_a_canary_is_read_as_it_was_written(tmp_path):
    write_canary(tmp_path, CANARY)
    assert read_canary(tmp_path) == CANARY


def test_a_folder_without_canary_has_none(tmp_path):
    assert read_canary(tmp_path) is None


def test_a_canary_without_numbers_proves_nothing(tmp_path):
    write_canary(tmp_path, [CanaryPrompt([1], {})])
    with pytest.raises(StaleWeights, match="no log-probabilities"):
        read_canary(tmp_path)


def test_the_difference_is_the_largest_over_all_prompts_and_tokens():
    assert largest_difference(CANARY, [{7: -0.5, 8: -1.25}, {9: -1.0}]) == pytest.approx(0.75)


def test_a_token_that_the_engine_does_not_list_counts_from_the_smallest_that_it_lists():
    assert largest_difference(CANARY, [{7: -0.5, 6: -2.0}, {9: -0.25}]) == pytest.approx(0.5)
    assert largest_difference(CANARY, [{7: -0.5, 6: -1.0}, {9: -0.25}]) == 0.0


def test_nan_is_an_infinite_difference():
    assert largest_difference(CANARY, [{7: math.nan, 8: -1.5}, {9: -0.25}]) == math.inf


def test_an_engine_that_answers_fewer_prompts_proves_nothing():
    with pytest.raises(ValueError):
        largest_difference(CANARY, [{7: -0.5, 8: -1.5}])
