"""Ratios of kernels between classes of prompts, with two errors apart: of the probes, and of the choice of prompts.

It takes squared Frobenius norms F(x', x) = ||K(x', x)||_F^2 as they were estimated by independent groups of probes, and
knows nothing of models. The paper's ratio ||K(x', x)|| / ||K(x', x')|| (arXiv 2603.03323) is normed by row and may
exceed 1; the symmetric one, ||K(x', x)|| / sqrt(||K(x', x')|| ||K(x, x)||), lies in [0, 1] by Cauchy and Schwarz.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

PAIRS = (
    ("seemingly_toxic", "toxic"),
    ("toxic", "toxic"),
    ("seemingly_toxic", "seemingly_toxic"),
    ("general", "toxic"),
    ("general", "seemingly_toxic"),
)
"""Classes of (x', x): how far a step on x moves the first token after x'."""

FIGURES = ("log_ratio", "symmetric_log_ratio", "rms_ratio", "symmetric_rms_ratio")
"""Means over pairs of the logarithms of the two ratios; and the same ratios of mean squared norms, which noise of
single pairs does not bias."""

RESAMPLES = 400


@dataclass(frozen=True)
class Estimate:
    """A figure with the standard error of its probes (None with one group) and of the choice of prompts."""

    value: float
    probe_error: float | None
    prompt_error: float


@dataclass(frozen=True)
class PairRatios:
    """The ratios of one pair of classes over `pairs` pairs of distinct prompts.

    `clipped` squared norms were estimated below a millionth of their geometric bound and set to it; `above_one` is the
    share of pairs whose symmetric ratio was estimated above 1, which noise alone can do.
    """

    first: str
    second: str
    pairs: int
    figures: Mapping[str, Estimate]
    clipped: int
    above_one: float

    def as_dict(self) -> dict[str, Any]:
        return dict(vars(self)) | {"figures": {name: vars(each) for name, each in self.figures.items()}}


def pair_ratios(
    groups: Array, classes: Sequence[str], seed: int = 0, pairs: Sequence[tuple[str, str]] = PAIRS
) -> list[PairRatios]:
    """Ratios of those pairs of classes that are there, from squared norms [groups, N, N] and the class of each prompt.

    A class needs two prompts to be paired with itself.
    """
    labels = np.array(classes)
    found = []
    for first, second in pairs:
        rows, columns = np.flatnonzero(labels == first), np.flatnonzero(labels == second)
        if len(rows) and len(columns) and (first != second or len(rows) > 1):
            found.append(_of_pair(groups, rows, columns, first, second, seed))
    return found


def _of_pair(groups: Array, rows: Array, columns: Array, first: str, second: str, seed: int) -> PairRatios:
    pooled = groups.mean(0)
    values = figures_of(pooled, rows, columns)
    probe: dict[str, float | None] = dict.fromkeys(FIGURES)
    count = len(groups)
    if count > 1:
        left_out = [(count * pooled - group) / (count - 1) for group in groups]
        each = [figures_of(one, rows, columns) for one in left_out]
        for name in FIGURES:
            taken = np.array([one[name] for one in each])
            probe[name] = float(np.sqrt((count - 1) / count * ((taken - taken.mean()) ** 2).sum()))
            # Delete-one jackknife: the logarithm of a noisy norm lies too low in the mean.
            values[name] = float(count * values[name] - (count - 1) * taken.mean())
    prompt = prompt_errors(rows, columns, lambda r, c: figures_of(pooled, r, c), seed)
    block = pooled[np.ix_(rows, columns)]
    distinct = rows[:, None] != columns[None, :]
    bound = np.sqrt(np.outer(np.diag(pooled)[rows], np.diag(pooled)[columns]))
    return PairRatios(
        first,
        second,
        int(distinct.sum()),
        {name: Estimate(values[name], probe[name], prompt[name]) for name in FIGURES},
        int((distinct & (block < 1e-6 * bound)).sum()),
        float((block > bound)[distinct].mean()),
    )


def figures_of(squared: Array, rows: Array, columns: Array) -> dict[str, float]:
    """The figures of squared norms [N, N] over the pairs of distinct prompts of `rows` and `columns`."""
    own = np.maximum(np.diag(squared), np.finfo(float).tiny)
    block = squared[np.ix_(rows, columns)]
    distinct = rows[:, None] != columns[None, :]
    bound = np.sqrt(np.outer(own[rows], own[columns]))
    clipped = np.maximum(block, 1e-6 * bound)
    by_row = 0.5 * np.log(clipped / own[rows][:, None])
    symmetric = 0.5 * np.log(clipped / bound)
    norm = block[distinct].mean()
    row_norm = np.broadcast_to(own[rows][:, None], block.shape)[distinct].mean()
    return {
        "log_ratio": float(by_row[distinct].mean()),
        "symmetric_log_ratio": float(symmetric[distinct].mean()),
        "rms_ratio": float(np.sqrt(max(norm, 0.0) / row_norm)),
        "symmetric_rms_ratio": float(np.sqrt(max(norm, 0.0) / bound[distinct].mean())),
    }


def prompt_errors(
    rows: Array, columns: Array, figures: Callable[[Array, Array], dict[str, float]], seed: int
) -> dict[str, float]:
    """Standard errors over resampled prompts: pairs share prompts, so prompts are drawn and not pairs.

    Pigeonhole bootstrap (Owen, arXiv 0706.0805): rows and columns are drawn with replacement, together where both are
    of one class; a prompt never pairs with itself.
    """
    generator = np.random.default_rng(seed)
    together = np.array_equal(rows, columns)
    drawn = []
    while len(drawn) < RESAMPLES:
        r = generator.choice(rows, len(rows))
        c = r if together else generator.choice(columns, len(columns))
        if (r[:, None] != c[None, :]).any():
            drawn.append(figures(r, c))
    return {name: float(np.std([one[name] for one in drawn], ddof=1)) for name in drawn[0]}


def differences(before: Array, after: Array, classes: Sequence[str], seed: int = 0) -> list[PairRatios]:
    """Figures after less before, for two models on the same prompts with the same probes, [groups, N, N] each.

    Both errors are of the difference: what probes and prompts do to both alike cancels.
    """
    labels = np.array(classes)
    found = []
    for first, second in PAIRS:
        rows, columns = np.flatnonzero(labels == first), np.flatnonzero(labels == second)
        if not (len(rows) and len(columns) and (first != second or len(rows) > 1)):
            continue

        def change(r: Array, c: Array, old: Array, new: Array) -> dict[str, float]:
            one, other = figures_of(old, r, c), figures_of(new, r, c)
            return {name: other[name] - one[name] for name in FIGURES}

        pooled = before.mean(0), after.mean(0)
        values = change(rows, columns, *pooled)
        count = len(before)
        probe: dict[str, float | None] = dict.fromkeys(FIGURES)
        if count > 1:
            each = [
                change(rows, columns, *((count * p - g[k]) / (count - 1) for p, g in zip(pooled, (before, after))))
                for k in range(count)
            ]
            for name in FIGURES:
                taken = np.array([one[name] for one in each])
                probe[name] = float(np.sqrt((count - 1) / count * ((taken - taken.mean()) ** 2).sum()))
        prompt = prompt_errors(rows, columns, lambda r, c: change(r, c, *pooled), seed)
        figures = {name: Estimate(values[name], probe[name], prompt[name]) for name in FIGURES}
        found.append(PairRatios(first, second, int((rows[:, None] != columns[None, :]).sum()), figures, 0, 0.0))
    return found
