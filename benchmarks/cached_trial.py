"""What a trial costs whose stages are all in the cache: seconds from its asking to its being told, and their parts.

    python benchmarks/cached_trial.py --storage DIR
    python benchmarks/cached_trial.py --storage DIR --simulated    stages from a formula, no training

A sweep of a tiny model on real parts (Ray Train with DeepSpeed, vLLM or transformers, Tune, Optuna, MLflow) fills the
cache. The same trials under another name then take every stage from it: same seed, same grid, through a real sweep. The
parts: `begin` from the asking to the coordinator's first stage, `stages` to its last, `told` from there to Optuna's
knowing, `mirrored` the mirror's share after that. The trials that began while a coordinator was still starting (the
first of each place) are apart. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import defaultdict
from io import StringIO
from pathlib import Path
from statistics import median
from typing import Any

MOST_SECONDS = 0.5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--storage", type=Path, required=True, help="an empty or reusable folder")
    parser.add_argument("--trials", type=int, default=12)
    parser.add_argument("--concurrent", type=int, default=2)
    parser.add_argument("--engine", default="vllm", choices=["vllm", "transformers"])
    parser.add_argument("--simulated", action="store_true", help="stages from a formula instead of training")
    options = parser.parse_args()
    options.storage.mkdir(parents=True, exist_ok=True)
    run(options, "filled")
    watch = run(options, f"cached-{time.strftime('%H%M%S')}")
    rows = watch.rows()
    for row in rows:
        print("  ".join(f"{name} {value:.3f}" if name != "trial" else f"{value:5}" for name, value in row.items()))
    first, later = rows[: options.concurrent], rows[options.concurrent :]
    print(
        json.dumps(
            {
                "trials": len(rows),
                "simulated": options.simulated,
                "median_seconds": round(median(row["seconds"] for row in later), 3),
                "worst_seconds": round(max(row["seconds"] for row in later), 3),
                "first_seconds": [round(row["seconds"], 3) for row in first],
                "median_of": {
                    name: round(median(row[name] for row in later), 3)
                    for name in ("begin", "stages", "told", "mirrored", "driver_cpu")
                },
                "within_limit": median(row["seconds"] for row in later) < MOST_SECONDS,
            }
        )
    )


class Watch:
    """When each trial was asked for, seen at its first and last stage, told and mirrored."""

    def __init__(self) -> None:
        self.at: dict[str, dict[str, float]] = defaultdict(dict)

    def rows(self) -> list[dict[str, Any]]:
        rows = []
        for trial, at in self.at.items():
            if "mirrored" not in at:
                continue
            if not at.get("cached"):
                raise SystemExit(f"{trial} was not taken from the cache")
            rows.append(
                {
                    "trial": trial,
                    "seconds": at["told"] - at["asked"],
                    "begin": at["first"] - at["asked"],
                    "stages": at["last"] - at["first"],
                    "told": at["told"] - at["last"],
                    "mirrored": at["mirrored"] - at["told"],
                    "driver_cpu": at["cpu"],
                }
            )
        return sorted(rows, key=lambda row: self.at[row["trial"]]["asked"])


def run(options: argparse.Namespace, study: str) -> Watch:
    """A sweep of this name, watched."""
    from rich.console import Console

    import dcr_ray.sweep
    from dcr_ray.observe import Observer
    from dcr_ray.pools.simulated import SimulatedCrew, simulated_inputs
    from dcr_ray.preflight import Ready, preflight, study_folder
    from dcr_ray.tracking import default_tracking_uri

    watch = Watch()

    class WatchedObserver(Observer):
        cpu = time.process_time()

        def trial_started(self, name: str, recipe: Any) -> None:
            watch.at[name]["asked"] = time.time()
            super().trial_started(name, recipe)

        def trial_ended(self, name: str) -> None:
            watch.at[name]["told"] = time.time()
            super().trial_ended(name)
            now = time.process_time()
            watch.at[name] |= {"mirrored": time.time(), "cpu": now - self.cpu}
            WatchedObserver.cpu = now

        def _mirror(self, event: dict[str, Any]) -> None:
            at = watch.at[event["trial"]]
            at.setdefault("first", event["time"])
            at["last"] = event["time"]
            at["cached"] = at.get("cached", True) and event["event"] == "cached"
            super()._mirror(event)

    spec = spec_of(options, study)
    dcr_ray.sweep.Observer = WatchedObserver
    console = Console(file=StringIO())
    if not options.simulated:
        ready = preflight(spec)
        result = dcr_ray.sweep.run_ready(ready, "local", console)
    else:
        study_dir = study_folder(spec)
        study_dir.mkdir(parents=True, exist_ok=True)
        ready = Ready(
            spec, study_dir, options.storage / "caches", options.storage / "reports" / study,
            default_tracking_uri(study_dir), simulated_inputs(spec, options.storage),
        )  # fmt: skip
        result = dcr_ray.sweep.run_ready(ready, "local", console, SimulatedCrew)
    states = {trial.name: trial.state for trial in result.trials}
    if set(states.values()) != {"complete"}:
        raise SystemExit(f"not every trial of {study} is complete: {states}")
    return watch


def spec_of(options: argparse.Namespace, study: str) -> Any:
    """A grid, so that two studies have the same trials; one DCR stage for all, one SFT and one generation each."""
    from dcr_ray.study import parse_study
    from dcr_ray.weights.tiny import build_tiny_model

    model = options.storage / "model"
    if not model.exists():
        build_tiny_model(model)
    rates = [round(1e-4 * (1 + place), 6) for place in range(options.trials)]
    few = {"limit": 16}
    return parse_study(
        {
            "study": study,
            "model": str(model.absolute()),
            "storage": str((options.storage / "runs").absolute()),
            "reports": str((options.storage / "reports").absolute()),
            "data": {
                "train": {
                    "seemingly_toxic": {"set": "builtin-seemingly-toxic", **few},
                    "toxic": {"set": "builtin-toxic", **few},
                    "general": {"set": "builtin-instructions", **few},
                    "safety": {"set": "builtin-refusals", "limit": 8},
                },
                "evaluate": {
                    "compliance": {"set": "builtin-seemingly-toxic", "limit": 12},
                    "defense": {"set": "builtin-toxic", "limit": 12},
                    "capability": {"set": "builtin-instructions", "limit": 8},
                },
            },
            "recipe": {"dcr": {"batch_size": 8}, "sft": {"max_tokens": 64}},
            "space": {"sft.learning_rate": {"choices": rates}},
            "objectives": {"compliance": "maximize", "defense": "maximize"},
            "search": {"trials": options.trials, "sampler": "grid", "concurrent": options.concurrent},
            "evaluation": {"engine": options.engine, "max_tokens": 8, "max_model_tokens": 512},
        }
    )


if __name__ == "__main__":
    main()
