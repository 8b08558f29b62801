"""Which precision a stage computes in on the hardware at hand."""

from __future__ import annotations

from typing import Literal

import torch

from dcr_ray.errors import InputError, Problem
from dcr_ray.shape import Precision

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def resolved_precision(wanted: Precision, device: torch.device) -> Literal["fp32", "bf16"]:
    """`auto` becomes bf16 on a GPU that has it and fp32 elsewhere.

    A model that starts in bf16 stands on bf16's grid, and until a weight's updates add up to half a step of it (0.2 %
    of the weight) the forward pass does not see them, masters or not: short and gentle stages train less. Large models
    on GPUs have little choice. On a CPU models are small, so it takes fp32 even where bf16 is in hardware and faster.

    Raises InputError for bf16 on a GPU that does not have it.
    """
    has_bf16 = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    if wanted == "bf16" and device.type == "cuda" and not has_bf16:
        name = torch.cuda.get_device_name(device)
        raise InputError([Problem("shape.precision", f"bf16 on {name}", "fp32 or auto on this GPU")])
    if wanted == "auto":
        return "bf16" if has_bf16 else "fp32"
    return wanted
