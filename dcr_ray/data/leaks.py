"""Which rows of a study are dropped, so that no prompt stands on two sides of it.

It knows exact and near duplicates alone (see `overlap`); what is only similar is kept, and flagged by the ledger.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from dcr_ray.data.examples import Pair, Prompt, Split
from dcr_ray.data.overlap import find_overlaps

Items = tuple[Prompt, ...] | tuple[Pair, ...]
Pool = tuple[Split, str]
"""A split and a field of the study: what its rows are used for."""


class Dropped(NamedTuple):
    """One prompt that was left out of `field`, since `match` (exact or near) of it stands in `kept_in`."""

    field: str
    source: str
    id: str
    match: str
    kept_in: str
    kept_source: str
    kept_id: str


def pool_name(pool: Pool) -> str:
    return f"{pool[1]} ({pool[0]})"


def without_leaks(
    pools: Mapping[Pool, Items], attacks: Mapping[str, str] | None = None
) -> tuple[dict[Pool, Items], list[Dropped]]:
    """Per pool, its rows without those that an earlier pool of another part, or of another field, holds as well, or an
    earlier set of the same pool: a prompt that two benchmarks share counts once.

    Pools that are trained on may share prompts with each other, and a benchmark may hold a prompt twice. `attacks`
    says of sets what their rows, plain yet, will be wrapped in: in one pool a prompt may stand plain and once in each.
    """
    attacks = attacks or {}
    names = {pool_name(pool): pool for pool in pools}
    gone: dict[Pool, set[int]] = {pool: set() for pool in pools}
    dropped = []
    # Ids are unique within a set, and a pool may hold several sets: here a row is called by its place.
    placed = {
        name: [row._replace(id=str(place)) for place, row in enumerate(pools[pool])] for name, pool in names.items()
    }
    for overlap in find_overlaps(placed, within=True):
        # Overlaps come in the order of the pools: the first of the two keeps what they share.
        keeper, loser = names[overlap.one], names[overlap.other]
        if loser[0] == keeper[0] == "train":
            continue
        for match, pairs in (("exact", overlap.exact_pairs), ("near", overlap.near_pairs)):
            for kept, lost in sorted((int(one), int(other)) for one, other in pairs):
                if keeper == loser:
                    kept, lost = sorted((kept, lost))
                row, twin = pools[loser][lost], pools[keeper][kept]
                if keeper == loser and (
                    row.source == twin.source or attacks.get(row.source) != attacks.get(twin.source)
                ):
                    continue
                if lost not in gone[loser] and kept not in gone[keeper]:
                    gone[loser].add(lost)
                    dropped.append(
                        Dropped(pool_name(loser), row.source, row.id, match, pool_name(keeper), twin.source, twin.id)
                    )
    return {
        pool: tuple(row for place, row in enumerate(rows) if place not in gone[pool]) for pool, rows in pools.items()
    }, dropped
