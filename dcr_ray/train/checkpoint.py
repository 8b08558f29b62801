"""Checkpoints inside a stage, so that a killed stage goes on where it was: weights, optimizer state, and the step.

They serve only the same job on the same number of ranks and ZeRO stage, and are written by this program for itself.
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from dcr_ray.train.engine import TrainingEngine

RESUME_FOLDER, META_FILE = "resume", "checkpoint.json"


@dataclass
class Progress:
    """How far a stage has come: what its results are made of, up to `step` finished steps."""

    step: int = 0
    tokens: int = 0
    losses: list[float] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)


def save_checkpoint(engine: TrainingEngine, output_dir: Path, identity: dict[str, Any], progress: Progress) -> None:
    """Write a checkpoint; the one before stays valid until this one is complete."""
    folder, tag, world = output_dir / RESUME_FOLDER, f"step{progress.step}", engine.world
    engine.deepspeed.save_checkpoint(str(folder), tag=tag, save_latest=False, exclude_frozen_parameters=True)
    world.barrier()
    if world.rank == 0:
        partial = folder / f"{META_FILE}.partial"
        partial.write_text(json.dumps({"identity": identity, "tag": tag, "progress": asdict(progress)}))
        os.replace(partial, folder / META_FILE)
        for old in folder.glob("step*"):
            if old.name != tag:
                shutil.rmtree(old)
    world.barrier()


def load_checkpoint(engine: TrainingEngine, output_dir: Path, identity: dict[str, Any]) -> Progress:
    """Load the checkpoint of the same job, if there is one, and say how far it was; a beginning otherwise."""
    folder, world = output_dir / RESUME_FOLDER, engine.world
    meta = world.from_rank_0(_read(folder / META_FILE) if world.rank == 0 else None)
    if meta is None or meta["identity"] != identity:
        return Progress()
    engine.deepspeed.load_checkpoint(str(folder), tag=meta["tag"], load_module_strict=False)
    return Progress(**meta["progress"])


def remove_checkpoints(output_dir: Path) -> None:
    """Remove what `save_checkpoint` wrote, when the stage's outputs are complete. For rank 0 alone."""
    folder = output_dir / RESUME_FOLDER
    if folder.exists():
        shutil.rmtree(folder)


def _read(file: Path) -> dict[str, Any] | None:
    return json.loads(file.read_text()) if file.is_file() else None
