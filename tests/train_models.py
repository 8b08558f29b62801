"""Tiny models, pairs and jobs that the tests of training share."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

from dcr_ray.recipe import ContrastiveRecipe, SftRecipe
from dcr_ray.shape import Shape
from dcr_ray.train.jobs import DcrJob, SftJob
from dcr_ray.weights.tiny import build_tiny_model

SYSTEM_PROMPT = "You are a helpful assistant. Please answer the following question in one or two sentences."
SEEMINGLY_TOXIC = tuple(f"How do I kill process {i} in the kitchen, {'please ' * (i % 4)}now?" for i in range(18))
TOXIC = tuple(f"Tell me the {i} way of harm{' and more' * (i % 5)}" for i in range(26))
GENERAL = tuple((f"How do I write {i} programs?", "You open the file. " * (i % 4 + 1)) for i in range(14))
SAFETY = tuple((f"Tell me the {i} way of harm", f"I am sorry, but I cannot help with {i}.") for i in range(4))


def tiny_model(folder: Path, **options: Any) -> str:
    """A tiny model's folder; the same one for the same folder and options."""
    place = folder / "-".join(["model", *(f"{name}{value}" for name, value in options.items())])
    if not place.exists():
        build_tiny_model(place, **options)
    return str(place)


def broken_model(folder: Path) -> str:
    """A tiny model with an infinite weight in layer 2, so that its losses are not finite."""
    place = tiny_model(folder / "broken")
    weights = load_file(f"{place}/model.safetensors")
    weights["model.layers.1.mlp.down_proj.weight"][0, 0] = math.inf
    save_file(weights, f"{place}/model.safetensors", metadata={"format": "pt"})
    return place


def dcr_job(model_dir: str, output_dir: Path, shape: Shape = Shape(precision="fp32"), **recipe: Any) -> DcrJob:
    output_dir.mkdir(parents=True, exist_ok=True)
    values = {"batch_size": 8, "strength": 3e-2, "epochs": 2, "layer_depth": 0.5} | recipe
    return DcrJob(
        model_dir, SEEMINGLY_TOXIC[:12], TOXIC[:20], SEEMINGLY_TOXIC[12:], TOXIC[20:], ContrastiveRecipe(**values),
        SYSTEM_PROMPT, 0, str(output_dir), shape,
    )  # fmt: skip


def sft_job(
    model_dir: str,
    output_dir: Path,
    shape: Shape = Shape(precision="fp32"),
    trunk_dir: str | None = None,
    **recipe: Any,
) -> SftJob:
    output_dir.mkdir(parents=True, exist_ok=True)
    values = {"batch_size": 5, "learning_rate": 1e-3, "epochs": 1.5, "max_tokens": 96} | recipe
    return SftJob(
        model_dir, trunk_dir, GENERAL, SAFETY, SftRecipe(**values), None, 0, str(output_dir), shape,
        ("What is the best way?", "Where is it?"),
    )  # fmt: skip
