"""Commands about the machines that studies run on: submit, doctor."""

from __future__ import annotations

import asyncio
import sys
from argparse import Namespace
from collections import Counter
from dataclasses import asdict

from dcr_ray.cli.show import print_json, print_table
from dcr_ray.study import load_study


def submit(options: Namespace) -> int:
    """0 when the job was accepted (--detach) or has succeeded, 1 otherwise. Ctrl-C leaves the job running."""
    from dcr_ray.cluster.submit import (
        connect,
        follow,
        passed_environment,
        portable,
        stop_command,
        storage_of,
        submit_study,
    )

    spec, environment = portable(load_study(options.spec, options.overrides)), passed_environment()
    client = connect(options.address)
    job = submit_study(client, spec, environment)
    stop, storage = stop_command(client, job), storage_of(spec, environment)
    # With --json stdout is for the document alone.
    out = sys.stderr if options.json else sys.stdout
    ended = None
    try:
        print(f"Job       {job} at {client.get_address()}\nFolder    {storage} on the head", file=out)
        print(f"Stop      {stop}", file=out, flush=True)
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


def doctor(options: Namespace) -> int:
    """1 when a check fails. Warnings are for reading."""
    from dcr_ray.cluster.doctor import examine

    checks = examine(options.address)
    if options.json:
        print_json([asdict(check) for check in checks])
    else:
        print_table([asdict(check) for check in checks], ("name", "status", "found", "fix"))
        count = Counter(check.status for check in checks)
        print(f"{count['fails']} of {len(checks)} checks fail, {count['warning']} warn")
    return int(any(check.status == "fails" for check in checks))
