"""From a .jsonl, .json, .csv or .txt file to numbered records, with every row that cannot be read named at once.

Records are numbered from 1; in .jsonl and .txt files the number is that of the line, in .csv files that of the record,
the header not counted. What the columns mean stands in `readers`.
"""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

from dcr_ray.errors import InputError, Problem

SUFFIXES = (".jsonl", ".json", ".csv", ".txt")
Records = list[tuple[int, dict[str, Any]]]


def read_records(path: Path, column: str, *others: str) -> Records:
    """The records of a file in which at least one has `column`; what stands there and under `others` must be text.

    A list of texts, or a line of a .txt file, is read as a record with the one column "prompt"; an object of lists
    {"instructions", "inputs"} as records with the columns "instruction" and "input".
    Raises InputError with every malformed row. Texts never appear in it.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError([Problem(str(path), f"no UTF-8 at byte {error.start}", "text in UTF-8")]) from error
    parse = {".jsonl": _json_lines, ".json": _json, ".csv": _csv, ".txt": _lines}.get(path.suffix.lower())
    if parse is None:
        raise InputError([Problem(str(path), f"the ending '{path.suffix}'", ", ".join(SUFFIXES))])
    records, problems = parse(path, text)
    if not records and not problems:
        problems = [Problem(str(path), "no rows", "at least one row")]
    if records and not any(column in record for _, record in records):
        columns = sorted({str(name) for _, record in records for name in record})
        problems.append(Problem(str(path), f"the columns {', '.join(columns)}", f"a column '{column}'"))
    for number, record in records:
        for name in (column, *others):
            if not isinstance(record.get(name, ""), str | None):
                found = f"a {type(record[name]).__name__} under '{name}'"
                problems.append(Problem(f"{path}, row {number}", found, "a text"))
    if problems:
        raise InputError(problems)
    return records


def _json_lines(path: Path, text: str) -> tuple[Records, list[Problem]]:
    records: Records = []
    problems = []
    # Not splitlines(): JSON may hold U+2028 unescaped, which splitlines takes for the end of a line.
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            problems.append(Problem(f"{path}, row {number}", f"no JSON ({error.msg})", "one JSON object a line"))
            continue
        if isinstance(record, dict):
            records.append((number, record))
        else:
            problems.append(Problem(f"{path}, row {number}", f"a {type(record).__name__}", "one JSON object a line"))
    return records, problems


def _json(path: Path, text: str) -> tuple[Records, list[Problem]]:
    allowed = "a list of objects, a list of texts, or an object with a list 'instructions'"
    try:
        document = json.loads(text)
    except json.JSONDecodeError as error:
        return [], [Problem(f"{path}, line {error.lineno}", f"no JSON ({error.msg})", allowed)]
    if isinstance(document, dict) and isinstance(document.get("instructions"), list):
        instructions = document["instructions"]
        inputs = document.get("inputs") or [""] * len(instructions)
        if not isinstance(inputs, list) or len(inputs) != len(instructions):
            found = f"{len(instructions)} instructions, and inputs of another number"
            return [], [Problem(str(path), found, "as many inputs as instructions, or none")]
        document = [{"instruction": text, "input": more} for text, more in zip(instructions, inputs, strict=True)]
    if not isinstance(document, list):
        return [], [Problem(str(path), f"a {type(document).__name__}", allowed)]
    records: Records = []
    problems = []
    for number, record in enumerate(document, start=1):
        if isinstance(record, dict | str):
            records.append((number, {"prompt": record} if isinstance(record, str) else record))
        else:
            problems.append(Problem(f"{path}, row {number}", f"a {type(record).__name__}", "an object or a text"))
    return records, problems


def _csv(path: Path, text: str) -> tuple[Records, list[Problem]]:
    records: Records = []
    problems = []
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    try:
        for number, record in enumerate(reader, start=1):
            # DictReader puts fields beyond the header under None, and None where fields are missing.
            if None in record or None in record.values():
                allowed = f"{len(reader.fieldnames or ())} fields, as in the header"
                problems.append(Problem(f"{path}, row {number}", "another number of fields", allowed))
            else:
                records.append((number, record))
    except csv.Error as error:
        problems.append(Problem(f"{path}, line {reader.line_num}", f"no CSV ({error})", "comma-separated values"))
    return records, problems


def _lines(path: Path, text: str) -> tuple[Records, list[Problem]]:
    return [(n, {"prompt": line}) for n, line in enumerate(text.split("\n"), start=1) if line.strip()], []
