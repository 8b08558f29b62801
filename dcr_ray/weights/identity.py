"""Identity of a model folder: what it holds decides, never its name, its path or where it came from."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from dcr_ray.errors import InputError, Problem
from dcr_ray.fingerprint import digest, file_digest

SIDECAR = "dcr_identity.json"
MODEL_FILES = ["config.json", "generation_config.json", "*.safetensors", "tokenizer*", "chat_template*"] + [
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
]


def model_identity(folder: Path | str) -> str:
    """SHA-256, as 64 hexadecimal digits, over the contents of the model's config, weights, tokenizer and chat template.

    Hashes of files are kept in a small file beside them, keyed by size and time of change, where the folder can be
    written. Raises InputError for a folder without a config.json or without safetensors.
    """
    folder = Path(folder)
    files = sorted({file for pattern in MODEL_FILES for file in folder.glob(pattern) if file.is_file()})
    names = [file.name for file in files]
    if "config.json" not in names or not any(name.endswith(".safetensors") for name in names):
        found = ", ".join(names) or "no model files"
        raise InputError([Problem(f"model folder {folder}", found, "config.json and safetensors")])
    sidecar = folder / SIDECAR
    known: dict[str, Any] = {}
    if sidecar.is_file():
        try:
            known = json.loads(sidecar.read_text(encoding="utf-8"))
        except ValueError:
            known = {}  # A torn sidecar costs only the time to hash again.
    hashes: dict[str, Any] = {}
    for file in files:
        facts = file.stat()
        key = [facts.st_size, facts.st_mtime_ns]
        old = known.get(file.name, {})
        hashes[file.name] = {"key": key, "sha256": old["sha256"] if old.get("key") == key else file_digest(file)}
    if hashes != known:
        try:
            written = folder / f".{SIDECAR}.{os.getpid()}"
            written.write_text(json.dumps(hashes), encoding="utf-8")
            written.replace(sidecar)
        except OSError:
            pass  # A folder that cannot be written is hashed every time.
    return digest({name: facts["sha256"] for name, facts in hashes.items()})
