"""The empirical neural tangent kernel of a model's first generated token, estimated with error bars.

K(x', x) = J(x') J(x)^T for the Jacobian J of the logits z at a prompt's last token. With Gaussian probes u_i, K = s I +
N gives u_i^T K u_j = s u_i . u_j + b_ij, and ||K||_F^2 = V s^2 + 2 s tr(N) + ||N||_F^2: s is known exactly, the mean of
b_ii estimates tr(N) and the mean of b_ij^2 over i != j estimates ||N||_F^2, both without bias. The same probes serve
all prompts, so the diagonal must stay out of the squares: it would add tr(N)^2. Probes are drawn by their number, so
that two models, or two checkpoints of one, are compared with the same ones.

It is a picture of the first order: a small step of gradient descent on x moves the logits after x' by K(x', x) times
the gradient of the loss. It says nothing of Adam, nor of what many steps do.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from dcr_ray.diagnosis.gradients import Grams, Lora, gradient_grams
from dcr_ray.diagnosis.opened import Opened
from dcr_ray.diagnosis.products import head_products, refusal_products, rest_products
from dcr_ray.diagnosis.ratios import PAIRS, PairRatios, pair_ratios
from dcr_ray.diagnosis.refusal import last_states
from dcr_ray.diagnosis.scopes import Scope, scope_of, scope_problems
from dcr_ray.errors import InputError, Problem
from dcr_ray.planning.flops import PROBES_OF_A_GROUP

CLASSES = ("seemingly_toxic", "toxic", "general")

Report = Callable[[int, int, float | None], None]
"""Told of (groups of probes done, most of them, relative probe error so far)."""


@dataclass(frozen=True)
class KernelReport:
    """The kernel's ratios by scope and pair of classes, and how they were come by.

    `squared` holds F = ||K||_F^2 by scope, [groups, N, N], the prompts in the order of `classes`. `refusal` has, by
    scope, the mean cosine of the gradients of log P(first token begins a refusal) between classes, which is exact.
    """

    layer: int
    layers: int
    classes: tuple[str, ...]
    ratios: Mapping[str, tuple[PairRatios, ...]]
    squared: Mapping[str, np.ndarray]
    refusal: Mapping[str, Mapping[str, float]]
    probes: int
    stopped: Literal["error", "prompts", "groups", "seconds"]
    seconds: float

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON types, without the norms of single pairs."""
        return {
            "layer": self.layer,
            "layers": self.layers,
            "prompts": {name: self.classes.count(name) for name in CLASSES if name in self.classes},
            "probes": self.probes,
            "stopped": self.stopped,
            "seconds": self.seconds,
            "ratios": {scope: [pair.as_dict() for pair in pairs] for scope, pairs in self.ratios.items()},
            "refusal_gradient_cosine": {scope: dict(pairs) for scope, pairs in self.refusal.items()},
        }


def diagnose_kernel(
    opened: Opened,
    prompts: Mapping[str, Sequence[Sequence[int]]],
    *,
    layer: int,
    scopes: Sequence[str] = ("all",),
    refusal_tokens: frozenset[int] = frozenset(),
    wanted_error: float = 0.1,
    groups: int = 16,
    fewest_groups: int = 3,
    seconds: float | None = None,
    seed: int = 0,
    lora: Lora | None = None,
    report: Report = lambda *_: None,
) -> KernelReport:
    """Estimate the kernel between prompts, given as token ids by class, in groups of PROBES_OF_A_GROUP probes.

    It stops after `fewest_groups` groups or more, when the probes' error of every scope's mean log ratio, seemingly
    toxic to toxic, is below `wanted_error` ("error") or below a fifth of the prompts' ("prompts"); at the latest after
    so many `groups` or `seconds`. With `fewest_groups` equal to `groups` the number of probes is fixed, as comparisons
    need it. Raises InputError for scopes, layers and classes that cannot be.
    """
    started = time.monotonic()
    layers = len(opened.layers)
    _check(prompts, scopes, layer, layers)
    wanted = [scope_of(name, layer, layers) for name in scopes]
    adapters = lora or (Lora() if any(scope.lora for scope in wanted) else None)
    classes = [name for name in CLASSES for _ in prompts.get(name, ())]
    rows = [list(row) for name in CLASSES for row in prompts.get(name, ())]
    squared: dict[str, list[np.ndarray]] = {name: [] for name in scopes}
    stopped: Literal["error", "prompts", "groups", "seconds"] = "groups"
    head = opened.head
    for group in range(groups):
        probes = probe_group(head.shape[0], group, seed, opened.dtype).to(opened.device)
        grams = gradient_grams(opened, rows, probes @ head, lora=adapters)
        for scope in wanted:
            squared[scope.name].append(squared_norms(grams, scope, probes, opened.tied).numpy())
        reached, error = _reached(squared, classes, wanted_error, seed)
        report(group + 1, groups, error)
        if group + 1 >= fewest_groups and group + 1 < groups:
            if reached:
                stopped = reached
                break
            if seconds is not None and (time.monotonic() - started) * (group + 2) / (group + 1) > seconds:
                stopped = "seconds"
                break
    stacked = {name: np.stack(each) for name, each in squared.items()}
    refusal = _refusal(opened, rows, classes, wanted, refusal_tokens, adapters) if refusal_tokens else {}
    return KernelReport(
        layer,
        layers,
        tuple(classes),
        {name: tuple(pair_ratios(each, classes, seed)) for name, each in stacked.items()},
        stacked,
        refusal,
        PROBES_OF_A_GROUP * len(next(iter(stacked.values()))),
        stopped,
        time.monotonic() - started,
    )


def probe_group(vocabulary: int, group: int, seed: int, dtype: torch.dtype) -> Tensor:
    """The Gaussian probes of a group, [PROBES_OF_A_GROUP, vocabulary]: the same for the same numbers."""
    generator = torch.Generator().manual_seed((seed << 20) + group)
    return torch.randn(PROBES_OF_A_GROUP, vocabulary, dtype=torch.float64, generator=generator).to(dtype)


def squared_norms(grams: Grams, scope: Scope, probes: Tensor, tied: bool) -> Tensor:
    """Unbiased estimates of ||K(x_n, x_m)||_F^2 from one group of probes [C, V], [N, N] in fp64.

    `grams` are of the probes' cotangents U^T u.
    """
    return from_products(rest_products(grams, scope, probes, tied), head_products(grams, scope), probes.shape[1])


def from_products(rest: Tensor, s: Tensor, vocabulary: int) -> Tensor:
    """V s^2 + 2 s mean_i b_ii + mean_(i != j) b_ij^2, for b [C, N, C, N] and s [N, N]."""
    count = len(rest)
    trace = torch.einsum("inim->nm", rest) / count
    squares = rest.square().sum((0, 2)) - torch.einsum("inim->inm", rest).square().sum(0)
    estimate = vocabulary * s.square() + 2 * s * trace + squares / (count * (count - 1))
    return (estimate + estimate.T) / 2


def _reached(
    squared: dict[str, list[np.ndarray]], classes: Sequence[str], wanted: float, seed: int
) -> tuple[Literal["error", "prompts"] | None, float | None]:
    """Whether all scopes are known well enough, and the largest of their probes' errors."""
    largest, small_beside_prompts = 0.0, True
    for each in squared.values():
        if len(each) < 2:
            return None, None
        figure = pair_ratios(np.stack(each), classes, seed, PAIRS[:1])[0].figures["log_ratio"]
        largest = max(largest, figure.probe_error)
        small_beside_prompts &= figure.probe_error < 0.2 * figure.prompt_error
    return "error" if largest < wanted else "prompts" if small_beside_prompts else None, largest


def _refusal(
    opened: Opened,
    rows: Sequence[Sequence[int]],
    classes: Sequence[str],
    scopes: Sequence[Scope],
    refusal_tokens: frozenset[int],
    lora: Lora | None,
) -> dict[str, dict[str, float]]:
    """Mean cosine, by scope and pair of classes, of the gradients of log P(the first token is one of these)."""
    head = opened.head
    logits = last_states(opened, rows) @ head.T
    cotangents = logit_cotangents(logits, refusal_tokens)
    grams = gradient_grams(opened, rows, (cotangents @ head)[None], lora=lora)
    labels = np.array(classes)
    found: dict[str, dict[str, float]] = {}
    for scope in scopes:
        products = refusal_products(grams, scope, cotangents, opened.tied)
        length = products.diagonal().clamp(min=torch.finfo(torch.float64).tiny).sqrt()
        cosine = (products / length[:, None] / length[None, :]).numpy()
        found[scope.name] = {}
        for first, second in PAIRS:
            r, c = np.flatnonzero(labels == first), np.flatnonzero(labels == second)
            distinct = r[:, None] != c[None, :]
            if distinct.any():
                found[scope.name][f"{first}-{second}"] = float(cosine[np.ix_(r, c)][distinct].mean())
    return found


def logit_cotangents(logits: Tensor, tokens: frozenset[int]) -> Tensor:
    """d log P / dz for P the sum of the softmax's probabilities over `tokens`, [N, V] as the logits are."""
    probabilities = logits.softmax(-1)
    inside = torch.zeros_like(probabilities)
    chosen = sorted(tokens)
    inside[:, chosen] = probabilities[:, chosen]
    return inside / inside.sum(-1, keepdim=True) - probabilities


def _check(prompts: Mapping[str, Sequence[Sequence[int]]], scopes: Sequence[str], layer: int, layers: int) -> None:
    problems = scope_problems(tuple(scopes), layer, layers)
    if not scopes:
        problems.append(Problem("scopes", "none", "one or more"))
    for name in ("seemingly_toxic", "toxic"):
        if len(prompts.get(name, ())) < 2:
            problems.append(Problem(f"{name} prompts", str(len(prompts.get(name, ()))), "2 or more"))
    problems += [Problem("prompts", f"a class '{name}'", ", ".join(CLASSES)) for name in prompts if name not in CLASSES]
    problems += [
        Problem(f"{name} prompt {place}", "no tokens", "one or more")
        for name, rows in prompts.items()
        for place, row in enumerate(rows)
        if not len(row)
    ]
    if problems:
        raise InputError(problems)
