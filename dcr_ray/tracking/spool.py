"""The spool: an append-only file with one JSON event a line. An event's sequence number is the number of its line.

A line is written by one system call, so a killed process loses none that was written; a power cut may lose the last
ones, since nothing is synced to the disk. What the events mean is not known here.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dcr_ray.errors import InputError, Problem

_log = logging.getLogger(__name__)

Event = dict[str, Any]


def spool_path(study_dir: Path) -> Path:
    return Path(study_dir) / "tracking.jsonl"


class Spool:
    """The writing end. Only one may be open for a study at a time; not safe for concurrent calls."""

    def __init__(self, study_dir: Path):
        """Opens or goes on with the spool of `study_dir`. Raises InputError where another process has it open."""
        self.path = spool_path(study_dir)
        self._descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._descriptor)
            found = "a study that another process is running"
            raise InputError([Problem(str(study_dir), found, "one process for a study")]) from None
        except OSError as error:
            _log.warning("%s cannot be locked (%s): run this study from one process only", self.path, error)
        self.lines, self._torn = _count_lines(self.path)

    def append(self, event: Event) -> None:
        """Adds one event, with its sequence number. Raises OSError where the disk refuses it or the spool is closed."""
        if self._torn:
            self._write(b"\n")
        self._write(json.dumps({"sequence": self.lines} | event, allow_nan=False).encode() + b"\n")

    def _write(self, line: bytes) -> None:
        written = os.write(self._descriptor, line)
        self._torn = written < len(line)
        if self._torn:
            raise OSError(f"only {written} of {len(line)} bytes could be written to {self.path}")
        self.lines += 1

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
        self._descriptor = -1


def _count_lines(path: Path) -> tuple[int, bool]:
    """The number of whole lines, and whether a torn one follows them."""
    lines, last = 0, b"\n"
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            lines += chunk.count(b"\n")
            last = chunk[-1:]
    return lines, last != b"\n"


def count_lines(study_dir: Path) -> int:
    """Events in the spool of a study, by whole lines; a torn last line does not count."""
    return _count_lines(spool_path(study_dir))[0]


@dataclass(frozen=True)
class Entry:
    """One whole line. `event` is none where the line cannot be read; the next line begins at `end_bytes`."""

    event: Event | None
    line: int
    end_bytes: int


def read_spool(study_dir: Path, start_line: int = 0, start_bytes: int = 0) -> Iterator[Entry]:
    """The whole lines from a place on that lies at a line's beginning. A torn last line is left for later."""
    with open(spool_path(study_dir), "rb") as file:
        file.seek(start_bytes)
        end_bytes = start_bytes
        for line, text in enumerate(file, start_line):
            if not text.endswith(b"\n"):
                return
            end_bytes += len(text)
            yield Entry(_parse(text), line, end_bytes)


def _parse(text: bytes) -> Event | None:
    try:
        event = json.loads(text)
    except ValueError:
        return None
    return event if isinstance(event, dict) and "event" in event else None


@dataclass(frozen=True)
class Opening:
    """What a spool says of itself: whose runs these are, and where they were last sent."""

    lineage: str
    experiment: str
    destination: str


def read_opening(study_dir: Path) -> Opening | None:
    """The newest opening in the spool; none where it has none. All openings of a spool share one lineage."""
    newest = None
    with open(spool_path(study_dir), "rb") as file:
        for text in file:
            # Parsing every event of a long study would delay its resumption.
            if b'"event": "opened"' in text and text.endswith(b"\n"):
                event = _parse(text)
                newest = event if event is not None and event["event"] == "opened" else newest
    return newest and Opening(newest["lineage"], newest["experiment"], newest["destination"])


def runs_left_open(study_dir: Path) -> frozenset[str]:
    """Uids of the runs that were opened, or opened again, and not ended since."""
    file = spool_path(study_dir)
    opened: set[str] = set()
    if file.exists():
        with open(file, "rb") as stream:
            for line in stream:
                # As above; a torn line is no event.
                if (b'"event": "run"' in line or b'"event": "end"' in line) and (event := _parse(line)) is not None:
                    if event["event"] == "run":
                        opened.add(event["uid"])
                    elif event["event"] == "end":
                        opened.discard(event["uid"])
    return frozenset(opened)
