"""Commands about cluster files: list, validate, render, schemas. Nothing is launched."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import Any

from dcr_ray.cli.show import print_json, print_table
from dcr_ray.errors import InputError, Problem


def list_files(options: Namespace) -> int:
    from dcr_ray.planning.cluster import load_cluster

    folder = Path(options.folder)
    files = sorted(file for file in folder.glob("*") if file.suffix in (".yaml", ".yml", ".sbatch", ".sh"))
    if not files:
        fix = "The repository has one, clusters/; name it, or a folder of your own."
        raise InputError([Problem("FOLDER", f"no cluster files in {folder}", "a folder with cluster files", fix)])
    rows = []
    for file in files:
        cluster = load_cluster(file)
        rows.append(
            {
                "file": str(file),
                "kind": cluster.format,
                "nodes": ", ".join(f"{node.count} x {node.name}" for node in cluster.nodes),
                "gpus": cluster.gpus,
                "gpu": ", ".join(sorted({node.facts.gpu for node in cluster.gpu_nodes if node.facts.gpu})),
                "price_per_hour": cluster.price_per_hour or None,
                "prices_as_of": cluster.prices_as_of,
            }
        )
    if options.json:
        print_json(rows)
    else:
        print_table(rows, ("file", "kind", "nodes", "gpus", "gpu", "price_per_hour"), "Cluster files")
    return 0


def validate(options: Namespace) -> int:
    """0 when every file is in order, 2 otherwise."""
    from dcr_ray.cluster.validate import validate as check

    schemas = Path(options.schemas) if options.schemas else None
    found = [check(file, schemas) for file in options.files]
    if options.json:
        print_json([_document(each) for each in found])
    else:
        rows = [
            {"file": each.file, "held_against": "; ".join(each.by), "problems": len(each.problems)} for each in found
        ]
        print_table(rows, ("file", "held_against", "problems"))
    if problems := [problem for each in found for problem in each.problems]:
        raise InputError(problems)
    return 0


def render(options: Namespace) -> int:
    from dcr_ray.cluster.render import render as rendered

    text = rendered(
        options.file,
        name=options.name,
        workers=options.workers,
        image=options.image,
        region=options.region,
        spot=options.spot,
        storage=options.storage,
        sets=tuple(options.set),
    )
    if options.out:
        Path(options.out).write_text(text, encoding="utf-8")
        print(options.out)
    else:
        print(text, end="")
    return 0


def schemas(options: Namespace) -> int:
    from dcr_ray.cluster.kuberay import obtain_schemas, schemas_folder

    for file in obtain_schemas(
        Path(options.out) if options.out else schemas_folder(), tuple(options.sources), options.version
    ):
        print(file)
    return 0


def _document(found: Any) -> dict[str, Any]:
    problems = [vars(problem) for problem in found.problems]
    return {"file": found.file, "held_against": list(found.by), "problems": problems}
