"""The generate stage as a function of its job. It knows nothing of Ray, trials or caches."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from operator import itemgetter
from pathlib import Path
from typing import Any

from dcr_ray.data.chat import end_token, pair_ids, prompt_ids
from dcr_ray.errors import InputError, StageFailed
from dcr_ray.evaluate.jobs import GenerateJob
from dcr_ray.study import EvaluationSpec

GENERATIONS_FILE = "generations.jsonl"

Report = Callable[[dict[str, Any]], None]


def open_engine(
    spec: EvaluationSpec,
    model_dir: str,
    *,
    threads: int | None,
    kv_cache_bytes: int | None,
    tensor_parallel: int = 1,
    untied: bool = False,
) -> Any:
    """The engine that the study names, with the base model loaded; vLLM divides it over `tensor_parallel` devices.

    `untied` holds head and embedding of a tied model apart, for checkpoints that change one of them alone.
    """
    if spec.engine == "transformers":
        from dcr_ray.evaluate.transformers_engine import TransformersEngine

        return TransformersEngine(model_dir, precision=spec.precision, batch_invariant=spec.batch_invariant)
    from dcr_ray.evaluate.vllm_engine import VllmEngine

    return VllmEngine(
        model_dir,
        precision=spec.precision,
        max_model_len=spec.max_model_tokens,
        kv_cache_bytes=kv_cache_bytes,
        threads=threads,
        batch_invariant=spec.batch_invariant,
        tensor_parallel_size=tensor_parallel,
        untied=untied,
    )


def run_generate(job: GenerateJob, engine: Any, report: Report = lambda _: None) -> dict[str, Any]:
    """Hand the engine the checkpoint, answer every prompt greedily, score the capability pairs.

    Writes `generations.jsonl` (set, id, text, token_count, finish_reason, first_token_refusal_probability, and
    refusal_probability where it is asked for) and returns the stage's metrics and seconds. Raises StaleWeights where
    the engine does not serve the checkpoint, StageFailed for prompts that it cannot take.
    """
    from dcr_ray.evaluate.decided import verdict_decided
    from dcr_ray.evaluate.figures import perplexity
    from dcr_ray.evaluate.first_token import first_token_refusal_probability, refusal_first_tokens
    from dcr_ray.evaluate.flips import reordered
    from dcr_ray.evaluate.refusal_beginnings import tokenized_beginnings
    from dcr_ray.evaluate.refusal_probability import refusal_probabilities

    started = time.perf_counter()
    engine.load(job.checkpoint_dir)
    if job.steering_dir is not None:
        engine.steer(job.steering_dir)
    loaded = time.perf_counter()
    tokenizer = engine.tokenizer
    items = [(name, prompt) for name, prompts in job.prompts.items() for prompt in prompts]
    tokens = [prompt_ids(tokenizer, prompt.text, job.system_prompt) for _, prompt in items]
    pairs = [pair_ids(tokenizer, pair.prompt, pair.response, job.system_prompt) for pair in job.capability]
    scored = [(ids[: job.max_model_tokens], at) for ids, at in pairs if at < min(len(ids), job.max_model_tokens)]
    steps = len(items) * (1 + job.refusal_probability) + len(scored)
    order = reordered(len(items), job.repeat)

    def decided(place: int, text: str) -> bool:
        return verdict_decided(items[order[place]][1].text, text)

    def finished(done: int, _: int) -> None:
        report({"step": done, "steps": steps})

    try:
        answers = engine.generate(
            [tokens[place] for place in order],
            max_tokens=job.max_tokens,
            stop_token_ids=(end_token(tokenizer),),
            progress=finished,
            decided=decided if job.stop_when_decided else None,
        )
        generations = [answer for _, answer in sorted(zip(order, answers, strict=True), key=itemgetter(0))]
        prefill, decode = engine.generation_seconds
        generated = time.perf_counter()
        beginnings = tokenized_beginnings(tokenizer) if job.refusal_probability else None
        refusals = (
            refusal_probabilities(
                engine, tokens, beginnings, progress=lambda done, _: report({"step": len(items) + done, "steps": steps})
            )
            if beginnings
            else []
        )
        refused = time.perf_counter()
        logprobs = engine.sequence_logprobs(scored)
    except InputError as error:
        raise StageFailed("error", str(error)) from error
    first_tokens = refusal_first_tokens(tokenizer)
    with open(Path(job.output_dir) / GENERATIONS_FILE, "w") as file:
        for place, ((name, prompt), generation) in enumerate(zip(items, generations, strict=True)):
            row = {
                "set": name,
                "id": prompt.id,
                "source": prompt.source,
                "text": generation.text,
                "token_count": generation.token_count,
                "finish_reason": generation.finish_reason,
                "first_token_refusal_probability": first_token_refusal_probability(
                    generation.first_token_logprobs, first_tokens
                ),
            }
            if refusals:
                row["refusal_probability"] = refusals[place].total
            file.write(json.dumps(row) + "\n")
    try:
        guard = perplexity(logprobs, [len(ids) - at for ids, at in scored])
    except ValueError as error:
        raise StageFailed("diverged", str(error)) from error
    ended = time.perf_counter()
    return {
        "metrics": {"perplexity": guard},
        "tokens": sum(generation.token_count for generation in generations),
        "prompts": len(items),
        "decided": sum(generation.finish_reason == "decided" for generation in generations),
        "refusal_beginnings": None
        if beginnings is None
        else {"identity": beginnings.identity(), "dropped": len(beginnings.dropped)},
        "capability_pairs": {"scored": len(scored), "too_long": len(pairs) - len(scored)},
        "seconds": {
            "weights_to_engine": loaded - started,
            # Tokenising, and what generation does besides the model: queueing requests and turning tokens into text.
            "data": generated - loaded - prefill - decode,
            "prefill": prefill,
            "decode": decode,
            "refusal_probability": refused - generated,
            "score": ended - refused,
            "total": ended - started,
        },
    }
