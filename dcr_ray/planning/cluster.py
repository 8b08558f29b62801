"""A cluster as its file describes it: nodes with GPUs, memory, links and prices, and the storage that they share.

A Ray cluster-launcher YAML holds the facts under `metadata: {dcr_ray: ...}`; a KubeRay manifest, an sbatch script and a
SkyPilot task in a block of comments between `# dcr_ray:` and the first line that is no comment. How many nodes there
are is read from the file's own fields, so that it stands once. Whether the file would be accepted by its launcher is
`cluster.validate`'s to say.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from dcr_ray.errors import InputError, Problem, nearest_name
from dcr_ray.planning.gpus import GIB, GPUS, Gpu
from dcr_ray.study import problems_of

ClusterFormat = Literal["ray", "kuberay", "slurm", "skypilot"]


class _Facts(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class NodeFacts(_Facts):
    """One type of node. Rates are GB (1e9 bytes) a second."""

    gpu: str | None = Field(None, description="a name of planning.gpus.GPUS; none for a node without GPUs")
    gpus: int = Field(0, ge=0)
    cpus: int = Field(ge=1)
    host_memory_gib: float = Field(gt=0)
    disk_gib: float = Field(gt=0, description="local disk, for caches of models")
    network_gb_s: float = Field(1.25, gt=0, description="between nodes, one node's, one way")
    price_per_hour: float = Field(0.0, ge=0, description="of a node; 0 for a machine that is owned")
    spot: bool = Field(False, description="may be taken away on short notice")
    interruptions_per_hour: float = Field(0.0, ge=0, description="expected, of one spot node")


class StorageFacts(_Facts):
    """The file system that every node sees."""

    path: str
    read_gb_s: float = Field(gt=0, description="one node's")
    write_gb_s: float = Field(gt=0)
    capacity_gib: float | None = Field(None, gt=0)
    price_per_gib_month: float = Field(0.0, ge=0)


class ClusterFacts(_Facts):
    currency: str = "USD"
    prices_as_of: str | None = Field(None, description="when and where the prices were read")
    nodes: dict[str, NodeFacts] = Field(min_length=1)
    storage: StorageFacts


@dataclass(frozen=True)
class NodeType:
    """`count` nodes of one type. The head's type is one node, or all are alike (Slurm, SkyPilot)."""

    name: str
    count: int
    facts: NodeFacts

    @property
    def gpu(self) -> Gpu | None:
        return GPUS[self.facts.gpu] if self.facts.gpu else None

    @property
    def host_memory_bytes(self) -> int:
        return int(self.facts.host_memory_gib * GIB)


@dataclass(frozen=True)
class Cluster:
    """What the planner and the simulated cluster know of a cluster."""

    name: str
    format: ClusterFormat
    nodes: tuple[NodeType, ...]
    storage: StorageFacts
    currency: str
    prices_as_of: str | None

    @property
    def gpu_nodes(self) -> tuple[NodeType, ...]:
        return tuple(node for node in self.nodes if node.facts.gpus and node.count)

    @property
    def working_nodes(self) -> tuple[NodeType, ...]:
        """The nodes that ranks and engines go to: those with GPUs, or all where there are none."""
        return self.gpu_nodes or tuple(node for node in self.nodes if node.count)

    @property
    def gpus(self) -> int:
        return sum(node.count * node.facts.gpus for node in self.nodes)

    @property
    def price_per_hour(self) -> float:
        """Of all nodes while all of them are up."""
        return sum(node.count * node.facts.price_per_hour for node in self.nodes)


def load_cluster(path: Path | str) -> Cluster:
    """Read a file of clusters/ or of one's own. Raises InputError with every problem of its facts and counts."""
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(
            [Problem(str(path), error.strerror or str(error), "a cluster file that can be read")]
        ) from error
    return parse_cluster(text, str(path))


def parse_cluster(text: str, where: str) -> Cluster:
    """The same from the file's text. `where` names the file in problems."""
    kind = cluster_format(text, where)
    documents = [] if kind == "slurm" else plain_documents(text, where)
    raw = _facts(kind, text, documents, where)
    try:
        facts = ClusterFacts.model_validate(raw)
    except ValidationError as error:
        raise InputError(problems_of(error, ClusterFacts, f"{where}: dcr_ray")) from error
    name, counts = _COUNTS[kind](text, documents)
    problems = [
        Problem(
            f"{where}: dcr_ray.nodes.{node}.gpu", repr(found.gpu), ", ".join(GPUS), nearest_name(str(found.gpu), GPUS)
        )
        for node, found in facts.nodes.items()
        if (found.gpus and not found.gpu) or (found.gpu and found.gpu not in GPUS)
    ]
    problems += [
        Problem(f"{where}: dcr_ray.nodes", f"no facts of '{node}'", ", ".join(counts), nearest_name(node, facts.nodes))
        for node in counts
        if node not in facts.nodes
    ]
    problems += [
        Problem(
            f"{where}: dcr_ray.nodes.{node}",
            "a type that the file does not have",
            ", ".join(counts),
            nearest_name(node, counts),
        )
        for node in facts.nodes
        if node not in counts
    ]
    if problems:
        raise InputError(problems)
    nodes = tuple(NodeType(node, count, facts.nodes[node]) for node, count in counts.items())
    return Cluster(name, kind, nodes, facts.storage, facts.currency, facts.prices_as_of)


def cluster_format(text: str, where: str) -> ClusterFormat:
    """What kind of file it is, by what only that kind has. Raises InputError where it is none."""
    if re.search(r"^#SBATCH\s", text, re.MULTILINE):
        return "slurm"
    if re.search(r"^apiVersion:\s*ray\.io/", text, re.MULTILINE):
        return "kuberay"
    if re.search(r"^available_node_types:|^provider:", text, re.MULTILINE):
        return "ray"
    if re.search(r"^resources:", text, re.MULTILINE):
        return "skypilot"
    allowed = "a Ray cluster-launcher YAML, a KubeRay manifest, an sbatch script or a SkyPilot task"
    raise InputError([Problem(where, "a file of no known kind", allowed)])


def plain_documents(text: str, where: str) -> list[dict[str, Any]]:
    """The YAML documents of a file. Raises InputError where it is not YAML, or holds something but mappings."""
    try:
        documents = [document for document in yaml.safe_load_all(text) if document is not None]
    except yaml.YAMLError as error:
        raise InputError([Problem(where, " ".join(str(error).split())[:300], "YAML")]) from error
    if not all(isinstance(document, dict) for document in documents):
        raise InputError([Problem(where, "a document that is no mapping", "mappings")])
    return documents


def ray_cluster_spec(documents: list[dict[str, Any]]) -> tuple[str, dict[str, Any]]:
    """Name and cluster spec of the RayCluster, RayJob or RayCronJob among Kubernetes documents; empty without one."""
    for document in documents:
        if str(document.get("apiVersion", "")).startswith("ray.io/"):
            spec = document.get("spec") or {}
            spec = (spec.get("jobTemplate") or {}).get("spec", spec) if document.get("kind") == "RayCronJob" else spec
            return (document.get("metadata") or {}).get("name", ""), spec.get("rayClusterSpec", spec)
    return "", {}


def _facts(kind: ClusterFormat, text: str, documents: list[dict[str, Any]], where: str) -> Any:
    if kind == "ray":
        raw = ((documents[0] if documents else {}).get("metadata") or {}).get("dcr_ray")
        place = "a block `metadata: {dcr_ray: ...}`"
    else:
        lines = text.splitlines()
        begin = next((number for number, line in enumerate(lines) if line.rstrip() == "# dcr_ray:"), None)
        raw, place = None, "a block of comments that begins with `# dcr_ray:`"
        if begin is not None:
            end = next((n for n, line in enumerate(lines) if n > begin and not line.startswith("#")), len(lines))
            block = "\n".join(line[2:] for line in lines[begin + 1 : end])
            raw = plain_documents(block, f"{where}: dcr_ray")
            raw = raw[0] if raw else None
    if raw is None:
        fix = "See the files of clusters/: node types, prices, links and the shared storage."
        raise InputError([Problem(where, "no facts of its nodes", place, fix)])
    return raw


def _launcher_counts(_: str, documents: list[dict[str, Any]]) -> tuple[str, dict[str, int]]:
    config = documents[0]
    types, head = config.get("available_node_types") or {}, config.get("head_node_type")
    counts = {name: int((kind or {}).get("max_workers", 0)) + (name == head) for name, kind in types.items()}
    if not counts:
        # An on-premise cluster names its machines instead of types of them.
        provider = config.get("provider") or {}
        counts = {"node": bool(provider.get("head_ip")) + len(provider.get("worker_ips") or ())}
    return str(config.get("cluster_name", "")), counts


def _kuberay_counts(_: str, documents: list[dict[str, Any]]) -> tuple[str, dict[str, int]]:
    name, spec = ray_cluster_spec(documents)
    counts = {"head": 1}
    for group in spec.get("workerGroupSpecs") or ():
        counts[str(group.get("groupName"))] = int(group.get("replicas", 1)) * int(group.get("numOfHosts", 1))
    return name, counts


def _slurm_counts(text: str, _: list[dict[str, Any]]) -> tuple[str, dict[str, int]]:
    name = re.search(r"^#SBATCH\s+--job-name[= ](\S+)", text, re.MULTILINE)
    nodes = re.search(r"^#SBATCH\s+(?:--nodes|-N)[= ](\d+)", text, re.MULTILINE)
    return name[1] if name else "", {"node": int(nodes[1]) if nodes else 1}


def _skypilot_counts(_: str, documents: list[dict[str, Any]]) -> tuple[str, dict[str, int]]:
    return str(documents[0].get("name", "")), {"node": int(documents[0].get("num_nodes", 1))}


_COUNTS = {
    "ray": _launcher_counts,
    "kuberay": _kuberay_counts,
    "slurm": _slurm_counts,
    "skypilot": _skypilot_counts,
}
