"""The separability figures on states whose answer is known."""

from __future__ import annotations

import pytest
import torch
from sklearn.metrics import roc_auc_score

from dcr_ray.train.separability import class_cosines, direction_auroc, held_out_figures


def test_classes_apart_along_a_direction_have_an_auroc_of_1_and_swapped_ones_0():
    low, high = torch.tensor([[0.0, 1], [0, 2]]), torch.tensor([[5.0, 1], [6, 2]])
    assert direction_auroc(low, high, low, high) == 1.0
    assert direction_auroc(low, high, high, low) == 0.0


def test_ties_count_half():
    x = torch.tensor([[1.0, 0], [1, 0]])
    assert direction_auroc(torch.zeros(2, 2), torch.ones(2, 2), x, x) == 0.5


def test_auroc_agrees_with_scikit_learn():
    torch.manual_seed(0)
    low, high = torch.randn(40, 3), torch.randn(30, 3) + 0.5
    scores = torch.cat([low, high]).double() @ (high.double().mean(0) - low.double().mean(0))
    expected = roc_auc_score([0] * 40 + [1] * 30, scores.numpy())
    assert direction_auroc(low, high, low, high) == pytest.approx(expected)


def test_cosines_within_and_across_by_hand():
    low, high = torch.tensor([[1.0, 0], [1, 0]]), torch.tensor([[0.0, 1], [0, 2]])
    assert class_cosines(low, high, "none", 0.5) == pytest.approx((1.0, 0.0))
    opposite = class_cosines(torch.tensor([[1.0, 0], [1, 0]]), torch.tensor([[3.0, 0], [3, 0]]), "batch", 0.5)
    assert opposite == pytest.approx((1.0, -1.0))


def test_the_margin_is_within_less_across():
    torch.manual_seed(1)
    parts = [torch.randn(6, 4) for _ in range(4)]
    figures = held_out_figures((parts[0], parts[1]), (parts[2], parts[3]), "batch", 0.5, "base_")
    margin = figures["base_held_out_within_cosine"] - figures["base_held_out_across_cosine"]
    assert figures["base_held_out_margin"] == pytest.approx(margin)
