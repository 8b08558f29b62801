"""The columns of the table of outcomes, what each may hold, and the check that it does.

It knows words, types and keys. Whether a verdict is right, and whether a prompt is missing, it cannot know.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from dcr_ray.errors import InputError, Problem, nearest_name
from dcr_ray.verdict import HITS, Verdict

if TYPE_CHECKING:
    import pandas as pd

OUTCOMES_VERSION = 1
"""Raised when a column changes its meaning, so that older files are refused."""

TRIAL_COLUMNS = ("trial", "role", "arm", "seed", "repeat")
"""What a judge stage does not know, since several trials may share it: added when a study gathers its stages.

`arm` names what trials have in common that differ by their seed alone; `repeat` counts further evaluations of the same
weights from 1.
"""

COLUMNS = (
    *TRIAL_COLUMNS,
    *("split", "field", "benchmark", "prompt", "group", "kind", "in_distribution", "judge", "verdict"),
    *("finish_reason", "tokens", "first_token_refusal_probability", "refusal_probability"),
)

KEY = ("trial", "seed", "repeat", "field", "benchmark", "prompt", "judge")
"""Together they name one row."""

WORDS: dict[str, tuple[str, ...]] = {
    "role": ("baseline", "search"),
    "split": ("search", "test"),
    "field": tuple(HITS),
    "verdict": tuple(verdict.value for verdict in Verdict),
    "finish_reason": ("stop", "length", "decided"),
}
COUNTS = ("seed", "repeat", "tokens")
PROBABILITIES = ("first_token_refusal_probability", "refusal_probability")
MAY_BE_NULL = ("refusal_probability",)
MAY_BE_EMPTY = ("kind",)
"""Many sets do not sort their prompts."""
TEXTS = tuple(c for c in COLUMNS if c not in (*COUNTS, *PROBABILITIES, "in_distribution"))

_FACTS = ((("benchmark", "prompt"), ("group", "kind")), (("trial",), ("role", "arm")))
"""What may not change between rows of one prompt, and of one trial."""

_SHOWN = 20


def checked_frame(raw: pd.DataFrame, partial: bool = False) -> pd.DataFrame:
    """`raw` with the columns in their order and types: categories for texts, int64, bool, float64 (null is NaN).

    `partial` leaves out TRIAL_COLUMNS. Raises InputError with every column that is missing, unknown or holds something
    else; where all columns are right, with the rows that share a key and the prompts and trials that contradict
    themselves, 20 of each at most and a count of the others.
    """
    columns = tuple(c for c in COLUMNS if not (partial and c in TRIAL_COLUMNS))
    problems = [*_column_problems(raw, columns)]
    read = {c: _read(c, raw[c], problems) for c in columns if c in raw.columns}
    if problems:
        raise InputError(problems)
    import pandas as pd

    frame = pd.DataFrame(read, columns=list(columns)).reset_index(drop=True)
    problems = [*_duplicates(frame, [c for c in KEY if c in columns]), *_contradictions(frame)]
    if problems:
        raise InputError(problems)
    return frame


def _column_problems(raw: pd.DataFrame, columns: Sequence[str]) -> Iterator[Problem]:
    names = [str(c) for c in raw.columns]
    for name in names:
        if name not in columns:
            yield Problem(f"column {name}", "an unknown column", ", ".join(columns), nearest_name(name, columns))
    for column in columns:
        if column not in names:
            yield Problem(f"column {column}", "no such column", "one value a row")


def _read(column: str, values: pd.Series, problems: list[Problem]) -> pd.Series:
    """The column in its type; where a value is wrong, a problem is noted and the column is of no use."""
    if column in TEXTS:
        wrong, read, allowed = _texts(values, WORDS.get(column), column in MAY_BE_EMPTY)
    elif column == "in_distribution":
        wrong, read, allowed = _others(values, bool), values, "true or false"
    else:
        wrong, read = _numbers(values)
        if column in COUNTS:
            wrong, allowed = wrong | read.isna() | (read < 0) | (read % 1 != 0), "a whole number from 0"
        elif column in MAY_BE_NULL:
            wrong, allowed = wrong | (read < 0) | (read > 1), "a probability from 0 to 1, or null"
        else:
            wrong, allowed = wrong | ~read.between(0, 1), "a probability from 0 to 1"
    if wrong.any():
        shown = ", ".join(dict.fromkeys(repr(value) for value in values[wrong].head(100).tolist()))
        rows = f"{wrong.sum()} of {len(values)} rows, the first is row {wrong.to_numpy().argmax()}"
        problems.append(Problem(f"column {column}", f"{shown[:200]} ({rows})", allowed))
        return read
    types = dict.fromkeys(COUNTS, "int64") | {"in_distribution": "bool"}
    return read.astype(types.get(column, read.dtype)).reset_index(drop=True)


def _texts(values: pd.Series, words: tuple[str, ...] | None, empty: bool) -> tuple[pd.Series, pd.Series, str]:
    read = values.astype("category")
    known = [category for category in read.cat.categories if isinstance(category, str) and (category or empty)]
    # An enum's member is a str of its own class; what is stored is plain.
    read = read.cat.rename_categories({category: str(category) for category in known})
    known = [str(category) for category in known]
    if words:
        known = [category for category in known if category in words]
    wrong = ~read.isin(known)
    return wrong, read.cat.set_categories(words or known), ", ".join(words) if words else "a text"


def _numbers(values: pd.Series) -> tuple[pd.Series, pd.Series]:
    import pandas as pd

    read = pd.to_numeric(values, errors="coerce").astype("float64")
    return values.notna() & (_others(values, int, float) | read.isna() | (read.abs() == float("inf"))), read


def _others(values: pd.Series, *types: type) -> pd.Series:
    """Where a value is of none of these types; a bool is no number."""
    import pandas as pd

    if values.dtype.kind in "biuf":
        return pd.Series((values.dtype.kind == "b") != (bool in types), index=values.index)
    fits = values.map(lambda value: isinstance(value, types) and isinstance(value, bool) == (bool in types))
    return ~fits.astype(bool)


def _duplicates(frame: pd.DataFrame, key: list[str]) -> Iterator[Problem]:
    again = frame.duplicated(key)
    for row in frame.loc[again, key].drop_duplicates().head(_SHOWN).itertuples(index=False):
        yield Problem(" ".join(f"{name} {value}" for name, value in row._asdict().items()), "two rows", "one row")
    if again.sum() > _SHOWN:
        yield Problem("all rows", f"{again.sum()} rows whose key another row has", f"one row for each {', '.join(key)}")


def _contradictions(frame: pd.DataFrame) -> Iterator[Problem]:
    for key, facts in _FACTS:
        for fact in facts if set(key) <= set(frame.columns) else ():
            seen = frame[[*key, fact]].drop_duplicates()
            twice = seen.loc[seen.duplicated(list(key), keep=False)]
            for name, rows in list(twice.groupby(list(key), observed=True))[:_SHOWN]:
                found = f"{fact} " + " and ".join(map(repr, rows[fact].tolist()))
                yield Problem(" ".join(map(str, name)), found, f"one {fact}")
