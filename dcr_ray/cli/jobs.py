"""Commands about the machines that studies run on: submit, what is asked of a head about its studies, doctor."""

from __future__ import annotations

import asyncio
import json
import sys
from argparse import Namespace
from collections import Counter
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any

from dcr_ray.cli.show import print_json, print_table
from dcr_ray.errors import DcrError, InputError, Problem
from dcr_ray.study import load_study


def submit(options: Namespace) -> int:
    """0 when the job was accepted (--detach) or has succeeded, 1 otherwise. Ctrl-C leaves the job running."""
    from dcr_ray.cluster.submit import (
        command_for,
        connect,
        driver_on,
        follow,
        passed_environment,
        portable,
        storage_of,
        submit_study,
    )

    resources = _resources(options.entrypoint_resources)
    sent = Path(options.working_dir).expanduser().absolute() if options.working_dir else None
    spec = portable(load_study(options.spec, options.overrides), sent)
    environment = passed_environment(options.env)
    client = connect(options.address)
    driver, said = driver_on(client, options.entrypoint_cpus, resources)
    job = submit_study(client, spec, environment, driver, sent, options.exclude)
    stop, storage = command_for("stop", spec.study, client), storage_of(spec, environment)
    # With --json stdout is for the document alone.
    out = sys.stderr if options.json else sys.stdout
    ended = None
    try:
        print(f"Job       {job} at {client.get_address()}\nFolder    {storage} on the cluster", file=out)
        if said:
            print(f"Driver    {said}", file=out)
        for title, verb in (("Status", "status"), ("Logs", "logs"), ("Stop", "stop")):
            print(f"{title:<10}{command_for(verb, spec.study, client)}", file=out)
        out.flush()
        ended = None if options.detach else asyncio.run(follow(client, job, out))
    except KeyboardInterrupt:
        print(f"\ndcr-ray: {job} goes on, and nobody follows it; `{stop}` stops it", file=sys.stderr)
    status = ended.status if ended else client.get_job_status(job).value
    if ended:
        print(f"Job       {job} {status}", file=out)
        if ended.exit_code == 127:
            print("dcr-ray: the head finds no `dcr-ray`: start its Ray in dcr_ray's environment", file=sys.stderr)
        elif status == "FAILED" and ended.exit_code is None:
            print(f"dcr-ray: the job's command was not run: {ended.message[-2000:]}", file=sys.stderr)
    if options.json:
        document = {"submission_id": job, "address": client.get_address(), "status": status}
        print_json(document | {"study": spec.study, "folder": storage, "stop": stop})
    return int(not options.detach and status != "SUCCEEDED")


def status(options: Namespace) -> int:
    """A study's jobs at the head, and its trials; without a study, every study that the head has had."""
    from dcr_ray.cluster.remote_jobs import attempts_of, studies_at, trials_of
    from dcr_ray.cluster.submit import connect
    from dcr_ray.report.wording import duration, one_line

    client = connect(options.address)
    if options.study is None:
        latest = [
            {"study": study, "attempts": len(attempts)} | attempts[-1].as_dict()
            for study, attempts in studies_at(client).items()
        ]
        if options.json:
            print_json(latest)
        else:
            shown = [row | {"since": _moment(row["started"]), "for": duration(row["seconds"] or 0)} for row in latest]
            print_table(shown, ("study", "status", "attempts", "since", "for"), f"Studies at {client.get_address()}")
        return 0
    attempts = attempts_of(client, options.study)
    trials = None if options.job_only else trials_of(client, options.study, attempts[-1])
    document = {
        "study": options.study,
        "address": client.get_address(),
        "status": attempts[-1].status,
        "attempts": [attempt.as_dict() for attempt in attempts],
    }
    if isinstance(trials, dict):
        document |= {name: trials[name] for name in ("folder", "trials")}
    elif trials:
        document["no_trials"] = trials
    if options.json:
        print_json(document)
        return 0
    for attempt in attempts:
        ran = f", {duration(attempt.seconds)} since {_moment(attempt.started)}" if attempt.started else ""
        print(f"{attempt.submission_id}: {attempt.status}{ran}")
    if attempts[-1].message:
        print(f"Ray says: {one_line(attempts[-1].message, 500)}")
    if isinstance(trials, dict):
        print(f"Folder on the cluster: {trials['folder']}")
        rows = [
            {"trial": trial["name"], "state": trial["state"], "reason": trial.get("reason")}
            | {"stages": ", ".join(stage["name"] for stage in trial["stages"])}
            | {name: trial["metrics"].get(name) for name in trial["metrics"] if "/" not in name}
            for trial in trials["trials"]
        ]
        columns = ["trial", "state", "reason", "stages"]
        columns += dict.fromkeys(name for row in rows for name in row if name not in columns)
        print_table(rows, columns)
    elif trials:
        print(f"dcr-ray: its trials cannot be had: {trials}", file=sys.stderr)
    return 0


def logs(options: Namespace) -> int:
    """The log of the study's latest job. With --follow 1 for a job that did not succeed."""
    from dcr_ray.cluster.remote_jobs import attempts_of, beginning_of_tail
    from dcr_ray.cluster.submit import connect, follow

    client = connect(options.address)
    attempts = attempts_of(client, options.study)
    if options.attempt is not None and not 1 <= options.attempt <= len(attempts):
        raise InputError([Problem("--attempt", str(options.attempt), f"1 to {len(attempts)}")])
    job = attempts[(options.attempt or len(attempts)) - 1].submission_id
    begin = 0
    if options.tail is not None or not options.follow:
        log = client.get_job_logs(job) or ""
        begin = 0 if options.tail is None else beginning_of_tail(log, options.tail)
        if not options.follow:
            print(log[begin:], end="")
            return 0
    return int(asyncio.run(follow(client, job, sys.stdout, begin)).status != "SUCCEEDED")


def stop(options: Namespace) -> int:
    """End the study's job in an orderly way. 1 when it is still ending after a minute and a half."""
    from dcr_ray.cluster.remote_jobs import attempts_of, stop_and_wait
    from dcr_ray.cluster.submit import connect

    client = connect(options.address)
    latest = attempts_of(client, options.study)[-1]
    if latest.over:
        print(f"{options.study} is not running: {latest.submission_id} {latest.status}")
        return 0
    print(f"{latest.submission_id} is asked to end; a stage under way is not waited for", flush=True)
    try:
        ended = stop_and_wait(client, latest)
    except KeyboardInterrupt:
        print(f"\ndcr-ray: {latest.submission_id} is ending, and nobody waits for it", file=sys.stderr)
        return 1
    if not ended.over:
        raise DcrError(f"{latest.submission_id} is still ending; ask `dcr-ray status {options.study}` again")
    print(f"{latest.submission_id} {ended.status}; submitting {options.study} again goes on from here")
    return 0


def doctor(options: Namespace) -> int:
    """1 when a check fails. Warnings are for reading."""
    from dcr_ray.cluster.doctor import examine
    from dcr_ray.tracking.destination import check_tracking_uri

    spec = load_study(options.spec, options.overrides) if options.spec else None
    tracking = options.tracking or (spec.tracking.uri if spec else None)
    if tracking and (problems := check_tracking_uri(tracking, "--tracking")):
        raise InputError(problems)
    checks = examine(options.address, options.storage or (spec.storage if spec else None), tracking)
    if options.json:
        print_json([asdict(check) for check in checks])
    else:
        print_table([asdict(check) for check in checks], ("name", "status", "found", "fix"))
        count = Counter(check.status for check in checks)
        print(f"{count['fails']} of {len(checks)} checks fail, {count['warning']} warn")
    return int(any(check.status == "fails" for check in checks))


def _resources(text: str | None) -> dict[str, float] | None:
    """Ray's resources from JSON. Raises InputError for what is no object of names and positive numbers."""
    if text is None:
        return None
    allowed = "JSON such as '{\"TRAIN_DRIVER_RESOURCE\": 0.01}'; '{}' for none"
    try:
        found: Any = json.loads(text)
    except ValueError as error:
        raise InputError([Problem("--entrypoint-resources", f"{text} ({error})", allowed)]) from error
    if not isinstance(found, dict) or not all(
        isinstance(amount, int | float) and not isinstance(amount, bool) and amount > 0 for amount in found.values()
    ):
        raise InputError([Problem("--entrypoint-resources", text, allowed)])
    if own := {"CPU", "GPU", "memory"} & set(found):
        fix = "Use --entrypoint-cpus for CPUs; a driver needs no GPU."
        raise InputError([Problem("--entrypoint-resources", ", ".join(sorted(own)), "custom resources", fix)])
    return found


def _moment(seconds: float | None) -> str:
    return datetime.fromtimestamp(seconds).strftime("%Y-%m-%d %H:%M:%S") if seconds else ""
