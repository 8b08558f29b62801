"""How far apart two classes of states are, on prompts that were not trained on: trained ones always come apart."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize


def direction_auroc(
    fitted_seemingly_toxic: Tensor, fitted_toxic: Tensor, seemingly_toxic: Tensor, toxic: Tensor
) -> float:
    """AUROC of the direction mean(toxic) - mean(seemingly toxic) of the fitted states [n, width], on other states.

    The share of pairs in which the toxic prompt scores higher, ties counting half (Mann-Whitney U over n1 n2).
    """
    direction = fitted_toxic.double().mean(0) - fitted_seemingly_toxic.double().mean(0)
    high, low = toxic.double() @ direction, seemingly_toxic.double() @ direction
    difference = high[:, None] - low[None, :]
    return float(((difference > 0).double() + 0.5 * (difference == 0).double()).mean())


def class_cosines(seemingly_toxic: Tensor, toxic: Tensor, centering: str, toxic_share: float) -> tuple[float, float]:
    """Mean cosine within a class (of both classes, equally) and across classes, for states [n, width].

    Where training centres by the batch, the centre here is what a batch's mean would be: the two classes' means in
    the proportion of a batch. Each class needs two prompts.
    """
    low, high = seemingly_toxic.double(), toxic.double()
    if centering == "batch":
        centre = toxic_share * high.mean(0) + (1 - toxic_share) * low.mean(0)
        low, high = low - centre, high - centre
    low, high = normalize(low, dim=1), normalize(high, dim=1)
    within = [_mean_off_diagonal(x @ x.T) for x in (low, high)]
    return float(torch.stack(within).mean()), float((low @ high.T).mean())


def _mean_off_diagonal(similarities: Tensor) -> Tensor:
    n = len(similarities)
    return (similarities.sum() - similarities.diagonal().sum()) / (n * (n - 1))


def held_out_figures(
    fitted: tuple[Tensor, Tensor], held_out: tuple[Tensor, Tensor], centering: str, toxic_share: float, prefix: str
) -> dict[str, float]:
    """The stage's figures from (seemingly toxic, toxic) states, each name beginning with `prefix`."""
    within, across = class_cosines(*held_out, centering, toxic_share)
    return {
        f"{prefix}held_out_auroc": direction_auroc(*fitted, *held_out),
        f"{prefix}held_out_within_cosine": within,
        f"{prefix}held_out_across_cosine": across,
        f"{prefix}held_out_margin": within - across,
    }
