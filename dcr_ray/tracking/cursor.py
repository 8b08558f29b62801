"""The cursor: up to which line of the spool each destination has everything, and what keeps it from more.

The sender writes it, the study and `status` read it. Losing it costs a replay, which changes nothing in MLflow.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dcr_ray.tracking.spool import spool_path


@dataclass(frozen=True)
class Cursor:
    """`lines` lines, which end at byte `end_bytes`, are acknowledged; `refused` of them MLflow will never take.

    `sent` counts lines that were sent, those of a replay again. `problem` says what keeps the sender from going on, and
    `retry_at` (Unix seconds) when it tries again.
    """

    lines: int = 0
    end_bytes: int = 0
    refused: int = 0
    sent: int = 0
    problem: str | None = None
    retry_at: float | None = None


def load_cursor(study_dir: Path, lineage: str, destination: str) -> Cursor:
    """The cursor of one destination; the beginning where there is none, or none that fits this spool."""
    destinations = _load(study_dir, lineage)
    if destination not in destinations:
        return Cursor()
    cursor = Cursor(**destinations[destination])
    return cursor if _at_line_end(spool_path(study_dir), cursor.end_bytes) else Cursor()


def save_cursor(study_dir: Path, lineage: str, destination: str, cursor: Cursor) -> None:
    """Replaces the file as a whole. There is one writer at a time: whoever holds the sender's lock."""
    state = {"lineage": lineage, "destinations": _load(study_dir, lineage) | {destination: asdict(cursor)}}
    path = _cursor_path(study_dir)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(state, indent=1))
    os.replace(temporary, path)


def _cursor_path(study_dir: Path) -> Path:
    return Path(study_dir) / "tracking.cursor.json"


def _load(study_dir: Path, lineage: str) -> dict[str, Any]:
    try:
        state = json.loads(_cursor_path(study_dir).read_text())
    except FileNotFoundError:
        return {}
    except ValueError:
        # A power cut may leave an empty file. Starting over is safe, since a replay makes no second run.
        return {}
    return state["destinations"] if state["lineage"] == lineage else {}


def _at_line_end(path: Path, end_bytes: int) -> bool:
    """Whether a line of the spool ends there; it does not where a power cut took the spool's tail."""
    if end_bytes == 0:
        return True
    with open(path, "rb") as file:
        file.seek(end_bytes - 1)
        return file.read(1) == b"\n"
