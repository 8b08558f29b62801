"""How the rows of a global batch are divided: among ranks, and into chunks that a rank holds at one time.

The division never changes what a step computes, only how much of it is padding and how much memory it takes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

CHUNK_COST_TOKENS = {"cpu": 48, "cuda": 4096}
"""What one more chunk costs, in padding tokens of one rank that would take as long."""


@dataclass(frozen=True)
class Chunk:
    """For each rank the rows that it holds, equally many on all. None is a filler and counts for nothing."""

    rows: tuple[tuple[int | None, ...], ...]

    @property
    def first(self) -> int:
        """The row that fillers are copies of, so that they break no shared prefix."""
        return self.rows[0][0]


def divide(lengths: Sequence[int], ranks: int, micro_batch_size: int | None, device_type: str) -> list[Chunk]:
    """Chunks of a batch whose rows have these lengths in tokens.

    Rows are ordered by length, dealt to the ranks in turn, and cut where padding would cost more than another chunk, or
    where a rank would hold more than `micro_batch_size` rows. Every rank gets equally many chunks, as ZeRO-3 needs.
    """
    order = sorted(range(len(lengths)), key=lambda row: (-lengths[row], row))
    deals = [order[start : start + ranks] for start in range(0, len(order), ranks)]
    chunks: list[list[list[int]]] = []
    padding = 0
    for deal in deals:
        if chunks:
            padding += lengths[chunks[-1][0][0]] - lengths[deal[0]]
        full = bool(chunks) and micro_batch_size is not None and len(chunks[-1]) >= micro_batch_size
        if not chunks or full or padding > CHUNK_COST_TOKENS[device_type]:
            chunks.append([])
            padding = 0
        chunks[-1].append(deal)
    return [
        Chunk(tuple(tuple(deal[rank] if rank < len(deal) else None for deal in chunk) for rank in range(ranks)))
        for chunk in chunks
    ]


def padded(sequences: Sequence[Sequence[int]], value: int, device: torch.device, longest: int = 0) -> Tensor:
    """Rows of integers [n, longest of them and `longest`], filled up on the right with `value`.

    In a causal model what stands to the right of a token cannot change its state, so no attention mask is needed, and
    without one the attention kernels are faster.
    """
    longest = max(longest, *(len(sequence) for sequence in sequences))
    rows = [list(sequence) + [value] * (longest - len(sequence)) for sequence in sequences]
    return torch.tensor(rows, dtype=torch.long, device=device)
