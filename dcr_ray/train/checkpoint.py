"""Checkpoints inside a stage, so that a killed stage goes on where it was: weights, Adam's moments, and the step.

They serve the same job on any number of ranks and any ZeRO stage. Every rank writes some of the parameters, whole, so
that the ranks write side by side and none holds them all. What a step draws by chance depends on the rank (dropout), so
a stage with dropout that goes on elsewhere draws other numbers.
"""

from __future__ import annotations

import json
import os
import shutil
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from dcr_ray.train.divided import flat_run
from dcr_ray.train.engine import TrainingEngine
from dcr_ray.train.state import link_moments, put_state, steps_taken, trained_parameters, whole_state

RESUME_FOLDER, META_FILE = "resume", "checkpoint.json"

PIECE_BYTES = 2**29
"""What a rank gathers before it writes."""


@dataclass
class Progress:
    """How far a stage has come: what its results are made of, up to `step` finished steps.

    `looks` are the figures by which a stage may end early, in their order.
    """

    step: int = 0
    tokens: int = 0
    losses: list[float] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    looks: list[float] = field(default_factory=list)


def save_checkpoint(engine: TrainingEngine, output_dir: Path, job: str, progress: Progress) -> None:
    """Write a checkpoint of the job with this digest; the one before stays valid until this one is complete."""
    world, tag = engine.world, f"step{progress.step}"
    folder = output_dir / RESUME_FOLDER / tag
    folder.mkdir(parents=True, exist_ok=True)
    tensors: dict[str, Tensor] = {}
    link_moments(engine)
    files = size = 0
    for place, (name, parameter) in enumerate(trained_parameters(engine)):
        state = whole_state(engine, parameter)
        if place % world.size == world.rank:
            tensors |= {f"{name}|{part}": tensor.to("cpu", copy=True) for part, tensor in state.items()}
            size += sum(tensor.nbytes for tensor in state.values())
        if size > PIECE_BYTES:
            save_file(tensors, folder / f"rank{world.rank}-{files}.safetensors")
            files, size, tensors = files + 1, 0, {}
    save_file(tensors, folder / f"rank{world.rank}-{files}.safetensors")
    world.barrier()
    if world.rank == 0:
        meta = {"job": job, "tag": tag, "updates": steps_taken(engine), "progress": asdict(progress)}
        partial = folder.parent / f"{META_FILE}.partial"
        partial.write_text(json.dumps(meta))
        os.replace(partial, folder.parent / META_FILE)
        for old in folder.parent.glob("step*"):
            if old.name != tag:
                shutil.rmtree(old)
    world.barrier()


def load_checkpoint(engine: TrainingEngine, output_dir: Path, job: str) -> Progress:
    """Load the checkpoint of the same job, if there is one, and say how far it was; a beginning otherwise."""
    folder, world = output_dir / RESUME_FOLDER, engine.world
    meta = world.from_rank_0(_read(folder / META_FILE) if world.rank == 0 else None)
    if meta is None or meta.get("job") != job:
        return Progress()
    with ExitStack() as opened:
        places = {}
        for file in sorted((folder / meta["tag"]).glob("rank*.safetensors")):
            reader = opened.enter_context(safe_open(file, "pt"))
            places |= dict.fromkeys(reader.keys(), reader)
        put_state(engine, meta["updates"], lambda name, begin, end: flat_run(places[name].get_slice(name), begin, end))
    return Progress(**meta["progress"])


def remove_checkpoints(output_dir: Path) -> None:
    """Remove what `save_checkpoint` wrote, when the stage's outputs are complete. For rank 0 alone."""
    folder = output_dir / RESUME_FOLDER
    if folder.exists():
        shutil.rmtree(folder)


def _read(file: Path) -> dict[str, Any] | None:
    return json.loads(file.read_text()) if file.is_file() else None
