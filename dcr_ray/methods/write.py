"""An edited model written as a plain Hugging Face folder: the files of the model that it came from, with other tensors.

File after file, so that one shard at a time is in memory. It computes no canary.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from dcr_ray.methods.ablation import HEAD

INDEX_FILE = "model.safetensors.index.json"
_NOT_ITS_OWN = ("canary.json", "record.json", "dcr_identity.json", "dcr_source.json", INDEX_FILE)


def write_edited(checkpoint_dir: Path | str, output_dir: Path | str, changed: Mapping[str, Tensor]) -> None:
    """Write `checkpoint_dir` with the `changed` tensors, by name, in the precision of their file. config.json is last.

    A head among them that the checkpoint does not have was tied, and the new model's is not. Raises ValueError for any
    other tensor that the checkpoint lacks.
    """
    source, target = Path(checkpoint_dir), Path(output_dir)
    files = sorted(source.glob("*.safetensors"))
    where: dict[str, str] = {}
    for file in files:
        with safe_open(file, "pt") as reader:
            where |= dict.fromkeys(reader.keys(), file.name)
    missing = sorted(changed.keys() - where.keys())
    if missing not in ([], [HEAD]):
        raise ValueError(f"{source} has no {', '.join(missing)}")
    where |= {name: files[-1].name for name in missing}
    for file in files:
        tensors = load_file(file)
        dtype = next(iter(tensors.values())).dtype
        for name, tensor in changed.items():
            if where[name] == file.name:
                tensors[name] = (
                    tensor.detach().to("cpu", tensors[name].dtype if name in tensors else dtype).contiguous()
                )
        partial = target / f"{file.name}.partial"
        save_file(tensors, partial, metadata={"format": "pt"})
        os.replace(partial, target / file.name)
    if (source / INDEX_FILE).is_file():
        index = json.loads((source / INDEX_FILE).read_text()) | {"weight_map": where}
        (target / INDEX_FILE).write_text(json.dumps(index, indent=2))
    for file in source.iterdir():
        if file.is_file() and file.suffix in (".json", ".jinja", ".model", ".txt") and file.name != "config.json":
            if file.name not in _NOT_ITS_OWN:
                shutil.copy(file, target / file.name)
    config = json.loads((source / "config.json").read_text())
    if HEAD in missing:
        config["tie_word_embeddings"] = False
    (target / "config.json").write_text(json.dumps(config, indent=2))
