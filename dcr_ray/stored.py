"""Studies that a storage folder holds, found by name and read back from the spec that they were run with."""

from __future__ import annotations

import os
from pathlib import Path

import yaml

from dcr_ray.errors import InputError, Problem, nearest_name
from dcr_ray.study import StudySpec, load_study, parse_study

SPEC_FILE = "study.yaml"


def open_spec(name: str, storage: str | Path | None = None) -> StudySpec:
    """The spec of a study by its name, or by the YAML file it is run from.

    `storage` defaults to $DCR_RAY_STORAGE, then ./runs. Raises InputError for a study that is not there.
    """
    if name.endswith((".yaml", ".yml")):
        return load_study(name, [f"storage={storage}"] if storage else [])
    root = storage_folder(storage)
    file = root / name / SPEC_FILE
    if not file.is_file():
        known = stored_studies(root)
        fix = nearest_name(name, known) or "Name the folder of studies with --storage FOLDER."
        raise InputError(
            [Problem("STUDY", f"no study '{name}' in {root}", ", ".join(known) or "a study that has begun", fix)]
        )
    # The folder may have been moved since the study was run.
    return parse_study(yaml.safe_load(file.read_text()) | {"storage": str(root)})


def storage_folder(storage: str | Path | None = None) -> Path:
    """The folder of studies: the one given, else $DCR_RAY_STORAGE, else ./runs."""
    return Path(storage or os.environ.get("DCR_RAY_STORAGE") or "runs").expanduser().absolute()


def stored_studies(root: Path) -> list[str]:
    """The names of the studies that a storage folder holds."""
    return sorted(path.parent.name for path in root.glob(f"*/{SPEC_FILE}"))
