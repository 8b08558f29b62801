"""||K||_F^2 exactly, without any matrix of vocabulary x vocabulary: for a handful of pairs, and to test estimates by.

It takes as many pulled-back cotangents as the model is wide. With G = U^T U and M the kernel of h,

    untied: ||K||^2 = V s^2 + 2 s tr(G M) + tr(G M G M^T)
    tied:   K = s I + U M U^T + S U^T + U S'^T, S [V, width] with rows only for the tokens of x, S' for those of x'

(dcr_ray.diagnosis.products has the terms; row v of S is the sum of B_t h' over the tokens t of x that are v).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dcr_ray.diagnosis.gradients import Grams, Lora, gradient_grams
from dcr_ray.diagnosis.opened import Opened
from dcr_ray.diagnosis.products import body_products, head_products
from dcr_ray.diagnosis.scopes import Scope


def exact_squared_norms(
    opened: Opened, rows: Sequence[Sequence[int]], scopes: Sequence[Scope], lora: Lora | None = None
) -> dict[str, Tensor]:
    """||K(x_n, x_m)||_F^2 of every pair of prompts, [N, N] in fp64, by scope."""
    width = opened.head.shape[1]
    identity = torch.eye(width, device=opened.device, dtype=opened.dtype)
    grams = gradient_grams(opened, rows, identity, lora=lora)
    return {scope.name: _of_scope(opened, grams, scope) for scope in scopes}


def _of_scope(opened: Opened, grams: Grams, scope: Scope) -> Tensor:
    head = opened.head.double().cpu()
    body, s = body_products(grams, scope), head_products(grams, scope)
    g = head.T @ head
    count = len(s)
    shared = opened.tied and scope.head and scope.embedding
    squared = torch.empty(count, count, dtype=torch.float64)
    for n in range(count):
        for m in range(count):
            kernel = body[:, n, :, m]
            trace, norm = (g * kernel.T).sum(), ((g @ kernel) * (kernel @ g)).sum()
            if shared:
                more = _tied(grams, head, g, kernel, n, m)
                trace, norm = trace + more[0], norm + more[1]
            squared[n, m] = len(head) * s[n, m] ** 2 + 2 * s[n, m] * trace + norm
    return squared


def _tied(grams: Grams, head: Tensor, g: Tensor, kernel: Tensor, n: int, m: int) -> tuple[Tensor, Tensor]:
    """What the terms S U^T and U S'^T add to the trace and to the squared norm of K - s I."""
    rows, of_x = _moved(grams, m, n)
    rows_, of_x_ = _moved(grams, n, m)
    # X = U^T S and Y = U^T S' are of the width alone.
    x, y = head[rows].T @ of_x, head[rows_].T @ of_x_
    trace = x.trace() + y.trace()
    own = ((of_x @ g) * of_x).sum() + ((of_x_ @ g) * of_x_).sum()
    with_body = (kernel * (x @ g)).sum() + (kernel * (g @ y.T)).sum()
    # tr(U S^T U S'^T) = tr((S^T U)(S'^T U)) = tr(X^T Y^T).
    with_each_other = (x.T * y).sum()
    return trace, own + 2 * with_body + 2 * with_each_other


def _moved(grams: Grams, of: int, by: int) -> tuple[Tensor, Tensor]:
    """The distinct tokens of prompt `of`, and for each the sum of B_t h over its places, h being that of `by`."""
    tokens = grams.tokens[of].cpu()
    kinds, place = tokens.unique(return_inverse=True)
    each = torch.einsum("ktd,d->tk", grams.embedded[:, of], grams.states[by]).double().cpu()
    summed = torch.zeros(len(kinds), each.shape[1], dtype=torch.float64)
    return kinds, summed.index_add_(0, place, each)
