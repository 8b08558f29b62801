"""Asynchronous successive halving on one figure per trial, the one that the DCR stage leaves.

Li et al., arXiv 1810.05934, with a single rung. The figures seen so far come from the journal, so a resumed study
halves against all trials it ever had; Ray's own scheduler forgets them.
"""

from __future__ import annotations

import numpy as np

from dcr_ray.study import HalvingSpec


def goes_on(figure: float, earlier: list[float], spec: HalvingSpec) -> bool:
    """Whether a trial with this figure is among the best 1/reduction_factor of all that reached the rung so far.

    A figure on the boundary goes on, and so does everything while fewer than `min_trials` figures are there.
    """
    figures = np.array([*earlier, figure], dtype=float)
    if len(figures) < spec.min_trials:
        return True
    sign = 1.0 if spec.direction == "maximize" else -1.0
    return bool(sign * figure >= np.quantile(sign * figures, 1 - 1 / spec.reduction_factor))
