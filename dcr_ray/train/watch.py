"""What a training stage is to be watched by, if it is (`train.dynamics`). Plain data that travels with its job."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Watch:
    """What is looked at: `prompts` by class for refusals, the first `kernel_prompts` of each for the kernel.

    `looks` are spread evenly over a stage, besides one before its first step. `layer` parts trunk and tail.
    """

    prompts: dict[str, tuple[str, ...]]
    looks: int
    kernel_prompts: int
    kernel_groups: int
    scopes: tuple[str, ...]
    layer: int
    system_prompt: str | None
