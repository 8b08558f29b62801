"""Sending later what a study's own sender could not: after an outage, a kill, or to another MLflow."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from dcr_ray.errors import DcrError, InputError, Problem
from dcr_ray.tracking.cursor import load_cursor
from dcr_ray.tracking.destination import check_tracking_uri, without_password
from dcr_ray.tracking.process import SenderProcess
from dcr_ray.tracking.sender import Assignment
from dcr_ray.tracking.spool import Spool, count_lines, read_opening, spool_path


@dataclass(frozen=True)
class Synced:
    """`sent` events went to `destination` now; `refused` of all the study's events MLflow will never take."""

    destination: str
    sent: int
    refused: int


def sync(study_dir: Path, tracking_uri: str | None = None) -> Synced:
    """Sends all events that MLflow does not have yet; runs that it has are found again and never doubled.

    Without `tracking_uri` they go where the study last sent them. Takes as long as it takes, but gives up when the
    server fails three times in a row. Raises InputError where there is nothing to send, nowhere to send it to, or a
    running study that sends by itself, and DcrError where not all could be sent; the next call goes on from there.
    """
    study_dir = Path(study_dir).absolute()
    opening = read_opening(study_dir) if spool_path(study_dir).exists() else None
    if opening is None:
        raise InputError([Problem(str(study_dir), "no tracking events", "the directory of a study that was tracked")])
    uri = tracking_uri or opening.destination
    problems = check_tracking_uri(uri)
    if tracking_uri is None and ":***@" in uri:
        problems.append(Problem("tracking_uri", f"'{uri}'", "the address with its password, which is never kept"))
    if problems:
        raise InputError(problems)
    Spool(study_dir).close()
    destination = without_password(uri)
    before = load_cursor(study_dir, opening.lineage, destination)
    done = SenderProcess(Assignment(str(study_dir), uri, opening.experiment, opening.lineage, None)).close()
    after = load_cursor(study_dir, opening.lineage, destination)
    if not done:
        missing = count_lines(study_dir) - after.lines
        reason = after.problem or "another process is sending this study, or the sender failed"
        log = study_dir / "tracking.log"
        raise DcrError(f"{missing} events are not sent to {destination}: {reason}; more in {log}")
    return Synced(destination, after.sent - before.sent, after.refused)
