"""The dcr stage: contrastive refinement of layers 1..l (DCR, arXiv 2603.03323).

Pairs come from the global batch. Each rank computes the states of its rows; the states of all ranks are gathered, the
loss and its gradient with respect to the states are computed on every rank, and each rank sends the gradient of its
own states back through the trunk. Where a rank's rows do not fit at once, states are computed without gradient first
and chunk by chunk with gradient after (gradient caching, arXiv 2101.06983): loss and gradient stay those of the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dcr_ray.errors import InputError, Problem
from dcr_ray.models import ModelCard
from dcr_ray.planning.flops import dcr_flops
from dcr_ray.planning.memory import zero3_live_parameters
from dcr_ray.recipe import ContrastiveRecipe
from dcr_ray.shape import Shape
from dcr_ray.train.base import fresh_trunk
from dcr_ray.train.checkpoint import Progress, remove_checkpoints
from dcr_ray.train.chunks import Chunk, divide
from dcr_ray.train.clock import Clock
from dcr_ray.train.dynamics import watching
from dcr_ray.train.engine import (
    TrainingEngine,
    deepspeed_config,
    memory_failures,
    training_engine,
)
from dcr_ray.train.frozen import FrozenLayers, without_frozen_layers
from dcr_ray.train.jobs import DcrJob, Report, job_digest
from dcr_ray.train.loading import load_divided_trunk
from dcr_ray.train.loop import results, run_steps
from dcr_ray.train.losses import contrastive_loss, retention_loss
from dcr_ray.train.packing import Packed, pack, shared_prefix
from dcr_ray.train.peak import PeakMemory
from dcr_ray.train.precision import DTYPES, resolved_precision
from dcr_ray.train.sampler import BalancedSampler
from dcr_ray.train.schedule import learning_rate
from dcr_ray.train.separability import held_out_figures
from dcr_ray.train.tokens import folder_stamp, prompt_tokens
from dcr_ray.train.trunk import PooledStates, trained_tensors, write_trunk
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
        peak = PeakMemory(world)
        recipe, shape = job.recipe, job.shape
        precision = resolved_precision(shape.precision, world.device)
        card = ModelCard.from_folder(job.model_dir)
        layers = card.layers
        layer, frozen = recipe.layer(layers), recipe.frozen_layers(layers)
        live = zero3_live_parameters(card, card.trunk_parameters(layer))
        config = deepspeed_config(shape, precision, recipe.gradient_clip, world.device, live)
        with clock.measure("data"):
            prompts = _Prompts(job)
        with clock.measure("weights_in"), ExitStack() as opened:
            trunk, below = _trunk(job, layer, frozen, precision, config, world)
            if shape.activation_checkpointing:
                trunk.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
            module = PooledStates(trunk, recipe.pooling, precision).train()
            engine = opened.enter_context(
                training_engine(module, world, config, recipe.weight_decay, recipe.gradient_clip)
            )
            trained = opened.pop_all()
        with trained:
            sampler = BalancedSampler(len(job.seemingly_toxic), len(job.toxic), recipe, job.seed, len(job.general))
            step = _Step(engine, prompts, sampler, recipe, shape, below)
            with clock.measure("figures"):
                metrics = _figures(step, _base_states(step, job, layer, frozen, precision), "base_")
                step.keep_general_states()
                dynamics = watching(job, world, sampler.steps, partial(trained_tensors, engine, trunk))
            standstill = _standstill(step, clock)

            def after_step(progress: Progress) -> bool:
                if dynamics:
                    with clock.measure("figures"):
                        dynamics.look(progress.step)
                return standstill(progress)

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
                after_step=after_step,
            )
            with clock.measure("figures"):
                metrics |= _figures(step, step.states(prompts.measured), "")
                metrics |= step.retained()
                looks = dynamics.close() if dynamics else None
            with clock.measure("export"):
                write_trunk(engine, trunk, layer, layers, Path(job.output_dir))
            if world.rank == 0:
                remove_checkpoints(Path(job.output_dir))
        del module, trunk, step
        notes = [f"computed in {precision} at layer {layer} of {layers}"]
        if progress.step < sampler.steps:
            looks = ", ".join(f"{look:.3f}" for look in progress.looks)
            notes.append(f"stopped early after step {progress.step} of {sampler.steps}: {recipe.early_stop} {looks}")
            metrics["early_stop_step"] = float(progress.step)
        flops = dcr_flops(card, layer, progress.tokens, prompts.mean_length, frozen=frozen).model
        found = results(progress, clock, metrics, notes, world, flops, card.parameters, peak.read())
        return found if looks is None else found | {"dynamics": looks}


class _Prompts:
    """Token ids of the job's prompts, each cut to the recipe's limit at its beginning, where templates say least.

    `parts` are those that the figures are computed on: training prompts and held-out ones, seemingly toxic and toxic.
    """

    def __init__(self, job: DcrJob):
        limit = job.recipe.max_prompt_tokens

        def ids(texts: tuple[str, ...]) -> list[list[int]]:
            return [ids[-limit:] for ids in prompt_tokens(job.model_dir, texts, job.system_prompt)]

        self.seemingly_toxic, self.toxic, self.general = ids(job.seemingly_toxic), ids(job.toxic), ids(job.general)
        names = sorted({name for each in job.sources.values() for name in each})
        self.sources = {key: [names.index(name) for name in each] for key, each in job.sources.items()}
        held_out = (ids(job.held_out_seemingly_toxic), ids(job.held_out_toxic))
        self.parts = [_spread(part) for part in (self.seemingly_toxic, self.toxic, *held_out)]

    @property
    def mean_length(self) -> float:
        rows = [*self.seemingly_toxic, *self.toxic]
        return sum(map(len, rows)) / len(rows)

    @property
    def measured(self) -> list[list[int]]:
        return [row for part in self.parts for row in part]


def _trunk(
    job: DcrJob, layer: int, frozen: int, precision: str, config: dict[str, Any], world: World
) -> tuple[Any, FrozenLayers | None]:
    """The trunk to train, and what gives the states below its first trained layer where those are put in."""
    dtype = DTYPES[precision]
    if config["zero_optimization"]["stage"] == 3:
        # Divided over the ranks at load, it cannot be made from whole tensors; frozen layers run at every step.
        trunk = load_divided_trunk(job.model_dir, layer, dtype, config, world.device)
        trunk.layers[:frozen].requires_grad_(False)
        return trunk, None
    trunk = fresh_trunk(job.model_dir, layer, dtype, world.device, frozen)
    if not frozen:
        return trunk, None
    lower = fresh_trunk(job.model_dir, frozen, dtype, world.device, frozen)
    without_frozen_layers(trunk, frozen)
    identity = (job.model_dir, folder_stamp(job.model_dir), precision, frozen)
    return trunk, FrozenLayers(PooledStates(lower, job.recipe.pooling, precision), identity, world.device)


class _Step:
    """Forward and backward of one step; also the states of any prompts, for the figures."""

    def __init__(
        self,
        engine: TrainingEngine,
        prompts: _Prompts,
        sampler: BalancedSampler,
        recipe: ContrastiveRecipe,
        shape: Shape,
        below: FrozenLayers | None,
    ):
        self.engine, self.prompts, self.sampler, self.recipe = engine, prompts, sampler, recipe
        self.micro = shape.micro_batch_size
        self.below = below
        self.base_of_general: dict[int, Tensor] = {}

    def keep_general_states(self) -> None:
        """The base model's states of all general prompts that will be drawn, before the first step changes it."""
        if self.recipe.retention:
            drawn = sorted({number for step in range(self.sampler.steps) for number in self.sampler.general(step)})
            self.base_of_general = dict(zip(drawn, self.states([self.prompts.general[i] for i in drawn]), strict=True))

    def retained(self) -> dict[str, float]:
        """How far the general prompts' states lie from the base model's now, where that is held down."""
        if not self.base_of_general:
            return {}
        numbers = _spread(list(self.base_of_general))
        base = torch.stack([self.base_of_general[i] for i in numbers])
        now = self.states([self.prompts.general[i] for i in numbers])
        return {"general_state_change": retention_loss(now, base).item()}

    def __call__(self, step: int) -> tuple[float, int]:
        prompts, device = self.prompts, self.engine.world.device
        seemingly, toxic = self.sampler.batch(step)
        general = self.sampler.general(step)
        contrasted_general = general if self.recipe.general_as != "kept_only" else []
        rows = [prompts.seemingly_toxic[i] for i in seemingly] + [prompts.toxic[i] for i in toxic]
        rows += [prompts.general[i] for i in general]
        classes = [0] * len(seemingly) + [1] * len(toxic)
        classes += [2 if self.recipe.general_as == "own_class" else 0] * len(contrasted_general)
        sources = None
        if self.recipe.negatives == "same_source":
            known = prompts.sources
            sources = [known["seemingly_toxic"][i] for i in seemingly] + [known["toxic"][i] for i in toxic]
            sources = torch.tensor(sources + [known["general"][i] for i in contrasted_general], device=device)
        base = torch.stack([self.base_of_general[i] for i in general]).to(device) if self.base_of_general else None
        class_of = torch.tensor(classes, device=device)

        def loss_of(states: Tensor) -> Tensor:
            loss = contrastive_loss(states[: len(classes)], class_of, self.recipe, sources)
            if base is not None:
                loss = loss + self.recipe.retention * retention_loss(states[-len(general) :], base)
            return loss

        return self.loss_and_backward(rows, loss_of), sum(map(len, rows))

    def loss_and_backward(self, rows: list[list[int]], loss_of: Callable[[Tensor], Tensor]) -> float:
        """`loss_of` takes the states [n, width] of all rows, whoever computed them."""
        engine, world = self.engine, self.engine.world
        chunks = divide([len(row) for row in rows], world.size, self.micro)
        at_once = self.micro is None or len(chunks) == 1
        if at_once:
            local = engine(self._inputs(rows, chunks))
        else:
            with torch.no_grad():
                local = torch.cat([engine(self._inputs(rows, [chunk])) for chunk in chunks])
        states = _in_batch_order(world.all_gather(local), chunks, len(rows)).requires_grad_()
        loss = loss_of(states)
        (gradient,) = torch.autograd.grad(loss, states)
        if at_once:
            engine.backward((local * _of_rank(gradient, chunks, world.rank)).sum(), last=True)
        else:
            for chunk in chunks:
                part = engine(self._inputs(rows, [chunk]))
                engine.backward((part * _of_rank(gradient, [chunk], world.rank)).sum(), last=chunk is chunks[-1])
        return loss.item()

    def states(self, rows: list[list[int]], layers: int | None = None) -> Tensor:
        """States [n, width] of any prompts, without gradient, on the CPU of every rank.

        With `layers` those after each of the last so many layers, [n, layers, width].
        """
        engine, world = self.engine, self.engine.world
        chunks = divide([len(row) for row in rows], world.size, self.micro or FIGURE_ROWS)
        with torch.no_grad():
            local = torch.cat([engine(self._inputs(rows, [chunk]), layers) for chunk in chunks])
        return _in_batch_order(world.all_gather(local), chunks, len(rows)).cpu()

    def _inputs(self, rows: list[list[int]], chunks: list[Chunk]) -> list[Packed]:
        world = self.engine.world
        inputs = []
        for chunk in chunks:
            held = [rows[chunk.first if row is None else row] for row in chunk.rows[world.rank]]
            states = self.below.states(held) if self.below else None
            inputs.append(pack(held, shared_prefix(held, self.recipe.max_prompt_tokens), world.device, states))
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


_base_known: dict[Any, dict[int, Tensor]] = {}
"""Base models' states of the measured prompts [n, width] by layer, which trials of all depths ask for. One base's."""


def _base_states(step: _Step, job: DcrJob, layer: int, frozen: int, precision: str) -> Tensor:
    """States of the measured prompts under the base model at `layer`, before the first step.

    All layers up to the deepest that was asked for are measured in one pass, and none of them again.
    """
    rows = step.prompts.measured
    identity = (job.model_dir, folder_stamp(job.model_dir), precision, job.recipe.pooling, tuple(map(tuple, rows)))
    if identity not in _base_known:
        _base_known.clear()
        _base_known[identity] = {}
    known = _base_known[identity]
    # Every rank has to take part in the same passes.
    if step.engine.world.any(layer not in known):
        states = step.states(rows, layer - frozen)
        known |= {frozen + 1 + i: states[:, i].clone() for i in range(layer - frozen)}
    return known[layer]


def _figures(step: _Step, states: Tensor, prefix: str) -> dict[str, float]:
    """Held-out separability from the measured prompts' states; nothing where a held-out class has fewer than two."""
    parts = step.prompts.parts
    if min(map(len, parts[2:])) < 2:
        return {}
    split = states.split([len(part) for part in parts])
    toxic_share = step.recipe.toxic_per_batch / step.recipe.batch_size
    return held_out_figures((split[0], split[1]), (split[2], split[3]), step.recipe.centering, toxic_share, prefix)


def _standstill(step: _Step, clock: Clock) -> Callable[[Progress], bool]:
    """Whether the recipe's held-out figure has stood still for as many looks as it waits. The weights stay as they are
    then, some steps beyond the best look."""
    recipe = step.recipe

    def enough(progress: Progress) -> bool:
        if recipe.early_stop == "never" or progress.step % recipe.early_stop_every:
            return False
        with clock.measure("figures"):
            progress.looks.append(_figures(step, step.states(step.prompts.measured), "")[recipe.early_stop])
        best = max(range(len(progress.looks)), key=progress.looks.__getitem__)
        return len(progress.looks) - 1 - best >= recipe.early_stop_patience

    return enough


def _spread(items: Sequence[Any]) -> list[Any]:
    """At most FIGURE_PROMPTS of the items, evenly spread over them, since sources tend to stand one after another."""
    if len(items) <= FIGURE_PROMPTS:
        return list(items)
    return [items[i * len(items) // FIGURE_PROMPTS] for i in range(FIGURE_PROMPTS)]


def _check(job: DcrJob) -> None:
    recipe = job.recipe
    problems = [
        Problem(f"{name} training prompts", str(len(prompts)), "2 or more, since pairs within a class are needed")
        for name, prompts in (("seemingly toxic", job.seemingly_toxic), ("toxic", job.toxic))
        if len(prompts) < 2
    ]
    if recipe.general_per_batch and len(job.general) < 2:
        problems.append(Problem("general prompts", str(len(job.general)), "2 or more, as general_share asks for them"))
    if recipe.negatives == "same_source":
        shared = set(job.sources.get("seemingly_toxic", ())) & set(job.sources.get("toxic", ()))
        if not shared:
            found = "no file with prompts of both classes"
            fix = "Train on both halves of one set, such as xstest-safe and xstest-unsafe, or use negatives: all."
            problems.append(Problem("negatives: same_source", found, "one such file or more", fix))
    if recipe.early_stop != "never" and min(len(job.held_out_seemingly_toxic), len(job.held_out_toxic)) < 2:
        found = f"{len(job.held_out_seemingly_toxic)} and {len(job.held_out_toxic)} held-out prompts of the two classes"
        problems.append(Problem(f"early_stop: {recipe.early_stop}", found, "2 or more of each class"))
    if problems:
        raise InputError(problems)
