"""HitMatrix: the outcomes of one field under one judge as aligned arrays, ready for statistics that know no tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from dcr_ray.outcomes.variants import plain_benchmark
from dcr_ray.verdict import HITS, Verdict

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, eq=False)
class HitMatrix:
    """`values` has shape (rows, prompts): 1 a hit (`verdict.HITS`), 0 none, NaN unscored or never asked.

    A row is a trial under a seed, sorted by both; a column a prompt, sorted by benchmark and id. `trials`, `seeds`,
    `arms` and `roles` name the rows; `prompts` (benchmark, id), `benchmarks` and `groups` the columns. `groups` are
    integers from 0, one for each family of prompts; two benchmarks share one only as a set plain and wrapped.
    """

    field: str
    judge: str
    trials: tuple[str, ...]
    seeds: tuple[int, ...]
    arms: tuple[str, ...]
    roles: tuple[str, ...]
    prompts: tuple[tuple[str, str], ...]
    benchmarks: tuple[str, ...]
    groups: np.ndarray
    values: np.ndarray

    def select(
        self, rows: Sequence[bool] | np.ndarray | None = None, prompts: Sequence[bool] | np.ndarray | None = None
    ) -> HitMatrix:
        """Only the rows and prompts that are true in these masks: `select(prompts=[b == name for b in benchmarks])`.

        Raises ValueError for a mask of another length.
        """
        row = _mask(rows, len(self.trials), "rows")
        column = _mask(prompts, len(self.prompts), "prompts")
        kept = {
            name: tuple(value for value, keep in zip(getattr(self, name), mask, strict=True) if keep)
            for names, mask in ((("trials", "seeds", "arms", "roles"), row), (("prompts", "benchmarks"), column))
            for name in names
        }
        return replace(self, **kept, groups=self.groups[column], values=self.values[np.ix_(row, column)])


def _mask(wanted: Sequence[bool] | np.ndarray | None, length: int, what: str) -> np.ndarray:
    if wanted is None:
        return np.ones(length, dtype=bool)
    mask = np.asarray(wanted, dtype=bool)
    if mask.shape != (length,):
        raise ValueError(f"a mask of shape {mask.shape} for {length} {what}")
    return mask


def hit_matrix(frame: pd.DataFrame, field: str, judge: str) -> HitMatrix:
    """The matrix of a frame whose rows are all of one field, judge and repeat, and which is not empty."""
    rows, row_of = _places(frame, ["trial", "seed", "arm", "role"])
    columns, column_of = _places(frame, ["benchmark", "prompt", "group"])
    verdicts = frame["verdict"].astype(str).to_numpy()
    values = np.full((len(rows), len(columns)), np.nan)
    hits = np.isin(verdicts, [verdict.value for verdict in HITS[field]]).astype(float)
    values[row_of, column_of] = np.where(verdicts == Verdict.UNSCORED.value, np.nan, hits)
    families = {family: number for number, family in enumerate(dict.fromkeys(_family(*of) for of in columns))}
    return HitMatrix(
        field=field,
        judge=judge,
        trials=tuple(trial for trial, *_ in rows),
        seeds=tuple(seed for _, seed, *_ in rows),
        arms=tuple(arm for _, _, arm, _ in rows),
        roles=tuple(role for *_, role in rows),
        prompts=tuple((benchmark, prompt) for benchmark, prompt, _ in columns),
        benchmarks=tuple(benchmark for benchmark, *_ in columns),
        groups=np.array([families[_family(*of)] for of in columns], dtype=np.int64),
        values=values,
    )


def _family(benchmark: str, prompt: str, group: str) -> tuple[str, str]:
    return plain_benchmark(benchmark, prompt), group


def _places(frame: pd.DataFrame, names: list[str]) -> tuple[list[tuple], np.ndarray]:
    """The distinct combinations of some columns in sorted order, and for every row the place of its own."""
    codes = frame.groupby(names, observed=True, sort=False).ngroup().to_numpy()
    first = frame[names].drop_duplicates()
    combinations = [tuple(row) for row in zip(*(first[name].tolist() for name in names), strict=True)]
    order = sorted(range(len(combinations)), key=combinations.__getitem__)
    place = np.empty(len(order), dtype=np.int64)
    # groupby numbers its groups as they first appear, which is the order of drop_duplicates.
    place[order] = np.arange(len(order))
    return [combinations[index] for index in order], place[codes]
