"""Cluster files: those that are shipped are in order, wrong ones are refused, render changes values alone."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import yaml

from dcr_ray.cluster.kuberay import crd_schemas, obtain_schemas, schema_of
from dcr_ray.cluster.render import render
from dcr_ray.cluster.validate import validate, validate_text
from dcr_ray.errors import InputError
from dcr_ray.planning.cluster import parse_cluster

FOLDER = Path(__file__).parent.parent / "clusters"
FILES = sorted(FOLDER.glob("*.*"))


def told(text: str, where: str = "x", **options) -> str:
    return " | ".join(str(problem) for problem in validate_text(text, where, **options).problems)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_a_shipped_file_is_in_order(file, tmp_path):
    assert validate(file, tmp_path).problems == ()


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
@pytest.mark.skipif(not os.environ.get("DCR_RAY_KUBERAY_SCHEMAS"), reason="needs $DCR_RAY_KUBERAY_SCHEMAS")
def test_a_shipped_file_is_in_order_by_the_resource_definitions(file):
    found = validate(file)
    assert found.problems == () and not any("not the resource definition" in by for by in found.by)


@pytest.mark.parametrize(
    "file, before, after, expected",
    [
        ("aws-h100.yaml", "max_workers: 4\nupscaling", "max_worker: 4\nupscaling", "max_worker"),
        ("aws-h100.yaml", "max_workers: 4\nupscaling", "max_workers: 1\nupscaling", "4 or more"),
        ("aws-h100.yaml", "head_node_type: head", "head_node_type: heat", "Did you mean 'head'"),
        ("aws-h100.yaml", "GPU: 8}", "GPU: 4}", "8, as the file's own facts say"),
        ("aws-h100.yaml", "CPU: 16, TRAIN", "CPU: 0.5, TRAIN", "CPU"),
        ("aws-h100.yaml", "upscaling_speed: 100 ", "", "come one by one"),
        ("gcp-h100.yaml", "gpu: H100-80GB", "gpu: H100", "Did you mean 'H100-80GB'"),
        ("kuberay-rayjob.yaml", "shutdownAfterJobFinishes: true", "shutdownAfterJobFinishes: false", "Kueue"),
        ("kuberay-rayjob.yaml", "maxReplicas: 1", "maxReplicas: 3", "one fixed size"),
        ("kuberay-raycluster.yaml", "maxReplicas: 2", "maxReplicas: 1", "the group's own limits"),
        ("kuberay-raycluster.yaml", "nvidia.com/gpu: 8}", "nvidia.com/gpu: 4}", "8, as the file's own facts say"),
        ("kuberay-raycluster.yaml", "mountPath: /dev/shm", "mountPath: /shm", "no /dev/shm"),
        ("slurm.sbatch", "symmetric-run --address", "symmetric-run --head --address", "symmetric-run sets it itself"),
        ("slurm.sbatch", "#SBATCH --gpus-per-node=8", "#SBATCH --gpus-per-node=4", "8, as the file's own facts say"),
        ("slurm.sbatch", "#SBATCH --requeue\n", "", "comes back"),
        ("slurm.sbatch", "srun --nodes", "srun ( --nodes", "unexpected"),
        ("skypilot.yaml", "num_nodes: 1", "num_node: 1", "Did you mean 'num_nodes'"),
        ("skypilot.yaml", "accelerators: H100:8", "accelerators: H100:4", "8, as the file's own facts say"),
    ],
)
def test_a_wrong_file_is_refused_with_what_is_wrong(file, before, after, expected, tmp_path):
    text = (FOLDER / file).read_text()
    assert before in text
    assert expected in told(text.replace(before, after), schemas=tmp_path)


def test_all_that_is_wrong_with_a_file_is_told_at_once():
    text = (FOLDER / "aws-h100.yaml").read_text()
    found = told(text.replace("head_node_type: head", "head_node_type: x").replace("GPU: 8}", "GPU: 2}"))
    assert "head_node_type" in found and "resources.GPU" in found


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_render_changes_name_and_size_and_keeps_every_comment(file):
    workers = {} if file.stem == "local" else {"workers": 3}
    text, before = render(file, name="mine", **workers), file.read_text()
    cluster = parse_cluster(text, "mine")
    assert cluster.name == "mine"
    assert not workers or max(node.count for node in cluster.nodes) == 3
    comments = [line for line in before.splitlines() if line.lstrip().startswith("#") and "SBATCH" not in line]
    assert [line for line in text.splitlines() if line.lstrip().startswith("#") and "SBATCH" not in line] == comments


@pytest.mark.parametrize("file", ["aws-h100.yaml", "gcp-h100.yaml", "skypilot.yaml"])
def test_render_makes_workers_spot_and_leaves_the_head_on_demand(file):
    cluster = parse_cluster(render(FOLDER / file, spot=True), file)
    assert [node.facts.spot for node in cluster.nodes if node.facts.gpus] == [True]
    assert not any(node.facts.spot for node in cluster.nodes if not node.facts.gpus)


def test_render_puts_images_region_and_storage_in_their_places():
    text = render(FOLDER / "aws-h100.yaml", image="ami-1", region="eu-west-1", storage="/mnt/fs")
    plain = yaml.safe_load(text)
    assert plain["provider"]["availability_zone"] == "eu-west-1a"
    assert {kind["node_config"]["ImageId"] for kind in plain["available_node_types"].values()} == {"ami-1"}
    assert parse_cluster(text, "x").storage.path == "/mnt/fs" and "/shared" not in str(plain["setup_commands"])
    job = render(FOLDER / "kuberay-rayjob.yaml", image="mine/image:1")
    assert "registry.example.org" not in job and job.count("mine/image:1") == 3


def test_render_sets_any_field_and_refuses_what_would_not_be_in_order():
    file = FOLDER / "aws-h100.yaml"
    assert yaml.safe_load(render(file, sets=("idle_timeout_minutes=5",)))["idle_timeout_minutes"] == 5
    with pytest.raises(InputError, match="4 or more"):
        render(file, sets=("max_workers=2",))
    with pytest.raises(InputError, match="of a field that is there"):
        render(file, sets=("idle_minutes=5",))
    with pytest.raises(InputError, match="no such field"):
        render(FOLDER / "slurm.sbatch", spot=True)


DEFINITION = """
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
spec:
  names: {kind: RayCluster}
  versions:
    - name: v1
      schema:
        openAPIV3Schema:
          type: object
          properties:
            apiVersion: {type: string}
            kind: {type: string}
            metadata: {type: object}
            spec:
              type: object
              required: [headGroupSpec, sized]
              properties:
                sized: {type: integer, default: 1}
                port: {x-kubernetes-int-or-string: true}
                open: {type: object, x-kubernetes-preserve-unknown-fields: true, properties: {a: {type: string}}}
                headGroupSpec: {type: object, additionalProperties: {type: string}}
"""


def test_a_resource_definition_becomes_a_schema_that_refuses_unknown_keys(tmp_path):
    from jsonschema import Draft7Validator

    (tmp_path / "crd.yaml").write_text(DEFINITION)
    assert [file.name for file in obtain_schemas(tmp_path, (str(tmp_path / "crd.yaml"),))] == [
        "RayCluster.v1.schema.json"
    ]
    valid = Draft7Validator(schema_of("RayCluster", tmp_path)).is_valid
    named = {"apiVersion": "ray.io/v1", "kind": "RayCluster", "metadata": {"name": "x"}}
    spec = {"headGroupSpec": {"any": "text"}, "port": "http", "open": {"b": 1}}
    assert valid(named | {"spec": spec})
    assert not valid(named | {"spec": spec | {"entrypiont": "x"}})
    assert not valid(named | {"spec": {"port": 1}}) and not valid(named | {"spec": spec | {"port": 1.5}})


def test_what_is_no_definition_is_bad_input(tmp_path):
    (tmp_path / "crd.yaml").write_text("kind: Pod")
    with pytest.raises(InputError, match="CustomResourceDefinition"):
        obtain_schemas(tmp_path, (str(tmp_path / "crd.yaml"), str(tmp_path / "none.yaml")))
    assert "RayCluster.v1" in crd_schemas(yaml.safe_load(DEFINITION))


def test_a_manifest_is_held_against_the_definition_where_there_is_one(tmp_path):
    (tmp_path / "crd.yaml").write_text(DEFINITION)
    obtain_schemas(tmp_path, (str(tmp_path / "crd.yaml"),))
    found = validate(FOLDER / "kuberay-raycluster.yaml", tmp_path)
    assert found.by[0] == "RayCluster's resource definition"
    assert any("workerGroupSpecs" in problem.found for problem in found.problems)
