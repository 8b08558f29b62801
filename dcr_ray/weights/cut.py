"""A model of truncated depth: the first layers of another one, with its embedding, final norm and head.

It is no smaller pretrained model: what the layers that are left out did is missing. It gives a ladder cheap rungs on
which its machinery can be tried, and is to be named as what it is.
"""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

from safetensors.torch import load_file, save_file

from dcr_ray.errors import InputError, Problem

_LAYER = re.compile(r"^model\.layers\.(\d+)\.")


def cut_model(folder: Path | str, layers: int, out: Path | str) -> Path:
    """Write the first `layers` layers of the model in `folder` to `out`, a new folder, and return it.

    Raises InputError for a number of layers that the model does not have more of, and a folder that is not new.
    """
    source, target = Path(folder), Path(out)
    config = json.loads((source / "config.json").read_text())
    problems = []
    if not 1 <= layers < config["num_hidden_layers"]:
        problems.append(
            Problem("layers", str(layers), f"1 to {config['num_hidden_layers'] - 1}, fewer than the model's")
        )
    if target.exists() and any(target.iterdir()):
        problems.append(Problem("out", f"{target}, which is not empty", "a new folder"))
    if problems:
        raise InputError(problems)
    target.mkdir(parents=True, exist_ok=True)
    tensors = {}
    for file in sorted(source.glob("*.safetensors")):
        for name, tensor in load_file(file).items():
            found = _LAYER.match(name)
            if found is None or int(found[1]) < layers:
                tensors[name] = tensor
    save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})
    for file in source.iterdir():
        kept = file.suffix in (".json", ".jinja", ".model", ".txt") and not file.name.startswith("dcr_")
        if file.is_file() and kept and "index" not in file.name:
            shutil.copy(file, target / file.name)
    config["num_hidden_layers"] = layers
    if config.get("layer_types"):
        config["layer_types"] = config["layer_types"][:layers]
    (target / "config.json").write_text(json.dumps(config, indent=2))
    return target
