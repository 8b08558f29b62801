"""Where the time of a study went: the time ledger of each trial, and what the system itself costs.

    python benchmarks/overhead.py quickstart --storage runs

Reads a finished study; runs nothing. The last line is one JSON object: seconds by part over all trials, the share of
the wall clock that no part names, and the overhead, which is `start`, `tracking`, messages to the broker, what is
unaccounted, and `idle` less what belongs to a stage or waited for the baseline. Its median leaves out the first trial,
which also waits for processes to start, and trials without a result.
"""

from __future__ import annotations

import argparse
import json
from statistics import median

from dcr_ray.api import Study
from dcr_ray.time_ledger import PARTS, summed, unaccounted
from dcr_ray.trial import Trial


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("study")
    parser.add_argument("--storage", default="runs")
    options = parser.parse_args()
    trials = [trial for trial in Study.open(options.study, options.storage).results().trials if trial.wall]
    print(f"{'trial':6} {'wall':>8} {'overhead':>8}  parts of 1 % and more, seconds")
    for trial in trials:
        parts = "  ".join(
            f"{part} {trial.ledger[part]:.1f}" for part in PARTS if trial.ledger[part] >= 0.01 * trial.wall
        )
        print(f"{trial.name:6} {trial.wall:8.1f} {overhead(trial):8.2f}  {parts}")
    ledger, wall = summed(trial.ledger for trial in trials), sum(trial.wall for trial in trials)
    later = [overhead(trial) for trial in trials[1:] if trial.state == "complete"]
    found = {
        "trials": len(trials),
        "wall": round(wall, 2),
        "parts": {name: round(seconds, 2) for name, seconds in ledger.items()},
        "unaccounted": round(unaccounted(ledger, wall), 2),
        "largest_unaccounted_share": max((round(abs(t.unaccounted) / t.wall, 5) for t in trials), default=None),
        "median_overhead_seconds_after_first": round(median(later), 2) if later else None,
    }
    print(json.dumps(found))


def overhead(trial: Trial) -> float:
    """Seconds of a trial that are neither a stage's work nor waiting for a worker or for another trial."""
    parts = trial.ledger
    elsewhere = sum(parts.get(f"idle/{name}", 0.0) for name in ("failed", "held", "unnamed"))
    own = parts["start"] + parts["tracking"] + parts["idle"] - elsewhere
    return own + parts.get("queue/messages", 0.0) + trial.unaccounted


if __name__ == "__main__":
    main()
