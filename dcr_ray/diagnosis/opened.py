"""A causal language model opened for its gradients: whole in memory, or streamed from its files layer by layer.

Always in fp32 or fp64: kernels are inner products of gradients, and bf16 leaves little of the small ones.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from dcr_ray.errors import InputError, Problem

EMBEDDING, HEAD, NORM = "model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"


@dataclass(frozen=True)
class Opened:
    """`tensor` gives a parameter by its name in the checkpoint; of a tied model the head is the embedding."""

    model: Any
    tensor: Callable[[str], Tensor]
    device: torch.device
    dtype: torch.dtype

    @property
    def layers(self) -> Sequence[Any]:
        return self.model.base_model.layers

    @property
    def tied(self) -> bool:
        return bool(self.model.config.tie_word_embeddings)

    @property
    def head(self) -> Tensor:
        """The output matrix [vocabulary, width]."""
        return self.tensor(EMBEDDING if self.tied else HEAD)


class Padded(NamedTuple):
    """Token ids and mask [prompts, longest], padded on the right, where a causal model does not look; `last` [prompts]
    is the place of each prompt's last token."""

    input_ids: Tensor
    attention_mask: Tensor
    last: Tensor


def right_padded(rows: Sequence[Sequence[int]], device: torch.device) -> Padded:
    lengths = [len(row) for row in rows]
    width = max(lengths)
    ids = torch.tensor([list(row) + [0] * (width - len(row)) for row in rows], device=device)
    mask = torch.tensor([[1] * n + [0] * (width - n) for n in lengths], device=device)
    return Padded(ids, mask, torch.tensor(lengths, device=device) - 1)


def open_whole(folder: Path | str, device: torch.device, dtype: torch.dtype = torch.float32) -> Opened:
    """The folder's model in memory. Raises InputError as `_check` does."""
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, local_files_only=True)
    _check(model.config)
    model = model.to(device).eval().requires_grad_(False)
    if dtype == torch.float64:
        _norm_in_fp64(model)
    named = dict(model.named_parameters())
    return Opened(model, named.__getitem__, device, dtype)


def open_streamed(folder: Path | str, device: torch.device) -> Opened:
    """The folder's model with no more than a layer of it in memory; every pass reads the files once."""
    from safetensors import safe_open

    from dcr_ray.train.base import skeleton
    from dcr_ray.train.divided import weight_files
    from dcr_ray.train.streamed import streamed_model

    model = streamed_model(skeleton(str(folder)), folder, device)
    _check(model.config)
    files = weight_files(Path(folder))

    def tensor(name: str) -> Tensor:
        with safe_open(files[name], "pt") as reader:
            return reader.get_tensor(name).to(device, torch.float32)

    return Opened(model, tensor, device, torch.float32)


def normed(states: Tensor, norm: nn.Module) -> Tensor:
    """x / rms(x) for states [..., width]: what the gain of an RMS norm is multiplied with."""
    epsilon = getattr(norm, "variance_epsilon", None) or norm.eps
    return states * (states.square().mean(-1, keepdim=True) + epsilon).rsqrt()


def _norm_in_fp64(model: Any) -> None:
    """transformers computes its norms in fp32 whatever the model is in, which would cost half of the digits."""
    for module in model.modules():
        if "RMSNorm" in type(module).__name__:
            offset = 1.0 if "Gemma" in type(module).__name__ else 0.0

            def forward(states: Tensor, module: nn.Module = module, offset: float = offset) -> Tensor:
                return normed(states, module) * (module.weight + offset)

            module.forward = forward


def _check(config: Any) -> None:
    """The identity of head and body holds for z = U h; a cap on the logits is no such map."""
    if getattr(config, "final_logit_softcapping", None):
        found = f"final_logit_softcapping {config.final_logit_softcapping} ({config.model_type})"
        raise InputError([Problem("model", found, "a model whose logits are a matrix times its last state")])
