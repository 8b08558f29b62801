"""The edit stage as a function of its job: Surgical, SCANS or ACTOR on a model that has had its SFT.

Rank 0 does the work with the whole model in fp32, the others wait for it: there is no gradient to share out, and a
model that does not fit one device is refused before (`methods.serves`).
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from dcr_ray.errors import StageFailed
from dcr_ray.evaluate.canary import next_token_logprobs, write_canary
from dcr_ray.methods.actor import run_actor
from dcr_ray.methods.jobs import EditJob
from dcr_ray.methods.scans import fit_scans
from dcr_ray.methods.states import load_model
from dcr_ray.methods.surgical import Split, run_surgical
from dcr_ray.methods.write import write_edited
from dcr_ray.recipe import ActorRecipe, ScansRecipe, SurgicalRecipe
from dcr_ray.train.tokens import prompt_tokens, tokenizer_of
from dcr_ray.train.world import World, joined_world

Report = Callable[[dict[str, Any]], None]

LONGEST_PROMPT = 512
"""Tokens of a prompt that a method learns from; longer ones are left out, since their end belongs to the template."""


def run_edit(job: EditJob, world: World | None = None, report: Report = lambda _: None) -> dict[str, Any]:
    """Run the method. Writes a Hugging Face folder with canary.json, or for SCANS its vectors alone.

    Returns the same on every rank: metrics, notes, seconds. Raises StageFailed on every rank where the method cannot
    be applied to this model.
    """
    with joined_world(world) as world:
        found: dict[str, Any] | StageFailed | None = None
        if world.rank == 0:
            try:
                found = _edit(job, world.device, report)
            except StageFailed as failure:
                found = failure
        found = world.from_rank_0(found)
        if isinstance(found, StageFailed):
            raise found
        return found


def _edit(job: EditJob, device: torch.device, report: Report) -> dict[str, Any]:
    started = time.perf_counter()
    model = load_model(job.checkpoint_dir, device)
    tokenizer = tokenizer_of(job.model_dir)
    kinds = {name: _shuffled(job, name) for name in ("seemingly_toxic", "toxic", "general")}
    loaded = time.perf_counter()

    def tell(step: int, steps: int) -> None:
        report({"step": step, "steps": steps})

    match job.recipe:
        case SurgicalRecipe() as recipe:
            splits = {name: _split(name, rows, recipe) for name, rows in kinds.items()}
            done = run_surgical(
                model, tokenizer, recipe, splits["seemingly_toxic"], splits["toxic"], splits["general"], tell
            )
        case ActorRecipe() as recipe:
            most = {name: rows[: recipe.prompts] for name, rows in kinds.items()}
            done = run_actor(model, recipe, most["seemingly_toxic"], most["toxic"], most["general"], job.seed, tell)
        case ScansRecipe() as recipe:
            anchors = {name: rows[: recipe.anchors] for name, rows in kinds.items()}
            done = fit_scans(model, tokenizer, recipe, anchors["toxic"], anchors["general"], anchors["seemingly_toxic"])
    ran = time.perf_counter()
    output = Path(job.output_dir)
    if isinstance(job.recipe, ScansRecipe):
        done.write(output)
    else:
        write_edited(job.checkpoint_dir, output, done.changed)
        prompts = prompt_tokens(job.model_dir, job.canary_prompts, job.system_prompt)
        write_canary(output, next_token_logprobs(model, prompts))
    ended = time.perf_counter()
    seconds = {
        "weights_in": loaded - started,
        "forward_backward": ran - loaded,
        "export": ended - ran,
        "total": ended - started,
    }
    return {"metrics": done.metrics, "notes": done.notes, "seconds": seconds}


def _shuffled(job: EditJob, name: str) -> list[list[int]]:
    """Token ids of one kind of prompts, in an order that the seed decides."""
    rows = prompt_tokens(job.model_dir, getattr(job, name), job.system_prompt)
    rows = [row for row in rows if len(row) <= LONGEST_PROMPT]
    random.Random(f"{job.seed} {name}").shuffle(rows)
    return rows


def _split(name: str, rows: list[list[int]], recipe: SurgicalRecipe) -> Split:
    held = min(recipe.validation_prompts, len(rows) // 3)
    split = Split(rows[held : held + recipe.prompts], rows[:held])
    if not held:
        raise StageFailed("error", f"{len(rows)} {name} training prompts are too few to fit directions and choose")
    return split
