"""The optimizer steps of a stage: rates, reports, checkpoints, and the checks that end a stage that diverges."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from dcr_ray.errors import StageFailed
from dcr_ray.shape import Shape
from dcr_ray.train.checkpoint import Progress, load_checkpoint, save_checkpoint
from dcr_ray.train.clock import Clock
from dcr_ray.train.engine import TrainingEngine
from dcr_ray.train.jobs import Report, StageStopped
from dcr_ray.train.world import World

REPORT_SECONDS = 1.0

ForwardBackward = Callable[[int], tuple[float, int]]
"""Runs a step's forward and backward passes. Returns the global batch's loss and tokens, the same on all ranks."""


def run_steps(
    engine: TrainingEngine,
    forward_backward: ForwardBackward,
    steps: int,
    rate: Callable[[int], float],
    *,
    output_dir: Path,
    shape: Shape,
    seed: int,
    job_digest: str,
    clock: Clock,
    report: Report,
    should_stop: Callable[[], bool],
    after_step: Callable[[Progress], bool] = lambda _: False,
) -> Progress:
    """Run all steps, or those that a checkpoint of the same job has left. `should_stop` is asked on rank 0.

    `after_step` is called on every rank, may look at the model, and ends the stage early where it says so: all of them
    must say the same.

    Raises StageFailed("diverged") on all ranks together where a loss or gradient is not finite, and StageStopped
    after a checkpoint where `should_stop` says so.
    """
    world = engine.world
    progress = load_checkpoint(engine, output_dir, job_digest)
    if progress.step:
        clock.go_on_from(progress.seconds)
    saved = time.monotonic()
    reported = -math.inf
    for step in range(progress.step, steps):
        # Dropout is the only chance inside a step; its numbers come from the step, so a resumed stage draws the same.
        torch.manual_seed(hash((seed, step, world.rank)))
        with clock.measure("forward_backward"):
            loss, tokens = forward_backward(step)
        if world.any(not math.isfinite(loss)):
            raise StageFailed("diverged", f"the loss is {loss} at step {step + 1} of {steps}")
        with clock.measure("optimizer"):
            engine.step(rate(step))
        progress.step, progress.tokens = step + 1, progress.tokens + tokens
        progress.losses.append(loss)
        stop = False
        if world.rank == 0:
            if time.monotonic() - reported >= REPORT_SECONDS or step + 1 == steps:
                reported = time.monotonic()
                report({"step": step + 1, "steps": steps, "loss": loss, "learning_rate": rate(step)})
            stop = should_stop()
        due = time.monotonic() - saved >= shape.checkpoint_seconds
        stop, due = world.from_rank_0((stop, due))
        if after_step(progress):
            break
        if step + 1 < steps and (stop or due):
            with clock.measure("checkpoint"):
                progress.seconds = clock.read()
                save_checkpoint(engine, output_dir, job_digest, progress)
            saved = time.monotonic()
        if stop and step + 1 < steps:
            raise StageStopped(f"stopped after step {step + 1} of {steps}; the same job goes on from there")
    return progress


def results(
    progress: Progress,
    clock: Clock,
    metrics: dict[str, float],
    notes: list[str],
    world: World,
    model_flops: float,
    parameters: int,
    peak_bytes: dict[str, int],
) -> dict[str, Any]:
    """What a stage returns on every rank. `computed` is what the planner's rates are measured by."""
    always = ("data", "weights_in", "forward_backward", "optimizer", "checkpoint")
    seconds = dict.fromkeys(always, 0.0) | clock.read()
    return {
        "losses": progress.losses,
        "steps": progress.step,
        "tokens": progress.tokens,
        "seconds": seconds,
        "metrics": metrics,
        "notes": notes,
        "peak_bytes": peak_bytes,
        "computed": {
            "model_flops": model_flops,
            "parameters": parameters,
            "ranks": world.size,
            "threads": torch.get_num_threads(),
            "device": torch.cuda.get_device_name(world.device) if world.device.type == "cuda" else "cpu",
        },
    }
