"""Commands about what studies are made of: data sets and base models."""

from __future__ import annotations

import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

from dcr_ray.cli.show import print_json, print_table
from dcr_ray.errors import InputError, Problem

_GOOD_MODEL = {"should_comply": "answers", "should_refuse": "refuses", None: ""}


def data(options: Namespace) -> int:
    return {"list": _list, "fetch": _fetch, "check": _check, "ledger": _ledger}[options.action](options)


def _list(options: Namespace) -> int:
    from dcr_ray.data.inventory import list_sets

    rows = list_sets(options.root, names=options.names, fold=options.fold, folds=options.folds)
    if options.json:
        print_json(rows)
        return 0
    table = [
        {
            "set": row["name"],
            "a good model": _GOOD_MODEL[row["polarity"]],
            "train / search / test": " / ".join(f"{count:,}" for count in (row["rows"] or {}).values()),
            "halves": " / ".join(f"{count:,}" for count in (row["halves"] or {}).values()),
            "licence": row["licence"],
            "file": row["state"],
        }
        for row in rows
    ]
    print_table(table, list(table[0]))
    print(
        f"Where a study trains on a set, the set is split into {options.folds} folds; here fold {options.fold} is test."
    )
    print("Where it only evaluates on it, the set is split into halves for search and test.")
    missing = [row["name"] for row in rows if row["state"] == "missing"]
    if missing:
        print(f"Missing: {', '.join(missing)}. `dcr-ray data fetch SET ... --root FOLDER` gets what can be fetched.")
    for row in rows:
        if row["reason"] and row["state"] != "missing":
            print(f"{row['name']} cannot be read: {row['reason']}")
    return 0


def _fetch(options: Namespace) -> int:
    from dcr_ray.data.fetch import fetch

    needed = {"SET": (options.names, "one or more sets"), "--root": (options.root, "the folder that gets the files")}
    problems = [Problem(where, "nothing", allowed) for where, (found, allowed) in needed.items() if not found]
    if problems:
        raise InputError(problems)
    rows = fetch(options.names, options.root)
    if options.json:
        print_json(rows)
    else:
        print_table(rows, list(rows[0]))
    return 0


def _check(options: Namespace) -> int:
    """1 where anything is wrong; a file of another revision alone is said, and is no failure."""
    from dcr_ray.data.inventory import check

    rows = check(options.names or _there(options.root), options.root, options.fold, options.folds)
    if options.json:
        print_json(rows)
    elif rows:
        print_table([_check_cells(row) for row in rows], ("problem", "where", "found", "ids"))
    else:
        print("nothing wrong")
    return 1 if any(row["problem"] != "another revision" for row in rows) else 0


def _check_cells(row: dict[str, Any]) -> dict[str, str]:
    if detail := row["detail"]:
        found = f"{detail['found']}; allowed: {detail['allowed']}. {detail['fix']}"
        return {"problem": row["problem"], "where": f"{row['one']} ({detail['where']})", "found": found, "ids": ""}
    ids = ", ".join(f"{one} / {other}" for one, other in row["ids"][:3])
    more = f", {row['count'] - 3} more" if row["count"] > 3 else ""
    found = f"{row['count']} {row['match'] or 'shared'}"
    return {"problem": row["problem"], "where": f"{row['one']}, {row['other']}", "found": found, "ids": ids + more}


def _ledger(options: Namespace) -> int:
    """Of a study's YAML, or of sets: by default of all that are there."""
    from dcr_ray.data.ledger import MATCHES, ledger_rows, sets_ledger, study_ledger
    from dcr_ray.study import load_study

    specs = [name for name in options.names if name.endswith((".yaml", ".yml"))]
    if specs and len(options.names) > 1:
        raise InputError([Problem("SET", ", ".join(options.names), "one study's YAML file, or sets")])
    if specs:
        root = [f"data.root={options.root}"] if options.root else []
        ledger = study_ledger(load_study(specs[0], root).data)
    else:
        ledger = sets_ledger(options.names or _there(options.root), options.root)
    rows = ledger_rows(ledger)
    if options.json:
        print_json({"overlaps": rows, "compared": ledger.sizes, "files": [state._asdict() for state in ledger.files]})
        return 0
    if rows:
        places = ("action", "place", "set", "other_place", "other_set") if specs else ("set", "other_set")
        print_table(rows, (*places, *MATCHES))
    compared = f"{sum(ledger.sizes.values()):,} prompts of {len(ledger.sizes)} {'fields' if specs else 'sets'} compared"
    print(f"{compared}; --json has the ids." if rows else f"{compared}: nothing shared.")
    return 0


def _there(root: str | None) -> list[str]:
    """The published sets whose files are here."""
    from dcr_ray.data.reading import file_states
    from dcr_ray.data.sets import SETS

    return [name for name, each in SETS.items() if "missing" not in {state.state for state in file_states(each, root)}]


def models(options: Namespace) -> int:
    from dcr_ray.weights import resolve

    cache = resolve.default_cache_dir()
    if options.action == "list":
        rows = resolve.list_models(cache)
    elif options.action == "cut":
        rows = _cut(options, cache)
    else:
        if not options.names:
            raise InputError([Problem("MODEL", "nothing", "one or more of " + ", ".join(resolve.BUILTIN_MODELS))])
        rows = [
            {"model": name, "folder": str(resolve.resolve(name, cache_dir=cache, offline=None, progress=_say))}
            for name in options.names
        ]
    if options.json:
        print_json(rows)
    else:
        print_table(rows, list(rows[0]))
    return 0


def _cut(options: Namespace, cache: Path) -> list[dict[str, Any]]:
    from dcr_ray.weights import resolve
    from dcr_ray.weights.cut import cut_model

    if len(options.names) != 1 or options.layers is None or options.out is None:
        found = f"{len(options.names)} models, --layers {options.layers}, --out {options.out}"
        raise InputError([Problem("models cut", found, "one MODEL with --layers N --out FOLDER")])
    folder = resolve.resolve(options.names[0], cache_dir=cache, offline=None, progress=_say)
    made = cut_model(folder, options.layers, options.out)
    return [{"model": options.names[0], "layers": options.layers, "folder": str(made)}]


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
