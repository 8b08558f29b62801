"""Memory of the training stages: the planner's figure against the peak of a process, and a rank's part of a model.

    python benchmarks/memory.py --model smollm2-135m-instruct      DCR at half depth, SFT with LoRA, SFT in full
    python benchmarks/memory.py --ranks 2                          a random model of 200M parameters under ZeRO-0 and 3

Each stage runs in processes of its own, in fp32, for a few steps. On a CPU the peak is the resident memory since the
stage's beginning (VmHWM), which holds the libraries too, as the planner's workspace does; on a GPU it is what torch has
reserved. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from dcr_ray.models import ModelCard
from dcr_ray.planning.memory import GIB, dcr_memory, sft_memory
from dcr_ray.pools.worker_group import RETURNED_BYTES
from dcr_ray.recipe import ContrastiveRecipe, LoraRecipe, SftRecipe
from dcr_ray.shape import Shape
from dcr_ray.train.jobs import DcrJob, SftJob
from dcr_ray.weights.resolve import default_cache_dir, resolve

TOKENS, BATCH = 96, 8
ALL = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--ranks", type=int, default=1, help="2: what a rank holds under ZeRO-0 and ZeRO-3")
    parser.add_argument("--one", nargs=4, metavar=("STAGE", "MODEL", "FOLDER", "ZERO"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        one(*options.one)
        return
    with tempfile.TemporaryDirectory(prefix="dcr-ray-memory-") as folder:
        rows = ranks_rows(Path(folder), options.ranks) if options.ranks > 1 else stage_rows(options.model, Path(folder))
    print(json.dumps({"rows": rows}))


def job_of(stage: str, model: str, folder: Path, shape: Shape) -> DcrJob | SftJob:
    words = "please tell me about the long and quiet river that runs below our town and what people did there"
    prompts = tuple(f"{words} {index} {words} {index}" for index in range(4 * BATCH))
    output = str(folder)
    if stage == "dcr":
        recipe = ContrastiveRecipe(batch_size=BATCH, layer_depth=0.5, epochs=1, strength=1e-4, max_prompt_tokens=TOKENS)
        return DcrJob(model, prompts[:16], prompts[16:], (), (), recipe, "", 0, output, shape)
    lora = LoraRecipe(rank=16, targets=ALL) if stage == "lora" else None
    recipe = SftRecipe(batch_size=BATCH, max_tokens=TOKENS, epochs=1, lora=lora, mask_prompt=False)
    pairs = tuple((prompt, prompt) for prompt in prompts)
    return SftJob(model, None, pairs[:24], pairs[24:], recipe, "", 0, output, shape, ("A short question?",))


def one(stage: str, model: str, folder: str, zero: str) -> None:
    """One rank of a stage; prints its results' peak."""
    import os

    import torch

    from dcr_ray.train import export
    from dcr_ray.train.run import run_training_stage

    size, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
    if size > 1:
        torch.set_num_threads(1)
        torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=size)
        # Few tokens, so that it is the model that takes the memory; and a model that does not fit into one file.
        global TOKENS, BATCH
        TOKENS, BATCH = 16, 4
        export.SHARD_BYTES = 200 * 2**20
    output = Path(folder, f"{stage}-{zero}")
    output.mkdir(parents=True, exist_ok=True)
    job = job_of(stage, model, output, Shape(ranks=size, zero_stage=int(zero), precision="fp32", checkpoint_seconds=1))
    results = run_training_stage(replace(job, output_dir=str(output)))
    if rank == 0:
        print(json.dumps(results["peak_bytes"] | {"steps": results["steps"]}))


def stage_rows(model: str, folder: Path) -> list[dict[str, Any]]:
    place = str(resolve(model, cache_dir=default_cache_dir(), offline=None))
    card, shape = ModelCard.from_folder(place), Shape(precision="fp32")
    common = {"tokens": TOKENS, "batch_size": BATCH, "device": "cpu"}
    lora = LoraRecipe(rank=16, targets=ALL)
    needs = {
        "dcr": dcr_memory(card, round(0.5 * card.layers), shape, **common),
        "lora": sft_memory(card, shape, lora, **common),
        "full": sft_memory(card, shape, **common),
    }
    rows = []
    for stage, need in needs.items():
        peak = run(stage, place, folder, 0, 1)["host"]
        error = need.host_bytes / peak - 1
        rows.append({"stage": stage, "planned_gib": need.host_bytes / GIB, "peak_gib": peak / GIB, "error": error})
        print(f"{stage:5} planned {need.host_bytes / GIB:.2f} GiB, peak {peak / GIB:.2f} GiB, error {error:+.0%}")
    return rows


def ranks_rows(folder: Path, ranks: int) -> list[dict[str, Any]]:
    from dcr_ray.weights.tiny import build_tiny_model

    model = folder / "model"
    build_tiny_model(model, layers=12, hidden=1024, intermediate=4096, heads=16, kv_heads=16, head_dim=64)
    size = 4 * ModelCard.from_folder(model).parameters
    print(f"a model of {size / GIB:.2f} GiB in fp32; with gradients, masters and moments 4 to 5 times as much")
    rows = []
    for stage in ("lora", "full", "dcr"):
        for zero in (0, 3):
            peak = run(stage, str(model), folder, zero, ranks)
            rows.append({"stage": stage, "zero_stage": zero, "growth_over_model": peak["host_growth"] / size} | peak)
            growth = f"{peak['host_growth'] / GIB:.2f} GiB, {peak['host_growth'] / size:.2f} models"
            print(f"{stage:5} ZeRO-{zero}, {ranks} ranks: a rank grows by {growth}", flush=True)
    return rows


def run(stage: str, model: str, folder: Path, zero: int, ranks: int) -> dict[str, int]:
    import os

    (folder / "store").unlink(missing_ok=True)
    command = [sys.executable, __file__, "--one", stage, model, str(folder), str(zero)]
    started = [
        subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ
            | ({"WORLD_SIZE": str(ranks), "RANK": str(rank)} if ranks > 1 else {})
            | (RETURNED_BYTES if zero == 3 else {}),
        )
        for rank in range(ranks)
    ]
    answers = [process.communicate()[0] for process in started]
    if any(process.returncode for process in started):
        raise SystemExit(f"{stage} under ZeRO-{zero} failed")
    return json.loads(answers[0].splitlines()[-1])


if __name__ == "__main__":
    main()
