"""The way through the hub: the real hub client against a server on this machine."""

import hashlib
import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from dcr_ray.weights.identity import model_identity
from dcr_ray.weights.resolve import BUILTIN_MODELS, list_models
from dcr_ray.weights.tiny import build_tiny_model

SMOLLM = "smollm2-135m-instruct"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return build_tiny_model(tmp_path_factory.mktemp("tiny") / "llama")


class HubHandler(BaseHTTPRequestHandler):
    """The parts of the hub's interface that a download uses, serving the folders in `models` by their hub id."""

    models: dict[str, Path] = {}
    commit = "c0ffee" + "0" * 34

    def do_HEAD(self):
        self.answer(body=False)

    def do_GET(self):
        self.answer(body=True)

    def answer(self, body):
        path = self.path.split("?")[0].strip("/")
        model = next((name for name in self.models if f"{name}/" in f"{path}/"), None)
        if model is None:
            return self.reply(404, b'{"error": "Repository not found"}', {"X-Error-Code": "RepoNotFound"}, body)
        files = sorted(file.name for file in self.models[model].iterdir())
        if path.startswith("api/"):
            listed = {"id": model, "sha": self.commit, "siblings": [{"rfilename": name} for name in files]}
            if "/tree/" in path:
                root = self.models[model]
                listed = [
                    {"type": "file", "path": name, "size": (root / name).stat().st_size, "oid": name} for name in files
                ]
            return self.reply(200, json.dumps(listed).encode(), {"Content-Type": "application/json"}, body)
        content = (self.models[model] / path.rsplit("/", 1)[1]).read_bytes()
        headers = {"ETag": f'"{hashlib.sha256(content).hexdigest()}"', "X-Repo-Commit": self.commit}
        return self.reply(200, content, headers, body)

    def reply(self, status, content, headers, body):
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(key, value)
        self.end_headers()
        if body:
            self.wfile.write(content)

    def log_message(self, *_):
        pass


@pytest.fixture
def hub(tiny, tmp_path):
    """Address of a hub that has one good model and one of another kind."""
    encoder = tmp_path / "encoder"
    encoder.mkdir()
    (encoder / "config.json").write_text('{"architectures": ["BertModel"]}')
    (encoder / "model.safetensors").write_bytes(b"never fetched")
    HubHandler.models = {"org/good": tiny, "org/encoder": encoder, BUILTIN_MODELS[SMOLLM].hub_id: tiny}
    server = ThreadingHTTPServer(("127.0.0.1", 0), HubHandler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def resolve_with_hub(address, name, cache_dir, **environment):
    """`resolve` in a process of its own, since the hub client reads its address once, when it is imported."""
    code = (
        "import sys, pathlib\nfrom dcr_ray.weights.resolve import resolve\nfrom dcr_ray.errors import InputError\n"
        "try:\n    print(resolve(sys.argv[1], cache_dir=pathlib.Path(sys.argv[2])))\n"
        "except InputError as error:\n    sys.exit(str(error))\n"
    )
    home = {"HOME": str(cache_dir / "home"), "HF_HOME": str(cache_dir / "home" / "hf"), "PIP_NO_INDEX": "1"}
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "PIP_"))}
    return subprocess.run(
        [sys.executable, "-c", code, name, str(cache_dir)],
        env={**kept, **home, "HF_ENDPOINT": address, "HF_HUB_DISABLE_XET": "1", **environment},
        capture_output=True,
        text=True,
        timeout=120,
        cwd=Path(__file__).parent.parent,
    )


def test_a_hub_model_is_fetched_once_and_found_again_without_a_network(hub, tiny, tmp_path):
    first = resolve_with_hub(hub, "org/good@main", tmp_path)
    folder = Path(first.stdout.strip())
    assert first.returncode == 0, first.stderr
    assert folder.name == HubHandler.commit and model_identity(folder) == model_identity(tiny)
    assert [row["name"] for row in list_models(tmp_path)][-1] == f"org/good@{HubHandler.commit}"
    again = resolve_with_hub("http://127.0.0.1:9", f"org/good@{HubHandler.commit}", tmp_path)
    assert again.stdout == first.stdout, again.stderr


def test_a_builtin_model_comes_from_the_hub_where_there_is_one(hub, tiny, tmp_path):
    done = resolve_with_hub(hub, SMOLLM, tmp_path)
    folder = Path(done.stdout.strip())
    assert done.returncode == 0, done.stderr
    assert folder == tmp_path / "models" / SMOLLM and not (folder / ".cache").exists()
    assert model_identity(folder) == model_identity(tiny)
    assert HubHandler.commit in json.loads((folder / "dcr_source.json").read_text())["source"]


@pytest.mark.parametrize(
    ("name", "environment", "words"),
    [
        ("org/encoder", {}, ["BertModel", "LlamaForCausalLM"]),
        ("org/nothing", {}, ["org/nothing", "RepositoryNotFoundError"]),
        ("org/good", {"HF_HUB_OFFLINE": "1"}, ["HF_HUB_OFFLINE is set"]),
        ("org/good", {"HF_ENDPOINT": "http://127.0.0.1:9"}, ["ConnectError"]),
        (SMOLLM, {"HF_HUB_OFFLINE": "1"}, ["HF_HUB_OFFLINE is set", "No matching distribution found"]),
    ],
)
def test_a_model_that_the_hub_cannot_give_is_refused_with_the_reason(hub, tmp_path, name, environment, words):
    done = resolve_with_hub(hub, name, tmp_path, **environment)
    assert done.returncode == 1 and done.stdout == ""
    assert all(word in done.stderr for word in words), done.stderr
