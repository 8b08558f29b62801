"""The sft stage: next-token training on general and safety pairs, of all weights or of low-rank adapters.

The loss of a step is the sum of its tokens' losses over the number of answer tokens in the global batch, so neither
ranks nor chunks change it. The output head runs only where there is a loss.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dcr_ray.data.chat import prompt_ids
from dcr_ray.evaluate.canary import next_token_logprobs, write_canary
from dcr_ray.shape import Shape
from dcr_ray.train.checkpoint import remove_checkpoints
from dcr_ray.train.chunks import divide
from dcr_ray.train.clock import Clock
from dcr_ray.train.engine import (
    TrainingEngine,
    deepspeed_config,
    memory_failures,
    parameters_divided_at_load,
    training_engine,
)
from dcr_ray.train.export import write_model
from dcr_ray.train.head_loss import summed_cross_entropy
from dcr_ray.train.jobs import Report, SftJob, job_digest
from dcr_ray.train.loading import load_causal_model, restore_rotary_frequencies
from dcr_ray.train.loop import results, run_steps
from dcr_ray.train.lora import add_adapters
from dcr_ray.train.packing import Packed, pack, packed_states, shared_prefix
from dcr_ray.train.precision import DTYPES, resolved_precision
from dcr_ray.train.schedule import learning_rate
from dcr_ray.train.sequences import IGNORED, TokenSequence, batch_plan, job_sequences
from dcr_ray.train.trunk import overlay_trunk, read_trunk
from dcr_ray.train.world import World, joined_world


class AnswerLoss(nn.Module):
    """A causal language model that gives the summed cross-entropy of the tokens that have a target."""

    def __init__(self, model: Any):
        super().__init__()
        self.model = model
        head = model.get_output_embeddings()
        if hasattr(head.weight, "ds_id"):
            import deepspeed

            # ZeRO-3 makes a parameter whole for the module that owns it; the loss reads the head's weight itself.
            deepspeed.zero.register_external_parameter(self, head.weight)

    def forward(self, packed: Packed, places: Tensor, targets: Tensor) -> Tensor:
        """Packed sequences; the packed tokens that have a target [n] and those targets [n] -> a scalar in nats, fp32."""
        states = packed_states(self.model.base_model, packed)[places]
        cap = getattr(self.model.config, "final_logit_softcapping", None)
        return summed_cross_entropy(states, self.model.get_output_embeddings(), targets, cap)


def run_sft(
    job: SftJob,
    world: World | None = None,
    report: Report = lambda _: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> dict[str, Any]:
    """Fine-tune on this rank together with the others, and write a Hugging Face folder with canary.json (rank 0).

    Returns the same on every rank: losses of the steps in nats per answer token, steps, tokens (without padding),
    seconds, metrics, notes. Raises InputError for pairs or a trunk that cannot be used, StageFailed where training
    diverges or memory runs out, StageStopped where `should_stop` says so.
    """
    clock = Clock()
    output_dir = Path(job.output_dir)
    with joined_world(world) as world, memory_failures(world):
        from transformers import AutoTokenizer

        recipe, shape = job.recipe, job.shape
        precision = resolved_precision(shape.precision, world.device)
        config = deepspeed_config(shape, precision, recipe.gradient_clip, world.device)
        with clock.measure("load"):
            tokenizer = AutoTokenizer.from_pretrained(job.model_dir, local_files_only=True)
            general, safety, dropped = job_sequences(job, tokenizer)
            sequences = [*general, *safety]
            lengths = [len(sequence.ids) for sequence in sequences]
            plan = batch_plan(lengths, len(general), recipe.safety_share, recipe.epochs, recipe.batch_size, job.seed)
            with parameters_divided_at_load(config, world.device):
                model = load_causal_model(job.model_dir, DTYPES[precision], packed=True)
            restore_rotary_frequencies(model)
            trunk = read_trunk(job.trunk_dir) if job.trunk_dir else {}
            overlay_trunk(model, trunk, job.trunk_dir or "")
            if recipe.lora:
                add_adapters(model, recipe.lora, job.seed)
            if shape.activation_checkpointing:
                model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
            module = AnswerLoss(model).train()
        with training_engine(module, world, config, recipe.weight_decay, recipe.gradient_clip) as engine:
            if not recipe.lora:
                engine.set_masters({f"model.{name}": tensor for name, tensor in trunk.items()})
            del trunk

            def forward_backward(step: int) -> tuple[float, int]:
                batch = [sequences[i] for i in plan[step]]
                return batch_loss_and_backward(engine, batch, shape), sum(len(s.ids) for s in batch)

            progress = run_steps(
                engine,
                forward_backward,
                len(plan),
                lambda i: learning_rate(i, len(plan), recipe.learning_rate, recipe.warmup_share, recipe.final_lr_share),
                output_dir=output_dir,
                shape=shape,
                seed=job.seed,
                job_digest=job_digest(job),
                clock=clock,
                report=report,
                should_stop=should_stop,
            )
            with clock.measure("export"):
                write_model(engine, model, tokenizer, DTYPES[precision], output_dir)
        del model, module, engine
        with clock.measure("export"):
            if world.rank == 0:
                _write_canary(job, tokenizer, world.device)
            world.barrier()
        if world.rank == 0:
            remove_checkpoints(output_dir)
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
        return results(progress, clock, metrics, notes)


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


def _write_canary(job: SftJob, tokenizer: Any, device: torch.device) -> None:
    """From the folder as it was written, so that the canary speaks of the file and not of what was in memory.

    Always in fp32, whatever the training's precision: an engine in fp32 is then held to a thousandth of a nat.
    """
    folder = Path(job.output_dir)
    model = load_causal_model(folder, torch.float32).eval()
    size = sum(parameter.numel() * parameter.itemsize for parameter in model.parameters())
    if device.type == "cuda" and size < 0.8 * torch.cuda.mem_get_info(device)[0]:
        model = model.to(device)
    prompts = [prompt_ids(tokenizer, prompt, job.system_prompt) for prompt in job.canary_prompts]
    write_canary(folder, next_token_logprobs(model, prompts))
