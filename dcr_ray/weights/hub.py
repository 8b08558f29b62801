"""Models from the Hugging Face hub: safetensors, config and tokenizer only; fails within seconds without a network."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dcr_ray.errors import InputError
from dcr_ray.models import ModelCard
from dcr_ray.weights.save import without_progress_bars

HUB_DEADLINE_SECONDS = 10.0
HUB_FILES = ["*.safetensors", "*.json", "*.jinja", "*.model", "*.txt"]
NOT_HUB_FILES = ["*/*", "consolidated*"]


class DownloadFailed(Exception):
    """One way to a model did not work; its text says why."""


def download_from_hub(
    hub_id: str, revision: str | None, offline: bool | None, say: Callable[[str], None], **into: Path
) -> str:
    """Download a model `into` a local_dir or a cache_dir of the hub client and return the commit.

    Raises DownloadFailed, and InputError for an architecture that is not supported, before its weights are paid for.
    """
    from huggingface_hub import HfApi, hf_hub_download, snapshot_download

    if offline or os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        raise DownloadFailed("not tried: " + ("offline" if offline else "HF_HUB_OFFLINE is set"))
    info = _before_the_deadline(lambda: HfApi().model_info(hub_id, revision=revision, timeout=HUB_DEADLINE_SECONDS / 2))
    names = [file.rfilename for file in info.siblings or []]
    if "config.json" not in names or not any(name.endswith(".safetensors") for name in names):
        raise DownloadFailed("the repository has no config.json with safetensors beside it")
    try:
        config = hf_hub_download(hub_id, "config.json", revision=info.sha, **into)
        ModelCard.from_config(json.loads(Path(config).read_text(encoding="utf-8")), hub_id)
        say(f"{hub_id}: downloading from the hub")
        patterns = {"allow_patterns": HUB_FILES, "ignore_patterns": NOT_HUB_FILES}
        with without_progress_bars():
            snapshot_download(hub_id, revision=info.sha, **patterns, **into)
    except InputError:
        raise
    except Exception as error:
        raise _download_failed(error) from error
    return info.sha


def _before_the_deadline(call: Callable[[], Any]) -> Any:
    """What `call()` returns in HUB_DEADLINE_SECONDS. No client's timeout bounds a name server that never answers."""
    outcome: dict[str, Any] = {}

    def run() -> None:
        try:
            outcome["result"] = call()
        except Exception as error:
            outcome["error"] = error

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(HUB_DEADLINE_SECONDS)
    if "result" in outcome:
        return outcome["result"]
    if "error" in outcome:
        raise _download_failed(outcome["error"]) from outcome["error"]
    raise DownloadFailed(f"no answer within {HUB_DEADLINE_SECONDS:.0f} s")


def _download_failed(error: Exception) -> DownloadFailed:
    # The hub client lets its HTTP library's errors through, which share no base class with its own.
    return DownloadFailed(f"{type(error).__name__}: {' '.join(str(error).split())[:300]}")


def is_complete(folder: Path) -> bool:
    """Whether the folder has a config, a tokenizer and every shard of its weights."""
    index = folder / "model.safetensors.index.json"
    shards = ["model.safetensors"]
    if index.is_file():
        shards = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    has_tokenizer = any(folder.glob("tokenizer.*")) or (folder / "vocab.json").is_file()
    return has_tokenizer and all((folder / name).is_file() for name in ["config.json", *shards])
