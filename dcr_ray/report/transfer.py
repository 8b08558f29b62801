"""The part of a scaling report on whether searched settings carry over between sizes: words, tables, drawings."""

from __future__ import annotations

from dcr_ray.ladder_search import Searched, Transfer
from dcr_ray.report.canvas import BLUE, GREEN, ORANGE, PURPLE, SKY, VERMILLION
from dcr_ray.report.svg_chart import Mark, Series, chart
from dcr_ray.scaling.spec import RecipeSearch
from dcr_ray.scaling.transfer import Optimum

COLOURS = (BLUE, VERMILLION, GREEN, ORANGE, PURPLE, SKY)

Table = tuple[str, list[str], list[list[str]]]
"""A title, columns and rows."""


def transfer_section(transfer: Transfer) -> tuple[list[str], list[Table]]:
    """What was found in words, and the tables of winners, optima, drifts, regret and ranks; empty ones are left out."""
    words = [
        "Recipes were searched at each size by one half of the prompts. Regret is what carrying a setting over gives "
        "away at the larger size, in points of rate on the other half, seeds averaged and paired by prompt: the size's "
        "own winner less the carried one, both trained anew. The winner of the largest smaller size is carried "
        "unchanged, or moved by the drifts that can be told from none; the default is what the ladder starts from. "
        "In the drawings hollow marks are recipes that were tried, filled ones the fitted optimum with two standard "
        "errors."
    ]
    words += [f"Note: {note}." for note in transfer.notes]
    edge = [each for each in transfer.optima if each.on_edge]
    if edge:
        words.append(
            f"{len(edge)} of {len(transfer.optima)} optima lie on the edge of their range and are not used; widen it."
        )
    coordinates = list(transfer.searched[0].tried[0].params) if transfer.searched and transfer.searched[0].tried else []
    winners = [
        [each.rung, str(len(each.tried)), *(_value(each, name) for name in coordinates)] for each in transfer.searched
    ]
    rungs = {(each.family, each.parameters): each.rung for each in transfer.searched}
    tables: list[Table] = [("Winners of the searches", ["size", "trials", *coordinates], winners)]
    tables.append(
        (
            "Optimum of the fitted surface (logarithms to base 10 where the range is logarithmic)",
            ["coordinate", "size", "optimum", "standard error", "on the edge"],
            [
                [
                    o.coordinate,
                    rungs[o.family, o.parameters],
                    f"{o.value:.3f}",
                    f"{o.error:.3f}",
                    "yes" if o.on_edge else "no",
                ]
                for o in transfer.optima
            ],
        )
    )
    tables.append(
        (
            "Drift of the optimum a tenfold size",
            ["coordinate", "slope, 95 %", "verdict", "optima used"],
            [
                [
                    d.coordinate, f"{d.slope:+.3f} [{d.low:+.3f}, {d.high:+.3f}]",
                    "drifts" if d.detectable else "no detectable drift", str(d.used),
                ]
                for d in transfer.drifts
            ],
        )
    )  # fmt: skip
    tables.append(
        (
            "Regret of what is carried over",
            ["size", "policy", "points, 95 %"],
            [[rung, r.policy, f"{r.points:+.1f} [{r.low:+.1f}, {r.high:+.1f}]"] for rung, r in transfer.regrets],
        )
    )
    tables.append(
        (
            "Do two sizes rank the same recipes alike?",
            ["smaller", "larger", "recipes", "pairs in the same order", "Kendall's tau, 95 %"],
            [
                [small, large, str(a.recipes), f"{a.pairs_agreeing:.2f}", f"{a.tau:+.2f} [{a.low:+.2f}, {a.high:+.2f}]"]
                for small, large, a in transfer.agreements
            ],
        )
    )
    return words, [table for table in tables if table[2]]


def transfer_charts(transfer: Transfer, search: RecipeSearch) -> list[str]:
    """One drawing a coordinate: what was tried at each size, winners, and optima with two standard errors."""
    return [_chart(transfer, search, name) for name in search.space]


def _chart(transfer: Transfer, search: RecipeSearch, name: str) -> str:
    low, high = search.limits[name]
    families = sorted({each.family for each in transfer.searched})
    series = []
    for number, family in enumerate(families):
        own = [each for each in transfer.searched if each.family == family]
        colour, css = COLOURS[number % len(COLOURS)], f"family-{number}"
        tried = [
            Mark(each.parameters, one.params[name], one.params[name], one.params[name],
                 f"{each.rung}, tried {one.params[name]:.3g}: {one.figure:+.2f} logits")
            for each in own for one in each.tried
        ]  # fmt: skip
        optima = [_optimum(each) for each in transfer.optima if (each.family, each.coordinate) == (family, name)]
        series += [
            Series(f"{family}, tried", colour, tried, hollow=True, css=css),
            Series(family, colour, optima, css=css),
        ]
    return chart(series, y_label=f"{name}{' (log10)' if search.space[name].log else ''}", y_range=(low, high))


def _optimum(each: Optimum) -> Mark:
    said = ", on the edge" if each.on_edge else ""
    text = f"optimum {each.value:.3g}, two standard errors {2 * each.error:.2g}{said}"
    return Mark(each.parameters, each.value, each.value - 2 * each.error, each.value + 2 * each.error, text)


def _value(each: Searched, name: str) -> str:
    return "none" if each.winner is None else f"{each.winner[name]:.4g}"
