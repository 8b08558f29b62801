"""A short look at what a group over several nodes rests on, before its first stage: the network and the shared storage.

One all-reduce tells the rate at which gradients travel, a small file of every rank whether all see the same storage. It
says nothing about how either behaves under load.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dcr_ray.errors import DcrError

REDUCED_BYTES = {"cpu": 8 * 2**20, "cuda": 256 * 2**20}
FILE_BYTES = 8 * 2**20
SLOW_BYTES_PER_SECOND = {"cpu": 50e6, "cuda": 10e9}
"""Below this a network of nodes is told as slow: about a tenth of what such nodes are joined by."""


@dataclass(frozen=True)
class Probe:
    """Bus bandwidth of an all-reduce, and the slowest rank's rate of writing to the storage with fsync, in bytes a
    second."""

    ranks: int
    nodes: int
    bus_bytes_per_second: float
    write_bytes_per_second: float
    slow: bool

    def __str__(self) -> str:
        network = f"all-reduce {self.bus_bytes_per_second / 1e9:.2f} GB/s" + (" (slow)" if self.slow else "")
        storage = f"storage {self.write_bytes_per_second / 1e6:.0f} MB/s a rank"
        return f"{self.ranks} ranks on {self.nodes} nodes: {network}, {storage}"


def probe(folder: Path, nodes: list[str], group: Any, device: Any) -> Probe:
    """Look, on every rank together. `folder` is on the storage that the study says all nodes share.

    `nodes` names every rank's node, `group` is a gloo group of all ranks. Raises DcrError on all of them where a rank's
    file is not seen by rank 0.
    """
    import torch
    import torch.distributed as dist

    rank, size = dist.get_rank(), dist.get_world_size()
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"probe-{rank}"
    began = time.monotonic()
    with open(file, "wb") as stream:
        stream.write(os.urandom(FILE_BYTES))
        stream.flush()
        os.fsync(stream.fileno())
    written = FILE_BYTES / (time.monotonic() - began)
    facts: list[Any] = [None] * size
    dist.all_gather_object(facts, (os.uname().nodename, written), group=group)
    # A network file system may show a file a moment after it was closed elsewhere.
    time.sleep(0.2)
    seen: list[Any] = [None]
    if rank == 0:
        seen = [[each for each in range(size) if (folder / f"probe-{each}").is_file()]]
    dist.broadcast_object_list(seen, src=0, group=group)
    file.unlink()
    blind = sorted({facts[each][0] for each in range(size) if each not in seen[0]})
    if blind:
        raise DcrError(
            f"{folder} is not shared: what the nodes {', '.join(blind)} write there is not seen by {facts[0][0]}. "
            "Put `storage` on a file system that every node mounts."
        )
    tensor = torch.zeros(REDUCED_BYTES[device.type] // 4, device=device)
    dist.all_reduce(tensor)
    _settled(device)
    began = time.monotonic()
    dist.all_reduce(tensor)
    _settled(device)
    passed = time.monotonic() - began
    bus = 2 * (size - 1) / size * REDUCED_BYTES[device.type] / passed
    slow = bus < SLOW_BYTES_PER_SECOND[device.type]
    return Probe(size, len(set(nodes)), bus, min(written for _, written in facts), slow)


def _settled(device: Any) -> None:
    if device.type == "cuda":
        import torch

        torch.cuda.synchronize(device)
