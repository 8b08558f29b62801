"""The command `scale`: a ladder of models and data sizes planned, run, fitted, foretold, back-tested and reported."""

from __future__ import annotations

import sys
from argparse import Namespace
from dataclasses import asdict
from math import isfinite
from pathlib import Path
from typing import Any

from dcr_ray.cli.show import print_json, print_table


def plan(options: Namespace) -> int:
    from dcr_ray.ladder_run import ladder_plan, planned_problems
    from dcr_ray.planning.cluster import load_cluster
    from dcr_ray.scaling.spec import load_scaling

    spec = load_scaling(options.spec, options.overrides)
    rows = ladder_plan(spec, load_cluster(options.cluster) if options.cluster else None)
    if options.json:
        print_json(rows)
    else:
        shown = [row | {"size": f"{row['parameters'] / 1e9:.2f}B"} for row in rows]
        columns = ("rung", "size", *(key for key in rows[0] if key not in ("rung", "parameters", "study", "problems")))
        print_table(shown, columns, f"Ladder of {spec.scaling}, a row for each seed")
        for problem in dict.fromkeys(problem for row in rows for problem in row["problems"]):
            print(problem)
        for problem in planned_problems(spec):
            print(f"note: {problem}")
        if options.cluster:
            print(f"Together {sum(row['price'] for row in rows):.2f}, {sum(row['hours'] for row in rows):.1f} hours")
    return 2 if any(row["problems"] for row in rows) else 0


def run(options: Namespace) -> int:
    """0 when every study of the ladder has come to its end."""
    from rich.console import Console

    from dcr_ray.ladder_run import run_ladder
    from dcr_ray.scaling.spec import load_scaling

    spec = load_scaling(options.spec, options.overrides)
    done = run_ladder(spec, options.address, _say, Console(stderr=True))
    report(options)
    return 0 if done else 1


def fit(options: Namespace) -> int:
    from dcr_ray.ladder import fit_ladder, joint_forecasts, ladder_cells
    from dcr_ray.ladder_search import transfer_of
    from dcr_ray.scaling.spec import load_scaling

    spec = load_scaling(options.spec, options.overrides)
    cells, missing = ladder_cells(spec)
    fitted, carried = fit_ladder(spec, cells), transfer_of(spec)
    joint = joint_forecasts(spec, fitted)
    if options.json:
        print_json(
            {
                "cells": [cell.as_dict() for cell in cells],
                "missing": [vars(one) for one in missing],
                "laws": [_plain(each) for each in fitted],
                "joint": [{"arm": arm, "target": target} | one.as_dict() for (arm, target), one in joint.items()],
                "transfer": asdict(carried) if carried else None,
            }
        )
        return 0
    _tell(missing)
    for each in fitted:
        print(f"\n{each.metric}, {each.arm}")
        for problem in each.problems:
            print(f"  {problem}")
        if each.law is not None:
            rows = [
                {
                    "target": name,
                    "rate": found.rate,
                    "low": found.low,
                    "high": found.high,
                    "decades beyond": found.decades,
                }
                for name, found in each.predictions.items()
            ]
            print(
                f"  {each.law.coefficients[-1]:+.2f} logits a tenfold size, {each.law.checkpoints} checkpoints, "
                f"{each.law.dof} degrees of freedom"
            )
            if rows:
                print_table(rows, tuple(rows[0]))
    for (arm, target), one in joint.items():
        chance = f"{one.probability:.2f}" if one.probability is not None else "not told"
        print(
            f"\n{arm} at {target}: all of {spec.thresholds} with probability {chance} [{one.low:.2f}, {one.high:.2f}]"
        )
    if carried is not None:
        print("\nTransfer between sizes")
        for rung, each in carried.regrets:
            print(f"  {rung}, {each.policy}: {each.points:+.1f} points of regret [{each.low:+.1f}, {each.high:+.1f}]")
        for note in carried.notes:
            print(f"  {note}")
    return 0


def forecast(options: Namespace) -> int:
    from dcr_ray.ladder import forecast_ladder, ladder_cells
    from dcr_ray.scaling.spec import load_scaling

    spec = load_scaling(options.spec, options.overrides)
    cells, missing = ladder_cells(spec)
    written = forecast_ladder(spec, cells)
    if options.json:
        print_json([str(path) for path in written])
    else:
        _tell([one for one in missing if all(target.model != one.model for target in spec.targets)])
        print("\n".join(map(str, written)))
    return 0


def backtest(options: Namespace) -> int:
    from dcr_ray.ladder import fit_ladder, ladder_cells, outcomes
    from dcr_ray.scaling.spec import load_scaling

    spec = load_scaling(options.spec, options.overrides)
    cells, _ = ladder_cells(spec)
    fitted, met = fit_ladder(spec, cells), outcomes(spec, cells)
    if options.json:
        print_json(
            {
                "backtests": [{"metric": e.metric, "arm": e.arm} | e.backtest.as_dict() for e in fitted],
                "forecasts": [_outcome(one) for one in met],
            }
        )
        return 0
    for each in fitted:
        rows = [held.as_dict() for held in each.backtest.held_out]
        if rows:
            columns = ("model", "predicted", "low", "high", "observed", "covered", "persistence", "family_mean")
            print_table(rows, columns, f"{each.metric}, {each.arm}")
        print(f"{each.metric}, {each.arm}: {each.backtest.verdict}")
    if met:
        rows = [_outcome(one) for one in met]
        print_table(rows, tuple(rows[0]), "Forecasts that have met their result")
    return 0


def report(options: Namespace) -> int:
    from dcr_ray.report.scaling import report_ladder
    from dcr_ray.scaling.spec import load_scaling

    spec = load_scaling(options.spec, options.overrides)
    print(report_ladder(spec, Path(options.out) if options.out else None))
    return 0


def next_cell(options: Namespace) -> int:
    from dcr_ray.ladder import choices, ladder_cells, target_of
    from dcr_ray.planning.cluster import load_cluster
    from dcr_ray.scaling.spec import load_scaling

    spec = load_scaling(options.spec, options.overrides)
    target, metric, arm = target_of(spec, options.target, options.metric, options.arm)
    cluster = load_cluster(options.cluster)
    found = choices(spec, ladder_cells(spec)[0], target, metric, arm, cluster, options.budget)
    rows = [
        {
            "model": each.candidate.model, "data": each.candidate.data_size, "price": each.price,
            "half-width now": each.now, "then": each.then,
            "per 100": 100 * each.gain / each.price if each.price and isfinite(each.gain) else None,
        }
        for each in found
    ]  # fmt: skip
    if options.json:
        print_json([each.as_dict() for each in found])
        return 0
    if not rows:
        print(f"No cell of this ladder or its candidates costs {options.budget:g} or less")
        return 0
    print_table(rows, tuple(rows[0]), f"{metric}, {arm} at {target.model}: half-width of the forecast in logits")
    return 0


def _tell(missing: list[Any]) -> None:
    if missing:
        reasons = {one.reason for one in missing}
        _say(f"{len(missing)} cells are not there: {', '.join(sorted(reasons))[:300]}")


def _plain(each: Any) -> dict[str, Any]:
    return {
        "metric": each.metric,
        "arm": each.arm,
        "law": each.law.as_dict() if each.law else None,
        "slope": each.law.coefficients[-1] if each.law else None,
        "predictions": {name: vars(found) for name, found in each.predictions.items()},
        "under_ceiling": {
            str(share): {name: vars(found) for name, found in told.items()}
            for share, told in each.under_ceiling.items()
        },
        "backtest": each.backtest.as_dict(),
        "problems": [vars(problem) for problem in each.problems],
    }


def _outcome(one: Any) -> dict[str, Any]:
    last = one.forecast.predictions[-1]
    return {
        "metric": one.forecast.law.metric,
        "arm": one.forecast.law.arm,
        "target": one.forecast.model,
        "written": one.forecast.written,
        "foretold": last.rate,
        "low": last.low,
        "high": last.high,
        "observed": one.observed,
        "error_points": one.error,
        "covered": one.covered[-1],
    }


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
