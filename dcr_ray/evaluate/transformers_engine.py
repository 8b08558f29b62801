"""The fall-back engine: greedy generation with transformers, in left-padded batches.

It answers as the vLLM engine does, some two times slower, and needs nothing but torch. It keeps no cache from one
call to the next.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from dcr_ray.errors import InputError, Problem
from dcr_ray.evaluate.canary import prove_live, swap_and_prove
from dcr_ray.evaluate.generation import (
    DECIDED_EVERY,
    TOP_LOGPROBS,
    Decided,
    FinishReason,
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


class TransformersEngine:
    """One transformers model in this process. Raises InputError for a folder without a model."""

    def __init__(
        self,
        model_dir: Path | str,
        *,
        precision: Precision = "auto",
        batch_size: int = 16,
        device: str = "cpu",
        batch_invariant: bool = False,
    ):
        """Load `model_dir`, a Hugging Face folder. `precision` auto is fp32 on a CPU and bf16 elsewhere.

        `batch_invariant` computes every prompt and sequence alone, so that no other one changes its rounding.
        """
        if not (Path(model_dir) / "config.json").exists():
            raise InputError([Problem("model_dir", str(model_dir), "a folder with config.json and safetensors")])
        from transformers import AutoTokenizer
        from transformers.utils import logging

        logging.disable_progress_bar()
        self.precision = ("fp32" if device == "cpu" else "bf16") if precision == "auto" else precision
        self._model_dir = str(model_dir)
        self._device = device
        self._batch_size = 1 if batch_invariant else batch_size
        self._tokenizer = AutoTokenizer.from_pretrained(model_dir, local_files_only=True)
        self._model = self._read(model_dir)
        self._max_model_len = self._model.config.max_position_embeddings
        self._end_tokens = end_tokens(model_dir, self._tokenizer)
        self._steering: Any = None
        self.generation_seconds = GenerationSeconds()

    def _read(self, model_dir: Path | str) -> Any:
        import torch
        from transformers import AutoModelForCausalLM

        dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[self.precision]
        model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=dtype, local_files_only=True)
        return model.to(self._device).eval()

    @property
    def tokenizer(self) -> Any:
        return self._tokenizer

    def load(self, checkpoint_dir: Path | str) -> None:
        """Exchange the weights for those of `checkpoint_dir` and prove it; a failed proof is tried again once.

        Raises InputError for a checkpoint of another shape and StaleWeights after the second failed proof.
        """
        check_same_shape(self._model_dir, checkpoint_dir, tied_or_not=True)
        swap_and_prove(self, (self._swap, self._swap), checkpoint_dir)

    def _swap(self, checkpoint_dir: Path | str) -> None:
        self._steering = None
        self._model = None  # before the new weights are read, so that both are never held at once
        self._model = self._read(checkpoint_dir)

    def steer(self, folder: Path | str) -> None:
        """Steer the loaded weights by the SCANS that an edit stage left in `folder`, until other weights are loaded."""
        from dcr_ray.methods.scans import Steering

        self._steering = Steering(self._model, folder)

    @contextmanager
    def _steered(self, prompts: Sequence[Sequence[int]]) -> Iterator[Any]:
        """What says where each pass on these prompts is steered; None without steering."""
        if self._steering is None:
            yield None
            return
        with self._steering.applied(self._steering.signs(prompts)) as steered:
            yield steered

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
        that do not fit. A batch's first pass, which reads its prompts, is prefill; all others are decode.
        """
        check_prompts(prompts, max_tokens, self._max_model_len)
        stop = self._end_tokens | set(stop_token_ids)
        self.generation_seconds = GenerationSeconds()
        results: list[Generation] = []
        for start in range(0, len(prompts), self._batch_size):
            batch = prompts[start : start + self._batch_size]

            def ended(row: int, tokens: list[int], start: int = start) -> FinishReason | None:
                if tokens[-1] in stop:
                    return "stop"
                asked = decided is not None and len(tokens) % DECIDED_EVERY == 0 and len(tokens) < max_tokens
                return "decided" if asked and decided(start + row, self._text(tokens)) else None

            results += self._generate_batch(batch, max_tokens, ended, logprobs)
            if progress is not None:
                progress(len(results), len(prompts))
        return results

    def _generate_batch(
        self,
        prompts: Sequence[Sequence[int]],
        max_tokens: int,
        ended: Callable[[int, list[int]], FinishReason | None],
        logprobs: int,
    ) -> list[Generation]:
        import torch

        width = max(map(len, prompts))
        padding = [width - len(prompt) for prompt in prompts]
        tokens = torch.tensor([[0] * pad + list(prompt) for pad, prompt in zip(padding, prompts)], device=self._device)
        mask = torch.tensor([[0] * pad + [1] * len(p) for pad, p in zip(padding, prompts)], device=self._device)
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        written: list[list[int]] = [[] for _ in prompts]
        reasons: list[FinishReason | None] = [None for _ in prompts]
        first: list[dict[int, float]] = []
        cache = None
        with torch.inference_mode(), self._steered(prompts) as steered:
            for step in range(max_tokens):
                started = time.perf_counter()
                if steered and step == 0:
                    # Padded on the left, all prompts end at the same place.
                    steered.from_places([width - self._steering.after] * len(prompts), width)
                elif steered:
                    steered.everywhere()
                output = self._model(
                    input_ids=tokens,
                    attention_mask=mask,
                    position_ids=positions,
                    past_key_values=cache,
                    use_cache=True,
                    logits_to_keep=1,
                )
                cache, logits = output.past_key_values, output.logits[:, -1].float()
                if step == 0:
                    best = logits.log_softmax(-1).topk(min(max(logprobs, 1), logits.shape[-1]))
                    first = [dict(zip(i, v)) for i, v in zip(best.indices.tolist(), best.values.tolist())]
                chosen = logits.argmax(-1)
                for row, token in enumerate(chosen.tolist()):
                    if reasons[row] is None:
                        written[row].append(token)
                        reasons[row] = ended(row, written[row])
                self._count_seconds(step, time.perf_counter() - started)
                if all(reasons):
                    break
                tokens = chosen[:, None]
                mask = torch.cat([mask, torch.ones_like(tokens)], dim=1)
                positions = positions[:, -1:] + 1
        return [self._generation(*row) for row in zip(written, first, reasons)]

    def _count_seconds(self, step: int, seconds: float) -> None:
        prefill, decode = self.generation_seconds
        self.generation_seconds = GenerationSeconds(prefill + seconds * (step == 0), decode + seconds * (step > 0))

    def _text(self, tokens: Sequence[int]) -> str:
        return self._tokenizer.decode(tokens, skip_special_tokens=True)

    def _generation(self, tokens: list[int], first: dict[int, float], reason: FinishReason | None) -> Generation:
        text = self._text(tokens[:-1] if reason == "stop" else tokens)
        return Generation(text, len(tokens), reason or "length", first)

    def sequence_logprobs(self, sequences: Sequence[tuple[list[int], int]]) -> list[float]:
        """For each (token ids, n_prompt): log-probability in nats of the tokens after the first n_prompt.

        Raises InputError for sequences that do not fit, or have no token before or after the boundary.
        """
        import torch

        check_sequences(sequences, self._max_model_len)
        totals: list[float] = []
        with torch.inference_mode():
            for start in range(0, len(sequences), self._batch_size):
                batch = sequences[start : start + self._batch_size]
                width = max(len(tokens) for tokens, _ in batch)
                padded = torch.tensor([t + [0] * (width - len(t)) for t, _ in batch], device=self._device)
                mask = torch.tensor([[1] * len(t) + [0] * (width - len(t)) for t, _ in batch], device=self._device)
                keep = width - min(n_prompt for _, n_prompt in batch) + 1
                with self._steered([tokens[:n_prompt] for tokens, n_prompt in batch]) as steered:
                    if steered:
                        steered.from_places([n_prompt - self._steering.after for _, n_prompt in batch], width)
                    inputs = {"input_ids": padded, "attention_mask": mask, "use_cache": False}
                    logits = self._model(**inputs, logits_to_keep=keep).logits
                for row, (tokens, n_prompt) in enumerate(batch):
                    # Logits at position t predict token t + 1; the kept ones begin at position width - keep.
                    begin, end = n_prompt - 1 - (width - keep), len(tokens) - 1 - (width - keep)
                    answer = torch.tensor(tokens[n_prompt:], device=self._device)
                    chosen = logits[row, begin:end].float().log_softmax(-1).gather(-1, answer[:, None])
                    totals.append(chosen.double().sum().item())
        return totals

    def continuation_logprobs(
        self,
        prompts: Sequence[Sequence[int]],
        continuations: Sequence[Sequence[int]],
        *,
        negligible: float = 0.0,
        progress: Progress | None = None,
    ) -> list[list[float]]:
        """Log-probability in nats of every continuation after every prompt, shape (prompts, continuations).

        One prompt after another; all prefixes of a length are one batch on the keys and values of their parents. Raises
        InputError for prompts that do not fit. See `generation.walk_continuations`.
        """
        import torch

        check_continuations(prompts, continuations, self._max_model_len)
        results: list[list[float]] = []
        with torch.inference_mode():
            for prompt in prompts:
                with self._steered([prompt]) as steered:
                    results += walk_continuations(1, continuations, negligible, self._scorer(prompt, steered))
                if progress is not None:
                    progress(len(results), len(prompts))
        return results

    def _scorer(
        self, prompt: Sequence[int], steered: Any
    ) -> Callable[[list[Place], list[tuple[int, ...]]], list[list[float]]]:
        """Scores prefixes after one prompt, on the keys and values that it keeps of the prefixes of the call before."""
        import torch

        cache: Any = None
        rows: dict[tuple[int, ...], int] = {}

        def score(places: list[Place], tokens: list[tuple[int, ...]]) -> list[list[float]]:
            nonlocal cache, rows
            prefixes = [place.prefix for place in places]
            if steered and cache is None:
                steered.from_places([len(prompt) - self._steering.after], len(prompt))
            elif steered:
                steered.everywhere()
            if cache is not None:
                cache.batch_select_indices(torch.tensor([rows[p[:-1]] for p in prefixes], device=self._device))
            output = self._model(
                input_ids=torch.tensor([p[-1:] or list(prompt) for p in prefixes], device=self._device),
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            )
            cache, rows = output.past_key_values, {prefix: row for row, prefix in enumerate(prefixes)}
            logprobs = output.logits[:, -1].double().log_softmax(-1)
            return [logprobs[row, list(following)].tolist() for row, following in enumerate(tokens)]

        return score

    def close(self) -> None:
        """Let go of the model."""
        self._model = None
