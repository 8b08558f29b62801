"""Base models that a process keeps in host memory, and fresh models made from them, stage after stage.

Reading a checkpoint and building its modules costs seconds, a copy in memory a fraction of one. Tensors that a stage
will not write are shared with the kept model instead of copied, on the CPU; on a GPU they come from pinned memory. A
model that would take too much of the host's memory is not kept, nor is one divided over ranks at load (ZeRO-3).
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Container, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from dcr_ray.train.loading import (
    attention_kernel,
    load_causal_model,
    load_trunk,
    loaded_whole,
    restore_rotary_frequencies,
)
from dcr_ray.train.tokens import Stamp, folder_stamp

KEPT_SHARE = 0.25
"""Of the host's free memory, divided by the ranks on it, that a kept model may take."""

_kept: dict[tuple[str, torch.dtype], tuple[Stamp, Any]] = {}
"""The last base model by folder and precision, with the stamp of its files. One at a time."""


def fresh_causal_model(folder: str, dtype: torch.dtype, device: torch.device, written: Container[str] | None) -> Any:
    """The whole model for packed rows, on `device`. `written` names the parameters that will change; None means all."""
    base = kept_model(folder, dtype, device)
    if base is None:
        model = load_causal_model(folder, dtype)
        restore_rotary_frequencies(model)
        return model
    memo = _parameters(base, device, lambda name: written is None or name in written)
    return copy.deepcopy(base, memo).to(device)


def fresh_trunk(folder: str, layer: int, dtype: torch.dtype, device: torch.device, frozen: int = 0) -> Any:
    """Embeddings and layers 1..`layer` for packed rows, as `load_trunk` gives them, on `device`.

    Embeddings and the lowest `frozen` layers do not train.
    """
    base = kept_model(folder, dtype, device)
    if base is None:
        trunk = load_trunk(folder, layer, dtype)
        restore_rotary_frequencies(trunk)
    else:
        trunk = _cut(base.base_model, layer, device, tuple(f"layers.{i}." for i in range(frozen, layer)))
    for part in (trunk.get_input_embeddings(), *trunk.layers[:frozen]):
        part.requires_grad_(False)
    return trunk


def _cut(decoder: Any, layer: int, device: torch.device, trained: tuple[str, ...]) -> Any:
    memo = _parameters(decoder, device, lambda name: name.startswith(trained), left_out=decoder.layers[layer:])
    config = copy.deepcopy(decoder.config)
    config.num_hidden_layers = layer
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[:layer]
    memo |= {id(decoder.config): config, id(decoder.norm): nn.Identity()}
    memo[id(decoder.layers)] = nn.ModuleList(copy.deepcopy(part, memo) for part in decoder.layers[:layer])
    trunk = copy.deepcopy(decoder, memo).to(device)
    for module in trunk.modules():
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.0
    return trunk


def model_of(folder: str, tensors: Mapping[str, Tensor], dtype: torch.dtype, device: torch.device) -> Any:
    """A plain model of the architecture in `folder` with these tensors; it computes as transformers does, not packed.

    `tensors` holds every parameter by name, but for tied ones.
    """
    base = next((model for (known, _), (_, model) in _kept.items() if known == folder), None) or skeleton(folder)
    config = copy.deepcopy(base.config)
    memo: dict[int, Any] = {id(base.config): config}
    for name, parameter in base.named_parameters():
        memo[id(parameter)] = nn.Parameter(tensors[name].to(device, dtype), requires_grad=False)
    model = copy.deepcopy(base, memo).to(device)
    config.dtype = dtype
    model.set_attn_implementation(attention_kernel(config))
    return model.eval()


def skeleton(folder: str) -> Any:
    """The folder's model without weights; what is not a parameter is real."""
    from accelerate import init_empty_weights
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(folder, local_files_only=True)
    with init_empty_weights(include_buffers=False):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.tie_weights()
    return model


def kept_model(folder: str, dtype: torch.dtype, device: torch.device) -> Any | None:
    """The pristine base model in host memory, never to be changed; None where it is too large or not complete."""
    stamp = folder_stamp(folder)
    known = _kept.get((folder, dtype))
    if known is not None and known[0] == stamp:
        return known[1]
    size = sum(size for name, size, _ in stamp if name.endswith((".safetensors", ".bin")))
    if size > KEPT_SHARE * _free_host_bytes() / int(os.environ.get("LOCAL_WORLD_SIZE", "1")):
        return None
    _kept.clear()
    model, missing = loaded_whole(folder, dtype)
    if missing:
        return None
    restore_rotary_frequencies(model)
    model.requires_grad_(True)
    if device.type == "cuda":
        for parameter in model.parameters():
            parameter.data = parameter.data.pin_memory()
    _kept[folder, dtype] = (stamp, model)
    return model


def stored_as(folder: str, dtype: torch.dtype) -> bool:
    """Whether a folder's weight files hold nothing but numbers of this type, so that loading rounds none of them."""
    name = {torch.float32: "F32", torch.bfloat16: "BF16"}[dtype]
    found = set()
    for file in Path(folder).glob("*.safetensors"):
        with safe_open(file, "pt") as opened:
            found |= {opened.get_slice(key).get_dtype() for key in opened.keys()}
    return found == {name}


def _parameters(
    root: nn.Module, device: torch.device, written: Callable[[str], bool], left_out: nn.Module | None = None
) -> dict[int, Any]:
    """For a deep copy: by id the new parameters of `root` on `device`, without those of `left_out`.

    On the CPU a parameter that is not written shares its memory with the old one.
    """
    gone = {id(parameter) for parameter in left_out.parameters()} if left_out is not None else set()
    memo: dict[int, Any] = {}
    for name, parameter in root.named_parameters():
        if id(parameter) not in gone:
            data = parameter.data.to(device, non_blocking=True)
            shared = data.data_ptr() == parameter.data.data_ptr()
            memo[id(parameter)] = nn.Parameter(data.clone() if shared and written(name) else data)
    return memo


def _free_host_bytes() -> int:
    import psutil

    return psutil.virtual_memory().available
