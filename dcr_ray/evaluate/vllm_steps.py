"""vLLM driven step by step: all requests go in at once, and every step's seconds are prefill's or decode's.

A batch that is handed over in parts runs empty at the end of each part; here vLLM's own queue keeps it full. A step may
read prompts and write answers together: its seconds are divided by the tokens that it computed for either. That is
right where a token costs the same (a CPU, large batches); on a GPU with asynchronous scheduling a step's tokens are
those of the step that is being prepared, one ahead of the one that is waited for. It knows nothing of texts.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from itertools import count
from typing import Any, NamedTuple

from dcr_ray.evaluate.generation import GenerationSeconds, Progress

Watch = Callable[[int, list[int]], bool]
"""Told of (place of a request, its tokens so far) after every step that gave it one: whether it may end here."""


class Steps(NamedTuple):
    """What came of some requests, in their order: vLLM's outputs, which of them the watch ended, and the seconds."""

    outputs: list[Any]
    ended: set[int]
    seconds: GenerationSeconds

    @property
    def cached_tokens(self) -> int:
        """Tokens of prompts that the prefix cache had."""
        return sum(output.num_cached_tokens or 0 for output in self.outputs)


class StepDriver:
    """Drives the engine core of one in-process `vllm.LLM`."""

    def __init__(self, llm: Any):
        self._engine = llm.llm_engine
        self._ids = count()
        self._computed = (0, 0)
        scheduler = self._engine.engine_core.engine_core.scheduler
        schedule = scheduler.schedule

        def counted(*args: Any, **kwargs: Any) -> Any:
            scheduled = schedule(*args, **kwargs)
            self._computed = computed_tokens(scheduled)
            return scheduled

        scheduler.schedule = counted

    def run(
        self,
        requests: Sequence[tuple[Sequence[int], Any]],
        progress: Progress | None = None,
        watch: Watch | None = None,
    ) -> Steps:
        """Answer requests of (prompt's token ids, SamplingParams), whose `output_kind` is set here.

        `progress` is called after every step that finished some. Requests under way are taken back where it raises.
        """
        from vllm.inputs import tokens_input
        from vllm.sampling_params import RequestOutputKind

        engine = self._engine
        places: dict[str, int] = {}
        for place, (tokens, parameters) in enumerate(requests):
            parameters.output_kind = RequestOutputKind.CUMULATIVE if watch else RequestOutputKind.FINAL_ONLY
            name = str(next(self._ids))
            engine.add_request(name, tokens_input(list(tokens)), parameters)
            places[name] = place
        total = len(places)
        found: dict[int, Any] = {}
        ended: set[int] = set()
        prefill = decode = 0.0
        try:
            while engine.has_unfinished_requests():
                before = len(found)
                self._computed = (0, 0)
                started = time.perf_counter()
                for output in engine.step():
                    place = places[output.request_id]
                    if output.finished:
                        found[place] = output
                    elif watch is not None and watch(place, output.outputs[0].token_ids):
                        engine.abort_request([output.request_id])
                        found[place] = output
                        ended.add(place)
                seconds = time.perf_counter() - started
                of_prompts, of_answers = self._computed
                share = of_prompts / (of_prompts + of_answers) if of_prompts + of_answers else 0.0
                prefill += seconds * share
                decode += seconds * (1 - share)
                if progress is not None and len(found) > before:
                    progress(len(found), total)
        finally:
            left = [name for name, place in places.items() if place not in found]
            if left:
                engine.abort_request(left)
        return Steps([found[place] for place in range(total)], ended, GenerationSeconds(prefill, decode))


def computed_tokens(scheduled: Any) -> tuple[int, int]:
    """Tokens of (prompts, answers) that a step computes, of vLLM's SchedulerOutput."""
    known = scheduled.scheduled_cached_reqs
    answers = sum(
        scheduled.num_scheduled_tokens[name]
        for name, written in zip(known.req_ids, known.num_output_tokens, strict=True)
        if written
    )
    return scheduled.total_num_scheduled_tokens - answers, answers
