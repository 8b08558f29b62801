"""From gradients to the kernel: u^T (K - s I) w for probes, scope by scope.

z = U h, so K(x', x) = s I + N with s = h' . h where the scope has the head, and N holds all the rest: U M U^T for the
body, M being the kernel of h. A tied matrix serves as head and as embedding; what the two uses share adds C(h', x) and
C(h, x')^T, where row v of C(h', x) is U sum over the tokens t of x that are v of B_t h', with B_t = dh(x)/de_t.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dcr_ray.diagnosis.gradients import Grams
from dcr_ray.diagnosis.scopes import Scope


def head_products(grams: Grams, scope: Scope) -> Tensor:
    """s = h' . h of every pair of prompts, [N, N] in fp64; 0 where the scope is without the head."""
    states = grams.states.double().cpu()
    return states @ states.T if scope.head else torch.zeros(len(states), len(states), dtype=torch.float64)


def body_products(grams: Grams, scope: Scope) -> Tensor:
    """Products of the gradients of the scope's body, [C, N, C, N]: what is neither head nor shared with it."""
    parts = [(grams.lora if scope.lora else grams.layers)[index] for index in scope.layers]
    if scope.norm:
        parts.append(grams.norm)
    if scope.embedding:
        parts.append(grams.embedding)
    return torch.stack(parts).sum(0) if parts else torch.zeros_like(grams.norm)


def rest_products(grams: Grams, scope: Scope, probes: Tensor, tied: bool) -> Tensor:
    """u_i^T (K(x_n, x_m) - s I) u_j for probes [C, V], whose cotangents U^T u_i the gradients are of; [C, N, C, N]."""
    body = body_products(grams, scope)
    return body + _crossed(grams, probes[:, None].expand(-1, len(grams.states), -1)) if _shared(scope, tied) else body


def refusal_products(grams: Grams, scope: Scope, logit_cotangents: Tensor, tied: bool) -> Tensor:
    """<grad f(x_n), grad f(x_m)> of a scalar f of the logits, whose cotangent q = df/dz is [N, V]; [N, N].

    `grams` are of the cotangents U^T q [1, N, width].
    """
    total = body_products(grams, scope)
    if _shared(scope, tied):
        total = total + _crossed(grams, logit_cotangents[None])
    similar = (logit_cotangents @ logit_cotangents.T).double().cpu()
    return total[0, :, 0] + similar * head_products(grams, scope)


def _shared(scope: Scope, tied: bool) -> bool:
    return tied and scope.head and scope.embedding


def _crossed(grams: Grams, logit_cotangents: Tensor) -> Tensor:
    """The two cross terms for cotangents q of the logits [C, N, V]: q_(i,n)[token t of x_m] h_n . d_(j,m,t), and its
    mirror image."""
    moved = torch.einsum("jmtd,nd->jmtn", grams.embedded, grams.states)
    at_tokens = torch.stack(
        [logit_cotangents[:, :, tokens] for tokens in grams.tokens], 2
    )  # [C, N, N, T]: cotangent of x_n at the tokens of x_m
    one = torch.einsum("inmt,jmtn->injm", at_tokens.to(moved.dtype), moved).double().cpu()
    return one + one.permute(2, 3, 0, 1)
