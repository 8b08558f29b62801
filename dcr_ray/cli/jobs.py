"""Commands about the machines that studies run on: submit, doctor."""

from __future__ import annotations

import asyncio
import sys
from argparse import Namespace
from dataclasses import asdict

from dcr_ray.cli.show import print_json, print_table
from dcr_ray.study import load_study


def submit(options: Namespace) -> int:
    """0 when the job was accepted (--detach) or has succeeded, 1 otherwise. Ctrl-C leaves the job running."""
    from dcr_ray.cluster.submit import connect, follow, portable, stop_command, storage_of, submit_study

    spec = load_study(options.spec, options.overrides)
    portable(spec)
    client = connect(options.address)
    job = submit_study(client, spec)
    address, stop = client.get_address(), stop_command(client, job)
    document = {"submission_id": job, "address": address, "study": spec.study, "storage": storage_of(spec)}
    # With --json stdout is for the document alone.
    text = sys.stderr if options.json else sys.stdout
    print(f"Job       {job} at {address}\nStudy     {document['storage']} on the head\nStop      {stop}", file=text, flush=True)
    status, code = client.get_job_status(job).value, 0
    if not options.detach:
        try:
            ended = asyncio.run(follow(client, job, text))
        except KeyboardInterrupt:
            status, code = client.get_job_status(job).value, 1
            print(f"\ndcr-ray: {job} goes on without being watched; `{stop}` stops it", file=sys.stderr)
        else:
            status, code = ended.status, 0 if ended.status == "SUCCEEDED" else 1
            print(f"Job       {job} {status}", file=text)
            if ended.exit_code == 127:
                print("dcr-ray: the head has no `dcr-ray` on its PATH; start its Ray inside dcr_ray's environment", file=sys.stderr)
            elif ended.status == "FAILED" and ended.exit_code is None:
                print(f"dcr-ray: the job's command was not run: {ended.message[-2000:]}", file=sys.stderr)
    if options.json:
        print_json(document | {"status": status})
    return code


def doctor(options: Namespace) -> int:
    """0 when nothing fails; warnings are for reading."""
    from dcr_ray.cluster.doctor import examine

    checks = examine(options.address)
    rows = [asdict(check) for check in checks]
    if options.json:
        print_json(rows)
    else:
        print_table(rows, ("name", "status", "found", "fix"))
    return int(any(check.status == "fails" for check in checks))
