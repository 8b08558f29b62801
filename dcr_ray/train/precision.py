"""Which precision a stage computes in on the hardware at hand."""

from __future__ import annotations

from typing import Literal

import torch

from dcr_ray.errors import InputError, Problem
from dcr_ray.shape import Precision

DTYPES = {"fp32": torch.float32, "mixed": torch.float32, "bf16": torch.bfloat16}
"""Of a stage's weights as they are loaded and exported."""


def products_in(precision: str, device: torch.device) -> torch.autocast:
    """A context in which a module's matrix products are computed: with bf16 inputs where the precision is `mixed`.

    Their sums are in fp32, and so is all else. Weights keep their fp32 values, and since those lie anywhere between two
    bf16 numbers, an update too small to show in one weight's rounding shows in the rounding of many.
    """
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "mixed")


def resolved_precision(wanted: Precision, device: torch.device) -> Literal["fp32", "mixed", "bf16"]:
    """`auto` becomes bf16 on a GPU that has it and fp32 elsewhere.

    A model that starts in bf16 stands on bf16's grid, and until a weight's updates add up to half a step of it (0.2 %
    of the weight) the forward pass does not see them, masters or not: short and gentle stages train less. Large models
    on GPUs have little choice. On a CPU models are small, so it takes fp32 even where bf16 is in hardware and faster.

    Raises InputError for bf16 or mixed on a GPU that does not have bf16.
    """
    has_bf16 = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    if wanted in ("bf16", "mixed") and device.type == "cuda" and not has_bf16:
        name = torch.cuda.get_device_name(device)
        raise InputError([Problem("shape.precision", f"{wanted} on {name}", "fp32 or auto on this GPU")])
    if wanted == "auto":
        return "bf16" if has_bf16 else "fp32"
    return wanted
