"""The inputs of the two training stages: plain frozen data that travels between processes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any

from dcr_ray.errors import DcrError
from dcr_ray.fingerprint import digest
from dcr_ray.recipe import ContrastiveRecipe, SftRecipe
from dcr_ray.shape import Shape
from dcr_ray.train.watch import Watch

Report = Callable[[dict[str, Any]], None]
"""Told of progress on rank 0, about once a second: step, steps, loss, learning_rate."""


Leave = Callable[[dict[str, Any], Callable[[], None]], None]
"""How rank 0 leaves a finished model: told of the tensors that differ from the base, by name, and of a function that
writes the files. It may call that function later, in another thread, but the stage is not finished before."""


def write_at_once(changed: dict[str, Any], write: Callable[[], None]) -> None:
    """The plain way to leave a model."""
    write()


class StageStopped(DcrError):
    """The stage was asked to stop: its checkpoint is written, and the same job goes on from there."""


@dataclass(frozen=True)
class DcrJob:
    """Contrastive refinement of layers 1..l of the model in `model_dir`. All prompts are plain user turns.

    `general` are those that the recipe's retention and third class are about. `sources` names the file of every prompt,
    for each class that is contrasted; only same_source negatives read it.
    """

    model_dir: str
    seemingly_toxic: tuple[str, ...]
    toxic: tuple[str, ...]
    held_out_seemingly_toxic: tuple[str, ...]
    held_out_toxic: tuple[str, ...]
    recipe: ContrastiveRecipe
    system_prompt: str | None
    seed: int
    output_dir: str
    shape: Shape = Shape()
    general: tuple[str, ...] = ()
    sources: dict[str, tuple[str, ...]] = field(default_factory=dict)
    watch: Watch | None = None


@dataclass(frozen=True)
class SftJob:
    """Fine-tuning on (prompt, response) pairs, from the base or from the base with a dcr stage's layers."""

    model_dir: str
    trunk_dir: str | None
    general: tuple[tuple[str, str], ...]
    safety: tuple[tuple[str, str], ...]
    recipe: SftRecipe
    system_prompt: str | None
    seed: int
    output_dir: str
    shape: Shape = Shape()
    canary_prompts: tuple[str, ...] = ()
    watch: Watch | None = None


def job_digest(job: DcrJob | SftJob) -> str:
    """SHA-256 over all that decides the numbers of a job: not where it writes, nor how often it saves."""
    skipped = {"output_dir", "shape", "watch"}
    parts = {each.name: getattr(job, each.name) for each in fields(job) if each.name not in skipped}
    return digest({"job": type(job).__name__, **parts, "precision": job.shape.precision})
