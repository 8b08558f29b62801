"""The dcr stage: contrastive refinement of layers 1..l (DCR, arXiv 2603.03323).

Pairs come from the global batch. Each rank computes the states of its rows; the states of all ranks are gathered, the
loss and its gradient with respect to the states are computed on every rank, and each rank sends the gradient of its
own states back through the trunk. Where a rank's rows do not fit at once, states are computed without gradient first
and chunk by chunk with gradient after (gradient caching, arXiv 2101.06983): loss and gradient stay those of the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dcr_ray.data.chat import prompt_ids
from dcr_ray.errors import InputError, Problem
from dcr_ray.recipe import ContrastiveRecipe
from dcr_ray.shape import Shape
from dcr_ray.train.checkpoint import remove_checkpoints
from dcr_ray.train.chunks import Chunk, divide
from dcr_ray.train.clock import Clock
from dcr_ray.train.engine import (
    TrainingEngine,
    deepspeed_config,
    memory_failures,
    parameters_divided_at_load,
    training_engine,
)
from dcr_ray.train.jobs import DcrJob, Report, job_digest
from dcr_ray.train.loading import load_trunk, restore_rotary_frequencies
from dcr_ray.train.loop import results, run_steps
from dcr_ray.train.losses import contrastive_loss
from dcr_ray.train.packing import Packed, pack, shared_prefix
from dcr_ray.train.precision import DTYPES, resolved_precision
from dcr_ray.train.sampler import BalancedSampler
from dcr_ray.train.schedule import learning_rate
from dcr_ray.train.separability import held_out_figures
from dcr_ray.train.trunk import PooledStates, write_trunk
from dcr_ray.train.world import World, joined_world

FIGURE_PROMPTS = 64
"""Most prompts of a class that the figures are computed on: their cost must stay below that of the stage itself."""

FIGURE_ROWS = 64


def run_dcr(
    job: DcrJob,
    world: World | None = None,
    report: Report = lambda _: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> dict[str, Any]:
    """Train layers 1..l on this rank together with the others, and write trunk.safetensors (rank 0).

    Returns the same on every rank: losses of the steps, steps, tokens (without padding), seconds, metrics (held-out
    separability, also of the base model as base_...), notes. Raises InputError for a class with fewer than two prompts,
    StageFailed where training diverges or memory runs out, StageStopped where `should_stop` says so.
    """
    _check(job)
    clock = Clock()
    with joined_world(world) as world, memory_failures(world):
        from transformers import AutoConfig, AutoTokenizer

        recipe, shape = job.recipe, job.shape
        precision = resolved_precision(shape.precision, world.device)
        config = deepspeed_config(shape, precision, recipe.gradient_clip, world.device)
        with clock.measure("load"):
            layers = AutoConfig.from_pretrained(job.model_dir, local_files_only=True).num_hidden_layers
            layer = recipe.layer(layers)
            tokenizer = AutoTokenizer.from_pretrained(job.model_dir, local_files_only=True)
            prompts = _Prompts(job, tokenizer)
            with parameters_divided_at_load(config, world.device):
                trunk = load_trunk(job.model_dir, layer, DTYPES[precision])
            restore_rotary_frequencies(trunk)
            if shape.activation_checkpointing:
                trunk.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
            module = PooledStates(trunk, recipe.pooling).train()
        with training_engine(module, world, config, recipe.weight_decay, recipe.gradient_clip) as engine:
            sampler = BalancedSampler(len(job.seemingly_toxic), len(job.toxic), recipe, job.seed)
            step = _Step(engine, prompts, sampler, recipe, shape)
            with clock.measure("figures"):
                metrics = _figures(step, "base_")
            progress = run_steps(
                engine,
                step,
                sampler.steps,
                lambda i: learning_rate(i, sampler.steps, recipe.learning_rate, recipe.warmup_share, final_share=1.0),
                output_dir=Path(job.output_dir),
                shape=shape,
                seed=job.seed,
                job_digest=job_digest(job),
                clock=clock,
                report=report,
                should_stop=should_stop,
            )
            with clock.measure("figures"):
                metrics |= _figures(step, "")
            with clock.measure("export"):
                write_trunk(engine, trunk, layer, layers, Path(job.output_dir))
            if world.rank == 0:
                remove_checkpoints(Path(job.output_dir))
        del module, trunk, step
        return results(progress, clock, metrics, [f"computed in {precision} at layer {layer} of {layers}"])


class _Prompts:
    """Token ids of the job's prompts, each cut to the recipe's limit at its beginning, where templates say least."""

    def __init__(self, job: DcrJob, tokenizer: Any):
        limit = job.recipe.max_prompt_tokens

        def ids(texts: Sequence[str]) -> list[list[int]]:
            return [prompt_ids(tokenizer, text, job.system_prompt)[-limit:] for text in texts]

        self.seemingly_toxic, self.toxic = ids(job.seemingly_toxic), ids(job.toxic)
        self.held_out_seemingly_toxic = ids(_spread(job.held_out_seemingly_toxic))
        self.held_out_toxic = ids(_spread(job.held_out_toxic))


class _Step:
    """Forward and backward of one step; also the states of any prompts, for the figures."""

    def __init__(
        self,
        engine: TrainingEngine,
        prompts: _Prompts,
        sampler: BalancedSampler,
        recipe: ContrastiveRecipe,
        shape: Shape,
    ):
        self.engine, self.prompts, self.sampler, self.recipe = engine, prompts, sampler, recipe
        self.micro = shape.micro_batch_size

    def __call__(self, step: int) -> tuple[float, int]:
        seemingly, toxic = self.sampler.batch(step)
        rows = [self.prompts.seemingly_toxic[i] for i in seemingly] + [self.prompts.toxic[i] for i in toxic]
        is_toxic = torch.tensor([False] * len(seemingly) + [True] * len(toxic), device=self.engine.world.device)
        loss = self.loss_and_backward(rows, is_toxic)
        return loss, sum(map(len, rows))

    def loss_and_backward(self, rows: list[list[int]], is_toxic: Tensor) -> float:
        engine, world = self.engine, self.engine.world
        chunks = divide([len(row) for row in rows], world.size, self.micro)
        at_once = self.micro is None or len(chunks) == 1
        if at_once:
            local = engine(self._inputs(rows, chunks))
        else:
            with torch.no_grad():
                local = torch.cat([engine(self._inputs(rows, [chunk])) for chunk in chunks])
        states = _in_batch_order(world.all_gather(local), chunks, len(rows)).requires_grad_()
        loss = contrastive_loss(states, is_toxic, self.recipe)
        (gradient,) = torch.autograd.grad(loss, states)
        if at_once:
            engine.backward((local * _of_rank(gradient, chunks, world.rank)).sum(), last=True)
        else:
            for chunk in chunks:
                part = engine(self._inputs(rows, [chunk]))
                engine.backward((part * _of_rank(gradient, [chunk], world.rank)).sum(), last=chunk is chunks[-1])
        return loss.item()

    def states(self, rows: list[list[int]]) -> Tensor:
        """States [n, width] of any prompts, without gradient, on the CPU of every rank."""
        engine, world = self.engine, self.engine.world
        chunks = divide([len(row) for row in rows], world.size, self.micro or FIGURE_ROWS)
        with torch.no_grad():
            local = torch.cat([engine(self._inputs(rows, [chunk])) for chunk in chunks])
        return _in_batch_order(world.all_gather(local), chunks, len(rows)).cpu()

    def _inputs(self, rows: list[list[int]], chunks: list[Chunk]) -> list[Packed]:
        world = self.engine.world
        inputs = []
        for chunk in chunks:
            held = [rows[chunk.first if row is None else row] for row in chunk.rows[world.rank]]
            inputs.append(pack(held, shared_prefix(held, self.recipe.max_prompt_tokens), world.device))
        return inputs


def _in_batch_order(gathered: Tensor, chunks: list[Chunk], count: int) -> Tensor:
    """States by rank and chunk [ranks * n, width] -> in the order of the batch [count, width], without fillers."""
    ranks = len(chunks[0].rows)
    order = [row for rank in range(ranks) for chunk in chunks for row in chunk.rows[rank]]
    place = {row: index for index, row in enumerate(order) if row is not None}
    return gathered[[place[row] for row in range(count)]]


def _of_rank(gradient: Tensor, chunks: list[Chunk], rank: int) -> Tensor:
    """The gradient's rows that belong to this rank's states, in their order; 0 for fillers."""
    rows = [row for chunk in chunks for row in chunk.rows[rank]]
    kept = torch.tensor([row is not None for row in rows], device=gradient.device)
    return gradient[[row if row is not None else 0 for row in rows]] * kept[:, None]


def _figures(step: _Step, prefix: str) -> dict[str, float]:
    """Held-out separability as the weights are now; nothing where a held-out class has fewer than two prompts."""
    prompts, recipe = step.prompts, step.recipe
    held_out = (prompts.held_out_seemingly_toxic, prompts.held_out_toxic)
    if min(map(len, held_out)) < 2:
        return {}
    fitted = (_spread(prompts.seemingly_toxic), _spread(prompts.toxic))
    parts = [*fitted, *held_out]
    split = step.states([row for part in parts for row in part]).split([len(part) for part in parts])
    toxic_share = recipe.toxic_per_batch / recipe.batch_size
    return held_out_figures((split[0], split[1]), (split[2], split[3]), recipe.centering, toxic_share, prefix)


def _spread(items: Sequence[Any]) -> list[Any]:
    """At most FIGURE_PROMPTS of the items, evenly spread over them, since sources tend to stand one after another."""
    if len(items) <= FIGURE_PROMPTS:
        return list(items)
    return [items[i * len(items) // FIGURE_PROMPTS] for i in range(FIGURE_PROMPTS)]


def _check(job: DcrJob) -> None:
    problems = [
        Problem(f"{name} training prompts", str(len(prompts)), "2 or more, since pairs within a class are needed")
        for name, prompts in (("seemingly toxic", job.seemingly_toxic), ("toxic", job.toxic))
        if len(prompts) < 2
    ]
    if problems:
        raise InputError(problems)
