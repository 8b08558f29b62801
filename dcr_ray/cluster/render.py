"""A cluster file with other names, images and sizes: only the values are replaced, so comments and order stay.

What it writes is validated first. It knows which field holds what in each kind of file; anything else is set by path.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from dcr_ray.cluster.validate import validate_text
from dcr_ray.errors import InputError, Problem
from dcr_ray.planning.cluster import Cluster, ClusterFormat, cluster_format, parse_cluster

Path_ = tuple[str | int, ...]


def render(
    file: Path | str,
    *,
    name: str | None = None,
    workers: int | None = None,
    image: str | None = None,
    region: str | None = None,
    spot: bool = False,
    storage: str | None = None,
    sets: tuple[str, ...] = (),
) -> str:
    """The file's text with what is asked for in its place. `sets` are `path.to.field=value` (list indices are numbers).

    Raises InputError where a kind of file has no such field, and with every problem that the result would have.
    """
    try:
        text = Path(file).read_text(encoding="utf-8")
    except OSError as error:
        raise InputError([Problem(str(file), error.strerror or str(error), "a file that can be read")]) from error
    kind, cluster = cluster_format(text, str(file)), parse_cluster(text, str(file))
    problems: list[Problem] = []
    wanted = {"--name": name, "--workers": workers, "--image": image, "--region": region, "--spot": spot or None}
    for option, value in wanted.items():
        if value is None:
            continue
        change = _CHANGES[option].get(kind)
        if change is None:
            kinds = ", ".join(_CHANGES[option])
            problems.append(Problem(option, f"a file of kind {kind}, which has no such field", f"files of {kinds}"))
            continue
        try:
            text = change(text, cluster, value)
        except (KeyError, IndexError, ValueError) as error:
            problems.append(Problem(option, f"no place for it in {file} ({error})", "set it by path with --set"))
    if storage is not None:
        text = re.sub(rf"{re.escape(cluster.storage.path)}(?![\w.-])", storage.rstrip("/"), text)
    for item in sets:
        path, found, value = item.partition("=")
        try:
            if not found:
                raise ValueError("no '='")
            text = replaced(text, _parts(path), value)
        except (KeyError, IndexError, ValueError) as error:
            problems.append(Problem(f"--set {item}", f"{error}", "path.to.field=value, of a field that is there"))
    if problems:
        raise InputError(problems)
    if problems := validate_text(text, str(file)).problems:
        raise InputError(problems)
    return text


def replaced(text: str, path: Path_, value: str, document: int = 0) -> str:
    """The YAML text with the value at `path` replaced by `value`. Raises KeyError or IndexError without one."""
    node = _at(_documents(text)[document], path)
    return text[: node.start_mark.index] + value + text[node.end_mark.index :]


def added(text: str, path: Path_, key: str, value: str, document: int = 0) -> str:
    """The YAML text with `key: value` as a further first entry of the mapping at `path`."""
    node = _at(_documents(text)[document], path)
    if not isinstance(node, yaml.MappingNode):
        raise ValueError(f"{'.'.join(map(str, path))} is no mapping")
    if node.flow_style:
        begin = node.start_mark.index + 1
        return f"{text[:begin]}{key}: {value}, {text[begin:]}"
    first = node.value[0][0].start_mark
    line = text.rindex("\n", 0, first.index) + 1
    return f"{text[:line]}{' ' * first.column}{key}: {value}\n{text[line:]}"


def _documents(text: str) -> list[yaml.Node]:
    return [node for node in yaml.compose_all(text, Loader=yaml.SafeLoader) if node is not None]


def _at(node: yaml.Node, path: Path_) -> yaml.Node:
    for part in path:
        if isinstance(node, yaml.SequenceNode):
            node = node.value[int(part)]
        else:
            node = next((value for key, value in node.value if key.value == str(part)), None)
            if node is None:
                raise KeyError(".".join(map(str, path)))
    return node


def _parts(path: str) -> Path_:
    return tuple(path.split("."))


def _workers_of(cluster: Cluster) -> str:
    """The type of the nodes that do the work: the only one with GPUs, or the only one beside the head."""
    kinds = [node.name for node in cluster.nodes if node.facts.gpus] or [
        node.name for node in cluster.nodes if node.name != "head"
    ]
    if len(kinds) != 1:
        raise ValueError(f"{len(kinds)} types of workers")
    return kinds[0]


def _launcher_workers(text: str, cluster: Cluster, count: int) -> str:
    text = replaced(text, ("max_workers",), str(count))
    return replaced(text, ("available_node_types", _workers_of(cluster), "max_workers"), str(count))


def _kuberay_document(text: str) -> int:
    kinds = [_at(node, ("kind",)).value for node in _documents(text)]
    return next(index for index, kind in enumerate(kinds) if kind in ("RayCluster", "RayJob"))


def _kuberay_spec(text: str) -> Path_:
    document = _documents(text)[_kuberay_document(text)]
    return ("spec", "rayClusterSpec") if _at(document, ("kind",)).value == "RayJob" else ("spec",)


def _kuberay_workers(text: str, cluster: Cluster, count: int) -> str:
    document, group = _kuberay_document(text), (*_kuberay_spec(text), "workerGroupSpecs", 0)
    before = _at(_documents(text)[document], (*group, "replicas")).value
    for field in ("minReplicas", "maxReplicas", "replicas"):
        # A group of one fixed size stays one; a group that grows from nothing does too.
        if field != "minReplicas" or _at(_documents(text)[document], (*group, field)).value == before:
            text = replaced(text, (*group, field), str(count), document)
    return text


def _kuberay_image(text: str, _: Cluster, image: str) -> str:
    return re.sub(r"(?m)^(\s*(?:- )?image: )\S+$", lambda found: found[1] + image, text)


def _kuberay_name(text: str, _: Cluster, name: str) -> str:
    return replaced(text, ("metadata", "name"), name, _kuberay_document(text))


def _sbatch(option: str) -> Callable[[str, Cluster, Any], str]:
    def change(text: str, _: Cluster, value: Any) -> str:
        changed, count = re.subn(rf"(?m)^(#SBATCH\s+--{option}=)\S+", lambda found: f"{found[1]}{value}", text)
        if not count:
            raise ValueError(f"no #SBATCH --{option}=")
        return changed

    return change


def _launcher_image(text: str, cluster: Cluster, image: str) -> str:
    types = _at(_documents(text)[0], ("available_node_types",))
    for name in [key.value for key, _ in types.value]:
        text = replaced(text, ("available_node_types", name, "node_config", "ImageId"), image)
    return text


def _launcher_region(text: str, _: Cluster, region: str) -> str:
    provider = _at(_documents(text)[0], ("provider", "type")).value
    text = replaced(text, ("provider", "region"), region)
    return replaced(text, ("provider", "availability_zone"), f"{region}a" if provider == "aws" else f"{region}-a")


def _launcher_spot(text: str, cluster: Cluster, _: bool) -> str:
    worker = _workers_of(cluster)
    node = ("available_node_types", worker, "node_config")
    if _at(_documents(text)[0], ("provider", "type")).value == "aws":
        text = added(text, node, "InstanceMarketOptions", "{MarketType: spot}")
    else:
        text = replaced(text, (*node, "scheduling"), "[{onHostMaintenance: TERMINATE}, {provisioningModel: SPOT}]")
    return added(text, ("metadata", "dcr_ray", "nodes", worker), "spot", "true")


def _sky(*path: str) -> Callable[[str, Cluster, Any], str]:
    def change(text: str, _: Cluster, value: Any) -> str:
        return replaced(text, path, str(value))

    return change


def _sky_spot(text: str, _: Cluster, __: bool) -> str:
    text = replaced(text, ("resources", "use_spot"), "true")
    return re.sub(r"(?m)^(#\s+node: \{)", r"\1spot: true, ", text, count=1)


_CHANGES: dict[str, dict[ClusterFormat, Callable[[str, Cluster, Any], str]]] = {
    "--name": {
        "ray": lambda text, _, name: replaced(text, ("cluster_name",), name),
        "kuberay": _kuberay_name,
        "slurm": _sbatch("job-name"),
        "skypilot": _sky("name"),
    },
    "--workers": {
        "ray": _launcher_workers,
        "kuberay": _kuberay_workers,
        "slurm": _sbatch("nodes"),
        "skypilot": _sky("num_nodes"),
    },
    "--image": {
        "ray": _launcher_image,
        "kuberay": _kuberay_image,
        "skypilot": lambda text, _, image: added(text, ("resources",), "image_id", image),
    },
    "--region": {
        "ray": _launcher_region,
        "skypilot": lambda text, _, region: added(text, ("resources",), "region", region),
    },
    "--spot": {"ray": _launcher_spot, "skypilot": _sky_spot},
}
