"""A trained causal language model written as a plain Hugging Face folder, tensor by tensor, also from ZeRO-3."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from dcr_ray.train.engine import TrainingEngine, full_shape
from dcr_ray.train.lora import merged_weight, plain_name

SHARD_BYTES = 5_000_000_000


def write_model(engine: TrainingEngine, model: Any, tokenizer: Any, dtype: torch.dtype, output_dir: Path) -> None:
    """Write weights (adapters merged) in `dtype`, config, generation config, tokenizer and chat template on rank 0.

    All ranks take part. One shard at a time is held in memory. A tied head is not written, as is usual. Every weight
    file gets its name when it is whole, and config.json comes last.
    """
    shards = _shards(model, dtype)
    files = ["model.safetensors"] if len(shards) == 1 else _shard_names(len(shards))
    rank_0 = engine.world.rank == 0
    for names, file in zip(shards, files, strict=True):
        tensors = {}
        for name, parameter in names:
            tensor = merged_weight(engine, model, name, parameter)
            if rank_0:
                tensors[plain_name(name)] = tensor.to("cpu", dtype).contiguous()
        if rank_0:
            partial = output_dir / f"{file}.partial"
            save_file(tensors, partial, metadata={"format": "pt"})
            os.replace(partial, output_dir / file)
    if rank_0:
        if len(shards) > 1:
            places = {plain_name(name): file for names, file in zip(shards, files, strict=True) for name, _ in names}
            size = sum(_bytes(parameter, dtype) for names in shards for _, parameter in names)
            index = {"metadata": {"total_size": size}, "weight_map": places}
            (output_dir / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))
        tokenizer.save_pretrained(output_dir)
        model.generation_config.save_pretrained(output_dir)
        model.config.dtype = dtype
        model.config.save_pretrained(output_dir)
    engine.world.barrier()


def _shards(model: nn.Module, dtype: torch.dtype) -> list[list[tuple[str, nn.Parameter]]]:
    """The model's own tensors in their order, cut where a file would become too large."""
    shards: list[list[tuple[str, nn.Parameter]]] = [[]]
    size = 0
    for name, parameter in model.named_parameters():
        if plain_name(name) is None:
            continue
        if size and size + _bytes(parameter, dtype) > SHARD_BYTES:
            shards.append([])
            size = 0
        shards[-1].append((name, parameter))
        size += _bytes(parameter, dtype)
    return shards


def _shard_names(count: int) -> list[str]:
    return [f"model-{i + 1:05d}-of-{count:05d}.safetensors" for i in range(count)]


def _bytes(parameter: nn.Parameter, dtype: torch.dtype) -> int:
    return full_shape(parameter).numel() * dtype.itemsize
