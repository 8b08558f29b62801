"""Which precision a stage computes in on the hardware at hand."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch

from dcr_ray.errors import InputError, Problem
from dcr_ray.shape import Precision

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}

def resolved_precision(wanted: Precision, device: torch.device) -> Literal["fp32", "bf16"]:
    """`auto` becomes bf16 where the device multiplies bf16 in hardware: elsewhere it is slower than fp32, by 2 to 4 times.

    Raises InputError for bf16 on a GPU that does not have it.
    """
    if device.type == "cuda":
        has_bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
        if wanted == "bf16" and not has_bf16:
            name = torch.cuda.get_device_name(device)
            raise InputError([Problem("shape.precision", f"bf16 on {name}", "fp32 or auto on this GPU")])
    else:
        has_bf16 = cpu_has_bf16()
    if wanted == "auto":
        return "bf16" if has_bf16 else "fp32"
    return wanted


def cpu_has_bf16() -> bool:
    """Whether the processor multiplies bf16 matrices itself (AVX512-BF16 or AMX), by Linux' list of its flags."""
    info = Path("/proc/cpuinfo")
    if not info.is_file():
        return False
    flags = next((line for line in info.read_text().splitlines() if line.startswith("flags")), "").split()
    return "avx512_bf16" in flags or "amx_bf16" in flags
