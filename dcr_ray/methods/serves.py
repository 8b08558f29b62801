"""Which methods a model, its shape and its engine can serve: known before anything is started, without torch."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from dcr_ray.errors import Problem
from dcr_ray.models import ModelCard
from dcr_ray.recipe import EDIT_METHODS

NORMED_OUTPUTS = ("Gemma2ForCausalLM", "Gemma3ForCausalLM")
"""Models that norm what attention and MLP put out, so that no weight writes into the residual stream by itself."""


def method_problems(methods: Iterable[str], card: ModelCard, folder: Path | None, zero_stage: int) -> list[Problem]:
    """What rules out one of the methods on this model. `folder` is the model's; None where it is not here."""
    problems = []
    edits = [method for method in methods if method in EDIT_METHODS]
    if not edits:
        return []
    if folder is not None and not has_chat_template(folder):
        found = f"{', '.join(edits)} on a model without a chat template"
        problems.append(
            Problem(
                "recipe.method", found, "a model with one", "They read the tokens that a template puts after a prompt."
            )
        )
    if "surgical" in edits and card.architecture in NORMED_OUTPUTS:
        found = f"surgical on {card.architecture}, which norms the outputs that it would project"
        problems.append(Problem("recipe.method", found, "llama, mistral, qwen2, qwen3 or gemma (1) models"))
    if zero_stage == 3:
        found = f"{', '.join(edits)} with shape.zero_stage 3"
        fix = "Rank 0 holds the whole model for them: use a stage below 3, or other methods."
        problems.append(Problem("shape.zero_stage", found, "0 to 2", fix))
    return problems


def needs_untied_head(methods: Iterable[str], card: ModelCard) -> bool:
    """Whether an engine has to hold head and embedding apart, since a method changes one of them alone."""
    return card.tied_embeddings and "surgical" in methods


def has_chat_template(folder: Path) -> bool:
    if (folder / "chat_template.jinja").is_file() or (folder / "chat_template.json").is_file():
        return True
    config = folder / "tokenizer_config.json"
    return config.is_file() and bool(json.loads(config.read_text()).get("chat_template"))
