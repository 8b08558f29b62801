"""Every error that dcr_ray raises on purpose.

DcrError
├── InputError     the user's input is wrong; carries every problem at once; exit code 2
├── StageFailed    a stage ended without a result, for a reason that is part of the study's findings
└── StaleWeights   an engine does not answer with the weights that it was just handed
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Literal


class DcrError(Exception):
    """Base of all errors raised on purpose; its text is meant for the user."""


@dataclass(frozen=True)
class Problem:
    """One thing wrong with the input: where it stands, what was found, what would be right."""

    where: str
    found: str
    allowed: str
    fix: str = ""

    def __str__(self) -> str:
        return f"{self.where}: found {self.found}; allowed: {self.allowed}" + (f". {self.fix}" if self.fix else "")


class InputError(DcrError):
    """The input cannot be run as it is. `problems` holds all that was found, not only the first."""

    def __init__(self, problems: Iterable[Problem]):
        self.problems = tuple(problems)
        count = len(self.problems)
        super().__init__(
            f"{count} problem{'s' if count != 1 else ''} in the input:\n" + "\n".join(f"  - {p}" for p in self.problems)
        )


FailureKind = Literal["diverged", "out_of_memory", "degenerate", "error"]


class StageFailed(DcrError):
    """A stage ended without a result. The trial fails with this reason and the study goes on."""

    def __init__(self, kind: FailureKind, reason: str):
        self.kind = kind
        self.reason = reason
        super().__init__(f"{kind}: {reason}")

    def __reduce__(self):
        return (type(self), (self.kind, self.reason))


class StaleWeights(DcrError):
    """An engine was handed new weights and its answers are not theirs."""


def nearest_name(name: str, known: Iterable[str]) -> str:
    """A sentence that offers the nearest known name, or nothing where none is near."""
    close = get_close_matches(str(name), list(known), n=1, cutoff=0.5)
    return f"Did you mean '{close[0]}'?" if close else ""
