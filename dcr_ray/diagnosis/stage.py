"""The diagnose stage: kernel and separability of one finished model on a study's held-out prompts.

Rank 0 does it, the others wait. It writes diagnosis.json and knows nothing of trials.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from math import exp
from pathlib import Path
from typing import Any, NamedTuple

from dcr_ray.shape import Shape

DIAGNOSIS_FILE = "diagnosis.json"


class Probed(NamedTuple):
    """A prompt that separability is read from: its text, class, the file that it is from, and its family."""

    text: str
    toxic: bool
    source: str
    group: str


@dataclass(frozen=True)
class DiagnoseJob:
    """`prompts` by class are those between which the kernel is estimated, with a fixed number of groups of probes."""

    model_dir: str
    checkpoint_dir: str
    prompts: dict[str, tuple[str, ...]]
    probed: tuple[Probed, ...]
    layer: int
    scopes: tuple[str, ...]
    groups: int
    system_prompt: str | None
    output_dir: str
    shape: Shape = Shape()


def run_diagnose(job: DiagnoseJob, report: Callable[[dict[str, Any]], None] = lambda _: None) -> dict[str, Any]:
    """Diagnose the model in `checkpoint_dir`. Returns the same on every rank: metrics, notes, seconds."""
    from dcr_ray.train.world import joined_world

    with joined_world() as world:
        return world.from_rank_0(_diagnose(job, world.device, report) if world.rank == 0 else None)


def _diagnose(job: DiagnoseJob, device: Any, report: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    from dcr_ray.diagnosis.kernel import diagnose_kernel
    from dcr_ray.diagnosis.layer_states import layer_states
    from dcr_ray.diagnosis.opened import open_whole
    from dcr_ray.diagnosis.separability import Labelled, separability
    from dcr_ray.evaluate.first_token import refusal_first_tokens
    from dcr_ray.train.tokens import prompt_tokens, tokenizer_of

    started = time.perf_counter()
    opened = open_whole(job.checkpoint_dir, device)
    loaded = time.perf_counter()
    kernel = diagnose_kernel(
        opened,
        {name: prompt_tokens(job.model_dir, texts, job.system_prompt) for name, texts in job.prompts.items()},
        layer=job.layer,
        scopes=job.scopes,
        refusal_tokens=refusal_first_tokens(tokenizer_of(job.model_dir)),
        groups=job.groups,
        fewest_groups=job.groups,
        report=lambda done, most, _: report({"step": done, "steps": most + 1}),
    )
    rows = prompt_tokens(job.model_dir, tuple(each.text for each in job.probed), job.system_prompt)
    layers = separability(
        layer_states(opened, rows), [Labelled(each.toxic, each.source, each.group) for each in job.probed]
    )
    ended = time.perf_counter()
    document = {"kernel": kernel.as_dict(), "separability": [layer.as_dict() for layer in layers]}
    Path(job.output_dir, DIAGNOSIS_FILE).write_text(json.dumps(document))
    best = max(layers, key=lambda layer: layer.auroc)
    metrics = {
        f"kernel.{scope}.{pair.first}-{pair.second}": exp(pair.figures["symmetric_log_ratio"].value)
        for scope, pairs in kernel.ratios.items()
        for pair in pairs
    }
    metrics |= {
        f"refusal_gradient.{scope}.{pair}": value
        for scope, pairs in kernel.refusal.items()
        for pair, value in pairs.items()
    }
    metrics |= {"separability.auroc": best.auroc, "separability.layer_depth": best.layer / len(layers)}
    seconds = {"weights_in": loaded - started, "forward_backward": ended - loaded, "total": ended - started}
    return {"metrics": metrics, "notes": [f"{kernel.probes} probes"], "seconds": seconds}
