"""Commands about what studies are made of: data sets and base models."""

from __future__ import annotations

import sys
from argparse import Namespace

from dcr_ray.cli.show import print_json, print_table
from dcr_ray.errors import InputError, Problem


def data(options: Namespace) -> int:
    from dcr_ray.data import inventory

    if options.action == "list":
        rows = inventory.list_sets(options.root)
    elif options.action == "fetch":
        if not options.root:
            raise InputError([Problem("--root", "nothing", "the folder that gets the files")])
        rows = inventory.fetch(options.names, options.root)
    else:
        rows = inventory.check(options.names, options.root, options.fold, options.folds)
    if options.json:
        print_json(rows)
    elif rows:
        print_table(rows, list(rows[0]))
    else:
        print("nothing wrong")
    return 1 if options.action == "check" and rows else 0


def models(options: Namespace) -> int:
    from dcr_ray.weights import resolve

    cache = resolve.default_cache_dir()
    if options.action == "list":
        rows = resolve.list_models(cache)
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


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
