"""The two training stages by the kind of their job: what a rank of a WorkerGroup, or a lone process, calls."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from dcr_ray.train.jobs import DcrJob, SftJob


def run_training_stage(
    job: DcrJob | SftJob, report: Callable[[dict[str, Any]], None] = lambda _: None
) -> dict[str, Any]:
    """Run the stage on this rank together with the others. Every rank returns the same results."""
    if isinstance(job, DcrJob):
        from dcr_ray.train.dcr import run_dcr

        return run_dcr(job, report=report)
    from dcr_ray.train.sft import run_sft

    return run_sft(job, report=report)
