"""`dcr-ray sweep --simulate`: a study rehearsed on a cluster that is not there."""

from __future__ import annotations

import dataclasses
import sys
from argparse import Namespace
from pathlib import Path

from dcr_ray.cli.show import print_json, print_table
from dcr_ray.study import load_study


def simulate(options: Namespace) -> int:
    """0 when the rehearsal has all its trials or has used up its budget, 1 when it was stopped."""
    from rich.console import Console

    from dcr_ray.planning.cluster import load_cluster
    from dcr_ray.planning.this_cluster import this_cluster
    from dcr_ray.report.leaderboard import leaderboard, render_leaderboard
    from dcr_ray.simulation.run import simulate as rehearse
    from dcr_ray.simulation.surface import from_table, made_up
    from dcr_ray.simulation.workers import Faults

    spec = load_study(options.spec, options.overrides)
    cluster = load_cluster(options.cluster) if options.cluster else this_cluster()
    if options.nodes:
        cluster = dataclasses.replace(
            cluster,
            nodes=tuple(
                dataclasses.replace(node, count=options.nodes) if node in cluster.working_nodes else node
                for node in cluster.nodes
            ),
        )
    surface = from_table(Path(options.table), spec) if options.table else made_up
    faults = Faults(options.preemptions, options.failures)
    found = rehearse(
        spec,
        cluster,
        faults,
        surface=surface,
        seed=options.seed,
        say=lambda line: print(line, file=sys.stderr, flush=True),
    )
    if options.json:
        print_json(found.as_dict())
    else:
        render_leaderboard(leaderboard(found.trials, spec.objectives)[:20], Console())
        plain = found.as_dict()
        shown = {name: plain[name] for name in plain if name not in ("study", "simulated", "report")}
        rows = [{"what": name.replace("_", " "), "is": _text(value)} for name, value in shown.items()]
        print_table(rows, ("what", "is"), f"{found.study}: SIMULATED, nothing was trained or measured")
        print(f"\nReport    {found.report}")
    return 1 if found.stopped and not found.stopped.startswith("the budget") else 0


def _text(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_text(each)}" for name, each in value.items())
    return f"{value:,.2f}" if isinstance(value, float) else "" if value is None else str(value)
