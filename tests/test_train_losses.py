"""The losses against closed forms, brute force, and an independent library."""

from __future__ import annotations

import math

import pytest
import torch
from pytorch_metric_learning import losses as library
from pytorch_metric_learning.distances import CosineSimilarity

from dcr_ray.recipe import ContrastiveRecipe
from dcr_ray.train.losses import LOSSES, contrastive_loss, cosines, retention_loss

IS_TOXIC = torch.tensor([True, False, False, True, True, False, False])


def recipe(**values) -> ContrastiveRecipe:
    return ContrastiveRecipe(**{"margin": 0.25, "scale": 8.0, "centering": "none"} | values)


def states(seed: int = 0, count: int = 7) -> torch.Tensor:
    return torch.randn(count, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def masks() -> tuple[torch.Tensor, torch.Tensor]:
    same = IS_TOXIC[:, None] == IS_TOXIC[None, :]
    return same & ~torch.eye(7, dtype=torch.bool), ~same


def anchor_terms(similarities: torch.Tensor, values: ContrastiveRecipe, i: int) -> tuple[list[float], list[float]]:
    """gamma a_n (s_n - m) and -gamma a_p (s_p - 1 + m) of one anchor, one number at a time."""
    gamma, m = values.scale, values.margin
    push, pull = [], []
    for j in range(7):
        s = similarities[i, j].item()
        if IS_TOXIC[i] != IS_TOXIC[j]:
            push.append(gamma * max(0.0, s + m) * (s - m))
        elif i != j:
            pull.append(-gamma * max(0.0, 1 + m - s) * (s - 1 + m))
    return push, pull


def test_circle_loss_per_anchor_is_the_mean_of_the_papers_formula():
    values = recipe()
    similarities = cosines(states(), "none")
    terms = []
    for i in range(7):
        push, pull = anchor_terms(similarities, values, i)
        terms.append(math.log(1 + sum(map(math.exp, push)) * sum(map(math.exp, pull))))
    assert contrastive_loss(states(), IS_TOXIC, values).item() == pytest.approx(sum(terms) / 7, rel=1e-12)


def test_circle_loss_over_all_pairs_counts_every_pair_once():
    values = recipe(pairing="all_pairs")
    similarities = cosines(states(), "none")
    push, pull = 0.0, 0.0
    for i in range(7):
        for j in range(i + 1, 7):
            s, m, gamma = float(similarities[i, j]), values.margin, values.scale
            if IS_TOXIC[i] == IS_TOXIC[j]:
                pull += math.exp(-gamma * max(0.0, 1 + m - s) * (s - 1 + m))
            else:
                push += math.exp(gamma * max(0.0, s + m) * (s - m))
    loss = contrastive_loss(states(), IS_TOXIC, values).item()
    assert loss == pytest.approx(math.log(1 + push * pull), rel=1e-12)


def test_circle_gradients_with_constant_weights_follow_the_closed_form():
    values = recipe()
    positive, negative = masks()
    similarities = cosines(states(), "none").detach().requires_grad_()
    LOSSES["circle"](similarities, positive, negative, values).backward()
    gamma, m = values.scale, values.margin
    for i in range(7):
        s = similarities[i].detach()
        push, pull = (torch.tensor(terms, dtype=torch.float64) for terms in anchor_terms(similarities, values, i))
        z = 1 - torch.exp(-torch.log1p(push.exp().sum() * pull.exp().sum()))
        expected = torch.zeros(7, dtype=torch.float64)
        # Equation 10: dL/ds_n = Z softmax(push) gamma (s_n + m); dL/ds_p = Z softmax(pull) gamma (s_p - 1 - m).
        weight_n = torch.where(s + m > 0, s + m, 0.0)[negative[i]]
        weight_p = torch.where(1 + m - s > 0, s - 1 - m, 0.0)[positive[i]]
        expected[negative[i]] = z * push.softmax(0) * gamma * weight_n
        expected[positive[i]] = z * pull.softmax(0) * gamma * weight_p
        torch.testing.assert_close(similarities.grad[i], expected / 7, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("name", sorted(LOSSES))
@pytest.mark.parametrize("centering", ["none", "batch"])
def test_gradients_agree_with_finite_differences(name, centering):
    values = recipe(loss=name, centering=centering, scale=3.0)
    if name == "circle":
        # Its weights are constants in the gradient, so the loss itself is no antiderivative of it.
        positive, negative = masks()
        x = states().requires_grad_()
        frozen = cosines(x, centering).detach()
        push = values.scale * (frozen + values.margin).clamp(min=0)
        pull = -values.scale * (1 + values.margin - frozen).clamp(min=0)

        def with_frozen_weights(x: torch.Tensor) -> torch.Tensor:
            s = cosines(x, centering)
            n = (push * (s - values.margin)).masked_fill(~negative, -torch.inf).logsumexp(1)
            p = (pull * (s - 1 + values.margin)).masked_fill(~positive, -torch.inf).logsumexp(1)
            return torch.log1p((n + p).exp()).mean()

        ours = torch.autograd.grad(contrastive_loss(x, IS_TOXIC, values), x)[0]
        theirs = torch.autograd.grad(with_frozen_weights(x), x)[0]
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)
        assert torch.autograd.gradcheck(with_frozen_weights, (x,))
    else:
        assert torch.autograd.gradcheck(lambda x: contrastive_loss(x, IS_TOXIC, values), (states().requires_grad_(),))


@pytest.mark.parametrize("name", ["circle", "ntxent", "supcon", "triplet"])
def test_losses_agree_with_pytorch_metric_learning(name):
    values = recipe(loss=name)
    theirs = {
        "circle": lambda: library.CircleLoss(m=values.margin, gamma=values.scale),
        "ntxent": lambda: library.NTXentLoss(temperature=1 / values.scale),
        "supcon": lambda: library.SupConLoss(temperature=1 / values.scale),
        "triplet": lambda: library.TripletMarginLoss(margin=values.margin, distance=CosineSimilarity()),
    }[name]()
    ours = contrastive_loss(states(), IS_TOXIC, values)
    torch.testing.assert_close(ours, theirs(states(), IS_TOXIC.long()), rtol=1e-6, atol=1e-9)


def test_infonce_sums_positives_inside_the_logarithm():
    values = recipe(loss="infonce", scale=2.0)
    s = cosines(states(), "none")
    positive, negative = masks()
    terms = []
    for i in range(7):
        p = sum(math.exp(2 * float(s[i, j])) for j in range(7) if positive[i, j])
        n = sum(math.exp(2 * float(s[i, j])) for j in range(7) if negative[i, j])
        terms.append(-math.log(p / (p + n)))
    assert contrastive_loss(states(), IS_TOXIC, values).item() == pytest.approx(sum(terms) / 7, rel=1e-12)


def test_a_large_scale_neither_overflows_nor_loses_the_gradient():
    x = states().float().requires_grad_()
    loss = contrastive_loss(x, IS_TOXIC, recipe(scale=1024.0))
    loss.backward()
    assert torch.isfinite(loss) and torch.isfinite(x.grad).all() and x.grad.abs().max() > 0


def test_batch_centering_makes_the_loss_blind_to_a_common_offset():
    centred, plain = recipe(centering="batch"), recipe(centering="none")
    moved = states() + 10.0
    before, after = (contrastive_loss(x, IS_TOXIC, centred) for x in (states(), moved))
    torch.testing.assert_close(before, after)
    before, after = (contrastive_loss(x, IS_TOXIC, plain) for x in (states(), moved))
    assert abs(before - after) > 1


def test_same_source_negatives_are_the_loss_over_those_pairs_alone():
    values = recipe(negatives="same_source")
    sources = torch.tensor([0, 0, 1, 1, 0, 2, 0])
    similarities = cosines(states(), "none")
    gamma, m, terms = values.scale, values.margin, []
    for i in range(7):
        row = [(j, float(similarities[i, j])) for j in range(7) if j != i]
        push = [s for j, s in row if IS_TOXIC[i] != IS_TOXIC[j] and sources[i] == sources[j]]
        pull = [s for j, s in row if IS_TOXIC[i] == IS_TOXIC[j]]
        if push:
            n = sum(math.exp(gamma * max(0.0, s + m) * (s - m)) for s in push)
            p = sum(math.exp(-gamma * max(0.0, 1 + m - s) * (s - 1 + m)) for s in pull)
            terms.append(math.log(1 + n * p))
    assert len(terms) == 6, "the prompt of source 2 has no negative and is no anchor"
    assert contrastive_loss(states(), IS_TOXIC, values, sources).item() == pytest.approx(sum(terms) / 6, rel=1e-12)


@pytest.mark.parametrize("pairing", ["per_anchor", "all_pairs"])
def test_a_batch_without_any_negative_has_no_loss_and_no_gradient(pairing):
    x = states().requires_grad_()
    sources = torch.where(IS_TOXIC, 1, 0)
    loss = contrastive_loss(x, IS_TOXIC, recipe(negatives="same_source", pairing=pairing), sources)
    loss.backward()
    assert loss.item() == 0 and not x.grad.any()


def test_a_third_class_is_pushed_away_from_both_others():
    classes = torch.tensor([1, 0, 0, 1, 2, 2, 0])
    x = states().requires_grad_()
    before = contrastive_loss(x, classes, recipe())
    (gradient,) = torch.autograd.grad(before, x)
    assert contrastive_loss(x.detach() - 1e-3 * gradient, classes, recipe()) < before
    assert not torch.allclose(before, contrastive_loss(x, (classes == 1).long(), recipe()))


def test_retention_is_the_squared_distance_in_units_of_the_base_states_length():
    base = states(1)
    assert retention_loss(base, base).item() == 0
    assert retention_loss(1.1 * base, base).item() == pytest.approx(0.01)
    assert torch.autograd.gradcheck(lambda x: retention_loss(x, base), (states().requires_grad_(),))
