"""Commands about a study as a whole: sweep, plan, status, report, stop, mlflow-sync."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from argparse import Namespace
from pathlib import Path
from typing import Any

from dcr_ray.budget import read_usage
from dcr_ray.cli.show import print_json, print_table
from dcr_ray.errors import InputError, Problem
from dcr_ray.preflight import report_folder, study_folder
from dcr_ray.stored import open_spec, storage_folder, stored_studies
from dcr_ray.study import load_study
from dcr_ray.trial import Trial


def sweep(options: Namespace) -> int:
    """0 when the study has all its trials or has used up its budget, 1 when it was interrupted or stopped."""
    if options.simulate:
        from dcr_ray.cli.simulate import simulate

        return simulate(options)
    from rich.console import Console

    from dcr_ray.report.leaderboard import leaderboard, render_leaderboard
    from dcr_ray.sweep import sweep as run

    spec = load_study(options.spec, options.overrides)
    result = run(spec, address=options.address, console=Console(stderr=True))
    if options.json:
        print_json(
            _status_document(spec.study, result.study_dir, list(result.trials))
            | {"complete": result.complete, "stopped": result.stopped}
        )
    else:
        render_leaderboard(leaderboard(result.trials, spec.objectives), Console())
        command = f"dcr-ray sweep {options.spec}"
        print(f"\nReport    {result.report}\nMLflow    mlflow ui --backend-store-uri {result.tracking_uri}")
        print(f"Status    dcr-ray status {spec.study} --storage {result.study_dir.parent}")
        if result.stopped:
            goes_on = f"`{command}` goes on from here" + ("" if result.within_budget else ", with a larger budget")
            print(f"\nNot ended: {result.stopped}. {goes_on}.")
    return 0 if not result.within_budget or (result.complete and not result.stopped) else 1


def plan(options: Namespace) -> int:
    from dcr_ray.planning.plan import plan_study, plan_tables

    if options.cluster:
        return _plan_for_cluster(options)
    found = plan_study(load_study(options.spec, options.overrides))
    if options.json:
        print_json(found.as_dict())
    else:
        for title, columns, rows in plan_tables(found):
            print_table(rows, columns, title)
    return 2 if found.problems else 0


def _plan_for_cluster(options: Namespace) -> int:
    from dcr_ray.planning.cluster import load_cluster
    from dcr_ray.planning.cluster_tables import cluster_tables, settings_text
    from dcr_ray.planning.plan import plan_for_cluster

    found = plan_for_cluster(load_study(options.spec, options.overrides), load_cluster(options.cluster))
    if options.json:
        print_json(found.as_dict())
    else:
        for title, columns, rows in cluster_tables(found):
            print_table(rows, columns, title)
        if text := settings_text(found):
            print(f"To run it so, the study needs:\n\n{text}")
    return 2 if found.problems else 0


def status(options: Namespace) -> int:
    if options.address:
        from dcr_ray.cli import jobs

        return jobs.status(options)
    if options.study is None:
        return _list_studies(options)
    from rich.console import Console

    from dcr_ray.api import Study
    from dcr_ray.report.leaderboard import leaderboard, render_leaderboard

    study = Study(open_spec(options.study, options.storage))
    trials = list(study.results().trials)
    folder = study_folder(study.spec)
    document = _status_document(study.spec.study, folder, trials)
    if options.json:
        print_json(document)
        return 0
    render_leaderboard(leaderboard(trials, study.spec.objectives), Console())
    driver = document["driver"]
    running = f"run by process {driver['pid']} on {driver['host']}" if driver else "not running"
    if not driver and any(trial.state == "running" for trial in trials):
        running += "; the trials shown as running were interrupted and will be gone on with"
    print(f"{study.spec.study}: {running}")
    return 0


def report(options: Namespace) -> int:
    from dcr_ray.report.of_study import write_study_report
    from dcr_ray.search.journal import StudyJournal

    spec = open_spec(options.study, options.storage)
    folder = _existing_folder(spec)
    journal = StudyJournal(spec, folder)
    out = Path(options.out) if options.out else report_folder(spec)
    print(write_study_report(spec, journal, journal.trials(), out, None))
    return 0


def stop(options: Namespace) -> int:
    """Ask the driver to end, and wait until it has. 1 when it is still there after a minute."""
    if options.address:
        from dcr_ray.cli import jobs

        return jobs.stop(options)
    spec = open_spec(options.study, options.storage)
    driver = _driver(study_folder(spec))
    if driver is None:
        print(f"{spec.study} is not running")
        return 0
    if driver["host"] != os.uname().nodename:
        fix = f"Stop it there, or stop its job with `dcr-ray stop {spec.study} --address URL`."
        raise InputError(
            [Problem("STUDY", f"{spec.study}, run on {driver['host']}", "a study that this machine runs", fix)]
        )
    os.kill(driver["pid"], signal.SIGTERM)
    for _ in range(60):
        time.sleep(1)
        if _driver(study_folder(spec)) is None:
            print(f"{spec.study} has stopped; the same `dcr-ray sweep` goes on")
            return 0
    print(f"{spec.study} is still ending (process {driver['pid']})", file=sys.stderr)
    return 1


def mlflow_sync(options: Namespace) -> int:
    from dataclasses import asdict

    from dcr_ray.tracking import sync

    spec = open_spec(options.study, options.storage)
    done = asdict(sync(_existing_folder(spec), options.to))
    if options.json:
        print_json(done)
    else:
        print_table([done], list(done))
    return 0


def _list_studies(options: Namespace) -> int:
    """Every study of the storage folder, and who runs it."""
    root = storage_folder(options.storage)
    rows = [
        {"study": name, "folder": str(root / name), "driver": _driver(root / name)} for name in stored_studies(root)
    ]
    if options.json:
        print_json(rows)
        return 0
    for row in rows:
        driver = row["driver"]
        row["run by"] = f"process {driver['pid']} on {driver['host']}" if driver else ""
    print_table(rows, ("study", "run by", "folder"), f"Studies in {root}")
    return 0


def _existing_folder(spec: Any) -> Path:
    folder = study_folder(spec)
    if not folder.is_dir():
        raise InputError([Problem("STUDY", f"no study '{spec.study}' in {folder.parent}", "a study that has begun")])
    return folder


def _status_document(study: str, folder: Path, trials: list[Trial]) -> dict[str, Any]:
    return {
        "study": study,
        "folder": str(folder),
        "driver": _driver(folder),
        "usage": read_usage(folder).as_dict(),
        "trials": [trial.as_dict() for trial in trials],
    }


def _driver(folder: Path) -> dict[str, Any] | None:
    """Who runs the study: the kernel holds the driver's lock for as long as the driver lives."""
    import fcntl

    file = folder / "driver.lock"
    if not file.exists():
        return None
    with open(file) as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return json.loads(stream.read() or "null")
    return None
