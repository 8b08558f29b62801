"""Cluster files held against what their launchers would say, without a launcher, an account or a network.

A Ray cluster-launcher YAML is checked by Ray's own schema; a KubeRay manifest by the schema of its resource definition
where that has been obtained (`cluster.kuberay`), else by the rules below alone; a SkyPilot task by SkyPilot's schema
where it is installed; an sbatch script by bash. Beyond these the file must agree with its own facts: GPUs, cores.
Whether images, accounts, quotas and prices are real is not known here.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from dcr_ray.cluster.kuberay import schema_of
from dcr_ray.errors import InputError, Problem, nearest_name
from dcr_ray.planning.cluster import Cluster, cluster_format, parse_cluster, plain_documents, ray_cluster_spec


@dataclass(frozen=True)
class Checked:
    """`cluster` is None where the facts cannot be read; `by` says what the file was held against."""

    file: str
    cluster: Cluster | None
    by: tuple[str, ...]
    problems: tuple[Problem, ...]


def validate(path: Path | str, schemas: Path | None = None) -> Checked:
    """Check one file. Raises InputError for one that cannot be read or is of no known kind."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise InputError([Problem(str(path), error.strerror or str(error), "a file that can be read")]) from error
    return validate_text(text, str(path), schemas)


def validate_text(text: str, where: str, schemas: Path | None = None) -> Checked:
    """The same for a file's text; `schemas` is the folder of KubeRay's, as `dcr-ray cluster schemas` writes it."""
    kind = cluster_format(text, where)
    problems: list[Problem] = []
    cluster = None
    try:
        cluster = parse_cluster(text, where)
    except InputError as error:
        problems += error.problems
    documents = [] if kind == "slurm" else plain_documents(text, where)
    if kind == "ray":
        by, found = _launcher(documents[0], where, cluster)
    elif kind == "kuberay":
        by, found = _kuberay(documents, where, cluster, schemas)
    elif kind == "skypilot":
        by, found = _skypilot(documents[0], where, cluster)
    else:
        by, found = _slurm(text, where, cluster)
    return Checked(where, cluster, tuple(by), (*problems, *found))


def _launcher(config: dict[str, Any], where: str, cluster: Cluster | None) -> tuple[list[str], list[Problem]]:
    import ray.autoscaler
    from jsonschema import Draft7Validator
    from ray.autoscaler._private.util import fillout_defaults

    schema = json.loads((Path(ray.autoscaler.__file__).parent / "ray-schema.json").read_text())
    problems = []
    try:
        filled = fillout_defaults(config)
    except Exception as error:  # Ray's own code stumbles over some wrong files before its schema sees them
        return ["Ray's schema"], [Problem(where, f"{type(error).__name__}: {error}"[:300], "a launcher file")]
    for error in Draft7Validator(schema).iter_errors(filled):
        problems.append(_of_schema(where, error))
    types, head = config.get("available_node_types") or {}, config.get("head_node_type")
    if types and head not in types:
        problems.append(
            Problem(f"{where}: head_node_type", repr(head), ", ".join(types), nearest_name(str(head), types))
        )
    workers = sum(int((kind or {}).get("max_workers", 0)) for kind in types.values())
    if types and int(config.get("max_workers", 2)) < workers:
        found = f"{config.get('max_workers', 'nothing, which means 2')}, with {workers} workers in all node types"
        problems.append(Problem(f"{where}: max_workers", found, f"{workers} or more"))
    if types and not config.get("upscaling_speed"):
        problems.append(
            Problem(f"{where}: upscaling_speed", "nothing: nodes come one by one", "100, so that a gang comes at once")
        )
    for name, kind in types.items():
        resources, entry = (kind or {}).get("resources") or {}, f"{where}: available_node_types.{name}"
        if int((kind or {}).get("min_workers", 0)) > int((kind or {}).get("max_workers", 0)) and name != head:
            problems.append(Problem(f"{entry}.min_workers", str(kind["min_workers"]), f"at most {kind['max_workers']}"))
        node = next((node for node in cluster.nodes if node.name == name), None) if cluster else None
        if node and "GPU" in resources:
            problems += _agree(f"{entry}.resources.GPU", resources["GPU"], node.facts.gpus)
        elif node and node.facts.gpus:
            problems.append(Problem(f"{entry}.resources", "no GPU", f"GPU: {node.facts.gpus}, as its facts say"))
        if node and "CPU" in resources:
            problems += _agree(f"{entry}.resources.CPU", resources["CPU"], node.facts.cpus)
    return ["Ray's schema", "own rules"], problems


def _kuberay(
    documents: list[dict[str, Any]], where: str, cluster: Cluster | None, schemas: Path | None
) -> tuple[list[str], list[Problem]]:
    from jsonschema import Draft7Validator

    problems: list[Problem] = []
    by = ["own rules"]
    document = next(d for d in documents if str(d.get("apiVersion", "")).startswith("ray.io/"))
    kind = str(document.get("kind"))
    schema = schema_of(kind, schemas)
    if schema is not None:
        by.insert(0, f"{kind}'s resource definition")
        problems += [_of_schema(f"{where}: {kind}", error) for error in Draft7Validator(schema).iter_errors(document)]
    else:
        by.append("not the resource definition: obtain it with `dcr-ray cluster schemas`")
    _, spec = ray_cluster_spec(documents)
    for part in ("headGroupSpec",) if spec else ():
        if part not in spec:
            problems.append(Problem(f"{where}: {part}", "nothing", "a head"))
    labels = (document.get("metadata") or {}).get("labels") or {}
    queued = "kueue.x-k8s.io/queue-name" in labels
    if queued and kind == "RayJob" and not (document.get("spec") or {}).get("shutdownAfterJobFinishes"):
        problems.append(Problem(f"{where}: spec.shutdownAfterJobFinishes", "not true", "true, which Kueue asks for"))
    for index, group in enumerate(spec.get("workerGroupSpecs") or ()):
        entry = f"{where}: workerGroupSpecs[{index}]"
        replicas = int(group.get("replicas", 1))
        low, high = int(group.get("minReplicas", 0)), int(group.get("maxReplicas", replicas))
        if not low <= replicas <= high:
            problems.append(Problem(f"{entry}.replicas", str(replicas), f"{low} to {high}, the group's own limits"))
        if queued and not low == replicas == high:
            found = f"{low} to {high}"
            problems.append(Problem(f"{entry}.minReplicas", found, f"{replicas}: Kueue admits one fixed size"))
        containers = ((group.get("template") or {}).get("spec") or {}).get("containers") or [{}]
        limits = ((containers[0] or {}).get("resources") or {}).get("limits") or {}
        node = next((n for n in cluster.nodes if n.name == group.get("groupName")), None) if cluster else None
        if node:
            gpus = int(limits.get("nvidia.com/gpu", 0))
            problems += _agree(f"{entry}: limits.nvidia.com/gpu", gpus, node.facts.gpus)
            if node.facts.gpus and not any(
                mount.get("mountPath") == "/dev/shm" for mount in (containers[0] or {}).get("volumeMounts") or ()
            ):
                problems.append(
                    Problem(f"{entry}: volumeMounts", "no /dev/shm", "a memory volume there: a pod's own is 64 MiB")
                )
    return by, problems


_SKY_KEYS = {
    *("name", "num_nodes", "resources", "envs", "secrets", "file_mounts", "workdir", "setup", "run", "volumes"),
    *("service", "config", "inputs", "outputs", "pool", "file_mounts_mapping", "event_callback"),
}


def _skypilot(task: dict[str, Any], where: str, cluster: Cluster | None) -> tuple[list[str], list[Problem]]:
    problems, by = [], ["own rules"]
    if find_spec("sky") is not None:
        from jsonschema import Draft7Validator
        from sky.utils.schemas import get_task_schema

        by.insert(0, "SkyPilot's schema")
        problems += [_of_schema(where, error) for error in Draft7Validator(get_task_schema()).iter_errors(task)]
    else:
        by.append("not SkyPilot's schema: it is not installed")
        problems += [
            Problem(f"{where}: {key}", "an unknown key", ", ".join(sorted(_SKY_KEYS)), nearest_name(key, _SKY_KEYS))
            for key in task
            if key not in _SKY_KEYS
        ]
    if "run" not in task:
        problems.append(Problem(f"{where}: run", "nothing", "the commands that run the study"))
    accelerators = (task.get("resources") or {}).get("accelerators")
    if cluster and isinstance(accelerators, str):
        gpus = int(float(accelerators.partition(":")[2] or 1))
        problems += _agree(f"{where}: resources.accelerators", gpus, cluster.nodes[0].facts.gpus)
    return by, problems


_NOT_FOR_SYMMETRIC_RUN = ("--head", "--port", "--node-ip-address", "--block")


def _slurm(text: str, where: str, cluster: Cluster | None) -> tuple[list[str], list[Problem]]:
    problems, by = [], ["own rules"]
    if shutil.which("bash"):
        by.insert(0, "bash -n")
        parsed = subprocess.run(["bash", "-n"], input=text, capture_output=True, text=True)
        problems += [
            Problem(where, line.removeprefix("bash: "), "a script that bash can read")
            for line in parsed.stderr.splitlines()
        ]
    options = dict(re.findall(r"^#SBATCH\s+--([\w-]+)(?:[= ](\S+))?", text, re.MULTILINE))
    problems += [
        Problem(f"{where}: #SBATCH --{option}", "nothing", what)
        for option, what in (
            ("nodes", "how many nodes"),
            ("time", "the longest time"),
            ("requeue", "so that a job whose node fails comes back"),
        )
        if option not in options
    ]
    if cluster:
        node = cluster.nodes[0].facts
        gpus = options.get("gpus-per-node") or options.get("gres", "").rpartition(":")[2]
        problems += _agree(f"{where}: #SBATCH --gpus-per-node", int(gpus) if gpus.isdigit() else 0, node.gpus)
    # Lines that are continued are one command.
    command = next((line for line in text.replace("\\\n", " ").splitlines() if "ray symmetric-run" in line), None)
    if command is None:
        problems.append(Problem(where, "no `ray symmetric-run`", "one, which starts Ray on every node"))
        return by, problems
    before = command.partition(" -- ")[0]
    problems += [
        Problem(f"{where}: ray symmetric-run", option, "without it: symmetric-run sets it itself")
        for option in _NOT_FOR_SYMMETRIC_RUN
        if re.search(rf"(^|\s){option}(\s|=|$)", before)
    ]
    if cluster and (told := re.search(r"--num-gpus[= ](\d+)", before)):
        problems += _agree(f"{where}: ray symmetric-run --num-gpus", int(told[1]), cluster.nodes[0].facts.gpus)
    if "RAY_SYMMETRIC_RUN_CLUSTER_WAIT_TIMEOUT" not in text:
        found = "no RAY_SYMMETRIC_RUN_CLUSTER_WAIT_TIMEOUT: 30 s for all nodes to come"
        problems.append(Problem(where, found, "600 or so"))
    return by, problems


def _agree(where: str, found: Any, facts: int) -> list[Problem]:
    return [] if found == facts else [Problem(where, str(found), f"{facts}, as the file's own facts say")]


def _of_schema(where: str, error: Any) -> Problem:
    path = ".".join(str(part) for part in error.absolute_path)
    allowed = ", ".join(sorted(map(str, (error.schema.get("properties") or {})))) if error.validator else ""
    fix = ""
    if error.validator == "additionalProperties" and isinstance(error.instance, dict):
        known = error.schema.get("properties") or {}
        unknown = next((key for key in error.instance if key not in known), "")
        fix = nearest_name(str(unknown), known)
    elif error.validator != "required":
        allowed = f"{error.validator}: {error.validator_value}"
    return Problem(f"{where}: {path}" if path else where, error.message[:200], allowed[:300] or "valid", fix)
