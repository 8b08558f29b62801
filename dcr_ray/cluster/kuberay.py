"""Schemas of KubeRay's resources, made from the resource definitions that KubeRay publishes.

A definition describes what the API server accepts; as JSON schema it also refuses keys that it does not know, which the
API server drops without a word. The definitions are KubeRay's and not part of dcr_ray: they are fetched, or given.
"""

from __future__ import annotations

import json
import os
import urllib.request
from pathlib import Path
from typing import Any

import yaml

from dcr_ray.errors import InputError, Problem
from dcr_ray.weights.resolve import default_cache_dir

KUBERAY_VERSION = "v1.5.0"
SOURCE = "https://raw.githubusercontent.com/ray-project/kuberay/{version}/helm-chart/kuberay-operator/crds/{file}"
FILES = ("ray.io_rayclusters.yaml", "ray.io_rayjobs.yaml")
FETCH_SECONDS = 30.0


def schemas_folder() -> Path:
    """Where schemas are looked for unless a folder is named: $DCR_RAY_KUBERAY_SCHEMAS, else in the cache."""
    return Path(os.environ.get("DCR_RAY_KUBERAY_SCHEMAS") or default_cache_dir() / "kuberay")


def schema_of(kind: str, folder: Path | None) -> dict[str, Any] | None:
    """The JSON schema of a kind, or None where it has not been obtained."""
    file = (folder or schemas_folder()) / f"{kind}.v1.schema.json"
    return json.loads(file.read_text()) if file.is_file() else None


def obtain_schemas(folder: Path, sources: tuple[str, ...] = (), version: str = KUBERAY_VERSION) -> list[Path]:
    """Write a schema for every resource that the definitions describe: files or URLs, or KubeRay's own at `version`.

    Raises InputError for a source that cannot be read or is no definition.
    """
    problems: list[Problem] = []
    schemas: dict[str, dict[str, Any]] = {}
    for source in sources or tuple(SOURCE.format(version=version, file=file) for file in FILES):
        try:
            schemas |= crd_schemas(yaml.safe_load(_read(source)))
        except (OSError, yaml.YAMLError, KeyError, TypeError) as error:
            fix = "Download KubeRay's definitions elsewhere and name the files."
            found = f"{source} ({type(error).__name__}: {error})"
            problems.append(Problem("--from", found[:300], "a CustomResourceDefinition", fix))
    if problems:
        raise InputError(problems)
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name, schema in schemas.items():
        file = folder / f"{name}.schema.json"
        file.write_text(json.dumps(schema))
        written.append(file)
    return written


def crd_schemas(definition: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """JSON schemas by `Kind.version` from a CustomResourceDefinition. Raises KeyError or TypeError for others."""
    spec = definition["spec"]
    kind = spec["names"]["kind"]
    schemas = {}
    for version in spec["versions"]:
        schema = _strict(version["schema"]["openAPIV3Schema"])
        # Objects' names, labels and annotations are Kubernetes' own and described elsewhere.
        schema["properties"]["metadata"] = {"type": "object"}
        schema.setdefault("required", []).extend(
            key for key in ("apiVersion", "kind", "metadata", "spec") if key not in schema.get("required", [])
        )
        schemas[f"{kind}.{version['name']}"] = schema
    return schemas


def _strict(node: dict[str, Any]) -> dict[str, Any]:
    """OpenAPI's dialect as JSON schema: unknown keys refused, keys with a default not required."""
    if node.get("x-kubernetes-int-or-string"):
        return {"anyOf": [{"type": "integer"}, {"type": "string"}]}
    kept = {key: node[key] for key in ("type", "enum", "minimum", "maximum", "pattern", "maxLength") if key in node}
    if "items" in node:
        kept["items"] = _strict(node["items"])
    properties = node.get("properties")
    if properties:
        kept["properties"] = {name: _strict(child) for name, child in properties.items()}
        required = [name for name in node.get("required", ()) if "default" not in properties.get(name, {})]
        if required:
            kept["required"] = required
    if isinstance(node.get("additionalProperties"), dict):
        kept["additionalProperties"] = _strict(node["additionalProperties"])
    elif properties and not node.get("x-kubernetes-preserve-unknown-fields"):
        kept["additionalProperties"] = False
    if node.get("nullable") and "type" in kept:
        kept["type"] = [kept["type"], "null"]
    return kept


def _read(source: str) -> str:
    if "://" not in source:
        return Path(source).read_text(encoding="utf-8")
    with urllib.request.urlopen(source, timeout=FETCH_SECONDS) as answer:
        return answer.read().decode()
