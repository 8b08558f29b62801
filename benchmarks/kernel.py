"""The kernel diagnosis of one model: seconds, memory, and how the probes' error falls, group by group.

    python benchmarks/kernel.py --model smollm2-135m-instruct --data DATA       25 + 25 prompts, scope all, error .1

Prompts are XSTest's safe ones and AdvBench's. Peak memory is the resident memory of this process (VmHWM). The last line
is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from math import exp
from pathlib import Path

import torch

from dcr_ray.data.load import load_prompts
from dcr_ray.diagnosis.kernel import diagnose_kernel
from dcr_ray.diagnosis.opened import open_streamed, open_whole
from dcr_ray.models import ModelCard
from dcr_ray.planning.flops import kernel_flops
from dcr_ray.train.tokens import prompt_tokens
from dcr_ray.weights.resolve import default_cache_dir, resolve


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--data", required=True, type=Path, metavar="FOLDER", help="with XSTest's and AdvBench's files")
    parser.add_argument("--prompts", type=int, default=25)
    parser.add_argument("--scopes", default="all")
    parser.add_argument("--error", type=float, default=0.1)
    parser.add_argument("--groups", type=int, help="a fixed number of groups of probes instead")
    parser.add_argument("--streamed", action="store_true")
    options = parser.parse_args()

    folder = resolve(options.model, cache_dir=default_cache_dir())
    card = ModelCard.from_folder(folder)
    sets = {"seemingly_toxic": "xstest-safe", "toxic": "advbench"}
    prompts = {
        kind: prompt_tokens(
            str(folder), tuple(p.text for p in load_prompts(name, root=options.data, limit=options.prompts)), ""
        )
        for kind, name in sets.items()
    }
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    opened = (open_streamed if options.streamed else open_whole)(folder, device)
    started = time.perf_counter()

    def report(done: int, most: int, error: float | None) -> None:
        seconds = time.perf_counter() - started
        print(f"{done:3d} groups of 4 probes, {seconds:6.1f} s, error of the mean log ratio {error}", flush=True)

    fixed = options.groups
    found = diagnose_kernel(
        opened, prompts, layer=max(1, card.layers // 2), scopes=tuple(options.scopes.split(",")),
        wanted_error=options.error, groups=fixed or 32, fewest_groups=fixed or 3, report=report,
    )  # fmt: skip
    rows = [len(row) for each in prompts.values() for row in each]
    flops = kernel_flops(card, len(rows), found.probes // 4, sum(rows) / len(rows)).model
    for scope, pairs in found.ratios.items():
        for pair in pairs:
            figure, symmetric = pair.figures["log_ratio"], pair.figures["symmetric_log_ratio"]
            print(
                f"{scope:12s} {pair.first} - {pair.second}: ratio {exp(figure.value):.3f}, symmetric "
                f"{exp(symmetric.value):.3f}; errors of the log: probes {figure.probe_error:.3f}, prompts "
                f"{figure.prompt_error:.3f}"
            )
    first = found.ratios[next(iter(found.ratios))][0].figures["log_ratio"]
    print(
        json.dumps(
            {
                "model": options.model,
                "prompts": [options.prompts, options.prompts],
                "scopes": options.scopes.split(","),
                "probes": found.probes,
                "seconds": found.seconds,
                "stopped": found.stopped,
                "probe_error": first.probe_error,
                "prompt_error": first.prompt_error,
                "gflops_per_second": flops / found.seconds / 1e9,
                "peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
                "device": str(device),
            }
        )
    )


if __name__ == "__main__":
    main()
