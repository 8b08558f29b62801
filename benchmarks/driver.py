"""What the driver itself costs: CPU seconds and memory per trial, with stages that are answered from a formula.

    python benchmarks/driver.py --trials 100 1000 10000            the search, journal, mirror, live view and report
    python benchmarks/driver.py --trials 1000 --ray --storage DIR  the whole driver, with Tune on a Ray of its own

Each size runs in a process of its own, once per sampler. CPU is that process's, all threads, user and system
(`time.process_time`); children (Ray, the sender to MLflow) are apart. `growth` is the slope of CPU per trial over the
trials, by least squares over ten blocks, as milliseconds per 1,000 further trials. Without --ray a look at the study
is taken every --look-every trials (a sweep looks once a second). The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

BLOCKS = 10
LARGEST_MS, LARGEST_GIB = 20.0, 1.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, nargs="+", default=[100, 1000, 10_000])
    parser.add_argument("--samplers", nargs="+", default=["random", "tpe"])
    parser.add_argument("--ray", action="store_true", help="the whole driver, with Tune and simulated workers")
    parser.add_argument("--concurrent", type=int, default=4)
    parser.add_argument("--look-every", type=int, default=10, help="trials between two looks, without --ray")
    parser.add_argument("--storage", type=Path, help="where the studies lie; a temporary folder by default")
    parser.add_argument("--profile", type=Path, help="write the profile of each run's main thread into this folder")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measured(options, options.trials[0], options.samplers[0])))
        return
    rows = []
    for sampler in options.samplers:
        for trials in options.trials:
            command = [sys.executable, __file__, "--one", *_forwarded(options)]
            command += ["--trials", str(trials), "--samplers", sampler]
            answer = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
            row = json.loads(answer.splitlines()[-1])
            rows.append(row)
            blocks = " ".join(f"{block:.1f}" for block in row["block_ms"])
            print(
                f"{sampler:6} {trials:6} trials: {row['ms_per_trial']:.1f} ms a trial ({blocks}), last block "
                f"{row['block_ms'][-1]:.1f}, end {row['end_seconds']:.1f} s, {row['pss_mib']:.0f} MiB, "
                f"{row['trials_per_second']:.1f} trials/s",
                flush=True,
            )
    worst = max(row["block_ms"][-1] for row in rows)
    print(
        json.dumps(
            {
                "ray": options.ray,
                "rows": rows,
                "within_limits": worst < LARGEST_MS and all(row["pss_mib"] < 1024 * LARGEST_GIB for row in rows),
            }
        )
    )


def _forwarded(options: argparse.Namespace) -> list[str]:
    passed = ["--concurrent", str(options.concurrent), "--look-every", str(options.look_every)]
    passed += ["--ray"] if options.ray else []
    passed += ["--storage", str(options.storage)] if options.storage else []
    return passed + (["--profile", str(options.profile)] if options.profile else [])


def measured(options: argparse.Namespace, trials: int, sampler: str) -> dict[str, Any]:
    """Run one study of this size in this process."""
    with tempfile.TemporaryDirectory(dir=options.storage) as folder:
        place = Path(folder)
        spec = spec_of(place, trials, sampler, options.concurrent)
        meter = Meter(trials)
        run = run_on_ray if options.ray else run_alone
        if options.profile:
            import cProfile

            profile = cProfile.Profile()
            profile.enable()
        end_seconds = run(spec, place, meter, options.look_every)
        if options.profile:
            profile.disable()
            options.profile.mkdir(parents=True, exist_ok=True)
            profile.dump_stats(options.profile / f"{sampler}-{trials}{'-ray' if options.ray else ''}.prof")
        return {"sampler": sampler, "trials": trials, "end_seconds": end_seconds} | meter.figures()


class Meter:
    """CPU of this process per block of ended trials."""

    def __init__(self, trials: int):
        self._block = max(1, trials // BLOCKS)
        self._ended = 0
        self._cpu = [time.process_time()]
        self._wall = [time.monotonic()]

    def ended(self) -> None:
        self._ended += 1
        if self._ended % self._block == 0:
            self._cpu.append(time.process_time())
            self._wall.append(time.monotonic())
            spent = (self._cpu[-1] - self._cpu[-2]) / self._block * 1e3
            print(f"  {self._ended} trials, {spent:.1f} ms each, {_pss_mib():.0f} MiB", file=sys.stderr, flush=True)

    @property
    def seconds(self) -> float:
        return self._cpu[-1] - self._cpu[0]

    def figures(self) -> dict[str, Any]:
        per_trial = np.diff(self._cpu) / self._block * 1e3
        at = (np.arange(len(per_trial)) + 0.5) * self._block
        # The first block has the imports and the first calls.
        slope = np.polyfit(at[1:], per_trial[1:], 1)[0] if len(per_trial) > 2 else 0.0
        children = resource.getrusage(resource.RUSAGE_CHILDREN)
        return {
            "ms_per_trial": float((self._cpu[-1] - self._cpu[0]) / (len(per_trial) * self._block) * 1e3),
            "block_ms": [round(float(value), 2) for value in per_trial],
            "growth_ms_per_1000_trials": round(float(slope) * 1e3, 4),
            "trials_per_second": round(len(per_trial) * self._block / (self._wall[-1] - self._wall[0]), 1),
            "pss_mib": _pss_mib(),
            "children_cpu_seconds": round(children.ru_utime + children.ru_stime, 1),
        }


def _pss_mib() -> float:
    rollup = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return round(int(next(line for line in rollup if line.startswith("Pss:")).split()[1]) / 1024, 1)


def spec_of(folder: Path, trials: int, sampler: str, concurrent: int) -> Any:
    """A study of five coordinates, two objectives and a constraint relative to the baseline."""
    from dcr_ray.study import parse_study

    return parse_study(
        {
            "study": f"driver-{sampler}-{trials}",
            "storage": str(folder / "runs"),
            "reports": str(folder / "reports"),
            "data": {
                "train": {"seemingly_toxic": "a", "toxic": "b", "general": "c", "safety": "d"},
                "evaluate": {"compliance": "a", "defense": "b", "capability": "c"},
            },
            "space": {
                "dcr.layer_depth": {"low": 0.1, "high": 0.9},
                "dcr.scale": {"low": 8.0, "high": 128.0, "log": True},
                "dcr.margin": {"low": 0.1, "high": 0.4},
                "dcr.strength": {"low": 1e-4, "high": 8e-4, "log": True},
                "sft.learning_rate": {"low": 1e-5, "high": 1e-3, "log": True},
            },
            "objectives": {"compliance": "maximize", "defense": "maximize"},
            "constraints": {"perplexity": {"at_most_baseline_times": 1.2}},
            "search": {"trials": trials, "sampler": sampler, "concurrent": concurrent},
            "resources": {"worker_groups": 1, "engines": 1},
        }
    )


def evaluated_once(spec: Any, folder: Path) -> dict[str, str]:
    """One trial's stages, answered and judged for real; every trial shows these files. Stage -> its directory."""
    from dcr_ray.pools.simulated import run_simulated, simulated_inputs
    from dcr_ray.recipe import Recipe
    from dcr_ray.stages import run_here, run_stages

    def submit(task: Any) -> Any:
        return run_here(task) if task.place == "here" else (task.commit(run_simulated(task), {}), False)

    outcome = run_stages(simulated_inputs(spec, folder).tasks(Recipe(), "t"), submit, lambda *_: None)
    return {stage["name"]: stage["path"] for stage in outcome["stages"]}


def outcome_of(name: str, params: dict[str, Any], paths: dict[str, str]) -> dict[str, Any]:
    """A response surface whose objectives are in conflict, with as many figures as a real trial has, and with noise."""
    depth, scale = params.get("dcr.layer_depth", 0.5), params.get("dcr.scale", 8.0)
    rate = params.get("sft.learning_rate", 3e-5)
    noise = np.random.default_rng(int.from_bytes(name.encode()[-6:], "big")).normal(0, 0.02, 3)
    metrics = {
        "compliance": float(np.clip(0.9 - (depth - 0.6) ** 2 - scale / 2000 + noise[0], 0, 1)),
        "defense": float(np.clip(0.6 + scale / 500 - (np.log10(rate) + 4) ** 2 / 20 + noise[1], 0, 1)),
        "perplexity": float(10 + scale / 20 + noise[2]),
    }
    for field in ("compliance", "defense"):
        value = metrics[field]
        metrics |= {f"{field}/low": value - 0.05, f"{field}/high": value + 0.05, f"{field}/n": 250.0}
        metrics |= {f"{field}/{share}": 0.01 for share in ("degenerate_share", "cut_share", "unscored_share")}
        metrics |= {f"{field}.macro": value, f"{field}.in_distribution": value, f"{field}.out_of_distribution": value}
    names = ("dcr", "sft", "generate", "judge") if params else ("sft", "generate", "judge")
    stages = [
        {"name": stage, "key": f"{name}-{stage}".ljust(64, "0"), "path": paths[stage], "seconds": 9.5, "cached": False}
        for stage in names
    ]
    return {"metrics": metrics, "stages": stages, "seconds": {stage: 9.5 for stage in names}, "failure": None}


def run_alone(spec: Any, folder: Path, meter: Meter, look_every: int) -> float:
    """Everything but Ray and Tune: search, journal, spool with its sender, live view, leaderboard and report."""
    from rich.console import Console

    from dcr_ray.observe import Observer
    from dcr_ray.preflight import study_folder
    from dcr_ray.report.live import LiveView
    from dcr_ray.report.markdown import write_report
    from dcr_ray.search.ask_tell import Search, places_ahead
    from dcr_ray.search.journal import StudyJournal, importances
    from dcr_ray.tracking import Tracker, default_tracking_uri

    study_dir = study_folder(spec)
    study_dir.mkdir(parents=True)
    paths = evaluated_once(spec, folder)
    journal = StudyJournal(spec, study_dir)
    search = Search(journal, ahead=places_ahead(spec))
    with (
        open(os.devnull, "w") as nowhere,
        Tracker(study_dir, default_tracking_uri(study_dir), spec.study, close_seconds=0.0) as tracker,
    ):
        observer = Observer(spec, journal, tracker, spec.as_yaml())
        view = LiveView(Console(file=nowhere), spec.study, search.total, spec.objectives, spec.search.concurrent)
        with view:
            _ask_and_tell(search, observer, view, spec.search.concurrent, meter, look_every, paths)
        search.close()
        started = time.process_time()
        trials = journal.trials()
        report = write_report(
            trials, spec.study, spec.objectives, spec.as_yaml(), folder / "report", importances=importances(journal)
        )
        observer.end(trials, report, interrupted=False)
        ended = time.process_time() - started
    return ended


def _ask_and_tell(
    search: Any, observer: Any, view: Any, concurrent: int, meter: Meter, look_every: int, paths: dict[str, str]
) -> None:
    running: list[Any] = []
    count = 0
    while True:
        while len(running) < concurrent and (ask := search.next()) is not None:
            running.append(ask)
            observer.trial_started(ask.name, ask.recipe)
        if not running:
            return
        ask = running.pop(0)
        search.finish(ask.name, outcome_of(ask.name, ask.params, paths))
        observer.trial_ended(ask.name)
        count += 1
        if count % look_every == 0:
            view.update(observer.look(NoCrew()))
        meter.ended()


class NoCrew:
    """In the place of a crew where there is none: nothing happened and nothing is under way."""

    def news(self) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        return [], []

    def group_lines(self) -> list[str]:
        return []

    def engine_lines(self) -> list[str]:
        return []


def run_on_ray(spec: Any, folder: Path, meter: Meter, look_every: int) -> float:
    """The sweep's own driver on a Ray of its own; only the workers are simulated."""
    from io import StringIO

    from rich.console import Console

    from dcr_ray.observe import Observer
    from dcr_ray.pools.simulated import SimulatedCrew, simulated_inputs
    from dcr_ray.preflight import Ready, study_folder
    from dcr_ray.sweep import run_ready
    from dcr_ray.tracking import default_tracking_uri

    class MeteredObserver(Observer):
        def trial_ended(self, name: str) -> None:
            super().trial_ended(name)
            meter.ended()

    import dcr_ray.sweep

    dcr_ray.sweep.Observer = MeteredObserver
    study_dir = study_folder(spec)
    study_dir.mkdir(parents=True)
    ready = Ready(
        spec, study_dir, folder / "caches", folder / "report", default_tracking_uri(study_dir),
        simulated_inputs(spec, folder),
    )  # fmt: skip
    started = time.process_time()
    result = run_ready(ready, "local", Console(file=StringIO()), SimulatedCrew)
    if not result.complete:
        raise SystemExit(f"the study did not end: {result.stopped}")
    return time.process_time() - started - meter.seconds


if __name__ == "__main__":
    main()
