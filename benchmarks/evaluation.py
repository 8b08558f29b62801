"""Evaluation against bare vLLM: the same prompts, cap and LLM object, in turns, after a warm-up of each.

    python benchmarks/evaluation.py --model FOLDER [--prompts 84] [--max-tokens 24] [--rounds 3] [--defaults]

`bare` is `vllm.LLM.generate` with nothing but temperature 0 and the cap. `engine` is VllmEngine.generate, which also
gives the first token's 20 log-probabilities. `stage` is the generate stage, with the proof of the weights, tokenising,
the file of answers and one capability pair. All run on one `vllm.LLM`, so that only our part differs. Ratios are of
tokens a CPU second on a CPU, where others' load does not count, and of tokens a second elsewhere. --defaults also
measures `vllm.LLM` with its own settings but for the precision, in a process of its own.

The last line of stdout is a JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

TARGET = 0.95

DEFAULTS = """
import json, sys, time
import vllm
request = json.load(sys.stdin)
llm = vllm.LLM(request["model"], dtype=request["dtype"], max_model_len=request["max_model_len"])
parameters = vllm.SamplingParams(temperature=0.0, max_tokens=request["max_tokens"])
prompts = [{"prompt_token_ids": tokens} for tokens in request["prompts"]]
rates = []
for _ in range(request["rounds"] + 1):
    llm.reset_prefix_cache()
    started = time.perf_counter()
    outputs = llm.generate(prompts, parameters, use_tqdm=False)
    rates.append(sum(len(o.outputs[0].token_ids) for o in outputs) / (time.perf_counter() - started))
print(json.dumps(rates[1:]))
"""


def main() -> None:
    options = _options()
    from dcr_ray.data.chat import prompt_ids
    from dcr_ray.evaluate.vllm_engine import VllmEngine

    prompts, pair = _prompts(options.prompts)
    max_model_len = options.max_tokens + 256
    engine = VllmEngine(options.model, max_model_len=max_model_len, threads=options.threads)
    tokens = [prompt_ids(engine.tokenizer, prompt.text, "") for prompt in prompts]
    from vllm import SamplingParams
    from vllm.platforms import current_platform

    llm = engine._llm
    plain = SamplingParams(temperature=0.0, max_tokens=options.max_tokens)
    requests = [{"prompt_token_ids": each} for each in tokens]
    splits: list[dict[str, float]] = []

    def bare() -> int:
        return sum(len(output.outputs[0].token_ids) for output in llm.generate(requests, plain, use_tqdm=False))

    def ours() -> int:
        return sum(answer.token_count for answer in engine.generate(tokens, max_tokens=options.max_tokens))

    def stage() -> int:
        results = _stage(engine, options, prompts, pair, max_model_len)
        splits.append(results["seconds"])
        return results["tokens"]

    ways: dict[str, Callable[[], int]] = {"bare": bare, "engine": ours, "stage": stage}
    on_cpu = current_platform.is_cpu()
    rates: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for round_ in range(options.rounds + 1):
        for name, way in ways.items():
            llm.reset_prefix_cache()
            wall, cpu = time.perf_counter(), _cpu_seconds()
            count = way()
            wall, cpu = time.perf_counter() - wall, _cpu_seconds() - cpu
            if round_:
                rates[name].append((count / wall, count / cpu))
                print(f"round {round_} {name:7s} {count} tokens, {count / wall:.1f}/s, {count / cpu:.1f} a CPU second")
    engine.close()
    per_wall = {name: median(wall for wall, _ in found) for name, found in rates.items()}
    per_cpu = {name: median(cpu for _, cpu in found) for name, found in rates.items()}
    decisive = per_cpu if on_cpu else per_wall
    # The rounds' own ratios: what disturbs a round disturbs both of its sides.
    ratios = {
        name: median(found[on_cpu] / bare[on_cpu] for found, bare in zip(rates[name], rates["bare"], strict=True))
        for name in ("engine", "stage")
    }
    split = {name: median(each[name] for each in splits[1:]) for name in splits[0]}
    result: dict[str, Any] = {
        "model": Path(options.model).name,
        "prompts": len(prompts),
        "max_tokens": options.max_tokens,
        "tokens_per_second": per_wall,
        "tokens_per_cpu_second": per_cpu,
        "ratio_to_bare": ratios,
        "target": TARGET,
        "reached": ratios["engine"] >= TARGET,
        "stage_seconds": split,
    }
    for name, rate in decisive.items():
        print(f"{name:7s} {rate:.1f} tokens a {'CPU ' if on_cpu else ''}second")
    for name, ratio in ratios.items():
        print(f"{name} / bare: {ratio:.3f} (target {TARGET})")
    print("stage: " + ", ".join(f"{name} {seconds:.2f} s" for name, seconds in split.items()))
    if options.defaults:
        result["defaults_tokens_per_second"] = _defaults(options, tokens, max_model_len, engine.precision)
        print(f"vLLM's own settings: {result['defaults_tokens_per_second']:.1f} tokens a second")
    print(json.dumps(result))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="a Hugging Face model folder")
    parser.add_argument("--prompts", type=int, default=84, help="of the built-in sets, repeated in their order")
    parser.add_argument("--max-tokens", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1, help="of vLLM's CPU backend")
    parser.add_argument("--defaults", action="store_true", help="also vLLM with its own settings")
    return parser.parse_args()


def _prompts(count: int) -> tuple[list[Any], Any]:
    """That many prompts of the built-in sets, and a capability pair."""
    from itertools import cycle, islice

    from dcr_ray.data.of_study import load_study_data
    from dcr_ray.study import load_study

    spec = load_study(Path(__file__).parent.parent / "search_spaces" / "quickstart.yaml")
    data = load_study_data(spec.data)
    return list(islice(cycle((*data.compliance, *data.defense)), count)), data.capability[0]


def _stage(
    engine: Any, options: argparse.Namespace, prompts: list[Any], pair: Any, max_model_len: int
) -> dict[str, Any]:
    from dcr_ray.evaluate.jobs import GenerateJob
    from dcr_ray.evaluate.run import run_generate

    with tempfile.TemporaryDirectory() as folder:
        job = GenerateJob(
            options.model, {"compliance": tuple(prompts)}, (pair,), "", options.max_tokens, max_model_len, folder
        )
        return run_generate(job, engine)


def _defaults(options: argparse.Namespace, tokens: list[list[int]], max_model_len: int, precision: str) -> float:
    """Tokens a second of vLLM with its own settings, median of the rounds."""
    request = {
        "model": options.model,
        "dtype": {"fp32": "float32", "bf16": "bfloat16"}[precision],
        "max_model_len": max_model_len + 1,
        "max_tokens": options.max_tokens,
        "prompts": tokens,
        "rounds": options.rounds,
    }
    ours = ("VLLM_", "OMP_NUM_THREADS")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    done = subprocess.run(
        [sys.executable, "-c", DEFAULTS],
        input=json.dumps(request),
        env=environment | {"VLLM_LOGGING_LEVEL": "ERROR", "HF_HUB_OFFLINE": "1"},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return median(json.loads(done.stdout.splitlines()[-1]))


def _cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    main()
