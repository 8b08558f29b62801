"""What a generate stage and a judge stage are asked to do, in plain picklable types."""

from __future__ import annotations

from dataclasses import dataclass

from dcr_ray.data.examples import Pair, Prompt


@dataclass(frozen=True)
class GenerateJob:
    """Answer every prompt of every set with the checkpoint's weights, greedily, and score the capability pairs."""

    checkpoint_dir: str
    prompts: dict[str, tuple[Prompt, ...]]
    capability: tuple[Pair, ...]
    system_prompt: str | None
    max_tokens: int
    max_model_tokens: int
    output_dir: str


@dataclass(frozen=True)
class JudgeJob:
    """Give every answer of a generate stage a verdict, and every set its rates."""

    generate_dir: str
    prompts: dict[str, tuple[Prompt, ...]]
    output_dir: str
