"""The report of a scaling study: the ladder, its laws out to 70B, forecasts, back-tests and costs; Markdown and a page.

The page is one file with drawings that can be pointed at and families that can be hidden; it loads nothing. It is
written for somebody who did not run the study.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from math import log10
from pathlib import Path
from typing import Any

from dcr_ray.errors import InputError
from dcr_ray.ladder import (
    CEILINGS,
    Fitted,
    Missing,
    fit_ladder,
    joint_forecasts,
    ladder_cells,
    ladder_costs,
    outcomes,
    target_parameters,
)
from dcr_ray.ladder_search import Transfer, transfer_of
from dcr_ray.rates import Rate
from dcr_ray.report.svg_chart import Mark, Series, chart
from dcr_ray.report.transfer import COLOURS, Table, transfer_charts, transfer_section
from dcr_ray.report.wording import escape_markdown
from dcr_ray.scaling.backtest import Outcome
from dcr_ray.scaling.cells import Cell, counted
from dcr_ray.scaling.joint import Joint
from dcr_ray.scaling.law import naive_interval, predict
from dcr_ray.scaling.spec import ScalingSpec

FURTHEST = 70e9


def write_scaling_report(
    spec: ScalingSpec,
    cells: Sequence[Cell],
    missing: Sequence[Missing],
    fitted: Sequence[Fitted],
    met: Sequence[Outcome],
    costs: Sequence[dict[str, Any]],
    folder: Path,
    *,
    transfer: Transfer | None = None,
    joint: Mapping[tuple[str, str], Joint] | None = None,
) -> Path:
    """Write report.md and report.html into `folder`; returns the page's path."""
    folder.mkdir(parents=True, exist_ok=True)
    carried = [("Do settings carry over between sizes?", *transfer_section(transfer))] if transfer else []
    both = [("Several thresholds at once", [_JOINT], [_joint_table(spec, joint)])] if joint else []
    sections = [
        ("What was asked", [_asked(spec, cells, missing)], []),
        *((f"{each.metric}, {each.arm}", _words(each), _tables(spec, cells, each)) for each in fitted),
        *both,
        *carried,
        (
            "Forecasts and what became of them",
            _forecast_words(met),
            [_outcome_table(met)] if met else [],
        ),
        (
            "Cost",
            [_COSTS] if costs else [],
            [_cost_table(costs)] if costs else [],
        ),
        ("What is missing", _missing_words(missing), [_missing_table(missing)] if missing else []),
        ("How to read this", [_READ], []),
    ]
    markdown = [f"# Scaling study {escape_markdown(spec.scaling)}"]
    page = [f"<h1>Scaling study {escape(spec.scaling)}</h1>", _toggles(cells)]
    for title, words, tables in sections:
        markdown += [f"## {escape_markdown(title)}", *words, *map(_markdown_table, tables)]
        page.append(f"<h2>{escape(title)}</h2>")
        found = next((each for each in fitted if title == f"{each.metric}, {each.arm}"), None)
        if found is not None:
            page.append(_drawing(cells, found, met))
        if transfer is not None and title == "Do settings carry over between sizes?":
            page += transfer_charts(transfer, spec.search)
        page += [f"<p>{escape(text)}</p>" for text in words]
        page += [_html_table(table) for table in tables]
    (folder / "report.md").write_text("\n\n".join(markdown) + "\n")
    path = folder / "report.html"
    path.write_text(_PAGE.replace("{title}", escape(spec.scaling)).replace("{body}", "\n".join(page)))
    return path


def report_ladder(spec: ScalingSpec, folder: Path | None = None) -> Path:
    """The report of what there is by now, in `folder` or where the spec says; returns the page's path."""
    cells, missing = ladder_cells(spec)
    fitted = fit_ladder(spec, cells)
    return write_scaling_report(
        spec, cells, missing, fitted, outcomes(spec, cells), ladder_costs(spec),
        folder or Path(spec.reports) / spec.scaling, transfer=transfer_of(spec), joint=joint_forecasts(spec, fitted),
    )  # fmt: skip


def _asked(spec: ScalingSpec, cells: Sequence[Cell], missing: Sequence[Missing]) -> str:
    told = counted(cells)
    sizes = ", ".join(map(str, spec.data_axis.sizes))
    families = len({rung.family for rung in spec.ladder})
    return (
        f"{len(spec.ladder)} base models of {families} famil{'y' if families == 1 else 'ies'} x "
        f"{len(spec.data_axis.sizes)} data sizes ({spec.data_axis.coordinate}: {sizes}) x arms "
        f"{', '.join(spec.all_arms)} x {len(spec.seeds)} seeds. {told['cells']} rates are there, {len(missing)} cells "
        f"are missing; {told['none_of_n']} rates are 0 of n and {told['all_of_n']} n of n (kept, with half a count on "
        "both sides); "
        f"{told['unscored_responses']} responses no judge scored, which are in no rate."
    )


def _words(each: Fitted) -> list[str]:
    words = []
    if each.law is not None:
        law = each.law
        left = f" Terms that these cells cannot tell: {', '.join(law.left_out)}." if law.left_out else ""
        words.append(
            f"Law: the rate's logit rises by {law.coefficients[-1]:+.2f} a tenfold size; {law.checkpoints} "
            f"checkpoints, {law.dof} degrees of freedom; a checkpoint's luck is {law.between**0.5:.2f} logits.{left}"
            if law.between is not None
            else f"Law: {law.coefficients[-1]:+.2f} logits a tenfold size, without any checkpoint to judge it by.{left}"
        )
    words += [f"Note: {str(problem).rstrip('.')}." for problem in each.problems]
    words.append(f"Back-test: {each.backtest.verdict}")
    return words


def _tables(spec: ScalingSpec, cells: Sequence[Cell], each: Fitted) -> list[Table]:
    own = [cell for cell in cells if (cell.metric, cell.arm) == (each.metric, each.arm)]
    rows = []
    for model, parameters, size in sorted({(c.model, c.parameters, c.data_size) for c in own}, key=lambda k: k[1:]):
        here = [cell for cell in own if (cell.model, cell.data_size) == (model, size)]
        rate = Rate(sum(cell.hits for cell in here), sum(cell.n for cell in here), sum(c.unscored for c in here))
        low, high = rate.interval() if rate.n else (float("nan"),) * 2
        seeds = ", ".join(f"{cell.rate:.2f}" for cell in here if cell.n)
        rows.append(
            [model, _size(parameters), str(size), _interval(rate.share, low, high) if rate.n else "no prompt", seeds]
        )
    tables: list[Table] = [("Measured", ["model", "size", "data", "rate, seeds pooled", "by seed"], rows)]
    if each.predictions and each.law is not None:
        rows = []
        for target in spec.targets:
            if target.model in each.predictions:
                found = each.predictions[target.model]
                naive = naive_interval(own, target.family, target_parameters(target)) if own else None
                rows.append(
                    [
                        target.model, _size(target_parameters(target)), _interval(found.rate, found.low, found.high),
                        f"{found.decades:.1f} decades beyond {each.law.checkpoints} checkpoints",
                        *(_under(each, share, target.model) for share in CEILINGS),
                        _interval(*naive) if naive else "",
                    ]
                )  # fmt: skip
        under = [f"with a ceiling of {share:g}" for share in CEILINGS]
        columns = ["target", "size", "foretold, 95 %", "how far", *under, "pooled cells (do not use)"]
        tables.append(("What the law says of the targets", columns, rows))
    if each.backtest.held_out:
        rows = [
            [
                h.model, _size(h.parameters), _interval(h.predicted, h.low, h.high), f"{h.observed:.2f}",
                f"{100 * (h.predicted - h.observed):+.1f}", "yes" if h.covered else "no", f"{h.persistence:.2f}",
                f"{h.family_mean:.2f}", f"{h.interval_score:.2f}",
            ]
            for h in each.backtest.held_out
        ]  # fmt: skip
        columns = [
            "held out",
            "size",
            "foretold",
            "observed",
            "error, points",
            "covered",
            "size before",
            "family mean",
            "score",
        ]
        tables.append(("Back-test", columns, rows))
    return tables


def _under(each: Fitted, share: float, target: str) -> str:
    found = each.under_ceiling.get(share, {}).get(target)
    return _interval(found.rate, found.low, found.high) if found else ""


def _joint_table(spec: ScalingSpec, joint: Mapping[tuple[str, str], Joint]) -> Table:
    wanted = ", ".join(f"{name} >= {rate:g}" for name, rate in spec.thresholds.items())
    rows = [
        [
            arm, target, f"{one.probability:.2f}" if one.probability is not None else "not told",
            f"{one.low:.2f} to {one.high:.2f}", ", ".join(f"{name} {p:.2f}" for name, p in one.alone.items()),
            f"{one.correlation:+.2f}" if one.correlation is not None else "", str(one.checkpoints),
        ]
        for (arm, target), one in joint.items()
    ]  # fmt: skip
    columns = ["arm", "target", "all", "whatever the dependence", "each alone", "correlation", "checkpoints"]
    return f"Probability of {wanted}", columns, rows


def _forecast_words(outcomes: Sequence[Outcome]) -> list[str]:
    if not outcomes:
        return ["No forecast has met its result yet. `dcr-ray scale forecast SPEC` writes them before a target is run."]
    covered = sum(outcome.covered[-1] for outcome in outcomes)
    return [f"{covered} of {len(outcomes)} results lie in the 95 % interval of the law that was written before them."]


def _outcome_table(outcomes: Sequence[Outcome]) -> Table:
    rows = [
        [
            f"{o.forecast.law.metric}, {o.forecast.law.arm}", o.forecast.model, o.forecast.written[:16],
            _interval(o.intervals[-1].rate, o.intervals[-1].low, o.intervals[-1].high), str(o.seeds),
            f"{o.observed:.2f}", f"{o.error:+.1f}", "yes" if o.covered[-1] else "no",
        ]
        for o in outcomes
    ]  # fmt: skip
    return (
        "Forecasts",
        ["figure", "target", "written", "foretold, 95 %", "seeds", "observed", "error, points", "covered"],
        rows,
    )


def _cost_table(costs: Sequence[dict[str, Any]]) -> Table:
    columns = list(dict.fromkeys(key for row in costs for key in row if key != "problems"))
    rows = [[_cell(row.get(column)) for column in columns] for row in costs]
    return "Cells that were run", columns, rows


def _missing_words(missing: Sequence[Missing]) -> list[str]:
    return [] if missing else ["Every cell that was asked for is there."]


def _missing_table(missing: Sequence[Missing]) -> Table:
    rows = [[m.model, str(m.data_size), m.arm, str(m.seed), m.reason[:120]] for m in missing]
    return "Cells that are not there", ["model", "data", "arm", "seed", "why"], rows


def _drawing(cells: Sequence[Cell], each: Fitted, outcomes: Sequence[Outcome]) -> str:
    own = [cell for cell in cells if (cell.metric, cell.arm) == (each.metric, each.arm) and cell.n]
    if not own:
        return ""
    largest = max(cell.data_size for cell in own)
    families = sorted({cell.family for cell in own})
    series = []
    for number, family in enumerate(families):
        colour, css = COLOURS[number % len(COLOURS)], f"family-{number}"
        marks = []
        for model, parameters in sorted(
            {(c.model, c.parameters) for c in own if c.family == family}, key=lambda m: m[1]
        ):
            here = [cell for cell in own if cell.model == model and cell.data_size == largest]
            if here:
                rate = Rate(sum(cell.hits for cell in here), sum(cell.n for cell in here))
                low, high = rate.interval()
                text = (
                    f"{model}, {_size(parameters)}: {_interval(rate.share, low, high)}, {len(here)} seeds, n {rate.n}"
                )
                marks.append(Mark(parameters, rate.share, low, high, text))
        series.append(Series(family, colour, marks, _curve(each, family, own, largest), css=css))
        foretold = [
            Mark(
                o.forecast.parameters, o.forecast.predictions[-1].rate, o.forecast.predictions[-1].low,
                o.forecast.predictions[-1].high, f"{o.forecast.model}, foretold on {o.forecast.written[:10]}",
            )
            for o in outcomes
            if o.forecast.family == family and (o.forecast.law.metric, o.forecast.law.arm) == (each.metric, each.arm)
        ]  # fmt: skip
        if foretold:
            series.append(Series(f"{family}, foretold", colour, foretold, hollow=True, css=css))
    return chart(series, y_label=f"{each.metric}, {each.arm}, data {largest}")


def _curve(each: Fitted, family: str, own: Sequence[Cell], data_size: int) -> list[tuple[float, float, float, float]]:
    if each.law is None:
        return []
    smallest = min(cell.parameters for cell in own)
    furthest = max(FURTHEST, max(cell.parameters for cell in own))
    points = []
    for step in range(41):
        x = 10 ** (log10(smallest) + step / 40 * (log10(furthest) - log10(smallest)))
        try:
            found = predict(each.law, family, x, data_size)
        except InputError:
            # The words beside the drawing say why there is no curve.
            return []
        points.append((x, found.rate, found.low, found.high))
    return points


def _toggles(cells: Sequence[Cell]) -> str:
    boxes = []
    for number, family in enumerate(sorted({cell.family for cell in cells})):
        colour = COLOURS[number % len(COLOURS)]
        boxes.append(
            f'<label style="color:{colour}"><input type="checkbox" checked data-hides="family-{number}"> '
            f"{escape(family)}</label>"
        )
    return f'<p class="toggles">Families: {" ".join(boxes)}. Point at a mark to read it.</p>'


def _size(parameters: float) -> str:
    return f"{parameters / 1e9:.2f}B" if parameters >= 1e9 else f"{parameters / 1e6:.0f}M"


def _interval(rate: float, low: float, high: float) -> str:
    return f"{rate:.2f} [{low:.2f}, {high:.2f}]"


def _cell(value: Any) -> str:
    return "" if value is None else f"{value:.3g}" if isinstance(value, float) else str(value)


def _markdown_table(table: Table) -> str:
    title, columns, rows = table
    lines = [f"**{title}**", "", f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}"]
    lines += [f"| {' | '.join(escape_markdown(cell) for cell in row)} |" for row in rows]
    return "\n".join(lines)


def _html_table(table: Table) -> str:
    title, columns, rows = table
    head = "".join(f"<th>{escape(column)}</th>" for column in columns)
    body = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows)
    return f"<h3>{escape(title)}</h3><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


_JOINT = (
    "What a new checkpoint of the target's size would be measured at, by the laws above. The metrics share a "
    "checkpoint's luck: their residuals' correlation is resampled over checkpoints for every draw."
)
_COSTS = (
    "Minutes are of the stages' own work; one that several cells share counts for the first. `dcr-ray scale next` says "
    "what a further cell would cost and tell."
)
_READ = (
    "A rate's interval is Wilson's, over prompts of all seeds. The law is fitted to one figure a checkpoint, since "
    "seeds and prompts of a checkpoint share its luck; its band is where the measured rate of a *new* checkpoint is "
    "expected with 95 %, and it widens with the distance from the sizes that were run. The column of pooled cells is "
    "what one gets by treating every run as evidence of its own: in simulation such intervals hold about half of the "
    "results. Rates are on the search split. A straight line in logits knows nothing of a trend that bends."
)

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
body { font: 15px/1.5 system-ui, sans-serif; color: #1f2933; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
svg { width: 100%; max-width: 46rem; background: #fff; } svg text { font-size: 12px; fill: #52606d; }
.grid { stroke: #e4e7eb; } table { border-collapse: collapse; margin: .5rem 0 1.5rem; font-size: 13px; }
th, td { text-align: left; padding: .25rem .7rem; border-bottom: 1px solid #e4e7eb; }
.toggles label { margin-right: 1rem; }
</style></head><body>
{body}
<script>
document.querySelectorAll("[data-hides]").forEach(function (box) {
  box.addEventListener("change", function () {
    document.querySelectorAll("." + box.dataset.hides).forEach(function (group) {
      group.style.display = box.checked ? "" : "none";
    });
  });
});
</script>
</body></html>
"""
