"""Contrastive losses over pooled states of prompts of two or three classes: pure functions, in fp32 or above.

Prompts of the same class are positives of each other, prompts of the other classes negatives. Circle loss: Sun et al.,
arXiv 2002.10857; its use between seemingly toxic and toxic prompts: DCR, arXiv 2603.03323. Retention and same-source
negatives are additions of ours.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import normalize, softplus

from dcr_ray.recipe import ContrastiveRecipe

Terms = Callable[[Tensor, Tensor, Tensor, ContrastiveRecipe], Tensor]


def contrastive_loss(
    states: Tensor, classes: Tensor, recipe: ContrastiveRecipe, sources: Tensor | None = None
) -> Tensor:
    """The recipe's loss, a scalar, for states [n, width] and classes [n] of the whole batch.

    States are centred as the recipe says and compared by cosine. Each class needs two prompts. Under the recipe's
    same_source negatives, `sources` [n] says where each prompt comes from; a prompt that is left without any negative
    is no anchor, and 0 is the loss of a batch without one.
    """
    similarities = cosines(states, recipe.centering)
    same = classes[:, None] == classes[None, :]
    itself = torch.eye(len(states), dtype=torch.bool, device=states.device)
    positive, negative = same & ~itself, ~same
    if recipe.negatives == "same_source":
        negative &= sources[:, None] == sources[None, :]
    anchors = positive.any(1) & negative.any(1)
    if not anchors.any():
        return 0.0 * similarities.sum()
    over_pairs = recipe.loss == "circle" and recipe.pairing == "all_pairs"
    if not anchors.all() and not over_pairs:
        similarities, positive, negative = similarities[anchors], positive[anchors], negative[anchors]
    return LOSSES[recipe.loss](similarities, positive, negative, recipe)


def retention_loss(states: Tensor, base_states: Tensor) -> Tensor:
    """Mean over prompts of |h - h_base|^2 / |h_base|^2, for states [n, width] and the base model's: how far general
    prompts have moved, in units of their own length."""
    base = base_states.to(states.dtype)
    return ((states - base).square().sum(1) / base.square().sum(1)).mean()


def cosines(states: Tensor, centering: str) -> Tensor:
    """Cosine similarities [n, n] of states [n, width], less their mean where centering is "batch"."""
    states = states if states.dtype == torch.float64 else states.float()
    if centering == "batch":
        states = states - states.mean(0)
    states = normalize(states, dim=1)
    return states @ states.T


def circle_loss(similarities: Tensor, positive: Tensor, negative: Tensor, recipe: ContrastiveRecipe) -> Tensor:
    """Circle loss (arXiv 2002.10857, equations 5 to 8) with the weights alpha held constant in the gradient.

        L = log(1 + sum_j exp(gamma a_n^j (s_n^j - m)) sum_i exp(-gamma a_p^i (s_p^i - 1 + m)))
        a_n = max(0, s_n + m), a_p = max(0, 1 + m - s_p)

    per_anchor: one such term for each prompt, averaged. all_pairs: one term over all pairs of the batch.
    """
    gamma, margin = recipe.scale, recipe.margin
    constant = similarities.detach()
    push = gamma * (constant + margin).clamp(min=0) * (similarities - margin)
    pull = -gamma * (1 + margin - constant).clamp(min=0) * (similarities - 1 + margin)
    if recipe.pairing == "all_pairs":
        once = torch.ones_like(positive).triu(1)
        return softplus(push[negative & once].logsumexp(0) + pull[positive & once].logsumexp(0))
    return softplus(_logsumexp(push, negative) + _logsumexp(pull, positive)).mean()


def infonce_loss(similarities: Tensor, positive: Tensor, negative: Tensor, recipe: ContrastiveRecipe) -> Tensor:
    """InfoNCE with several positives, summed inside the logarithm (MIL-NCE, arXiv 1912.06430, equation 1)."""
    logits = recipe.scale * similarities
    return softplus(_logsumexp(logits, negative) - _logsumexp(logits, positive)).mean()


def ntxent_loss(similarities: Tensor, positive: Tensor, negative: Tensor, recipe: ContrastiveRecipe) -> Tensor:
    """NT-Xent (arXiv 2002.05709, equation 1), one term for each positive pair against the anchor's negatives."""
    logits = recipe.scale * similarities
    terms = softplus(_logsumexp(logits, negative)[:, None] - logits)
    return terms[positive].mean()


def supcon_loss(similarities: Tensor, positive: Tensor, negative: Tensor, recipe: ContrastiveRecipe) -> Tensor:
    """Supervised contrastive loss, L_out (arXiv 2004.11362, equation 2): all other prompts in the denominator."""
    logits = recipe.scale * similarities
    log_share = logits - _logsumexp(logits, positive | negative)[:, None]
    return -(torch.where(positive, log_share, 0.0).sum(1) / positive.sum(1)).mean()


def triplet_loss(similarities: Tensor, positive: Tensor, negative: Tensor, recipe: ContrastiveRecipe) -> Tensor:
    """max(0, s_n - s_p + m) averaged over the triplets that violate the margin (arXiv 1503.03832, on cosines).

    0 where none does. An anchor at a time, since all triplets at once would need memory of the third power.
    """
    total, violations = similarities.new_zeros(()), 0
    for row, is_positive, is_negative in zip(similarities, positive, negative, strict=True):
        excess = row[is_negative][None, :] - row[is_positive][:, None] + recipe.margin
        violated = excess > 0
        total = total + excess[violated].sum()
        violations += int(violated.sum())
    return total / max(violations, 1)


def _logsumexp(values: Tensor, kept: Tensor) -> Tensor:
    """log sum exp over each row's kept entries. A row has at least one."""
    return values.masked_fill(~kept, -torch.inf).logsumexp(1)


LOSSES: dict[str, Terms] = {
    "circle": circle_loss,
    "infonce": infonce_loss,
    "ntxent": ntxent_loss,
    "supcon": supcon_loss,
    "triplet": triplet_loss,
}
