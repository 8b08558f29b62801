"""How far apart two classes of prompts lie at each layer, and how much of that is where they come from.

A linear probe that tells toxic from seemingly toxic prompts may have learnt their data sets. So the same probe is asked
to tell the sets of one class apart (`origin`), and to tell the classes on sets that it was not fitted on
(`other_sources`). It reads held-out prompts; how they were chosen is the caller's matter.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from dcr_ray.errors import InputError, Problem
from dcr_ray.train.separability import class_cosines

Array = NDArray[np.float64]

FOLDS = 5
RESAMPLES = 200


class Labelled(NamedTuple):
    """What a prompt is besides its states: its class, the file that it is from, the family it must stay with."""

    toxic: bool
    source: str
    group: str


@dataclass(frozen=True)
class LayerSeparability:
    """One layer, counted from 1. Figures that cannot be had (too few sources) are None.

    `auroc` of the class probe over families of prompts that it was not fitted on, with a 95 % interval over families;
    `origin_auroc` of a probe that tells the largest two sources of a class apart, the larger of the classes' two;
    `other_sources_auroc` of the class probe on sources that it was not fitted on; `same_source_auroc` within the source
    that has both classes; `cka` to the base model (linear, debiased), of a base model itself None.
    """

    layer: int
    within_cosine: float
    across_cosine: float
    auroc: float
    auroc_low: float
    auroc_high: float
    origin_auroc: float | None
    other_sources_auroc: float | None
    same_source_auroc: float | None
    cka: float | None

    def as_dict(self) -> dict[str, Any]:
        return dict(vars(self))


def separability(
    states: NDArray[np.float32],
    labels: Sequence[Labelled],
    *,
    base_states: NDArray[np.float32] | None = None,
    centering: str = "batch",
    seed: int = 0,
) -> list[LayerSeparability]:
    """The figures of every layer, from states [prompts, layers, width]; `base_states` are the base model's.

    Raises InputError for a class with fewer than FOLDS families of prompts.
    """
    toxic = np.array([label.toxic for label in labels])
    groups = np.array([label.group for label in labels])
    problems = [
        Problem(f"{name} prompts", f"{len(set(groups[toxic == kind]))} families", f"{FOLDS} or more, a probe's folds")
        for name, kind in (("toxic", True), ("seemingly toxic", False))
        if len(set(groups[toxic == kind])) < FOLDS
    ]
    if problems:
        raise InputError(problems)
    sources = np.array([label.source for label in labels])
    found = []
    for layer in range(states.shape[1]):
        x = states[:, layer].astype(np.float64)
        within, across = class_cosines(
            torch.from_numpy(x[~toxic]), torch.from_numpy(x[toxic]), centering, float(toxic.mean())
        )
        scores = out_of_fold_scores(x, toxic, groups)
        low, high = auroc_interval(scores, toxic, groups, seed)
        both = [s for s in sorted(set(sources)) if _both_kinds(toxic[sources == s], groups[sources == s])]
        same = None
        if both:
            inside = np.isin(sources, both[:1])
            same = auroc(out_of_fold_scores(x[inside], toxic[inside], groups[inside]), toxic[inside])
        cka = None if base_states is None else debiased_cka(x, base_states[:, layer].astype(np.float64))
        found.append(
            LayerSeparability(
                layer + 1,
                within,
                across,
                auroc(scores, toxic),
                low,
                high,
                _origin(x, toxic, sources, groups),
                _other_sources(x, toxic, sources),
                same,
                cka,
            )
        )
    return found


def out_of_fold_scores(x: Array, positive: NDArray[np.bool_], groups: NDArray[Any]) -> Array:
    """Each prompt's score by a standardised logistic regression that has not seen its family, [prompts]."""
    from sklearn.model_selection import StratifiedGroupKFold

    folds = min(FOLDS, len(set(groups[positive])), len(set(groups[~positive])))
    scores = np.empty(len(x))
    for fit, held in StratifiedGroupKFold(folds, shuffle=True, random_state=0).split(x, positive, groups):
        scores[held] = _probe(x[fit], positive[fit]).decision_function(x[held])
    return scores


def auroc(scores: Array, positive: NDArray[np.bool_]) -> float:
    """The share of pairs of a positive and a negative prompt whose scores stand in that order, ties counting half."""
    from scipy.stats import rankdata

    ranks = rankdata(scores)
    n, m = int(positive.sum()), int((~positive).sum())
    return float((ranks[positive].sum() - n * (n + 1) / 2) / (n * m))


def auroc_interval(scores: Array, positive: NDArray[np.bool_], groups: NDArray[Any], seed: int) -> tuple[float, float]:
    """A 95 % percentile interval over resampled families. Probes are not fitted anew: their own luck is left out."""
    generator = np.random.default_rng(seed)
    families, place = np.unique(groups, return_inverse=True)
    members = [np.flatnonzero(place == family) for family in range(len(families))]
    drawn = []
    while len(drawn) < RESAMPLES:
        chosen = np.concatenate([members[f] for f in generator.integers(len(families), size=len(families))])
        if 0 < positive[chosen].sum() < len(chosen):
            drawn.append(auroc(scores[chosen], positive[chosen]))
    return float(np.quantile(drawn, 0.025)), float(np.quantile(drawn, 0.975))


def debiased_cka(x: Array, y: Array) -> float:
    """Linear centred kernel alignment of two sets of states [prompts, width] on the same prompts.

    CKA: Kornblith et al., arXiv 1905.00414; with the unbiased estimator of HSIC (Song et al. 2012), since the plain one
    tends to 1 where there are more features than prompts. It may fall below 0 by chance. Needs four prompts.
    """
    return float(_hsic(x @ x.T, y @ y.T) / np.sqrt(_hsic(x @ x.T, x @ x.T) * _hsic(y @ y.T, y @ y.T)))


def _hsic(k: Array, l: Array) -> float:  # noqa: E741
    n = len(k)
    k, l = k - np.diag(np.diag(k)), l - np.diag(np.diag(l))  # noqa: E741
    cross = (k.sum(0) * l.sum(0)).sum()
    return float(((k * l).sum() + k.sum() * l.sum() / ((n - 1) * (n - 2)) - 2 * cross / (n - 2)) / (n * (n - 3)))


def _probe(x: Array, positive: NDArray[np.bool_]) -> Any:
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    # Strong shrinkage: there are more features than prompts.
    return make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=200)).fit(x, positive)


def _both_kinds(positive: NDArray[np.bool_], groups: NDArray[Any]) -> bool:
    return all(len(set(groups[positive == kind])) >= FOLDS for kind in (True, False))


def _origin(x: Array, toxic: NDArray[np.bool_], sources: NDArray[Any], groups: NDArray[Any]) -> float | None:
    found = []
    for kind in (True, False):
        of_class = toxic == kind
        names, counts = np.unique(sources[of_class], return_counts=True)
        largest = names[np.argsort(-counts)[:2]]
        inside = of_class & np.isin(sources, largest)
        first = sources[inside] == largest[0]
        if len(largest) == 2 and _both_kinds(first, groups[inside]):
            found.append(auroc(out_of_fold_scores(x[inside], first, groups[inside]), first))
    return max(found) if found else None


def _other_sources(x: Array, toxic: NDArray[np.bool_], sources: NDArray[Any]) -> float | None:
    """Fitted on the first half of each class's sources and asked about the others, and the other way round."""
    halves = [sorted(set(sources[toxic == kind])) for kind in (True, False)]
    if min(map(len, halves)) < 2:
        return None
    first = np.isin(sources, [name for half in halves for name in half[::2]])
    values = []
    for fit in (first, ~first):
        held = ~fit
        if 0 < toxic[fit].sum() < fit.sum() and 0 < toxic[held].sum() < held.sum():
            values.append(auroc(_probe(x[fit], toxic[fit]).decision_function(x[held]), toxic[held]))
    return float(np.mean(values)) if values else None
