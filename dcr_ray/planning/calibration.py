"""Rates measured by finished stages in the place of assumed ones.

A training record says its model FLOPs, its seconds of forward and backward passes, its ranks and its device. Records of
models of a like size count alone where there are some. What a generate stage measures is not used yet.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

from dcr_ray.planning.gpus import GPUS, Gpu
from dcr_ray.planning.seconds import RATES, Rates

SIZE_BAND = 4.0
"""Models up to so many times larger or smaller are of a like size."""

FEWEST_SECONDS = 1.0
"""Shorter stages say more about their start than about a rate."""


@dataclass(frozen=True)
class Calibration:
    """`rates` to plan with, and how many records on which device they rest on: none means assumptions."""

    rates: Rates
    records: int
    device: str | None

    @property
    def said(self) -> str:
        if not self.records:
            return "assumed rates: no finished stage on such a device tells"
        return f"rate of arithmetic measured by {self.records} stages on {self.device}; all other rates assumed"


def calibrated(records: Iterable[Any], parameters: int, gpu: Gpu | None, rates: Rates = RATES) -> Calibration:
    """`records` are a StageCache's; `gpu` is what is planned for, None for a CPU."""
    found: list[tuple[float, float]] = []
    for record in records:
        ran, seconds = record.results.get("computed"), record.results.get("seconds", {}).get("forward_backward", 0.0)
        if not ran or seconds < FEWEST_SECONDS:
            continue
        unit = _unit(ran, gpu)
        if unit:
            found.append((ran["parameters"], ran["model_flops"] / seconds / ran["ranks"] / unit))
    like = [rate for size, rate in found if 1 / SIZE_BAND <= size / parameters <= SIZE_BAND]
    used = like or [rate for _, rate in found]
    if not used:
        return Calibration(rates, 0, None)
    if gpu:
        return Calibration(replace(rates, training_share=median(used), half_rate_tokens=0.0), len(used), gpu.name)
    return Calibration(replace(rates, cpu_core_flops_per_second=median(used)), len(used), "a CPU")


def gpu_named(device: str) -> Gpu | None:
    """The GPU of `planning.gpus` that a driver calls by this name, by model and memory: "NVIDIA H100 80GB HBM3"."""
    words = device.upper().replace("-", " ").split()
    for gpu in GPUS.values():
        model, _, memory = gpu.name.partition("-")
        sizes = [word for word in words if word.endswith("GB")]
        if model in words and (not sizes or memory in sizes):
            return gpu
    return None


def _unit(ran: dict[str, Any], gpu: Gpu | None) -> float:
    """What a rank's rate is a multiple of: a GPU's peak, a CPU's threads. 0 for a device of another kind."""
    if gpu:
        return gpu.flops_per_second if gpu_named(ran["device"]) == gpu else 0.0
    return float(ran["threads"]) if ran["device"] == "cpu" else 0.0
