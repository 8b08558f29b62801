"""The mirror: tracking events become MLflow runs. Applying the same events twice changes nothing.

A run is found by its tags `dcr.lineage` (one per spool) and `dcr.uid` before one is made, and every metric carries the
time and step of its event. Only the sender imports this module; it knows nothing of spools, cursors or retries.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Metric, Param, RunTag, ViewType
from mlflow.exceptions import MlflowException

from dcr_ray.tracking.destination import artifact_location
from dcr_ray.tracking.entries import MAX_TAG_CHARACTERS, STUDY_UID, mlflow_name, shortened
from dcr_ray.tracking.spool import Event

_log = logging.getLogger(__name__)

_STATUS = {"finished": "FINISHED", "failed": "FAILED", "killed": "KILLED"}
_MAX_METRICS, _MAX_PARAMS_OR_TAGS, _MAX_REQUEST_BYTES = 1000, 100, 900_000


@dataclass
class _Run:
    """A run as far as it is known to MLflow, and what waits to be sent to it in one batch."""

    run_id: str
    sent_params: dict[str, str]
    metrics: list[Metric] = field(default_factory=list)
    params: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)


class Mirror:
    """One study in MLflow. `refused` counts what MLflow will not take however often it is sent."""

    def __init__(self, tracking_uri: str, experiment: str, lineage: str, study_dir: Path):
        """Connects and makes the experiment. Raises MlflowException or OSError where the server does not answer."""
        self._client = MlflowClient(tracking_uri)
        self._lineage = lineage
        self._study_dir = Path(study_dir)
        self._runs: dict[str, _Run] = {}
        self.refused = 0
        found = self._client.get_experiment_by_name(experiment)
        if found is None:
            location = artifact_location(tracking_uri, study_dir)
            self._experiment_id = self._client.create_experiment(experiment, artifact_location=location)
        elif found.lifecycle_stage == "active":
            self._experiment_id = found.experiment_id
        else:
            remedy = f"`mlflow experiments restore -x {found.experiment_id}` revives it"
            raise MlflowException(f"experiment '{experiment}' was deleted; {remedy}")

    def knows_study(self) -> bool:
        """Whether the study's run is there. It is not where the database was replaced by an empty one."""
        return self._find(STUDY_UID) is not None

    def apply(self, event: Event) -> None:
        """Takes one event; metrics, parameters and tags may wait for `flush`. Raises as the client does."""
        action = {
            "run": self._open,
            "metrics": self._metrics,
            "tags": self._tags,
            "artifact": self._artifact,
            "text": self._text,
            "end": self._end,
        }.get(event["event"])
        if action is None:
            return
        try:
            action(event)
        except MlflowException as error:
            self._refuse(f"event {event.get('sequence')} ({event['event']} of {event.get('uid')})", error)

    def flush(self) -> None:
        """Sends all that waits. Raises as the client does; what was refused is counted and not tried again."""
        for run in self._runs.values():
            self._flush(run)

    def _open(self, event: Event) -> None:
        uid = event["uid"]
        tags = event["tags"] | {"dcr.kind": event["kind"]}
        if event["parent"] is not None:
            tags["mlflow.parentRunId"] = self._run(event["parent"], event["time_ms"]).run_id
        run = self._runs.get(uid) or self._find(uid)
        if run is None:
            run = self._create(uid, event["name"], event["time_ms"], tags)
        else:
            self._client.update_run(run.run_id, status="RUNNING", name=event["name"])
            run.tags |= tags
        self._runs[uid] = run
        run.params |= event["params"]

    def _metrics(self, event: Event) -> None:
        run = self._run(event["uid"], event["time_ms"])
        step = event["step"] or 0
        run.metrics += [Metric(key, value, event["time_ms"], step) for key, value in event["values"].items()]
        run.tags |= event["dropped"]

    def _tags(self, event: Event) -> None:
        self._run(event["uid"], event["time_ms"]).tags |= event["tags"]

    def _artifact(self, event: Event) -> None:
        run = self._run(event["uid"], event["time_ms"])
        path = self._study_dir / event["path"]
        if os.access(path, os.R_OK):
            self._client.log_artifact(run.run_id, str(path), event["folder"])
        else:
            run.tags[mlflow_name(f"dcr.missing_artifact.{path.name}")] = shortened(event["path"], MAX_TAG_CHARACTERS)

    def _text(self, event: Event) -> None:
        self._client.log_text(self._run(event["uid"], event["time_ms"]).run_id, event["text"], event["artifact_file"])

    def _end(self, event: Event) -> None:
        run = self._run(event["uid"], event["time_ms"])
        self._flush(run)
        self._client.set_terminated(run.run_id, _STATUS[event["state"]], event["time_ms"])
        # A study of thousands of trials should not hold them all; a run that goes on after its end is found again.
        del self._runs[event["uid"]]

    def _run(self, uid: str, time_ms: int) -> _Run:
        """The run of a uid. One whose opening was lost, to a power cut say, is made bare, under the study."""
        if uid not in self._runs:
            self._runs[uid] = self._find(uid) or self._create_bare(uid, time_ms)
        return self._runs[uid]

    def _find(self, uid: str) -> _Run | None:
        condition = f"tags.`dcr.lineage` = '{self._lineage}' and tags.`dcr.uid` = '{uid}'"
        found = self._client.search_runs([self._experiment_id], condition, ViewType.ALL, max_results=1)
        return _Run(found[0].info.run_id, dict(found[0].data.params)) if found else None

    def _create(self, uid: str, name: str, time_ms: int, tags: dict[str, str]) -> _Run:
        tags = tags | {"dcr.lineage": self._lineage, "dcr.uid": uid}
        created = self._client.create_run(self._experiment_id, time_ms, tags, name)
        return _Run(created.info.run_id, {})

    def _create_bare(self, uid: str, time_ms: int) -> _Run:
        tags = {} if uid == STUDY_UID else {"mlflow.parentRunId": self._run(STUDY_UID, time_ms).run_id}
        return self._create(uid, uid, time_ms, tags)

    def _flush(self, run: _Run) -> None:
        changed = {key: value for key, value in run.params.items() if run.sent_params.get(key, value) != value}
        if changed:
            # MLflow never changes a parameter; a resumed study may well have, its number of trials for one.
            run.tags["dcr.changed_params"] = shortened(json.dumps(changed), MAX_TAG_CHARACTERS)
        new = {key: value for key, value in run.params.items() if key not in run.sent_params}
        self._send(run.run_id, "params", [Param(key, value) for key, value in new.items()], _MAX_PARAMS_OR_TAGS)
        self._send(run.run_id, "tags", [RunTag(key, value) for key, value in run.tags.items()], _MAX_PARAMS_OR_TAGS)
        self._send(run.run_id, "metrics", run.metrics, _MAX_METRICS)
        run.sent_params |= new
        run.metrics, run.params, run.tags = [], {}, {}

    def _send(self, run_id: str, kind: str, entries: list[Any], most: int) -> None:
        for batch in _batches(entries, most):
            try:
                self._client.log_batch(run_id, **{kind: batch})
            except MlflowException as error:
                if len(batch) == 1:
                    self._refuse(f"{kind} '{batch[0].key}' of run {run_id}", error)
                elif _final(error):
                    self._send(run_id, kind, batch, 1)
                else:
                    raise

    def _refuse(self, what: str, error: MlflowException) -> None:
        """Counts what MLflow will never take, and raises again what it may take later."""
        if not _final(error):
            raise error
        self.refused += 1
        _log.warning("MLflow refuses %s: %s", what, error)


def _final(error: MlflowException) -> bool:
    return error.error_code == "INVALID_PARAMETER_VALUE"


def _batches(entries: Iterable[Any], most: int) -> Iterator[list[Any]]:
    """Lists of at most `most` entries whose request stays under MLflow's limit of 1 MB."""
    batch: list[Any] = []
    size_bytes = 0
    for entry in entries:
        entry_bytes = len(json.dumps([entry.key, entry.value])) + 100
        if batch and (len(batch) == most or size_bytes + entry_bytes > _MAX_REQUEST_BYTES):
            yield batch
            batch, size_bytes = [], 0
        batch.append(entry)
        size_bytes += entry_bytes
    if batch:
        yield batch
