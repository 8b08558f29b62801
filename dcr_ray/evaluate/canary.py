"""The canary: next-token log-probabilities that prove which weights an engine answers with.

A checkpoint's canary.json holds, for a few prompts, the 20 most probable next tokens and their log-probabilities as
transformers computed them when the checkpoint was written. An engine that was handed those weights must give the
same numbers. It cannot tell apart two checkpoints that differ by less than the tolerance on every one of its prompts.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from dcr_ray.errors import StaleWeights
from dcr_ray.evaluate.generation import TOP_LOGPROBS, Engine

CANARY_FILE = "canary.json"

TOLERANCE = {"fp32": 2e-3, "bf16": 0.4}
"""Largest difference in nats between right weights and their canary, by the engine's precision.

fp32: kernels that add in another order differ by less than 1e-4 on a model of 30 layers. bf16 logits near 32 are
0.125 to 0.25 apart from one number to the next; on 180 prompts a 135M model in bf16 differed from its fp32 canary by
0.12 in the median and 0.26 at most, while a stale tied head differed by 0.47 at least. So in bf16 a canary does not
see a checkpoint that moved by less than 0.4: prefer fp32 where trials are mild.
"""

ASKED_LOGPROBS = 2 * TOP_LOGPROBS
"""An engine is asked for more than the canary's tokens, since tokens near its last place may change order."""

_FALLBACK_TEXTS = ("The capital of France is", "How do I bake bread?", "Once upon a time there was a")


class CanaryPrompt(NamedTuple):
    """Token ids of a prompt, and log-probabilities in nats of the most probable tokens after it."""

    token_ids: list[int]
    token_logprobs: dict[int, float]


def next_token_logprobs(
    model: Any, prompts: Sequence[Sequence[int]], top: int = TOP_LOGPROBS, device: Any = None
) -> list[CanaryPrompt]:
    """The canary of a transformers model in its own precision, log-softmax in fp32, one prompt at a time.

    `device` is where it computes, for a model whose weights do not lie there yet.
    """
    import torch

    canary = []
    with torch.inference_mode():
        for prompt in prompts:
            token_ids = torch.tensor([list(prompt)], device=device or model.device)
            logprobs = model(input_ids=token_ids, use_cache=False).logits[0, -1].float().log_softmax(-1)
            best = logprobs.topk(min(top, logprobs.shape[-1]))
            canary.append(CanaryPrompt(list(prompt), dict(zip(best.indices.tolist(), best.values.tolist()))))
    return canary


def write_canary(checkpoint_dir: Path | str, canary: Sequence[CanaryPrompt]) -> Path:
    """Write canary.json into a checkpoint's folder."""
    path = Path(checkpoint_dir) / CANARY_FILE
    prompts = [
        {"token_ids": prompt.token_ids, "token_logprobs": {str(k): v for k, v in prompt.token_logprobs.items()}}
        for prompt in canary
    ]
    path.write_text(json.dumps({"prompts": prompts}))
    return path


def read_canary(checkpoint_dir: Path | str) -> list[CanaryPrompt] | None:
    """The checkpoint's canary, or None where it has none. Raises StaleWeights for one that proves nothing."""
    path = Path(checkpoint_dir) / CANARY_FILE
    if not path.exists():
        return None
    prompts = json.loads(path.read_text())["prompts"]
    canary = [
        CanaryPrompt(list(p["token_ids"]), {int(token): float(v) for token, v in p["token_logprobs"].items()})
        for p in prompts
    ]
    if not any(prompt.token_logprobs for prompt in canary):
        raise StaleWeights(f"{path} holds no log-probabilities, so nothing proves which weights the engine has")
    return canary


WeightFiles = tuple[tuple[int, int, int, int], ...]


def weight_file_facts(folder: Path | str) -> WeightFiles:
    """Device, inode, size and time of change of a folder's weight files: the same facts are the same weights, also
    where the folder has moved."""
    facts = [file.stat() for file in sorted(Path(folder).glob("*.safetensors"))]
    return tuple((fact.st_dev, fact.st_ino, fact.st_size, fact.st_mtime_ns) for fact in facts)


def compute_canary(checkpoint_dir: Path | str, tokenizer: Any) -> list[CanaryPrompt]:
    """The canary of a folder that was written without one: loads it in fp32 with transformers, which takes seconds.

    It is remembered, so that a folder which is evaluated again is not loaded again.
    """
    key = (str(Path(checkpoint_dir).resolve()), weight_file_facts(checkpoint_dir))
    if key not in _COMPUTED:
        import torch
        from transformers import AutoModelForCausalLM
        from transformers.utils import logging

        logging.disable_progress_bar()
        model = AutoModelForCausalLM.from_pretrained(checkpoint_dir, dtype=torch.float32, local_files_only=True).eval()
        _COMPUTED.clear()
        _COMPUTED[key] = next_token_logprobs(model, [tokenizer(text)["input_ids"] for text in _FALLBACK_TEXTS])
    return _COMPUTED[key]


_COMPUTED: dict[tuple[str, WeightFiles], list[CanaryPrompt]] = {}
"""The canary of the latest folder that had none."""


def largest_difference(canary: Sequence[CanaryPrompt], answers: Sequence[Mapping[int, float]]) -> float:
    """Largest absolute difference in nats between canary and engine over the canary's tokens.

    Where the engine does not list a token, its log-probability is at most the smallest one listed, so the difference
    counts from there: never more than the true one.
    """
    worst = 0.0
    for prompt, answer in zip(canary, answers, strict=True):
        smallest = min(answer.values())
        for token, logprob in prompt.token_logprobs.items():
            difference = abs(logprob - answer[token]) if token in answer else max(0.0, logprob - smallest)
            if difference != difference:
                return float("inf")
            worst = max(worst, difference)
    return worst


def prove_live(
    engine: Engine, checkpoint_dir: Path | str, precision: str, without_canary: Literal["compute", "skip"]
) -> float | None:
    """Largest difference in nats between an engine's answers and the canary of `checkpoint_dir`.

    A folder without canary.json gets its canary computed by transformers (some seconds and a second copy of the
    weights in memory), or is left unproven, answering None, where `without_canary` is "skip". Raises StaleWeights,
    with the numbers, where the difference is beyond the tolerance.
    """
    canary = read_canary(checkpoint_dir)
    if canary is None:
        if without_canary == "skip":
            return None
        canary = compute_canary(checkpoint_dir, engine.tokenizer)
    generations = engine.generate([prompt.token_ids for prompt in canary], max_tokens=1, logprobs=ASKED_LOGPROBS)
    difference = largest_difference(canary, [generation.first_token_logprobs for generation in generations])
    if difference > TOLERANCE[precision]:
        raise StaleWeights(
            f"the engine's next-token log-probabilities differ by up to {difference:.4g} nats from the canary of "
            f"{checkpoint_dir}; {TOLERANCE[precision]:g} are allowed in {precision}. "
            "It does not answer with these weights"
        )
    return difference


def swap_and_prove(
    engine: Engine, swaps: tuple[Callable[[Path | str], None], Callable[[Path | str], None]], checkpoint_dir: Path | str
) -> None:
    """Hand an engine its new weights and have it prove them; once more, in the second way, where the proof fails.

    Raises StaleWeights after the second failed proof: the engine must then be closed and built anew.
    """
    first, second = swaps
    first(checkpoint_dir)
    try:
        engine.prove_live(checkpoint_dir)
    except StaleWeights:
        second(checkpoint_dir)
        engine.prove_live(checkpoint_dir)
