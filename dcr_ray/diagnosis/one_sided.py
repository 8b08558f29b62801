"""The one-sided estimator: ||K w||^2 averaged over probes, K w = J(x') (J(x)^T w) by a pull-back and a push-forward.

Unbiased, with a relative variance of 2/(R r) for R probes and the effective rank r of K K^T: better than two-sided
probes where r is small, and at one forward-mode pass a probe and *pair* far dearer for many prompts. It takes the model
as a function of its parameters and knows nothing of layers, so it also checks the layer by layer products.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.func import functional_call, jvp, vjp

from dcr_ray.diagnosis.opened import EMBEDDING, HEAD, NORM, Opened
from dcr_ray.diagnosis.scopes import Scope


def scope_parameters(opened: Opened, scope: Scope) -> list[str]:
    """Names of the scope's parameters. Raises ValueError for adapters, and for the head of a tied model alone."""
    if scope.lora or (opened.tied and scope.head and not scope.embedding):
        raise ValueError(f"scope '{scope.name}' is no set of the model's own parameters")
    layers = tuple(f"model.layers.{index}." for index in scope.layers)
    ends = {NORM} if scope.norm else set()
    ends |= {HEAD} if scope.head else set()
    ends |= {EMBEDDING} if scope.embedding else set()
    return [name for name, _ in opened.model.named_parameters() if name.startswith(layers) or name in ends]


def one_sided_squared_norms(
    opened: Opened, rows: Sequence[Sequence[int]], scope: Scope, probes: Tensor
) -> tuple[Tensor, Tensor]:
    """Estimates of ||K(x_n, x_m)||_F^2 from probes [R, V], [N, N], and their standard errors over the probes."""
    model = opened.model
    everything = {name: parameter.detach() for name, parameter in model.named_parameters()}
    own = {name: everything[name] for name in scope_parameters(opened, scope)}

    def logits_of(row: Sequence[int]):
        ids = torch.tensor([list(row)], device=opened.device)

        def logits(parameters: dict[str, Tensor]) -> Tensor:
            return functional_call(model, {**everything, **parameters}, (ids,), {"use_cache": False}).logits[0, -1]

        return logits

    functions = [logits_of(row) for row in rows]
    squares = torch.zeros(len(probes), len(rows), len(rows), dtype=torch.float64)
    for m, function in enumerate(functions):
        _, pull_back = vjp(function, own)
        for place, probe in enumerate(probes):
            (direction,) = pull_back(probe)
            for n, other in enumerate(functions):
                _, pushed = jvp(other, (own,), (direction,))
                squares[place, n, m] = pushed.double().square().sum()
    return squares.mean(0), squares.std(0) / len(probes) ** 0.5
