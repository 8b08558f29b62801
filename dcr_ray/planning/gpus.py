"""GPUs by name: memory, peak rate and bandwidths, as their makers' data sheets give them.

Peaks are of dense bf16 products; what a program reaches of them is measured elsewhere. Prices, and how nodes are
joined, are facts of a cluster and stand in its file.
"""

from __future__ import annotations

from dataclasses import dataclass

GIB = 1 << 30


@dataclass(frozen=True)
class Gpu:
    """`memory_bytes` is what a program may use, a little under the name's round figure; rates are a second's.

    `link_bytes_per_second` is one GPU's to the others of its node, one way (NVLink, or PCIe where there is none).
    """

    name: str
    memory_bytes: int
    flops_per_second: float
    memory_bytes_per_second: float
    link_bytes_per_second: float


GPUS: dict[str, Gpu] = {
    gpu.name: gpu
    for gpu in (
        Gpu("L4-24GB", int(22.0 * GIB), 121e12, 300e9, 32e9),
        Gpu("A10G-24GB", int(22.3 * GIB), 70e12, 600e9, 32e9),
        Gpu("L40S-48GB", int(44.5 * GIB), 362e12, 864e9, 32e9),
        Gpu("A100-40GB", int(39.4 * GIB), 312e12, 1_555e9, 300e9),
        Gpu("A100-80GB", int(79.1 * GIB), 312e12, 2_039e9, 300e9),
        Gpu("H100-80GB", int(79.1 * GIB), 989e12, 3_350e9, 450e9),
        Gpu("H200-141GB", int(139.8 * GIB), 989e12, 4_800e9, 450e9),
        Gpu("B200-180GB", int(178.0 * GIB), 2_250e12, 8_000e9, 900e9),
    )
}
