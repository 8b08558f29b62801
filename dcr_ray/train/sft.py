"""The sft stage: next-token training on general and safety pairs, of all weights or of low-rank adapters.

The loss of a step is the sum of its tokens' losses over the number of answer tokens in the global batch, so neither
ranks nor chunks change it. The output head runs only where there is a loss.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dcr_ray.evaluate.canary import CanaryPrompt, next_token_logprobs, write_canary
from dcr_ray.models import ModelCard
from dcr_ray.planning.flops import sft_flops
from dcr_ray.planning.memory import zero3_live_parameters
from dcr_ray.shape import Shape
from dcr_ray.train.base import fresh_causal_model, model_of, skeleton, stored_as
from dcr_ray.train.checkpoint import Progress, remove_checkpoints
from dcr_ray.train.chunks import divide
from dcr_ray.train.clock import Clock
from dcr_ray.train.dynamics import watching
from dcr_ray.train.engine import (
    TrainingEngine,
    deepspeed_config,
    memory_failures,
    training_engine,
)
from dcr_ray.train.export import Export, current_tensors
from dcr_ray.train.head_loss import summed_cross_entropy
from dcr_ray.train.jobs import Leave, Report, SftJob, job_digest, write_at_once
from dcr_ray.train.loading import load_divided_model
from dcr_ray.train.loop import ForwardBackward, results, run_steps
from dcr_ray.train.lora import add_adapters
from dcr_ray.train.packing import Packed, pack, packed_states, shared_prefix
from dcr_ray.train.peak import PeakMemory
from dcr_ray.train.precision import DTYPES, products_in, resolved_precision
from dcr_ray.train.schedule import learning_rate
from dcr_ray.train.sequences import IGNORED, TokenSequence, batch_plan, job_sequences
from dcr_ray.train.state import put_master
from dcr_ray.train.streamed import streamed_model
from dcr_ray.train.tokens import prompt_tokens, tokenizer_of
from dcr_ray.train.trunk import divided_trunk, overlay_divided_trunk, overlay_trunk, read_trunk, trunk_names
from dcr_ray.train.world import World, joined_world


class AnswerLoss(nn.Module):
    """A causal language model that gives the summed cross-entropy of the tokens that have a target."""

    def __init__(self, model: Any, precision: str):
        super().__init__()
        self.model = model
        self.precision = precision
        head = model.get_output_embeddings()
        if hasattr(head.weight, "ds_id"):
            import deepspeed

            # ZeRO-3 makes a parameter whole for the module that owns it; the loss reads the head's weight itself.
            deepspeed.zero.register_external_parameter(self, head.weight)

    def forward(self, packed: Packed, places: Tensor, targets: Tensor) -> Tensor:
        """Packed sequences; the places of the tokens that have a target [n], those targets [n] -> a scalar in nats."""
        with products_in(self.precision, targets.device):
            states = packed_states(self.model.base_model, packed)[places]
        cap = getattr(self.model.config, "final_logit_softcapping", None)
        head, rounded = self.model.get_output_embeddings(), self.precision == "mixed"
        return summed_cross_entropy(states, head, targets, cap, torch.bfloat16 if rounded else None)


def run_sft(
    job: SftJob,
    world: World | None = None,
    report: Report = lambda _: None,
    should_stop: Callable[[], bool] = lambda: False,
    leave: Leave = write_at_once,
) -> dict[str, Any]:
    """Fine-tune on this rank together with the others, and write a Hugging Face folder with canary.json (rank 0).

    `leave` is told on rank 0 of the tensors that differ from the base and of the function that writes the folder.

    Returns the same on every rank: losses of the steps in nats per answer token, steps, tokens (without padding),
    seconds, metrics, notes. Raises InputError for pairs or a trunk that cannot be used, StageFailed where training
    diverges or memory runs out, StageStopped where `should_stop` says so.
    """
    clock = Clock()
    output_dir = Path(job.output_dir)
    with joined_world(world) as world, memory_failures(world):
        peak = PeakMemory(world)
        recipe, shape = job.recipe, job.shape
        precision = resolved_precision(shape.precision, world.device)
        card = ModelCard.from_folder(job.model_dir)
        live = zero3_live_parameters(card, card.parameters)
        config = deepspeed_config(shape, precision, recipe.gradient_clip, world.device, live)
        with clock.measure("data"):
            tokenizer = tokenizer_of(job.model_dir)
            general, safety, dropped = job_sequences(job)
            sequences = [*general, *safety]
            lengths = [len(sequence.ids) for sequence in sequences]
            plan = batch_plan(lengths, len(general), recipe.safety_share, recipe.epochs, recipe.batch_size, job.seed)
        with clock.measure("weights_in"), ExitStack() as opened:
            divided = config["zero_optimization"]["stage"] == 3
            # Of a divided model every rank reads its own part of the trunk, later.
            trunk = read_trunk(job.trunk_dir) if job.trunk_dir and not divided else {}
            model = _model(job, DTYPES[precision], config, world, trunk)
            if shape.activation_checkpointing:
                model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
            module = AnswerLoss(model, precision).train()
            engine = opened.enter_context(
                training_engine(module, world, config, recipe.weight_decay, recipe.gradient_clip)
            )
            trained = opened.pop_all()
        with trained:
            if not recipe.lora and job.trunk_dir:
                _set_masters(engine, model, trunk, job.trunk_dir, divided)
            names = trunk_names(job.trunk_dir) if job.trunk_dir else frozenset()
            # A base that is rounded at load differs from its files everywhere.
            overlaid = names if stored_as(job.model_dir, DTYPES[precision]) else None
            del trunk

            with clock.measure("figures"):
                dynamics = watching(job, world, len(plan), partial(current_tensors, engine, model))

            def after_step(progress: Progress) -> bool:
                if dynamics:
                    with clock.measure("figures"):
                        dynamics.look(progress.step)
                return False

            progress = run_steps(
                engine,
                _forward_backward(engine, sequences, plan, shape),
                len(plan),
                lambda i: learning_rate(i, len(plan), recipe.learning_rate, recipe.warmup_share, recipe.final_lr_share),
                output_dir=output_dir,
                shape=shape,
                seed=job.seed,
                job_digest=job_digest(job),
                clock=clock,
                report=report,
                should_stop=should_stop,
                after_step=after_step,
            )
            looks = dynamics.close() if dynamics else None
            with clock.measure("export"):
                export = Export(engine, model, tokenizer, DTYPES[precision], output_dir, overlaid)
        del model, module, engine

        with clock.measure("export"):
            if world.rank == 0:
                _leave(job, export, world.device, leave)
            world.barrier()
        notes = [f"computed in {precision}"]
        if dropped:
            pairs = dropped + len(sequences)
            notes.append(f"{dropped} of {pairs} pairs left out: no answer token within {recipe.max_tokens} tokens")
        answer_tokens = sum(sequences[i].answer_tokens for batch in plan for i in batch)
        safety_drawn = sum(i >= len(general) for batch in plan for i in batch)
        metrics = {
            "sft_final_loss": sum(progress.losses[-10:]) / len(progress.losses[-10:]),
            "sft_answer_tokens": float(answer_tokens),
            "sft_safety_share": safety_drawn / sum(map(len, plan)),
        }
        mean_length = sum(lengths) / len(lengths)
        flops = sft_flops(card, progress.tokens, answer_tokens, mean_length, recipe.lora).model
        found = results(progress, clock, metrics, notes, world, flops, card.parameters, peak.read())
        return found if looks is None else found | {"dynamics": looks}


def _model(job: SftJob, dtype: torch.dtype, config: dict[str, Any], world: World, trunk: dict[str, Tensor]) -> Any:
    """The base with the trunk's tensors and, where the recipe says so, adapters."""
    if config["zero_optimization"]["stage"] == 3:
        model = load_divided_model(job.model_dir, dtype, config, world.device)
        if job.trunk_dir:
            overlay_divided_trunk(model, job.trunk_dir)
    else:
        # Under adapters only the trunk's tensors change; all others may stay the kept model's own.
        model = fresh_causal_model(job.model_dir, dtype, world.device, trunk.keys() if job.recipe.lora else None)
        overlay_trunk(model, trunk, job.trunk_dir or "")
    if job.recipe.lora:
        add_adapters(model, job.recipe.lora, job.seed)
    return model


def _set_masters(
    engine: TrainingEngine, model: nn.Module, trunk: dict[str, Tensor], trunk_dir: str, divided: bool
) -> None:
    """Put the trunk into the fp32 masters of parameters that compute in bf16, whose own bits cannot hold it."""
    parameters = dict(model.named_parameters())
    tensors = divided_trunk(model, trunk_dir) if divided else ((parameters[name], trunk[name]) for name in trunk)
    for parameter, tensor in tensors:
        if parameter.requires_grad and parameter.dtype != torch.float32:
            put_master(parameter, tensor)


def _forward_backward(
    engine: TrainingEngine, sequences: list[TokenSequence], plan: list[list[int]], shape: Shape
) -> ForwardBackward:
    def forward_backward(step: int) -> tuple[float, int]:
        batch = [sequences[i] for i in plan[step]]
        return batch_loss_and_backward(engine, batch, shape), sum(len(s.ids) for s in batch)

    return forward_backward


def batch_loss_and_backward(engine: TrainingEngine, batch: list[TokenSequence], shape: Shape) -> float:
    """Mean loss per answer token of the global batch, after the backward passes of this rank's part of it."""
    world = engine.world
    answer_tokens = sum(sequence.answer_tokens for sequence in batch)
    chunks = divide([len(sequence.ids) for sequence in batch], world.size, shape.micro_batch_size)
    summed = 0.0
    for chunk in chunks:
        filler = TokenSequence(batch[chunk.first].ids, [IGNORED], 0)
        held = [filler if row is None else batch[row] for row in chunk.rows[world.rank]]
        loss = engine(*packed_batch(held, world.device)) / answer_tokens
        summed += loss.item()
        engine.backward(loss, last=chunk is chunks[-1])
    return world.total(summed)


def packed_batch(sequences: list[TokenSequence], device: torch.device) -> tuple[Packed, Tensor, Tensor]:
    """Sequences as AnswerLoss takes them: packed, the places of the tokens that have a target, and those targets."""
    rows = [sequence.ids for sequence in sequences]
    before_loss = min(
        next((i for i, target in enumerate(sequence.targets) if target != IGNORED), len(sequence.ids))
        for sequence in sequences
    )
    packed = pack(rows, shared_prefix(rows, before_loss), device)
    found = [
        (start - packed.prefix + i, target)
        for start, sequence in zip(packed.starts, sequences, strict=True)
        for i, target in enumerate(sequence.targets)
        if target != IGNORED
    ]
    places, targets = torch.tensor(found, dtype=torch.long, device=device).reshape(-1, 2).unbind(1)
    return packed, places, targets


def _leave(job: SftJob, export: Export, device: torch.device, leave: Leave) -> None:
    """Hand over the model's files. What needs the GPU is done now: later it belongs to the next stage."""
    folder = Path(job.output_dir)
    canary: list[CanaryPrompt] = []

    def write() -> None:
        export.write()
        write_canary(folder, canary or _canary(job, export.whole, torch.device("cpu")))
        remove_checkpoints(folder)

    if device.type == "cuda":
        if not export.whole:
            export.write()
        canary = _canary(job, export.whole, device)
    leave(export.changed, write)


def _canary(job: SftJob, tensors: dict[str, Tensor], device: torch.device) -> list[CanaryPrompt]:
    """Of the tensors as they are in the files or will be, so that the canary speaks of what an engine reads.

    Always in fp32, whatever the training's precision: an engine in fp32 is then held to a thousandth of a nat. A model
    that was written shard by shard has no `tensors`; it is read layer by layer, once, so one prompt has to do.
    """
    prompts = prompt_tokens(job.model_dir, job.canary_prompts, job.system_prompt)
    if not tensors:
        model = streamed_model(skeleton(job.output_dir), job.output_dir, device)
        return next_token_logprobs(model, prompts[:1], device=device)
    size = sum(tensor.numel() for tensor in tensors.values()) * torch.float32.itemsize
    on_gpu = device.type == "cuda" and size < 0.8 * torch.cuda.mem_get_info(device)[0]
    model = model_of(job.model_dir, tensors, torch.float32, device if on_gpu else torch.device("cpu"))
    return next_token_logprobs(model, prompts)
