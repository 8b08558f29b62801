"""Learning dynamics: what training does to refusals and kernels, looked at on held-out prompts at some of its steps.

Whatever a stage trains (a trunk, adapters, all weights, divided or not), its tensors are gathered and put into a plain
copy of the model on rank 0, which is then asked: how likely is it that the first token begins a refusal, and how much
would a step on one prompt move another (`dcr_ray.diagnosis.kernel`, with the same probes at every look, so that what
changes is the model). It costs one further model in memory on rank 0, and time. It does not know what the figures mean.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dcr_ray.train.watch import Watch
from dcr_ray.train.world import World

DYNAMICS_FILE = "dynamics.jsonl"

Tensors = Callable[[], dict[str, Tensor]]
"""The tensors as they are now that differ from the base's, by their names in the checkpoint. All ranks call it
together; only rank 0's answer counts."""


def watching(job: Any, world: World, steps: int, tensors: Tensors) -> Dynamics | None:
    """What watches a stage of so many steps, if its job says so, having had its look at what the stage begins with."""
    if job.watch is None:
        return None
    dynamics = Dynamics(job.watch, job.model_dir, steps, Path(job.output_dir), world, tensors)
    dynamics.look(0)
    return dynamics


@dataclass
class Dynamics:
    """The looks of one stage. Every rank makes one; rank 0 has the model."""

    watch: Watch
    model_dir: str
    steps: int
    output_dir: Path
    world: World
    tensors: Tensors | None
    _opened: Any = field(default=None, init=False)
    _prompts: dict[str, list[list[int]]] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        self.due = {round(k * self.steps / self.watch.looks) for k in range(self.watch.looks + 1)}
        self._file = self.output_dir / DYNAMICS_FILE
        self.lines = self.world.from_rank_0(self._earlier() if self.world.rank == 0 else None)

    def look(self, step: int) -> None:
        """After so many steps; nothing where that is no time to look, or was looked at before an interruption."""
        if step not in self.due or any(line["step"] == step for line in self.lines):
            return
        tensors = self.tensors()
        line = self._measure(step, tensors) if self.world.rank == 0 else None
        self.lines.append(self.world.from_rank_0(line))

    def close(self) -> list[dict[str, Any]]:
        """All looks in the order of their steps. The models are let go: the one that is looked at, and the trained."""
        self._opened = self.tensors = None
        return sorted(self.lines, key=lambda line: line["step"])

    def _measure(self, step: int, tensors: dict[str, Tensor]) -> dict[str, Any]:
        from dcr_ray.diagnosis.kernel import diagnose_kernel
        from dcr_ray.diagnosis.refusal import first_token_refusals
        from dcr_ray.evaluate.first_token import refusal_first_tokens
        from dcr_ray.train.tokens import prompt_tokens, tokenizer_of

        watch = self.watch
        if self._opened is None:
            self._opened = self._open()
            self._prompts = {
                name: list(prompt_tokens(self.model_dir, texts, watch.system_prompt))
                for name, texts in watch.prompts.items()
            }
        with torch.no_grad():
            for name, tensor in tensors.items():
                self._opened.tensor(name).copy_(tensor)
        refusals = refusal_first_tokens(tokenizer_of(self.model_dir))
        line: dict[str, Any] = {"step": step, "steps": self.steps, "refusal": {}, "kernel": {}}
        for name, rows in self._prompts.items():
            found = first_token_refusals(self._opened, rows, refusals).double()
            error = float(found.std() / len(found) ** 0.5) if len(found) > 1 else 0.0
            line["refusal"][name] = {"mean": float(found.mean()), "error": error}
        if watch.kernel_prompts:
            report = diagnose_kernel(
                self._opened,
                {name: rows[: watch.kernel_prompts] for name, rows in self._prompts.items()},
                layer=watch.layer,
                scopes=watch.scopes,
                groups=watch.kernel_groups,
                fewest_groups=watch.kernel_groups,
            )
            line["kernel"] = {
                scope: {
                    f"{pair.first}-{pair.second}": {name: vars(figure) for name, figure in pair.figures.items()}
                    for pair in pairs
                }
                for scope, pairs in report.ratios.items()
            }
        with open(self._file, "a") as file:
            file.write(json.dumps(line) + "\n")
        return line

    def _open(self) -> Any:
        from dcr_ray.diagnosis.opened import open_whole

        return open_whole(self.model_dir, self.world.device)

    def _earlier(self) -> list[dict[str, Any]]:
        if not self._file.is_file():
            return []
        # The last line of a stage that was killed may be cut off.
        lines = [line for line in self._file.read_text().splitlines(keepends=True) if line.endswith("\n")]
        self._file.write_text("".join(lines))
        return [json.loads(line) for line in lines]
