"""How the rows of a global batch are divided: among ranks, and into chunks that a rank holds at one time.

The division never changes what a step computes, only how much memory it takes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Chunk:
    """For each rank the rows that it holds, equally many on all. None is a filler and counts for nothing."""

    rows: tuple[tuple[int | None, ...], ...]

    @property
    def first(self) -> int:
        """The row that fillers are copies of, so that they break no shared prefix."""
        return self.rows[0][0]


def divide(lengths: Sequence[int], ranks: int, micro_batch_size: int | None) -> list[Chunk]:
    """Chunks of a batch whose rows have these lengths in tokens.

    Rows are ordered by length and dealt to the ranks in turn, so that all have about as many tokens, and cut where a
    rank would hold more than `micro_batch_size` rows. Every rank gets equally many chunks, as ZeRO-3 needs.
    """
    order = sorted(range(len(lengths)), key=lambda row: (-lengths[row], row))
    deals = [order[start : start + ranks] for start in range(0, len(order), ranks)]
    size = micro_batch_size or len(deals)
    return [
        Chunk(tuple(tuple(deal[rank] if rank < len(deal) else None for deal in chunk) for rank in range(ranks)))
        for chunk in (deals[start : start + size] for start in range(0, len(deals), size))
    ]
