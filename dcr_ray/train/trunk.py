"""The trunk: layers 1..l of a model, which are all that a loss at the output of layer l runs through.

The layers after l are never built. Embeddings are always frozen: where they are tied to the output head, training them
would move the head, and an untied model is not to be treated otherwise.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from dcr_ray.errors import InputError, Problem
from dcr_ray.train.divided import file_runs, put_own_run
from dcr_ray.train.engine import TrainingEngine, full_shape
from dcr_ray.train.packing import Packed, packed_states
from dcr_ray.train.precision import products_in

TRUNK_FILE, TRUNK_META_FILE = "trunk.safetensors", "trunk.json"


class PooledStates(nn.Module):
    """One vector per prompt from the output of the trunk's last layer."""

    def __init__(self, trunk: Any, pooling: str, precision: str):
        super().__init__()
        self.trunk = trunk
        self.pooling = pooling
        self.precision = precision

    def forward(self, chunks: Sequence[Packed], layers: int | None = None) -> Tensor:
        """Chunks of packed prompts -> states [all prompts, width] in fp32, in the order of the chunks' rows.

        With `layers` the states after each of the last so many layers, [all prompts, layers, width].
        """
        if layers is None:
            return torch.cat([self._pool(self.states(chunk), chunk) for chunk in chunks])
        outputs: list[Tensor] = []
        hooks = [
            layer.register_forward_hook(
                lambda _, __, output: outputs.append(output if isinstance(output, Tensor) else output[0])
            )
            for layer in self.trunk.layers[-layers:]
        ]
        pooled = []
        for chunk in chunks:
            self.states(chunk)
            pooled.append(torch.stack([self._pool(output[0], chunk) for output in outputs], 1))
            outputs.clear()
        for hook in hooks:
            hook.remove()
        return torch.cat(pooled)

    def states(self, chunk: Packed) -> Tensor:
        """States [tokens, width] of all packed tokens."""
        with products_in(self.precision, chunk.input_ids.device):
            return packed_states(self.trunk, chunk)

    def _pool(self, states: Tensor, chunk: Packed) -> Tensor:
        rows = list(zip(chunk.starts, chunk.own, strict=True))
        if self.pooling == "last":
            return states[torch.tensor([start + own - 1 for start, own in rows], device=states.device)].float()
        share = states.new_zeros(len(rows), len(states), dtype=torch.float32)
        for row, ((start, own), length) in enumerate(zip(rows, chunk.lengths, strict=True)):
            share[row, : chunk.prefix] = share[row, start : start + own] = 1 / length
        return share @ states.float()


def trained_tensors(engine: TrainingEngine, trunk: nn.Module) -> dict[str, Tensor]:
    """The trained tensors in fp32 on the CPU, by their names in the full model; empty but on rank 0. All ranks take
    part."""
    tensors = {}
    for name, parameter in trunk.named_parameters():
        if parameter.requires_grad:
            tensor = engine.full_tensor(parameter)
            if engine.world.rank == 0:
                tensors[f"{trunk.base_model_prefix}.{name}"] = tensor.to("cpu", torch.float32).contiguous()
    return tensors


def write_trunk(engine: TrainingEngine, trunk: nn.Module, layer: int, layers: int, output_dir: Path) -> None:
    """Write the trained tensors under their names in the full model, on rank 0. All ranks take part."""
    tensors = trained_tensors(engine, trunk)
    if engine.world.rank == 0:
        partial = output_dir / f"{TRUNK_FILE}.partial"
        save_file(tensors, partial, metadata={"format": "pt"})
        os.replace(partial, output_dir / TRUNK_FILE)
        (output_dir / TRUNK_META_FILE).write_text(json.dumps({"layer": layer, "layers": layers}))
    engine.world.barrier()


def read_trunk(trunk_dir: str) -> dict[str, Tensor]:
    """The tensors that `write_trunk` wrote, by their names in the full model."""
    return load_file(Path(trunk_dir) / TRUNK_FILE)


def trunk_names(trunk_dir: str) -> frozenset[str]:
    """Names in the full model of the tensors that `write_trunk` wrote."""
    with safe_open(Path(trunk_dir) / TRUNK_FILE, "pt") as reader:
        return frozenset(reader.keys())


def divided_trunk(model: nn.Module, trunk_dir: str) -> Iterator[tuple[nn.Parameter, Tensor]]:
    """Each of the trunk's tensors as (the divided model's parameter, this rank's run of the tensor).

    Raises InputError where a name or shape does not fit the model.
    """
    parameters = dict(model.named_parameters())
    file = Path(trunk_dir) / TRUNK_FILE
    with safe_open(file, "pt") as reader:
        shapes = {name: torch.Size(reader.get_slice(name).get_shape()) for name in reader.keys()}
    _check_fit(parameters, shapes, trunk_dir)
    yield from file_runs(file, parameters.__getitem__)


def overlay_divided_trunk(model: nn.Module, trunk_dir: str) -> None:
    """`overlay_trunk` for a model that is divided over the ranks: each reads its own part. Raises InputError as it
    does."""
    for parameter, run in divided_trunk(model, trunk_dir):
        put_own_run(parameter, run)


def overlay_trunk(model: nn.Module, tensors: dict[str, Tensor], trunk_dir: str) -> None:
    """Replace the model's tensors of these names. Raises InputError where a name or shape does not fit the model."""
    parameters = dict(model.named_parameters())
    _check_fit(parameters, {name: tensor.shape for name, tensor in tensors.items()}, trunk_dir)
    for name, tensor in tensors.items():
        with torch.no_grad():
            parameters[name].copy_(tensor)


def _check_fit(parameters: dict[str, nn.Parameter], shapes: dict[str, torch.Size], trunk_dir: str) -> None:
    problems = []
    for name, shape in shapes.items():
        where = f"{trunk_dir}, {name}"
        if name not in parameters:
            problems.append(Problem(where, "a tensor that the model does not have", "the trunk of the same base model"))
        elif full_shape(parameters[name]) != shape:
            expected = f"shape {tuple(full_shape(parameters[name]))}, as in the base model"
            problems.append(Problem(where, f"shape {tuple(shape)}", expected))
    if problems:
        raise InputError(problems)
