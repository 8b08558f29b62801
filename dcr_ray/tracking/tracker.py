"""The study's side of tracking: it writes events down and sees to it that a sender is running."""

from __future__ import annotations

import logging
import secrets
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args

from dcr_ray.errors import InputError
from dcr_ray.tracking.cursor import Cursor, load_cursor
from dcr_ray.tracking.destination import check_tracking_uri, without_password
from dcr_ray.tracking.entries import STUDY_UID, finite_metrics, flat_params, mlflow_name, storable, text_tags
from dcr_ray.tracking.process import SenderProcess
from dcr_ray.tracking.sender import Assignment
from dcr_ray.tracking.spool import Spool, read_opening, runs_left_open

_log = logging.getLogger(__name__)

EndState = Literal["finished", "failed", "killed"]
_RESTART_SECONDS = 60.0


class Tracker:
    """Mirrors one study to MLflow. Calls take under a millisecond and raise nothing on account of MLflow or the disk.

    The study's run holds its trials' runs, and a trial's run those of its stages. A `uid` names a run within the study
    for ever: telling the same uid again, after a crash say, goes on with its run. May be called from several threads.
    """

    def __init__(self, study_dir: Path, tracking_uri: str, experiment: str, close_seconds: float = 30.0):
        """Starts the sender. Raises InputError for a bad address or a study that another process is running."""
        if problems := check_tracking_uri(tracking_uri):
            raise InputError(problems)
        self._study_dir = Path(study_dir).absolute()
        self.left_open = runs_left_open(self._study_dir)
        """Uids of runs that an earlier process opened and did not end: it may have been killed in between."""
        self._spool = Spool(self._study_dir)
        self._unwritten = 0
        self._mutex = threading.Lock()
        opening = read_opening(self._study_dir)
        lineage = opening.lineage if opening else secrets.token_hex(8)
        self._assignment = Assignment(str(self._study_dir), tracking_uri, experiment, lineage, close_seconds)
        self._sender = SenderProcess(self._assignment)
        self._sender_started = time.monotonic()
        destination = without_password(tracking_uri)
        self._write("opened", lineage=lineage, experiment=experiment, destination=destination)

    def study(self, name: str, params: Mapping[str, Any], tags: Mapping[str, Any]) -> None:
        """Opens the study's run, or goes on with it. Its uid is `STUDY_UID`."""
        self._run("study", STUDY_UID, None, name, params, tags)

    def trial(self, uid: str, name: str, params: Mapping[str, Any], tags: Mapping[str, Any]) -> None:
        """Opens a trial's run under the study's, or goes on with it."""
        self._run("trial", uid, STUDY_UID, name, params, tags)

    def stage(self, uid: str, parent_uid: str, name: str, params: Mapping[str, Any], tags: Mapping[str, Any]) -> None:
        """Opens a stage's run under its trial's, or goes on with it. A stage that two trials share has two uids."""
        self._run("stage", uid, parent_uid, name, params, tags)

    def metrics(self, uid: str, values: Mapping[str, float], step: int | None = None) -> None:
        """Adds metrics at this time. What is not a finite number becomes a tag `dcr.dropped.<name>`, never a value."""
        finite, dropped = finite_metrics(values)
        self._write("metrics", uid=mlflow_name(uid), values=finite, dropped=dropped, step=step)

    def tags(self, uid: str, tags: Mapping[str, Any]) -> None:
        """Sets tags; later values replace earlier ones."""
        self._write("tags", uid=mlflow_name(uid), tags=text_tags(tags))

    def artifact(self, uid: str, path: Path, folder: str | None = None) -> None:
        """Adds a file or directory as it is when it is sent; one gone by then is a tag `dcr.missing_artifact.*`."""
        path = Path(path).absolute()
        if path.is_relative_to(self._study_dir):
            # A study's directory may be sent from another place than it was written in.
            path = path.relative_to(self._study_dir)
        self._write("artifact", uid=mlflow_name(uid), path=str(path), folder=folder)

    def text(self, uid: str, text: str, artifact_file: str) -> None:
        """Adds a text file as an artifact. The text is kept in the spool."""
        self._write("text", uid=mlflow_name(uid), text=storable(text), artifact_file=artifact_file)

    def end(self, uid: str, state: EndState) -> None:
        """Ends a run. It goes on again when its uid is opened again. Raises ValueError for another state."""
        if state not in get_args(EndState):
            raise ValueError(f"a run cannot end as '{state}'")
        self._write("end", uid=mlflow_name(uid), state=state)

    def pending(self) -> int:
        """How many events MLflow does not have yet."""
        return self._spool.lines - self._cursor().lines

    def state(self) -> str:
        """One phrase for the status line: 'up to date', or how far behind and why."""
        cursor = self._cursor()
        behind = self._spool.lines - cursor.lines
        phrase = f"{behind} events behind" if behind else "up to date"
        if behind and cursor.problem:
            phrase += f": {cursor.problem}"
            if cursor.retry_at is not None and self._sender.running:
                phrase += f", trying again in {max(0, round(cursor.retry_at - time.time()))} s"
        elif behind and not self._sender.running:
            phrase += ": the sender is not running, the reason is in tracking.log"
        if cursor.refused:
            phrase += f"; {cursor.refused} refused by MLflow, the reasons are in tracking.log"
        if self._unwritten:
            phrase += f"; {self._unwritten} lost, the disk did not take them"
        return phrase

    def close(self) -> None:
        """Lets the sender finish, in `close_seconds` and 2 s at most; `sync` sends the rest. May be called twice."""
        with self._mutex:
            self._spool.close()
        if not self._sender.close():
            _log.warning("MLflow is %s; `dcr-ray mlflow-sync` sends the rest", self.state())

    def __enter__(self) -> Tracker:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _run(
        self, kind: str, uid: str, parent: str | None, name: str, params: Mapping[str, Any], tags: Mapping[str, Any]
    ) -> None:
        uid, parent = mlflow_name(uid), parent and mlflow_name(parent)
        params, tags = flat_params(params), text_tags(tags)
        self._write("run", kind=kind, uid=uid, parent=parent, name=storable(name), params=params, tags=tags)

    def _write(self, event: str, **content: Any) -> None:
        with self._mutex:
            try:
                self._spool.append({"time_ms": time.time_ns() // 1_000_000, "event": event} | content)
            except OSError as error:
                # A mirror does not stop what it mirrors; `state` says what it lost.
                if not self._unwritten:
                    _log.warning("tracking events cannot be written down: %s", error)
                self._unwritten += 1
                return
            if not self._sender.running and time.monotonic() > self._sender_started + _RESTART_SECONDS:
                self._sender = SenderProcess(self._assignment)
                self._sender_started = time.monotonic()

    def _cursor(self) -> Cursor:
        return load_cursor(self._study_dir, self._assignment.lineage, self._assignment.destination)
