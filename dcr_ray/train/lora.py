"""Low-rank adapters in a causal language model, and their merged weights (LoRA, arXiv 2106.09685) by peft."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from dcr_ray.errors import InputError, Problem
from dcr_ray.recipe import LoraRecipe
from dcr_ray.train.engine import TrainingEngine

ADAPTER = "default"


def add_adapters(model: Any, recipe: LoraRecipe, seed: int) -> None:
    """Put adapters into the model itself and freeze all else. The same seed gives the same adapters.

    Raises InputError where no module of the model has one of the target names.
    """
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=recipe.rank,
        lora_alpha=recipe.alpha,
        lora_dropout=recipe.dropout,
        target_modules=list(recipe.targets),
        task_type="CAUSAL_LM",
    )
    linear = {name.rpartition(".")[2] for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    unknown = [target for target in recipe.targets if target not in linear]
    if unknown:
        raise InputError([Problem("sft.lora.targets", ", ".join(unknown), ", ".join(sorted(linear)))])
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        get_peft_model(model, config, adapter_name=ADAPTER)


def plain_name(name: str) -> str | None:
    """The name that a tensor has in the model without adapters; None for an adapter's own tensor."""
    if f".{ADAPTER}." in name and ".lora_" in name:
        return None
    return name.replace(".base_layer.", ".")


def is_adapted(name: str) -> bool:
    """Whether a parameter of this name is a weight under an adapter."""
    return name.endswith(".base_layer.weight")


def merged_weight(engine: TrainingEngine, model: nn.Module, name: str, parameter: nn.Parameter) -> Tensor:
    """W + scaling B A in fp32 for the weight under an adapter, W itself for any other; whole on every rank."""
    weight = engine.full_tensor(parameter)
    if not is_adapted(name):
        return weight
    layer = model.get_submodule(name.removesuffix(".base_layer.weight"))
    pair = (layer.lora_A[ADAPTER].weight, layer.lora_B[ADAPTER].weight)
    down, up = (engine.full_tensor(matrix).float() for matrix in pair)
    return weight.float() + layer.scaling[ADAPTER] * (up @ down)
