"""The ranks that run a stage together, and the few exchanges between them.

It takes the process group that is already there (torchrun, a Ray Train worker) and makes one of size 1 where there is
none, since DeepSpeed needs one. It does not know what is trained.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist


@dataclass(frozen=True)
class World:
    """One rank's place among `size` ranks, and the device it computes on."""

    rank: int
    size: int
    device: torch.device

    def all_gather(self, tensor: torch.Tensor) -> torch.Tensor:
        """[n, ...] on every rank -> [size * n, ...] in the order of ranks, without gradient. Shapes must be equal."""
        tensor = tensor.detach().contiguous()
        if self.size == 1:
            return tensor
        parts = [torch.empty_like(tensor) for _ in range(self.size)]
        dist.all_gather(parts, tensor)
        return torch.cat(parts)

    def total(self, value: float) -> float:
        """The sum of a number over the ranks, the same on all of them to the last bit."""
        if self.size == 1:
            return value
        tensor = torch.tensor([value], dtype=torch.float64, device=self.device)
        dist.all_reduce(tensor)
        return tensor.item()

    def largest(self, value: int) -> int:
        """The largest of the ranks' numbers (below 2^53)."""
        if self.size == 1:
            return value
        tensor = torch.tensor([value], dtype=torch.float64, device=self.device)
        dist.all_reduce(tensor, dist.ReduceOp.MAX)
        return int(tensor.item())

    def any(self, flag: bool) -> bool:
        """Whether the flag is set on any rank."""
        return self.total(float(flag)) > 0

    def from_rank_0(self, value: Any) -> Any:
        """Rank 0's value (any picklable one) on every rank."""
        if self.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0, device=self.device)
        return box[0]

    def barrier(self) -> None:
        self.total(0.0)


@contextmanager
def joined_world(world: World | None = None) -> Iterator[World]:
    """The given world, that of torch.distributed, or rank 0 of 1 with a process group that lives as long as the block.

    The group of one talks through a file, so it needs no port and no network.
    """
    with tempfile.TemporaryDirectory(prefix="dcr-ray-group-") as folder:
        alone = not dist.is_initialized()
        if alone:
            store = dist.FileStore(str(Path(folder, "store")), 1)
            backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
            dist.init_process_group(backend, store=store, rank=0, world_size=1)
        try:
            yield world or World(dist.get_rank(), dist.get_world_size(), _device())
        finally:
            if alone:
                # DeepSpeed remembers groups of the world it was first used in; its own function forgets them too.
                deepspeed_comm = sys.modules.get("deepspeed.comm")
                if deepspeed_comm and deepspeed_comm.is_initialized():
                    deepspeed_comm.destroy_process_group()
                else:
                    dist.destroy_process_group()


def _device() -> torch.device:
    """This rank's GPU by LOCAL_RANK, made the current one; the CPU where torch sees no GPU."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
    torch.cuda.set_device(device)
    return device
