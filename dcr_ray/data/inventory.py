"""What data is there, and what is wrong with it: tables for the command line, without printing and without texts."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict
from itertools import combinations
from pathlib import Path
from typing import Any

from dcr_ray.data.examples import Split
from dcr_ray.data.load import load_splits
from dcr_ray.data.overlap import find_overlaps
from dcr_ray.data.sets import SETS
from dcr_ray.errors import InputError


def list_sets(root: Path | str | None = None, *, fold: int = 0, folds: int = 5) -> list[dict[str, Any]]:
    """One dict a set: name, holds, polarity, licence, citation, description, origin, file, rows, reason.

    `rows` holds the count of each split; where the set cannot be read here it is None and `reason` says why.
    """
    table = []
    for data_set in SETS.values():
        try:
            splits = load_splits(data_set.name, root=root, fold=fold, folds=folds)
            rows, reason = {split: len(items) for split, items in splits.items()}, ""
        except InputError as error:
            rows, reason = None, "; ".join(f"{problem.found}. {problem.fix}" for problem in error.problems)
        table.append(
            {
                "name": data_set.name,
                "holds": data_set.holds,
                "polarity": data_set.polarity,
                "rows": rows,
                "reason": reason,
                "licence": data_set.licence,
                "citation": data_set.citation,
                "description": data_set.description,
                "origin": str(data_set.origin or "not to be fetched"),
                "file": data_set.file,
            }
        )
    return table


def check(
    names: Sequence[str], root: Path | str | None = None, fold: int = 0, folds: int = 5, *, near: bool = True
) -> list[dict[str, Any]]:
    """Every problem of these sets: dicts with `problem`, `one`, `other`, `match`, `count`, `ids` (pairs) and `detail`.

    unreadable              a problem that makes loading fail: missing file, malformed row, empty text
    duplicates              one prompt stands twice in one split of one set
    overlap across splits   one prompt stands in two splits, of one set or of two
    overlap of sets         one prompt stands in the same split of two sets
    group across splits     one group has rows in two splits, of one set or of two
    `one` and `other` read set/split; `match` is exact or near, or none where no texts are compared; `detail` holds
    what is unreadable, as where, found, allowed and fix.
    """
    problems: list[dict[str, Any]] = []
    collections, split_of = {}, {}
    for name in dict.fromkeys(names):
        try:
            splits = load_splits(name, root=root, fold=fold, folds=folds)
        except InputError as error:
            problems += [_row("unreadable", name, detail=asdict(each)) for each in error.problems]
            continue
        for split, items in splits.items():
            collections[f"{name}/{split}"], split_of[f"{name}/{split}"] = items, split
    for overlap in find_overlaps(collections, near=near, within=True):
        if overlap.one == overlap.other:
            problem = "duplicates"
        elif split_of[overlap.one] != split_of[overlap.other]:
            problem = "overlap across splits"
        else:
            problem = "overlap of sets"
        for match, pairs in (("exact", overlap.exact_pairs), ("near", overlap.near_pairs)):
            if pairs:
                problems.append(_row(problem, overlap.one, overlap.other, match, pairs))
    return problems + _straddling(collections, split_of)


def _row(
    problem: str,
    one: str,
    other: str | None = None,
    match: str | None = None,
    pairs: Sequence[tuple[str, str]] = (),
    detail: dict[str, str] | None = None,
) -> dict[str, Any]:
    return {
        "problem": problem,
        "one": one,
        "other": other,
        "match": match,
        "count": len(pairs),
        "ids": tuple(pairs),
        "detail": detail,
    }


def _straddling(collections: dict[str, list], split_of: dict[str, Split]) -> list[dict[str, Any]]:
    ids: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for name, items in collections.items():
        for item in items:
            ids[item.group][name].append(item.id)
    shared: dict[tuple[str, str], list[tuple[str, str]]] = defaultdict(list)
    for owners in ids.values():
        for one, other in combinations(owners, 2):
            if split_of[one] != split_of[other]:
                shared[one, other].append((owners[one][0], owners[other][0]))
    return [_row("group across splits", one, other, None, pairs) for (one, other), pairs in sorted(shared.items())]
