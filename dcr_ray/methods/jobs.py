"""The input of an edit stage: what a method does to a model after its SFT. Plain frozen data, as that of training."""

from __future__ import annotations

from dataclasses import dataclass

from dcr_ray.recipe import ActorRecipe, ScansRecipe, SurgicalRecipe
from dcr_ray.shape import Shape


@dataclass(frozen=True)
class EditJob:
    """Change the model in `checkpoint_dir`, of the architecture in `model_dir`, by Surgical or ACTOR, or learn from it
    how SCANS is to steer it. All prompts are plain user turns of the training data."""

    model_dir: str
    checkpoint_dir: str
    recipe: SurgicalRecipe | ScansRecipe | ActorRecipe
    seemingly_toxic: tuple[str, ...]
    toxic: tuple[str, ...]
    general: tuple[str, ...]
    system_prompt: str | None
    seed: int
    output_dir: str
    shape: Shape = Shape()
    canary_prompts: tuple[str, ...] = ()
