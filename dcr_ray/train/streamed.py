"""A model that computes from its files, one layer in memory at a time, for a few tokens of a model too large to hold.

It is slow: every pass reads all weights. It serves the canary of a sharded export, for which nothing else is left in
memory once its engine is gone.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import nn

from dcr_ray.train.divided import weight_files
from dcr_ray.train.loading import attention_kernel


def streamed_model(skeleton: Any, folder: Path | str, device: torch.device) -> Any:
    """`skeleton`, a model without weights (accelerate's `init_empty_weights`), made to compute in fp32 on `device`.

    Its weights come from the safetensors files in `folder` whenever a layer, the embedding, the last norm or the head
    runs, and are given up after it.
    """
    files = weight_files(Path(folder))
    tied = skeleton.get_output_embeddings().weight is skeleton.get_input_embeddings().weight
    names = {module: name for name, module in skeleton.named_modules()}

    def source(name: str) -> str:
        embedding = names[skeleton.get_input_embeddings()]
        head = names[skeleton.get_output_embeddings()]
        return name.replace(f"{head}.", f"{embedding}.") if tied and name.startswith(f"{head}.") else name

    def read(module: nn.Module, _: Any) -> None:
        for name, _ in list(module.named_parameters()):
            key = source(f"{names[module]}.{name}")
            with safe_open(files[key], "pt") as reader:
                _put(module, name, nn.Parameter(reader.get_tensor(key).to(device, torch.float32), False))

    def forget(module: nn.Module, _: Any, __: Any) -> None:
        for name, parameter in list(module.named_parameters()):
            _put(module, name, nn.Parameter(torch.empty_like(parameter, device="meta"), False))

    decoder = skeleton.base_model
    ends = (skeleton.get_input_embeddings(), decoder.norm, skeleton.get_output_embeddings())
    for module in (*decoder.layers, *ends):
        module.register_forward_pre_hook(read)
        module.register_forward_hook(forget)
    skeleton.set_attn_implementation(attention_kernel(skeleton.config))
    for module in skeleton.modules():
        for name, buffer in module.named_buffers(recurse=False):
            module._buffers[name] = buffer.to(device)
    return skeleton.eval()


def _put(module: nn.Module, name: str, parameter: nn.Parameter) -> None:
    *path, last = name.split(".")
    for part in path:
        module = getattr(module, part)
    module._parameters[last] = parameter
