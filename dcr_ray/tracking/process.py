"""Starting and ending the sender's process. The tracking address goes through a pipe: it may hold a password."""

from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path

from dcr_ray.tracking.sender import Assignment

_log = logging.getLogger(__name__)

_GRACE_SECONDS = 2.0
# The package's directory goes last, so that nothing beside it can stand in for a library; -P keeps the working
# directory out for the same reason.
_PROGRAM = "import sys; sys.path.append(sys.argv[1]); from dcr_ray.tracking.sender import main; sys.exit(main())"


class SenderProcess:
    """A running sender. It ends by itself when this process does, however that ends."""

    def __init__(self, assignment: Assignment):
        self._close_seconds = assignment.close_seconds
        root = str(Path(__file__).resolve().parents[2])
        with open(Path(assignment.study_dir) / "tracking.log", "ab") as log:
            # A session of its own: Ctrl-C is for the study, which then closes the sender in its own time.
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-c", _PROGRAM, root],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                bufsize=0,
                start_new_session=True,
            )
        self._tell(assignment.as_json().encode() + b"\n")

    def _tell(self, line: bytes) -> None:
        try:
            self._process.stdin.write(line)
        except BrokenPipeError:
            _log.warning("the MLflow sender ended at once; the reason is in tracking.log")

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    def close(self) -> bool:
        """Lets it send the rest for as long as its assignment allows, then ends it. Whether all was sent."""
        self._process.stdin.close()
        try:
            seconds = None if self._close_seconds is None else self._close_seconds + _GRACE_SECONDS
            return self._process.wait(seconds) == 0
        except subprocess.TimeoutExpired:
            return False
        finally:
            if self.running:
                self._process.kill()
                self._process.wait()
