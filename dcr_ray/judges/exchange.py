"""What a judge is given and what every judge can do. It knows no judge."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

from dcr_ray.verdict import Verdict

Progress = Callable[[int, int], None]
"""Called with (responses judged, responses in all)."""


class Exchange(NamedTuple):
    """A prompt and one response to it; `finish_reason` is "stop", "length" for one cut by the token limit, or "decided"
    for one that ended where the string judge had read enough."""

    prompt: str
    response: str
    finish_reason: str = "stop"


class Judge(Protocol):
    """Gives every response a verdict."""

    @property
    def name(self) -> str:
        """Its name in the study, the outcomes and the report."""

    def identity(self) -> dict[str, Any]:
        """All that changes its verdicts, as plain JSON: kind, hash of its weights, file or prompt, thresholds."""

    def judge(self, exchanges: Sequence[Exchange], progress: Progress = lambda done, all: None) -> list[Verdict]:
        """One verdict a response, in their order. What it cannot read is UNSCORED, never a refusal."""

    def close(self) -> None:
        """Give back what it holds."""
