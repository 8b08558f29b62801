"""A tied model's folder with a head of its own: the same files by link, the embedding once more as the head.

It is for engines that have to take checkpoints in which the two differ. Nothing about the model changes.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save_file

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


@contextmanager
def untied_copy(folder: Path | str) -> Iterator[str]:
    """A folder that is there as long as the block lasts; the given one where its head is its own already."""
    source = Path(folder).absolute()
    config = json.loads((source / "config.json").read_text())
    weights = sorted(source.glob("*.safetensors"))
    where = {}
    for file in weights:
        with safe_open(file, "pt") as reader:
            where |= dict.fromkeys(reader.keys(), file.name)
    if HEAD in where:
        yield str(source)
        return
    with tempfile.TemporaryDirectory(prefix="dcr-ray-untied-") as place:
        target = Path(place)
        for file in source.iterdir():
            if file.is_file() and file.name not in ("config.json", "model.safetensors.index.json"):
                # A file of the usual name would be taken for the whole model, and the index not be read.
                (target / _shard(file.name)).symlink_to(file.resolve())
        with safe_open(source / where[EMBEDDING], "pt") as reader:
            save_file({HEAD: reader.get_tensor(EMBEDDING)}, target / "head.safetensors", metadata={"format": "pt"})
        index = {"metadata": {}, "weight_map": {n: _shard(f) for n, f in where.items()} | {HEAD: "head.safetensors"}}
        (target / "model.safetensors.index.json").write_text(json.dumps(index))
        (target / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": False}))
        yield place


def _shard(name: str) -> str:
    return f"part-of-{name}" if name.endswith(".safetensors") else name
