"""The base model's folder on the node at hand: the driver's own where it is seen here, else one in this node's cache.

A node fetches a model once, whoever of its workers comes first; the others wait for it.
"""

from __future__ import annotations

import fcntl
from pathlib import Path

from dcr_ray.errors import DcrError
from dcr_ray.weights.resolve import default_cache_dir, model_identity, resolve


def local_model(model: str, folder: str, identity: str) -> str:
    """The folder of `model` on this node. `folder` and `identity` are what the driver found.

    Raises DcrError where this node has another model under that name, InputError where it has none and cannot fetch it.
    """
    if (Path(folder) / "config.json").is_file():
        return folder
    cache = default_cache_dir()
    cache.mkdir(parents=True, exist_ok=True)
    with open(cache / "models.lock", "a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        found = str(resolve(model, cache_dir=cache, offline=None))
    if model_identity(found) != identity:
        raise DcrError(f"{found} on this node is not the {model} that the study's driver has: remove it, or share one")
    return found
