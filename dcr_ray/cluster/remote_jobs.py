"""A study's jobs at a head: found by the study's name, described, their logs read, ended in an orderly way.

Everything is asked of the head's job server, so that an address is enough. The head knows jobs and not trials: those
lie in the study's storage, and a small job on the cluster reads them there.
"""

from __future__ import annotations

import json
import shlex
import time
import uuid
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from dcr_ray.errors import InputError, Problem, nearest_name

TRIALS_SECONDS = 60.0
SETTLED_SECONDS = 5.0
STOP_SECONDS = 90.0
"""A driver has 60 s to end in (`submit`), and Ray takes a little to notice."""


@dataclass(frozen=True)
class Attempt:
    """One job of a study. Times are seconds since 1970, None where it has not come to that."""

    number: int
    submission_id: str
    status: str
    started: float | None
    ended: float | None
    exit_code: int | None
    message: str
    facts: dict[str, str]

    @property
    def over(self) -> bool:
        return self.status in ("STOPPED", "SUCCEEDED", "FAILED")

    @property
    def seconds(self) -> float | None:
        return None if self.started is None else (self.ended or time.time()) - self.started

    def as_dict(self) -> dict[str, Any]:
        """What a user is shown."""
        told = {"attempt": self.number, "submission_id": self.submission_id, "status": self.status}
        return told | {
            "started": self.started,
            "seconds": self.seconds,
            "exit_code": self.exit_code,
            "message": self.message,
        }


def studies_at(client: Any) -> dict[str, list[Attempt]]:
    """Every study that the head has had a job of, with its attempts in the order of their submission."""
    found: dict[str, list[Any]] = {}
    for job in client.list_jobs():
        if study := (job.metadata or {}).get("study"):
            found.setdefault(study, []).append(job)
    studies = {}
    for study in sorted(found):
        jobs = sorted(found[study], key=lambda job: job.start_time or 0)
        studies[study] = [_attempt(number, job) for number, job in enumerate(jobs, 1)]
    return studies


def attempts_of(client: Any, study: str) -> list[Attempt]:
    """The study's jobs, the latest last. Raises InputError for a study that the head knows nothing of."""
    studies = studies_at(client)
    if study not in studies:
        url = client.get_address()
        fix = nearest_name(study, studies) or "The head forgets its jobs when it is started anew."
        allowed = ", ".join(studies) or "a study that was sent there with `dcr-ray submit`"
        raise InputError([Problem("STUDY", f"no job of a study '{study}' at {url}", allowed, fix)])
    return studies[study]


def trials_of(client: Any, study: str, attempt: Attempt, seconds: float = TRIALS_SECONDS) -> dict[str, Any] | str:
    """What `dcr-ray status STUDY --json` says where the study's storage is; or why that cannot be had.

    It is asked by a job of its own.
    """
    storage = attempt.facts.get("storage", "~/dcr_ray_runs")
    driver = json.loads(attempt.facts.get("driver", "{}"))
    # The tilde is the cluster's home folder: the command expands it there.
    command = shlex.join(["dcr-ray", "status", study, "--json", "--storage", storage])
    status, log = run_small_job(client, f"status-{study}", command, seconds, resources=driver.get("resources"))
    begin = log.find("{\n")
    if status == "SUCCEEDED" and begin >= 0:
        return json.JSONDecoder().raw_decode(log[begin:])[0]
    return " ".join(log.split())[-500:] or f"the job that reads them ended as {status}"


def run_small_job(
    client: Any,
    name: str,
    command: str,
    seconds: float,
    runtime_env: dict[str, Any] | None = None,
    resources: dict[str, float] | None = None,
) -> tuple[str, str]:
    """Run a shell command as a job of its own. Returns its status and what it printed.

    After `seconds` it is stopped; the status is then what it had come to, and the log says so. The next small job takes
    it off the head's list.
    """
    _forget_small_jobs(client)
    asked = client.submit_job(
        entrypoint=command,
        submission_id=f"ask-{name}-{uuid.uuid4().hex[:8]}",
        metadata={"asks": name},
        runtime_env=runtime_env,
        entrypoint_resources=resources or None,
    )
    deadline = time.monotonic() + seconds
    while not (status := client.get_job_status(asked)).is_terminal():
        if time.monotonic() > deadline:
            client.stop_job(asked)
            return status.value, f"the job {asked} was not done after {seconds:.0f} s"
        time.sleep(0.25)
    log = client.get_job_logs(asked)
    if status.value == "FAILED" and not log:
        log = client.get_job_info(asked).message or ""
    return status.value, log


def _forget_small_jobs(client: Any) -> None:
    for job in client.list_jobs():
        # The head looks after a job for a second or so longer, and would enter one that is gone as failed.
        if "asks" in (job.metadata or {}) and job.end_time and time.time() - job.end_time / 1000 > SETTLED_SECONDS:
            with suppress(RuntimeError):  # another small job was quicker
                client.delete_job(job.submission_id)


def stop_and_wait(client: Any, attempt: Attempt, seconds: float = STOP_SECONDS) -> Attempt:
    """Ask the job to end and wait until it has. The attempt as it is then, which after `seconds` may not be over."""
    client.stop_job(attempt.submission_id)
    deadline = time.monotonic() + seconds
    while True:
        now = _attempt(attempt.number, client.get_job_info(attempt.submission_id))
        if now.over or time.monotonic() > deadline:
            return now
        time.sleep(0.5)


def beginning_of_tail(log: str, lines: int) -> int:
    """The character at which the last `lines` lines of a log begin."""
    return len(log) - sum(map(len, log.splitlines(keepends=True)[-lines:])) if lines > 0 else len(log)


def _attempt(number: int, job: Any) -> Attempt:
    return Attempt(
        number=number,
        submission_id=job.submission_id,
        status=job.status.value,
        started=job.start_time / 1000 if job.start_time else None,
        ended=job.end_time / 1000 if job.end_time else None,
        exit_code=job.driver_exit_code,
        message=job.message or "",
        facts=dict(job.metadata or {}),
    )
