"""A base model's weights for training: all of it, or only the layers up to one. Nothing here trains."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dcr_ray.errors import InputError, Problem
from dcr_ray.train.divided import fill_divided
from dcr_ray.train.engine import import_deepspeed
from dcr_ray.train.packing import ATTENTION, register_attention
from dcr_ray.weights.save import without_progress_bars


def load_causal_model(folder: str | Path, dtype: torch.dtype) -> Any:
    """The whole model with its output head, for packed rows alone."""
    return loaded_whole(folder, dtype)[0]


def loaded_whole(folder: str | Path, dtype: torch.dtype) -> tuple[Any, set[str]]:
    """The whole model for packed rows, and the names of its tensors that the folder lacks."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(folder, local_files_only=True)
    register_attention()
    with without_progress_bars(), _quiet_about_unused_weights():
        model, found = AutoModelForCausalLM.from_pretrained(
            folder,
            config=config,
            dtype=dtype,
            attn_implementation=ATTENTION,
            local_files_only=True,
            output_loading_info=True,
        )
    return model, set(found["missing_keys"])


def load_trunk(folder: str | Path, layer: int, dtype: torch.dtype) -> Any:
    """Embeddings, frozen, and layers 1..`layer`. Its output is that of layer `layer`, before any final norm.

    It takes packed rows. Attention dropout is off, since states that are computed twice have to be the same. Raises
    InputError where the folder's weights lack some of these layers' tensors.
    """
    from transformers import AutoModel

    config = _trunk_config(folder, layer)
    register_attention()
    with without_progress_bars(), _quiet_about_unused_weights():
        trunk, found = AutoModel.from_pretrained(
            folder,
            config=config,
            dtype=dtype,
            attn_implementation=ATTENTION,
            local_files_only=True,
            output_loading_info=True,
        )
    if found["missing_keys"]:
        missing = ", ".join(sorted(found["missing_keys"])[:5])
        raise InputError([Problem(str(folder), f"no weights for {missing}", f"all tensors of layers 1 to {layer}")])
    return _without_norm(trunk)


def load_divided_model(folder: str | Path, dtype: torch.dtype, config: dict[str, Any], device: torch.device) -> Any:
    """The whole model for packed rows, divided over the ranks by ZeRO-3 from its first parameter on.

    `config` is DeepSpeed's. No rank holds more of it than one tensor and its own part.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    model_config = AutoConfig.from_pretrained(folder, local_files_only=True)
    model = _made_divided(AutoModelForCausalLM, model_config, dtype, config, device)
    fill_divided(model, folder)
    restore_rotary_frequencies(model)
    return model


def load_divided_trunk(
    folder: str | Path, layer: int, dtype: torch.dtype, config: dict[str, Any], device: torch.device
) -> Any:
    """`load_trunk`, divided over the ranks as `load_divided_model` does it."""
    from transformers import AutoModel

    trunk = _made_divided(AutoModel, _trunk_config(folder, layer), dtype, config, device)
    # The final norm is left out before anything is read for it.
    _without_norm(trunk)
    fill_divided(trunk, folder, f"{trunk.base_model_prefix}.")
    restore_rotary_frequencies(trunk)
    return trunk


def _made_divided(
    auto: Any, model_config: Any, dtype: torch.dtype, config: dict[str, Any], device: torch.device
) -> Any:
    from transformers.initialization import no_init_weights

    deepspeed = import_deepspeed(device)
    register_attention()
    # Without a dtype of its own Init takes the config's. One that it is given it ignores on processors without fp16
    # instructions, and makes bf16 of it (DeepSpeed 0.19.8).
    with no_init_weights(), deepspeed.zero.Init(config_dict_or_path=config):
        model = auto.from_config(model_config, attn_implementation=ATTENTION, dtype=dtype)
    model.tie_weights()
    return model


def _trunk_config(folder: str | Path, layer: int) -> Any:
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(folder, local_files_only=True)
    config.num_hidden_layers = layer
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[:layer]
    config.attention_dropout = 0.0
    return config


def _without_norm(trunk: Any) -> Any:
    trunk.norm = nn.Identity()
    for parameter in trunk.get_input_embeddings().parameters():
        parameter.requires_grad_(False)
    return trunk


def attention_kernel(config: Any) -> str:
    """PyTorch's fused attention, but for models that cap attention logits (Gemma 2): it would leave the cap out."""
    return "eager" if getattr(config, "attn_logit_softcapping", None) else "sdpa"


def restore_rotary_frequencies(model: nn.Module) -> None:
    """Give rotary embeddings their fp32 frequencies back, which loading divided over ranks in bf16 has rounded.

    Rounded frequencies turn far tokens by wrong angles, and no engine that serves the model rounds them.
    """
    for module in model.modules():
        if type(module).__name__.endswith("RotaryEmbedding"):
            exact = dict(type(module)(module.config).named_buffers())
            for name, buffer in module.named_buffers():
                buffer.data = exact[name].to(buffer.device)


@contextmanager
def _quiet_about_unused_weights() -> Iterator[None]:
    """What is left out or missing is told by the caller; transformers would list every one of the tensors."""
    from transformers.utils import logging

    level = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)
