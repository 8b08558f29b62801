"""What a generate stage and a judge stage are asked to do, in plain picklable types."""

from __future__ import annotations

from dataclasses import dataclass

from dcr_ray.data.examples import Pair, Prompt, Split
from dcr_ray.judge_spec import JudgeSpec


@dataclass(frozen=True)
class GenerateJob:
    """Answer every prompt of every set with the checkpoint's weights, greedily, and score the capability pairs.

    A `repeat` above 0 answers again, in another order, so that every prompt meets another batch. With
    `stop_when_decided` an answer ends where the string judge has read enough of it.
    """

    checkpoint_dir: str
    prompts: dict[str, tuple[Prompt, ...]]
    capability: tuple[Pair, ...]
    system_prompt: str | None
    max_tokens: int
    max_model_tokens: int
    output_dir: str
    refusal_probability: bool = False
    repeat: int = 0
    stop_when_decided: bool = False
    steering_dir: str | None = None
    """Folder of an edit stage by whose SCANS the answers are steered; only the transformers engine can."""


@dataclass(frozen=True)
class JudgeJob:
    """Give every answer of a generate stage the verdict of one judge, and every set its rates.

    `judges` are all judges of the study, since a vote asks others; `judge` names the one that is asked. `answers` is
    the file where an endpoint's answers are kept between attempts.
    """

    generate_dir: str
    prompts: dict[str, tuple[Prompt, ...]]
    split: Split
    in_distribution: frozenset[str]
    judges: tuple[JudgeSpec, ...]
    judge: str
    answers: str
    output_dir: str
