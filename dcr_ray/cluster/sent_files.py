"""What of a folder is sent along with a study: its code and data, without results, weights, environments and caches.

Ray keeps what a job is sent in its head's memory and hands it to every node, so there is a limit to it. Ray itself
leaves out what a `.gitignore` names, and data files are often named there; here only the names below are left out.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from fnmatch import fnmatch
from pathlib import Path

from dcr_ray.errors import InputError, Problem

LEFT_OUT = (
    # Version control, environments, caches of tools.
    *(".git", ".gitignore", ".rayignore", ".venv", "venv", "node_modules", "__pycache__", "*.pyc", ".*_cache"),
    *(".ipynb_checkpoints", ".DS_Store", "*.egg-info"),
    # Results: a study's folders, MLflow's.
    *("runs", "dcr_ray_runs", "mlruns", "mlartifacts", "mlflow.db*"),
    # Weights: nodes read those from shared storage or a hub.
    *("*.safetensors", "*.bin", "*.pt", "*.pth", "*.ckpt", "*.gguf"),
    # Secrets.
    *(".env", ".netrc", "*.pem", ".ssh", ".aws"),
)
"""Patterns of names of files and folders, at any depth."""

MOST_SHOWN = 5


def files_to_send(folder: Path, exclude: Sequence[str] = ()) -> dict[str, int]:
    """Bytes of each file below the folder that is sent, by its path from there.

    A pattern of `exclude` is held against names, as LEFT_OUT's are, and against paths from the folder. Links are
    followed to files, not to folders.
    """
    return dict(_files(folder, (*LEFT_OUT, *exclude)))


def lay_out(folder: Path, exclude: Sequence[str], into: Path) -> int:
    """Link the files to send into `into`. Returns their bytes.

    Raises InputError for a folder that is not there, has nothing to send, or has more than Ray takes.
    """
    if not folder.is_dir():
        raise InputError([Problem("--working-dir", str(folder), "a folder that is here")])
    files, most = files_to_send(folder, exclude), most_bytes()
    size = sum(files.values())
    if not files:
        raise InputError([Problem("--working-dir", f"{folder}, of which nothing is left to send", "code or data")])
    if size >= most:
        largest = sorted(files, key=lambda name: -files[name])[:MOST_SHOWN]
        shown = ", ".join(f"{name} {files[name] / 2**20:.0f} MiB" for name in largest)
        fix = f"Leave some out with --exclude PATTERN, or keep data on shared storage. The largest: {shown}."
        found = f"{folder}, {size / 2**20:.0f} MiB in {len(files)} files"
        raise InputError([Problem("--working-dir", found, f"less than {most / 2**20:.0f} MiB (Ray's limit)", fix)])
    for name in files:
        link = into / name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to((folder / name).absolute())
    return size


def most_bytes() -> int:
    """What Ray's head takes as one package. The package is not compressed."""
    from ray._private.runtime_env.packaging import GCS_STORAGE_MAX_SIZE

    return GCS_STORAGE_MAX_SIZE


def _files(folder: Path, patterns: tuple[str, ...]) -> Iterator[tuple[str, int]]:
    for place, folders, names in os.walk(folder):
        inside = Path(place).relative_to(folder)
        folders[:] = sorted(name for name in folders if not _matches(inside / name, patterns))
        for name in sorted(names):
            file = Path(place, name)
            if not _matches(inside / name, patterns) and file.is_file():
                yield str(inside / name), file.stat().st_size


def _matches(path: Path, patterns: tuple[str, ...]) -> bool:
    return any(fnmatch(path.name, pattern) or fnmatch(str(path), pattern.rstrip("/")) for pattern in patterns)
