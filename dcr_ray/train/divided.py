"""Parameters that ZeRO-3 divides over the ranks: filled and changed part by part, so that no rank ever holds a model.

Each rank owns one run of every parameter's elements, and reads no more of a file than the rows that hold it. Nothing is
exchanged between ranks.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from math import prod
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors import safe_open
from torch import Tensor, nn

from dcr_ray.errors import InputError, Problem

ReadFlat = Callable[[str, int, int], Tensor]
"""The elements [begin, end) of a tensor by its name, flattened."""


def is_divided(parameter: nn.Parameter) -> bool:
    return hasattr(parameter, "ds_tensor")


def own_run(parameter: nn.Parameter) -> tuple[int, int, int]:
    """Where this rank's elements begin and end in the flattened parameter, and how many places it has for them.

    The last ranks' places may reach beyond the parameter's end; what is there is padding.
    """
    places, whole = parameter.ds_tensor.numel(), prod(parameter.ds_shape)
    begin = min(whole, dist.get_rank() * places)
    return begin, min(whole, begin + places), places


def put_own_run(parameter: nn.Parameter, run: Tensor) -> None:
    """Set this rank's part of the parameter, in the parameter's own precision."""
    with torch.no_grad():
        parameter.ds_tensor[: run.numel()].copy_(run)


def fill_divided(model: nn.Module, folder: Path | str, prefix: str = "") -> None:
    """Read every parameter of `model`, made divided and empty, from the safetensors files in `folder`.

    `prefix` is what the files' names have before the model's. Raises InputError for tensors that are missing or of
    another shape.
    """
    files = weight_files(Path(folder))
    problems = []
    with ExitStack() as opened:
        readers = {file: opened.enter_context(safe_open(file, "pt")) for file in set(files.values())}
        for name, parameter in model.named_parameters():
            file = files.get(prefix + name)
            if file is None:
                problems.append(Problem(str(folder), f"no weights for {prefix + name}", "all of the model's tensors"))
                continue
            piece = readers[file].get_slice(prefix + name)
            if tuple(piece.get_shape()) != tuple(parameter.ds_shape):
                found = f"{prefix + name} of shape {tuple(piece.get_shape())}"
                problems.append(Problem(str(folder), found, f"shape {tuple(parameter.ds_shape)}"))
                continue
            begin, end, _ = own_run(parameter)
            put_own_run(parameter, flat_run(piece, begin, end))
    if problems:
        raise InputError(problems[:20])


def weight_files(folder: Path) -> dict[str, Path]:
    """The file of every tensor in a Hugging Face folder."""
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        return {name: folder / file for name, file in json.loads(index.read_text())["weight_map"].items()}
    file = folder / "model.safetensors"
    if not file.is_file():
        raise InputError([Problem(str(folder), "no safetensors files", "a model's folder")])
    with safe_open(file, "pt") as reader:
        return dict.fromkeys(reader.keys(), file)


def flat_run(piece: Any, begin: int, end: int) -> Tensor:
    """The elements [begin, end) of a tensor in a file, of which no more than the rows around them are read."""
    shape = piece.get_shape()
    if not shape or begin >= end:
        return piece[:].reshape(-1)[begin:end] if shape else piece[...].reshape(-1)[begin:end]
    row = prod(shape[1:])
    first, last = begin // row, -(-end // row)
    return piece[first:last].reshape(-1)[begin - first * row : end - first * row]


def file_runs(file: Path, wanted: Callable[[str], nn.Parameter]) -> Iterator[tuple[nn.Parameter, Tensor]]:
    """Each tensor of a file as (the divided parameter that it belongs to, this rank's run of it)."""
    with safe_open(file, "pt") as reader:
        for name in reader.keys():
            parameter = wanted(name)
            begin, end, _ = own_run(parameter)
            yield parameter, flat_run(reader.get_slice(name), begin, end)
