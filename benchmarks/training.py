"""The two training stages alone: ours against passes through the whole model, the limit l/L, and Trainer.

    python benchmarks/training.py --model smollm2-135m-instruct            # any machine: a real model, built-in data
    python benchmarks/training.py --shape qwen2.5-1.5b --folder FOLDER  # one GPU, bf16: random weights, no hub
    python benchmarks/training.py --shape tiny --folder FOLDER          # does the script work

- DCR: a step of `run_dcr` at depths l/L of .25, .5, .75 against a forward and backward pass of every layer with the
  loss at the last one, by the same code (the limit of their ratio is l/L) and by transformers with padding; and against
  `peer_sweep.refine`, which runs the whole model forward and reads `hidden_states[l]`.
- SFT: `run_sft` against Trainer (`peer_sweep.fine_tune`), LoRA and full, in tokens a second, without padding, and as a
  share of the device's rate: its peak on a GPU (MFU), on a CPU the rate of a matrix product of the model's own shape.

Every figure is a difference of two runs, one longer than the other, so that loading, warming and writing drop out.
Model FLOPs: full fine-tuning 6 N T + 6 V d A, LoRA 4 N T + 4 V d A (no gradient of frozen weights), with N the
parameters of the layers' matrices, T tokens, A answer tokens (where the head is needed), V d the head; attention's own
products and the adapters' are left out, and so are tokens that all rows share, which ours computes once, so a share is
a model's FLOPs over time and not what the hardware did. Needs neither Ray nor vLLM. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import os
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent.parent))

from peer_sweep import Data, fine_tune, refine  # noqa: E402

from dcr_ray.data.load import load_pairs, load_prompts  # noqa: E402
from dcr_ray.models import ModelCard  # noqa: E402
from dcr_ray.recipe import ContrastiveRecipe, LoraRecipe, SftRecipe  # noqa: E402
from dcr_ray.shape import Shape  # noqa: E402
from dcr_ray.train.jobs import DcrJob, SftJob  # noqa: E402
from dcr_ray.weights.resolve import default_cache_dir, resolve  # noqa: E402
from dcr_ray.weights.tiny import TOKENIZER_TEXT, build_tiny_model  # noqa: E402

QWEN_1_5B = SimpleNamespace(
    layers=28, hidden=1536, intermediate=8960, heads=12, kv_heads=2, head_dim=128, vocabulary=151936
)
TINY = SimpleNamespace(layers=4, hidden=64, intermediate=128, heads=2, kv_heads=1, head_dim=32, vocabulary=512)
PROMPT_WORDS, RESPONSE_WORDS = (16, 64), (64, 384)
SHAPES = {"qwen2.5-1.5b": QWEN_1_5B, "tiny": TINY}
LORA_TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def build_model(folder: Path, shape: SimpleNamespace) -> None:
    """Weights from a normal distribution, a byte-level tokenizer trained on a page of text, and Qwen's rotary base."""
    build_tiny_model(folder, "qwen2", tied=True, initializer_std=0.02, max_positions=32768, **vars(shape))
    config = json.loads((folder / "config.json").read_text())
    config["rope_parameters"] = {"rope_type": "default", "rope_theta": 1e6}
    (folder / "config.json").write_text(json.dumps(config, indent=2))


def texts(count: int, words: tuple[int, int], seed: int) -> tuple[str, ...]:
    chance, known = random.Random(seed), TOKENIZER_TEXT.split()
    return tuple(" ".join(chance.choices(known, k=chance.randint(*words))) for _ in range(count))


def difference(run: Callable[[int], dict[str, float]], short: int, long: int) -> dict[str, float]:
    """Figures of the long run less those of the short one, and the most memory that either took.

    A run before both pays for what is compiled and chosen once in a process; on a GPU a long one, since a batch of a
    shape that was not seen before costs more. A time that is not above 0 is noise and becomes NaN, which ends as null.
    """
    found = []
    for length in (long if torch.cuda.is_available() else short, short, long):
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        found.append(run(length))
    _, less, more = found
    figures = {name: more[name] - less[name] if more[name] > less[name] else math.nan for name in more}
    if torch.cuda.is_available():
        figures["peak_gib"] = round(torch.cuda.max_memory_allocated() / 2**30, 2)
    return figures


def seconds_of(work: Callable[[], Any]) -> float:
    start = time.perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def dcr_figures(options: Any, folder: Path, shape: SimpleNamespace, data: Data, device: torch.device) -> list[dict]:
    from transformers import AutoModelForCausalLM

    from dcr_ray.train.dcr import run_dcr

    per_class = options.batch // 2
    low, high = data.texts["seemingly_toxic"], data.texts["toxic"]
    steps_of_an_epoch = len(low) // per_class

    def recipe(depth: float, steps: int) -> ContrastiveRecipe:
        return ContrastiveRecipe(layer_depth=depth, batch_size=options.batch, epochs=steps / steps_of_an_epoch)

    def ours(depth: float) -> Callable[[int], dict[str, float]]:
        def run(steps: int) -> dict[str, float]:
            out = options.scratch / "dcr"
            shutil.rmtree(out, ignore_errors=True)
            out.mkdir()
            shaped = Shape(precision=options.precision)
            job = DcrJob(str(folder), low, high, (), (), recipe(depth, steps), None, 0, str(out), shaped)
            result = run_dcr(job)
            return {name: result["seconds"][name] for name in ("forward_backward", "optimizer")} | {
                "steps": result["steps"],
                "tokens": result["tokens"],
            }

        return run

    def peer(depth: float) -> Callable[[int], dict[str, float]]:
        def run(steps: int) -> dict[str, float]:
            model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).to(device)
            plain = recipe(depth, steps).model_dump(mode="json")
            work = (model, data, plain, 0, None, False, options.precision)
            return {"step": seconds_of(lambda: refine(*work)), "steps": steps}

        return run

    def whole(steps: int) -> dict[str, float]:
        """Forward and backward of every layer, in the stage's own precision and without padding to spare."""
        dtype = torch.bfloat16 if options.precision == "bf16" else torch.float32
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).to(device).model.train()
        model.get_input_embeddings().requires_grad_(False)
        rows = data.prompts["seemingly_toxic"][:per_class] + data.prompts["toxic"][:per_class]
        batch = data.tokenizer.pad({"input_ids": rows}, return_tensors="pt").to(device)["input_ids"]

        def passes() -> None:
            for _ in range(steps):
                model(input_ids=batch, use_cache=False)[0].float().square().mean().backward()
                model.zero_grad(set_to_none=True)

        return {"forward_backward": seconds_of(passes), "steps": steps}

    short, long = options.warm, options.warm + options.steps
    padded, every = difference(whole, short, long), difference(ours(1.0), short, long)
    padded_ms = 1e3 * padded["forward_backward"] / padded["steps"]
    every_ms = 1e3 * every["forward_backward"] / every["steps"]
    found = []
    for depth in (0.25, 0.5, 0.75):
        mine, theirs = difference(ours(depth), short, long), difference(peer(depth), short, long)
        pass_ms = 1e3 * mine["forward_backward"] / mine["steps"]
        step_ms = pass_ms + 1e3 * mine["optimizer"] / mine["steps"]
        peer_ms = 1e3 * theirs["step"] / theirs["steps"]
        found.append(
            {
                "depth": depth,
                "ours_forward_backward_ms": round(pass_ms, 2),
                "ours_all_layers_ms": round(every_ms, 2),
                "transformers_all_layers_ms": round(padded_ms, 2),
                "limit": round(recipe(depth, 1).layer(shape.layers) / shape.layers, 3),
                "share_of_ours": round(pass_ms / every_ms, 3),
                "share_of_transformers": round(pass_ms / padded_ms, 3),
                "ours_step_ms": round(step_ms, 2),
                "peer_step_ms": round(peer_ms, 2),
                "peer_over_ours": round(peer_ms / step_ms, 3),
                "tokens_a_step": mine["tokens"] / mine["steps"],
                "peak_gib": {"ours": mine.get("peak_gib"), "peer": theirs.get("peak_gib")},
            }
        )
        print(found[-1], flush=True)
    return found


def sft_figures(options: Any, folder: Path, shape: SimpleNamespace, data: Data, device: torch.device) -> list[dict]:
    from transformers import AutoModelForCausalLM

    from dcr_ray.train.sft import run_sft

    pairs = tuple(zip(data.texts["general"], data.texts["responses"], strict=True))
    matrices = shape.layers * (
        shape.hidden * shape.head_dim * 2 * (shape.heads + shape.kv_heads) + 3 * shape.hidden * shape.intermediate
    )
    found = []
    for kind in ("lora", "full"):
        lora = LoraRecipe(rank=16, alpha=32, targets=LORA_TARGETS) if kind == "lora" else None

        base = SftRecipe(batch_size=options.pairs_a_step, max_tokens=options.max_tokens, lora=lora)

        def recipe(epochs: int, base: SftRecipe = base) -> SftRecipe:
            return base.model_copy(update={"epochs": epochs})

        def ours(epochs: int) -> dict[str, float]:
            out = options.scratch / "sft"
            shutil.rmtree(out, ignore_errors=True)
            out.mkdir()
            shaped = Shape(precision=options.precision)
            result = run_sft(SftJob(str(folder), None, pairs, (), recipe(epochs), None, 0, str(out), shaped))
            seconds = result["seconds"]["forward_backward"] + result["seconds"]["optimizer"]
            return {"seconds": seconds, "tokens": result["tokens"], "answers": result["metrics"]["sft_answer_tokens"]}

        def peer(epochs: int) -> dict[str, float]:
            # Our stages set it for DeepSpeed, and Trainer would take it for a launcher's.
            os.environ.pop("LOCAL_RANK", None)
            model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).to(device)
            plain = recipe(epochs).model_dump(mode="json")
            work = (model, data, plain, 0, None, options.scratch, options.precision)
            return {"seconds": seconds_of(lambda: fine_tune(*work))}

        mine, theirs = difference(ours, 1, 1 + options.epochs), difference(peer, 1, 1 + options.epochs)
        factor = 4 if lora else 6
        flops = factor * (matrices * mine["tokens"] + shape.vocabulary * shape.hidden * mine["answers"])
        found.append(
            {
                "kind": kind,
                "ours_tokens_per_second": round(mine["tokens"] / mine["seconds"], 1),
                "trainer_tokens_per_second": round(mine["tokens"] / theirs["seconds"], 1),
                "ratio": round(theirs["seconds"] / mine["seconds"], 3),
                "ours_share_of_rate": round(flops / mine["seconds"] / options.peak_flops, 4),
                "trainer_share_of_rate": round(flops / theirs["seconds"] / options.peak_flops, 4),
                "peak_gib": {"ours": mine.get("peak_gib"), "trainer": theirs.get("peak_gib")},
            }
        )
        print(found[-1], flush=True)
    return found


def matmul_rate(shape: SimpleNamespace, device: torch.device, dtype: torch.dtype) -> float:
    """FLOPs a second of one product of 512 tokens with the model's largest matrix, the best of some."""
    left = torch.randn(512, shape.hidden, device=device, dtype=dtype)
    right = torch.randn(shape.intermediate, shape.hidden, device=device, dtype=dtype)
    flops = 2 * 512 * shape.hidden * shape.intermediate
    times = []
    for _ in range(20):
        times.append(seconds_of(lambda: torch.nn.functional.linear(left, right)))
    return flops / min(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    chosen = parser.add_mutually_exclusive_group(required=True)
    chosen.add_argument("--model", help="built-in name, hub id or folder; trained on the built-in data")
    chosen.add_argument("--shape", choices=list(SHAPES), help="random weights of this shape, random words")
    parser.add_argument("--folder", help="with --shape: where the random model is written, once")
    parser.add_argument("--precision", choices=["fp32", "mixed", "bf16"], help="ours; bf16 on a GPU, else fp32")
    parser.add_argument("--only", choices=["dcr", "sft"])
    parser.add_argument("--peak-flops", type=float, help="of the device; 989e12 (H100 SXM, dense bf16) on a GPU")
    parser.add_argument("--batch", type=int, default=32, help="prompts of a DCR batch")
    parser.add_argument("--pairs-a-step", type=int, default=8, help="sequences of an SFT batch")
    parser.add_argument("--warm", type=int, default=2, help="DCR steps of the shorter run")
    parser.add_argument("--steps", type=int, default=8, help="DCR steps that are measured")
    parser.add_argument("--pairs", type=int, default=64, help="SFT pairs of an epoch")
    parser.add_argument("--epochs", type=int, default=1, help="SFT epochs that are measured, after one of warming")
    parser.add_argument("--max-tokens", type=int, default=512)
    options = parser.parse_args()
    if options.shape and not options.folder:
        parser.error("--shape needs --folder")
    if find_spec("deepspeed") is None:
        sys.exit("dcr_ray.train needs DeepSpeed: `make environment LOCK=locks/gpu.txt`, or pip install deepspeed")
    from transformers import AutoTokenizer, logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    options.precision = options.precision or ("bf16" if device.type == "cuda" else "fp32")
    if options.model:
        folder = resolve(options.model, cache_dir=default_cache_dir())
        card = ModelCard.from_folder(folder)
        shape = SimpleNamespace(
            layers=card.layers,
            hidden=card.hidden_size,
            intermediate=card.intermediate_size,
            heads=card.heads,
            kv_heads=card.kv_heads,
            head_dim=card.head_dim,
            vocabulary=card.vocabulary,
        )
        data = BuiltinData(AutoTokenizer.from_pretrained(folder), options.pairs)
    else:
        shape, folder = SHAPES[options.shape], Path(options.folder).absolute()
        if not (folder / "config.json").exists():
            print(f"writing a random model to {folder}", flush=True)
            build_model(folder, shape)
        data = RandomData(AutoTokenizer.from_pretrained(folder), options.batch * 4, options.pairs)
    if options.peak_flops is None:
        rate = matmul_rate(shape, device, torch.float32 if options.precision == "fp32" else torch.bfloat16)
        options.peak_flops = 989e12 if device.type == "cuda" else rate
    with tempfile.TemporaryDirectory(prefix="dcr-training-") as scratch:
        options.scratch = Path(scratch)
        cpu = f"cpu, {torch.get_num_threads()} threads"
        document = {
            "device": torch.cuda.get_device_name() if device.type == "cuda" else cpu,
            "precision": options.precision,
            "model": vars(shape),
            "rate": options.peak_flops,
            "dcr": dcr_figures(options, folder, shape, data, device) if options.only != "sft" else [],
            "sft": sft_figures(options, folder, shape, data, device) if options.only != "dcr" else [],
        }
    print(json.dumps(without_nan(document)))


def without_nan(value: Any) -> Any:
    """JSON has no NaN."""
    if isinstance(value, dict):
        return {name: without_nan(each) for name, each in value.items()}
    if isinstance(value, list):
        return [without_nan(each) for each in value]
    return None if isinstance(value, float) and math.isnan(value) else value


class RandomData(Data):
    """Prompts and pairs of random words, as texts for our stages and as token ids for the peer's."""

    def __init__(self, tokenizer: Any, prompts: int, pairs: int):
        self._encode(
            tokenizer,
            {
                "seemingly_toxic": texts(prompts, PROMPT_WORDS, 0),
                "toxic": texts(prompts, PROMPT_WORDS, 1),
                "general": texts(pairs, PROMPT_WORDS, 2),
                "responses": texts(pairs, RESPONSE_WORDS, 3),
            },
        )

    def _encode(self, tokenizer: Any, texts: dict[str, tuple[str, ...]]) -> None:
        self.tokenizer, self.system_prompt, self.texts = tokenizer, None, texts
        self.prompts = {name: [self.prompt(text) for text in self.texts[name]] for name in ("seemingly_toxic", "toxic")}
        both = zip(self.texts["general"], self.texts["responses"], strict=True)
        self.pairs = {"general": [self.pair(*pair) for pair in both], "safety": []}


class BuiltinData(RandomData):
    """The package's own prompts, and short chats of mixed lengths: instructions and refusals."""

    def __init__(self, tokenizer: Any, pairs: int):
        chats = [*load_pairs("builtin-instructions", split="train"), *load_pairs("builtin-refusals", split="train")]
        chats = random.Random(0).sample(chats, pairs)
        self._encode(
            tokenizer,
            {
                "seemingly_toxic": tuple(p.text for p in load_prompts("builtin-seemingly-toxic", split="train")),
                "toxic": tuple(p.text for p in load_prompts("builtin-toxic", split="train")),
                "general": tuple(pair.prompt for pair in chats),
                "responses": tuple(pair.response for pair in chats),
            },
        )


if __name__ == "__main__":
    main()
