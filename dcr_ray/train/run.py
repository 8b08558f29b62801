"""The stages of a WorkerGroup by the kind of their job: what one of its ranks, or a lone process, calls."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from dcr_ray.diagnosis.stage import DiagnoseJob
from dcr_ray.methods.jobs import EditJob
from dcr_ray.train.jobs import DcrJob, Leave, SftJob, write_at_once


def run_training_stage(
    job: DcrJob | SftJob | EditJob | DiagnoseJob,
    report: Callable[[dict[str, Any]], None] = lambda _: None,
    leave: Leave = write_at_once,
    should_stop: Callable[[], bool] = lambda: False,
) -> dict[str, Any]:
    """Run the stage on this rank together with the others. Every rank returns the same results.

    `should_stop` is asked on rank 0 after every step; where it says so, a checkpoint is written and StageStopped
    raised.
    `leave` decides when an sft stage's files are written; the other stages always write their own at once. Edit and
    diagnose stages are not asked to stop: they have nothing to resume from.
    """
    if isinstance(job, DiagnoseJob):
        from dcr_ray.diagnosis.stage import run_diagnose

        return run_diagnose(job, report)
    if isinstance(job, EditJob):
        from dcr_ray.methods.run import run_edit

        return run_edit(job, report=report)
    if isinstance(job, DcrJob):
        from dcr_ray.train.dcr import run_dcr

        return run_dcr(job, report=report, should_stop=should_stop)
    from dcr_ray.train.sft import run_sft

    return run_sft(job, report=report, should_stop=should_stop, leave=leave)
