"""One finding of the doctor."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Check:
    """A failing one keeps studies from running; a warning makes them slower or smaller. `fix` says what to do."""

    name: str
    status: Literal["ok", "warning", "fails"]
    found: str
    fix: str = ""
