"""From a file in its original layout to rows. A reader takes a path and gives the rows in the file's order.

Readers know columns, not sets: which reader belongs to which set stands in `sets`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from dcr_ray.data.records import read_records
from dcr_ray.errors import InputError, Problem


class Row(NamedTuple):
    """One row as it stands in the file, without white space at the ends of its texts.

    `response` is None where the file has none at all; `id`, `kind`, `group` and `split` may be empty.
    """

    number: int
    prompt: str
    response: str | None = None
    id: str = ""
    kind: str = ""
    group: str = ""
    split: str = ""


def read_columns(
    path: Path,
    *,
    prompt: str = "prompt",
    response: str | None = "response",
    id: str = "id",
    kind: str = "kind",
    group: str = "group",
    split: str = "split",
    only: tuple[str, str] | None = None,
) -> list[Row]:
    """Rows of a table with a prompt column; the other columns are taken where they exist.

    A response column in which every row is empty counts as none.
    `only` = (column, value) leaves out all other rows. Raises InputError with every malformed row.
    """
    records = read_records(path, prompt) if response is None else read_records(path, prompt, response)
    has_response = response is not None and any(_text(record, response) for _, record in records)
    return [
        Row(
            number,
            _text(record, prompt),
            _text(record, response) if has_response else None,
            *(_text(record, column) for column in (id, kind, group, split)),
        )
        for number, record in records
        if only is None or _text(record, only[0]) == only[1]
    ]


def read_instructions(path: Path) -> list[Row]:
    """Rows in Alpaca's layout (instruction, input, output): the prompt is the instruction, a line break and the input.

    Without an input the line break goes too. Raises InputError with every malformed row.
    """
    rows = []
    for number, record in read_records(path, "instruction", "input", "output"):
        prompt = f"{_text(record, 'instruction')}\n{_text(record, 'input')}".strip()
        rows.append(Row(number, prompt, _text(record, "output") if "output" in record else None))
    return rows


_XSTEST_TOPICS = {
    "nons_group_real_discr": "discrimination",
    "real_group_nons_discr": "discrimination",
    "contrast_discr": "discrimination",
    "privacy_public": "privacy",
    "privacy_fictional": "privacy",
    "contrast_privacy": "privacy",
}
# The one focus that XSTest v2 writes differently in a prompt and in its contrast (rows 174 and 199).
_XSTEST_FOCUS = {"bank account fraud": "bank fraud"}


def read_xstest(path: Path, label: str) -> list[Row]:
    """The rows of XSTest v2 labelled "safe" or "unsafe", grouped so that a prompt and its contrast share a family.

    The family is the topic (the type without contrast_; the discrimination types are one topic, so are the privacy
    types) and the focus. Where the focus is empty, the place within the block of 25 that XSTest numbers per type
    stands for it, since the historical contrasts follow the order of their safe prompts. The safe prompts about groups
    that do not exist have no contrast, so each is a family of its own.
    Raises InputError with every row whose label or id is not XSTest's.
    """
    rows, problems = [], []
    for number, record in read_records(path, "prompt"):
        type_, place = _text(record, "type"), _text(record, "id").rpartition("-")[2]
        if _text(record, "label") not in ("safe", "unsafe"):
            problems.append(Problem(f"{path}, row {number}", "no known label", "safe or unsafe under 'label'"))
        if not place.isdecimal():
            problems.append(Problem(f"{path}, row {number}", "an id without a number", "XSTest's own ids, such as 17"))
        if problems or _text(record, "label") != label:
            continue
        focus = " ".join(_text(record, "focus").casefold().split())
        family = _XSTEST_FOCUS.get(focus, focus) or f"number {(int(place) - 1) % 25 + 1}"
        topic = _XSTEST_TOPICS.get(type_, type_.removeprefix("contrast_"))
        rows.append(Row(number, _text(record, "prompt"), None, _text(record, "id"), type_, f"xstest/{topic}/{family}"))
    if problems:
        raise InputError(problems)
    return rows


def _text(record: dict[str, Any], column: str) -> str:
    value = record.get(column)
    return "" if value is None else str(value).strip()
