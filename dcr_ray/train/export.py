"""A trained causal language model written as a plain Hugging Face folder, tensor by tensor, also from ZeRO-3."""

from __future__ import annotations

import json
import os
from collections.abc import Container
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from dcr_ray.train.engine import TrainingEngine, full_shape
from dcr_ray.train.lora import is_adapted, merged_weight, plain_name

SHARD_BYTES = 5_000_000_000


class Export:
    """A trained model's files, gathered or to be gathered from the ranks, and written by rank 0.

    `whole` holds all tensors on the CPU, `changed` those that differ from the base model; `write` needs no other rank
    and may run while the next stage trains. Models of several shards are written shard by shard as they are gathered,
    so that one shard at a time is in memory: of them `whole` and `changed` are empty.
    """

    def __init__(
        self,
        engine: TrainingEngine,
        model: Any,
        tokenizer: Any,
        dtype: torch.dtype,
        output_dir: Path,
        overlaid: Container[str] | None,
    ):
        """Gather. All ranks take part.

        `overlaid` names tensors that were put over the base's before training; None says that all may differ from it.
        """
        self._tokenizer, self._dtype, self._output_dir = tokenizer, dtype, output_dir
        self._config, self._generation_config = model.config, model.generation_config
        self.whole: dict[str, Tensor] = {}
        self.changed: dict[str, Tensor] = {}
        rank_0 = engine.world.rank == 0
        shards = _shards(model, dtype)
        files = ["model.safetensors"] if len(shards) == 1 else _shard_names(len(shards))
        for names, file in zip(shards, files, strict=True):
            tensors = {}
            for name, parameter in names:
                tensor = merged_weight(engine, model, name, parameter)
                if rank_0:
                    tensors[plain_name(name)] = tensor.to("cpu", dtype).contiguous()
            if rank_0 and len(shards) == 1:
                self.whole = tensors
                self.changed = {
                    plain_name(name): tensors[plain_name(name)]
                    for name, parameter in names
                    if overlaid is None or parameter.requires_grad or is_adapted(name) or plain_name(name) in overlaid
                }
            elif rank_0:
                self._save(tensors, file)
        if rank_0 and len(shards) > 1:
            places = {plain_name(name): file for names, file in zip(shards, files, strict=True) for name, _ in names}
            size = sum(_bytes(parameter, dtype) for names in shards for _, parameter in names)
            index = {"metadata": {"total_size": size}, "weight_map": places}
            (output_dir / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))
        engine.world.barrier()

    def write(self) -> None:
        """Write what is left: weights in `dtype` with adapters merged, tokenizer and chat template, configurations.

        For rank 0 alone. A tied head is not written, as is usual. Every weight file gets its name when it is whole, and
        config.json comes last.
        """
        if self.whole:
            self._save(self.whole, "model.safetensors")
        self._tokenizer.save_pretrained(self._output_dir)
        self._generation_config.save_pretrained(self._output_dir)
        self._config.dtype = self._dtype
        self._config.save_pretrained(self._output_dir)

    def _save(self, tensors: dict[str, Tensor], file: str) -> None:
        partial = self._output_dir / f"{file}.partial"
        save_file(tensors, partial, metadata={"format": "pt"})
        os.replace(partial, self._output_dir / file)


def current_tensors(engine: TrainingEngine, model: Any) -> dict[str, Tensor]:
    """The model's own tensors as they are, adapters merged, by name; empty but on rank 0. All ranks take part."""
    tensors = {}
    for name, parameter in model.named_parameters():
        if plain_name(name) is not None:
            tensor = merged_weight(engine, model, name, parameter)
            if engine.world.rank == 0:
                tensors[plain_name(name)] = tensor
    return tensors


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
