"""A vLLM engine that lives in the calling process and is handed one checkpoint after another.

It knows nothing of Ray: an actor may hold it as well as a script. One process should hold one engine in its life,
since vLLM does not give all GPU memory back. Exchange of weights on more than one GPU (tensor_parallel_size > 1) goes
the way vLLM documents and rests on the canary alone for proof.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal

from dcr_ray.errors import InputError, Problem
from dcr_ray.evaluate.canary import ASKED_LOGPROBS, WeightFiles, prove_live, swap_and_prove, weight_file_facts
from dcr_ray.evaluate.generation import (
    DECIDED_EVERY,
    TOP_LOGPROBS,
    Decided,
    Generation,
    GenerationSeconds,
    Place,
    Precision,
    Progress,
    check_continuations,
    check_prompts,
    check_same_shape,
    check_sequences,
    end_tokens,
    walk_continuations,
)
from dcr_ray.evaluate.vllm_steps import StepDriver
from dcr_ray.evaluate.vllm_weights import load_changed, load_folder
from dcr_ray.weights.identity import model_identity
from dcr_ray.weights.shared_memory import POINTER_FILE, offered
from dcr_ray.weights.untied import untied_copy

CPU_KV_CACHE_BYTES = 256 * 2**20
"""Room for some thousand tokens of a small model; vLLM queues what does not fit."""

CPU_BATCHED_TOKENS = 256
"""Tokens of a step on a CPU. Prompt log-probabilities need this many x vocabulary x 4 bytes, three times over."""

CONTINUED_PROMPTS = 128
"""Prompts whose continuations are scored together: they must stay in the prefix cache from one length to the next."""


class VllmEngine:
    """One vLLM engine. Raises InputError for a folder without a model or a model that vLLM cannot hold."""

    def __init__(
        self,
        model_dir: Path | str,
        *,
        precision: Precision = "auto",
        max_model_len: int = 1024,
        kv_cache_bytes: int | None = None,
        threads: int | None = None,
        max_num_seqs: int = 64,
        gpu_memory_utilization: float = 0.9,
        tensor_parallel_size: int = 1,
        seed: int = 0,
        batch_invariant: bool = False,
        untied: bool = False,
    ):
        """Load `model_dir`, a Hugging Face folder.

        `precision` auto is the folder's own on a GPU and fp32 on a CPU, where bf16 is faster with AMX and far slower
        without bf16 instructions.
        `kv_cache_bytes` None is CPU_KV_CACHE_BYTES on a CPU and what gpu_memory_utilization leaves on a GPU.
        `threads` are those of the CPU backend.
        `batch_invariant` asks for kernels that add in the same order whatever else is in the batch, at a loss of speed.
        Raises InputError where vLLM has none for this hardware. It must be the first engine of its process.
        `untied` gives a tied model a head of its own, so that checkpoints of both kinds can be loaded.
        """
        self._model_dir = str(model_dir)
        if not (Path(model_dir) / "config.json").exists():
            raise InputError([Problem("model_dir", str(model_dir), "a folder with config.json and safetensors")])
        _set_environment(threads)

        from vllm.platforms import current_platform

        if batch_invariant and not _has_batch_invariant_kernels(current_platform):
            raise InputError([_no_batch_invariance(f"vLLM on {current_platform.get_device_name()}")])
        # Kernels read it as their modules are imported. Left to the caller's environment it would be in no identity.
        os.environ["VLLM_BATCH_INVARIANT"] = str(int(batch_invariant))
        import vllm

        self._on_cpu = current_platform.is_cpu()
        dtype = {"fp32": "float32", "bf16": "bfloat16", "auto": "float32" if self._on_cpu else "auto"}[precision]
        arguments: dict[str, Any] = {}
        if self._on_cpu:
            arguments |= {
                "enforce_eager": True,
                "max_num_batched_tokens": max(CPU_BATCHED_TOKENS, max_num_seqs),
                # Prefixes are shared by whole blocks, and the CPU backend's default of 128 is longer than most prompts.
                "block_size": 32,
            }
            kv_cache_bytes = kv_cache_bytes or CPU_KV_CACHE_BYTES
            if threads:
                import torch

                torch.set_num_threads(threads)
        self._untied = untied
        with untied_copy(self._model_dir) if untied else nullcontext(self._model_dir) as folder:
            self._llm = vllm.LLM(
                folder,
                dtype=dtype,
                seed=seed,
                max_model_len=max_model_len + 1,  # a scored sequence is followed by one token that nobody reads
                max_num_seqs=max_num_seqs,
                tensor_parallel_size=tensor_parallel_size,
                distributed_executor_backend="uni" if tensor_parallel_size == 1 else "mp",
                gpu_memory_utilization=gpu_memory_utilization,
                kv_cache_memory_bytes=kv_cache_bytes,
                enable_prefix_caching=True,
                generation_config="vllm",
                max_logprobs=ASKED_LOGPROBS,
                use_tqdm_on_load=False,
                **arguments,
            )
        self.precision = "fp32" if "float32" in str(self._llm.llm_engine.model_config.dtype) else "bf16"
        self._max_model_len = max_model_len
        self._steps = StepDriver(self._llm)
        self._end_tokens = end_tokens(model_dir, self.tokenizer)
        self._loaded: WeightFiles | None = weight_file_facts(model_dir)
        # Names of the tensors that are not the base model's; None where it is not known.
        self._changed: frozenset[str] | None = frozenset()
        self.generation_seconds = GenerationSeconds()
        self._warm_up()

    def _warm_up(self) -> None:
        """Have the first calls' compilation behind, which takes some seconds, before there is work.

        vLLM compiles the ranks of log-probabilities, for one row and anew for any number.
        """
        token = min(self._end_tokens, default=0)
        for rows in (1, 2, 3):
            self.generate([[token] * 4] * rows, max_tokens=1)
            self.sequence_logprobs([([token] * (2 + rows), 1)])
        self._llm.reset_prefix_cache()

    @property
    def tokenizer(self) -> Any:
        return self._llm.get_tokenizer()

    def load(self, checkpoint_dir: Path | str) -> None:
        """Exchange the weights for those of `checkpoint_dir` and prove it; a failed proof is tried again once.

        Where the checkpoint's changed tensors are offered in this node's shared memory (`weights.shared_memory`),
        only they are loaded, and those that the weights before had changed are set back to the base model's. Weights
        that the engine has already are only proven. The second try always reads the folder, whole. Raises InputError
        for a checkpoint of another shape, and StaleWeights after the second failed proof: the engine must then be
        closed and built anew.
        """
        check_same_shape(self._model_dir, checkpoint_dir, tied_or_not=self._untied)
        swap_and_prove(self, (self._load_quickly, self._load_folder), checkpoint_dir)

    def _load_quickly(self, checkpoint_dir: Path | str) -> None:
        facts = weight_file_facts(checkpoint_dir)
        if facts and facts == self._loaded:
            self._llm.reset_prefix_cache()  # a further evaluation of the same weights begins as the first one did
            return
        found = offered(checkpoint_dir, self._base_identity) if (Path(checkpoint_dir) / POINTER_FILE).exists() else None
        if found is None:
            self._load_folder(checkpoint_dir)
            return
        changed, self._changed, self._loaded = self._changed, None, None
        names = None if changed is None else sorted(changed | found.names)
        try:
            self._llm.collective_rpc(load_changed, args=(self._model_dir, str(found.file), names))
        except FileNotFoundError:
            self._load_folder(checkpoint_dir)  # the offer was removed in this moment
            return
        self._llm.reset_prefix_cache()
        self._changed, self._loaded = found.names, facts

    def _load_folder(self, checkpoint_dir: Path | str) -> None:
        self._changed, self._loaded = None, None
        self._llm.collective_rpc(load_folder, args=(str(checkpoint_dir),))
        self._llm.reset_prefix_cache()
        self._loaded = weight_file_facts(checkpoint_dir)
        if self._loaded == weight_file_facts(self._model_dir):
            self._changed = frozenset()

    @cached_property
    def _base_identity(self) -> str:
        return model_identity(self._model_dir)

    def prove_live(
        self, checkpoint_dir: Path | str, *, without_canary: Literal["compute", "skip"] = "compute"
    ) -> float | None:
        """Largest difference to the canary of `checkpoint_dir`, in nats; see `canary.prove_live`."""
        return prove_live(self, checkpoint_dir, self.precision, without_canary)

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        max_tokens: int,
        stop_token_ids: Sequence[int] = (),
        logprobs: int = TOP_LOGPROBS,
        progress: Progress | None = None,
        decided: Decided | None = None,
    ) -> list[Generation]:
        """Greedy responses in the order of the prompts, with the `logprobs` most probable first tokens of each.

        Stops at the model's end tokens and `stop_token_ids`, and where `decided` says so. Raises InputError for prompts
        that do not fit.
        """
        from vllm import SamplingParams

        check_prompts(prompts, max_tokens, self._max_model_len)
        stop = sorted(self._end_tokens | set(stop_token_ids))
        # The stop tokens say all that ends an answer, so the library's own notion of it is turned off. Text is decoded
        # here, once, so that both engines decode alike.
        common = {"temperature": 0.0, "stop_token_ids": stop, "ignore_eos": True, "detokenize": False}
        parameters = SamplingParams(max_tokens=max_tokens, logprobs=logprobs, flat_logprobs=True, **common)

        def watch(place: int, tokens: list[int]) -> bool:
            return len(tokens) % DECIDED_EVERY == 0 and decided(place, self._text(tokens))

        requests = [(prompt, parameters) for prompt in prompts]
        steps = self._steps.run(requests, progress, watch if decided else None)
        self.generation_seconds = steps.seconds
        return [
            self._generation(output.outputs[0], stop, place in steps.ended)
            for place, output in enumerate(steps.outputs)
        ]

    def _text(self, tokens: Sequence[int]) -> str:
        return self.tokenizer.decode(tokens, skip_special_tokens=True)

    def _generation(self, output: Any, stop: Sequence[int], decided: bool) -> Generation:
        tokens = list(output.token_ids)
        stopped = output.finish_reason == "stop"
        kept = tokens[:-1] if stopped and tokens[-1] in stop else tokens
        return Generation(
            text=self._text(kept),
            token_count=len(tokens),
            finish_reason="decided" if decided else "stop" if stopped else "length",
            first_token_logprobs={token: entry.logprob for token, entry in output.logprobs[0].items()},
        )

    def sequence_logprobs(self, sequences: Sequence[tuple[list[int], int]]) -> list[float]:
        """For each (token ids, n_prompt): log-probability in nats of the tokens after the first n_prompt.

        Raises InputError for sequences that do not fit, or have no token before or after the boundary.
        """
        from vllm import SamplingParams

        check_sequences(sequences, self._max_model_len)
        parameters = SamplingParams(
            temperature=0.0, max_tokens=1, prompt_logprobs=0, flat_logprobs=True, detokenize=False
        )
        steps = self._steps.run([(tokens, parameters) for tokens, _ in sequences])
        return [
            # The first entry of a position is the prompt's own token.
            sum(logprobs.logprobs[logprobs.start_indices[at]] for at in range(n_prompt, len(tokens)))
            for (tokens, n_prompt), logprobs in zip(
                sequences, (output.prompt_logprobs for output in steps.outputs), strict=True
            )
        ]

    def continuation_logprobs(
        self,
        prompts: Sequence[Sequence[int]],
        continuations: Sequence[Sequence[int]],
        *,
        negligible: float = 0.0,
        progress: Progress | None = None,
    ) -> list[list[float]]:
        """Log-probability in nats of every continuation after every prompt, shape (prompts, continuations).

        Every prefix is a request of its own, which finds its prompt in the prefix cache. Raises InputError for prompts
        that do not fit. See `generation.walk_continuations`.
        """
        check_continuations(prompts, continuations, self._max_model_len)
        results: list[list[float]] = []
        for start in range(0, len(prompts), CONTINUED_PROMPTS):
            block = prompts[start : start + CONTINUED_PROMPTS]
            results += walk_continuations(len(block), continuations, negligible, partial(self._score, block))
            if progress is not None:
                progress(len(results), len(prompts))
        return results

    def _score(
        self, prompts: Sequence[Sequence[int]], places: list[Place], tokens: list[tuple[int, ...]]
    ) -> Iterator[list[float]]:
        """For every place the log-probabilities of its next tokens."""
        from vllm import SamplingParams

        common = {"temperature": 0.0, "max_tokens": 1, "ignore_eos": True, "detokenize": False}
        parameters = [SamplingParams(logprob_token_ids=list(following), **common) for following in tokens]
        requests = [[*prompts[place.prompt], *place.prefix] for place in places]
        steps = self._steps.run(list(zip(requests, parameters, strict=True)))
        for output, following in zip(steps.outputs, tokens, strict=True):
            logprobs = output.outputs[0].logprobs[0]
            yield [logprobs[token].logprob for token in following]

    def close(self) -> None:
        """Shut the engine down. Its memory is surely free only when the process ends."""
        self._llm.llm_engine.engine_core.shutdown()
        from vllm.distributed import cleanup_dist_env_and_memory

        cleanup_dist_env_and_memory()


def _set_environment(threads: int | None) -> None:
    """vLLM reads these when it is imported or an engine is built."""
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ["VLLM_NO_USAGE_STATS"] = "1"
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    if threads:
        os.environ["OMP_NUM_THREADS"] = str(threads)


def batch_invariance_problems(engine: str, gpus_per_engine: float | None) -> list[Problem]:
    """What is known before anything starts to rule out `evaluation.batch_invariant` with vLLM: that there is no GPU."""
    return [_no_batch_invariance("vLLM on a CPU")] if engine == "vllm" and gpus_per_engine == 0 else []


def _no_batch_invariance(found: str) -> Problem:
    return Problem(
        "evaluation.batch_invariant",
        found,
        "an NVIDIA GPU of compute capability 8.0 or later, an AMD or an Intel GPU",
        "evaluation.engine: transformers answers every prompt alone, which has the same effect on any hardware.",
    )


def _has_batch_invariant_kernels(platform: Any) -> bool:
    """Read from vLLM 0.32, which does not check it: on a CPU its first step raises a TypeError."""
    return platform.is_rocm() or platform.is_xpu() or (platform.is_cuda() and platform.has_device_capability(80))
