"""The sender: a process of its own that reads the spool of a study and sends it to MLflow.

A process and not a thread, since importing MLflow and talking to a database take seconds of the interpreter's lock,
which the study would feel. It lives as long as its standard input is open, so it also outlasts a killed study for as
long as it may take to send the rest. What keeps it from sending it writes into the cursor.
"""

from __future__ import annotations

import fcntl
import itertools
import json
import logging
import os
import signal
import sys
import threading
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from dcr_ray.tracking.cursor import Cursor, load_cursor, save_cursor
from dcr_ray.tracking.destination import credentials_apart, without_password
from dcr_ray.tracking.spool import read_spool

_log = logging.getLogger("dcr_ray.tracking.sender")

POLL_SECONDS = 0.5
LONGEST_WAIT_SECONDS = 60.0
ATTEMPTS_WHEN_CLOSING = 3
# The sender of a killed study may still be sending the rest; its successor waits for about as long as that may take.
LOCK_ATTEMPTS_WHEN_CLOSING = 80
_BATCH_EVENTS, _BATCH_SECONDS = 500, 2.0
_ENVIRONMENT = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}


@dataclass(frozen=True)
class Assignment:
    """What to send, and where to; once the input ends there are `close_seconds` left, or as many as it takes."""

    study_dir: str
    tracking_uri: str
    experiment: str
    lineage: str
    close_seconds: float | None

    @property
    def destination(self) -> str:
        return without_password(self.tracking_uri)

    def as_json(self) -> str:
        return json.dumps(asdict(self))


class Sender:
    """Sends the spool from the cursor on. Everything may fail at any time; the cursor moves only when all is sent."""

    def __init__(self, assignment: Assignment):
        self.assignment = assignment
        self.cursor = self._load()
        self._mirror: Any = None
        self._lock = -1

    def run(self, closing: threading.Event) -> bool:
        """Sends what comes until `closing` is set and all is sent, or time or attempts are up. Whether all was sent."""
        wait_seconds, attempts, deadline = 1.0, 0, float("inf")
        while True:
            # Asked before the spool is read: what is told before the end must not slip between reading and asking.
            over = closing.is_set()
            if over and deadline == float("inf") and self.assignment.close_seconds is not None:
                deadline = time.monotonic() + self.assignment.close_seconds
            try:
                sent = self._send_batch()
            except Exception as error:
                # Whatever it is, the study goes on and so does the sender; the reason is shown and logged.
                self._give_notice(error, wait_seconds)
                attempts += over
                locked = isinstance(error, BlockingIOError)
                most = LOCK_ATTEMPTS_WHEN_CLOSING if locked else ATTEMPTS_WHEN_CLOSING
                if attempts >= most or time.monotonic() > deadline:
                    return False
                if over:
                    time.sleep(POLL_SECONDS)
                else:
                    closing.wait(wait_seconds)
                wait_seconds = min(2 * wait_seconds, LONGEST_WAIT_SECONDS)
                continue
            wait_seconds, attempts = 1.0, 0
            if time.monotonic() > deadline or (sent == 0 and over):
                return sent == 0
            if sent == 0:
                closing.wait(POLL_SECONDS)

    def _send_batch(self) -> int:
        """Sends some hundred events at most and moves the cursor behind them; returns how many lines that were."""
        self._take_lock()
        if self._mirror is None:
            self._connect()
        entries = read_spool(Path(self.assignment.study_dir), self.cursor.lines, self.cursor.end_bytes)
        moved, unreadable, refused_before = self.cursor, 0, self._mirror.refused
        enough = time.monotonic() + _BATCH_SECONDS
        for entry in itertools.islice(entries, _BATCH_EVENTS):
            if entry.event is None:
                _log.warning("line %d of the spool cannot be read", entry.line)
                unreadable += 1
            else:
                self._mirror.apply(entry.event)
            moved = replace(moved, lines=entry.line + 1, end_bytes=entry.end_bytes)
            if time.monotonic() > enough:
                break
        self._mirror.flush()
        refused = self._mirror.refused - refused_before + unreadable
        sent = moved.lines - self.cursor.lines
        if sent or self.cursor.problem is not None:
            refused, total = self.cursor.refused + refused, self.cursor.sent + sent
            self._save(replace(moved, refused=refused, sent=total, problem=None, retry_at=None))
        return sent

    def _connect(self) -> None:
        task = self.assignment
        uri, credentials = credentials_apart(task.tracking_uri)
        os.environ.update({key: value for key, value in _ENVIRONMENT.items() if key not in os.environ} | credentials)
        from dcr_ray.tracking.mirror import Mirror

        self.cursor = self._load()
        if uri.startswith("sqlite:///"):
            Path(uri.removeprefix("sqlite:///").partition("?")[0]).parent.mkdir(parents=True, exist_ok=True)
        mirror = Mirror(uri, task.experiment, task.lineage, Path(task.study_dir))
        if self.cursor.lines and not mirror.knows_study():
            _log.warning("%s no longer knows this study: it is sent again from its beginning", task.destination)
            self.cursor = Cursor(sent=self.cursor.sent)
        self._mirror = mirror

    def _take_lock(self) -> None:
        """One sender for a study. Raises BlockingIOError while another one is at work."""
        if self._lock >= 0:
            return
        descriptor = os.open(Path(self.assignment.study_dir) / "tracking.lock", os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            raise BlockingIOError("another process is sending this study") from None
        except OSError as error:
            _log.warning("the sender's lock cannot be taken (%s): start no second one for this study", error)
        self._lock = descriptor

    def _give_notice(self, error: Exception, wait_seconds: float) -> None:
        # A half-sent batch leaves entries in the mirror; a new one starts from the cursor, and finds the runs again.
        self._mirror = None
        problem = root_cause(error)
        if problem != self.cursor.problem:
            _log.warning("nothing can be sent to %s for now", self.assignment.destination, exc_info=error)
        if self._lock >= 0:
            self._save(replace(self.cursor, problem=problem, retry_at=time.time() + wait_seconds))

    def _load(self) -> Cursor:
        return load_cursor(Path(self.assignment.study_dir), self.assignment.lineage, self.assignment.destination)

    def _save(self, cursor: Cursor) -> None:
        save_cursor(Path(self.assignment.study_dir), self.assignment.lineage, self.assignment.destination, cursor)
        self.cursor = cursor


def root_cause(error: BaseException) -> str:
    """The first line of the innermost error: 'Connection refused' rather than the retries around it."""
    while (inner := error.__cause__ or error.__context__) is not None:
        error = inner
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return (reason.strip().splitlines() or [type(error).__name__])[0][:200]


def main() -> int:
    """Entry point of the process: one line of JSON on standard input, whose end then means that the study is over."""
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(name)s %(levelname)s %(message)s")
    assignment = Assignment(**json.loads(sys.stdin.readline()))
    # Ray ends a job by signalling all processes that it started; the study's end is told by the pipe alone.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    closing = threading.Event()

    def wait_for_end() -> None:
        while os.read(sys.stdin.fileno(), 4096):
            pass
        closing.set()

    threading.Thread(target=wait_for_end, daemon=True).start()
    os.nice(5)
    return 0 if Sender(assignment).run(closing) else 1
