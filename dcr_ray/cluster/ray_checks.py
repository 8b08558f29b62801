"""The Rays of a machine: what others left on it, and whether the one at an address can run a study."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from dcr_ray.cluster.check import Check
from dcr_ray.cluster.packages import installed_version

ANSWER_SECONDS = 7.0
DASHBOARD_PORT = 8265


def leftover_checks() -> list[Check]:
    """Other Rays that run here, the dashboard's port, and the token that Ray's clients would use."""
    processes = [*_processes("gcs_server"), *_processes("raylet")]
    running = Check("Rays running here", "ok", "none")
    if processes:
        fix = "A study without --address starts its own beside them, and they share the cores."
        running = Check("Rays running here", "warning", f"processes {', '.join(map(str, processes))}", fix)
    with socket.socket() as probe:
        taken = probe.connect_ex(("127.0.0.1", DASHBOARD_PORT)) == 0
    port = f"port {DASHBOARD_PORT} is " + ("taken: a Ray started here takes the next one" if taken else "free")
    return [running, Check("dashboard", "ok", port), _token()]


def cluster_checks(address: str) -> tuple[list[Check], str | None]:
    """The Ray at `address`: a head's URL, host:port, or auto. Also the URL at which its nodes can be asked, if any."""
    fix = "Start it with `ray start --head`, or look at address, port and firewall."
    if address != "auto":
        parts = urlsplit(address if "://" in address else f"//{address}")
        try:
            port = parts.port or {"http": 80, "https": 443}.get(parts.scheme)
            if not parts.hostname or not port:
                raise ValueError("not http://HOST:PORT, HOST:PORT or auto")
            socket.create_connection((parts.hostname, port), timeout=2).close()
        except (OSError, ValueError) as error:
            return [Check("Ray", "fails", f"{address}: {error}", fix)], None
    # In a process of its own: Ray's clients wait most of a minute for a Ray that does not answer.
    program = "import sys; from dcr_ray.cluster.ray_checks import ask; ask(sys.argv[1])"
    command = [sys.executable, "-c", program, address]
    try:
        asked = subprocess.run(command, capture_output=True, text=True, timeout=ANSWER_SECONDS)
    except subprocess.TimeoutExpired:
        fix = "Another program has this port, or Ray is busy, or it wants its token (RAY_AUTH_MODE, RAY_AUTH_TOKEN)."
        return [Check("Ray", "fails", f"{address} takes connections and does not answer as a Ray", fix)], None
    if asked.returncode:
        said = (asked.stderr.strip() or "no answer").splitlines()[-1]
        return [Check("Ray", "fails", f"{address}: {said}", fix)], None
    answer = json.loads(asked.stdout.splitlines()[-1])
    return _judged(answer), answer["url"] if "nodes" in answer else None


def ask(address: str) -> None:
    """Print as JSON what the Ray at `address` says of itself, or the problem with it."""
    from dcr_ray.cluster.submit import connect
    from dcr_ray.errors import InputError
    from dcr_ray.runtime import use_token_of_the_machine

    use_token_of_the_machine()
    from ray.job_submission import JobSubmissionClient
    from ray.util.state import list_nodes
    from ray.util.state.exception import RayStateApiException

    # A URL is taken as it is; the head's own port tells where its dashboard is.
    os.environ.pop("RAY_API_SERVER_ADDRESS", None)
    os.environ["RAY_ADDRESS"] = address
    try:
        url = address if "://" in address else JobSubmissionClient(address).get_address()
        client = connect(url)
    except InputError as error:
        print(json.dumps({"problem": error.problems[0].found, "fix": error.problems[0].fix}))
        return
    # The client's own method tells the version of the interface, not Ray's.
    version = client._do_request("GET", "/api/version").json()["ray_version"]
    answer: dict[str, Any] = {"url": url, "version": version}
    try:
        os.environ["RAY_ADDRESS"] = url
        nodes = list_nodes(address=url, limit=10_000, timeout=4)
        answer["nodes"] = [{"ip": n.node_ip, "state": n.state, "resources": n.resources_total} for n in nodes]
    except RayStateApiException as error:
        answer["state_api"] = " ".join(str(error).split())[:300]
    print(json.dumps(answer))


def _judged(answer: dict[str, Any]) -> list[Check]:
    if "problem" in answer:
        return [Check("Ray", "fails", answer["problem"], answer["fix"])]
    here, found = installed_version("ray"), f"{answer['version']} at {answer['url']}"
    checks = [Check("Ray", "ok", found)]
    if answer["version"] != here:
        fix = "Run the cluster from the same environment as this machine."
        checks = [Check("Ray", "fails", f"{found}, and {here} here", fix)]
    if "state_api" in answer:
        fix = "Install ray[default] on the head: without this interface, stopped trials keep their resources."
        return [*checks, Check("Ray's State API", "fails", answer["state_api"], fix)]
    alive = [node for node in answer["nodes"] if node["state"] == "ALIVE"]
    cpus, gpus, memory = (sum(node["resources"].get(name, 0) for node in alive) for name in ("CPU", "GPU", "memory"))
    have = f"{len(alive)} nodes, {cpus:g} CPUs, {gpus:g} GPUs, {memory / 2**30:.0f} GiB"
    checks.append(Check("Ray's State API", "ok", "answers"))
    if cpus:
        checks.append(Check("Ray's resources", "ok", have))
    else:
        checks.append(Check("Ray's resources", "fails", have, "Start nodes with CPUs."))
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


def _processes(name: str) -> list[int]:
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if (folder / "comm").read_text().strip() == name:
                found.append(int(folder.name))
        except (FileNotFoundError, ProcessLookupError):
            continue  # it ended while we looked
    return sorted(found)


def _token() -> Check:
    mode, named = os.environ.get("RAY_AUTH_MODE"), os.environ.get("RAY_AUTH_TOKEN_PATH")
    left = os.path.expanduser("~/.ray/auth_token")
    if named and not (os.path.isfile(named) and os.access(named, os.R_OK)):
        found = f"RAY_AUTH_TOKEN_PATH={named}, which cannot be read"
        return Check("Ray token", "fails", found, "Name the head's token file, or unset it.")
    if mode == "token" and not (named or os.environ.get("RAY_AUTH_TOKEN") or os.path.isfile(left)):
        fix = "Set RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH to the head's token."
        return Check("Ray token", "fails", "none, with RAY_AUTH_MODE=token", fix)
    if mode == "disabled":
        found = "RAY_AUTH_MODE=disabled: whoever reaches Ray's ports may run code"
        return Check("Ray token", "warning", found, "Unset it.")
    if named or os.environ.get("RAY_AUTH_TOKEN"):
        return Check("Ray token", "ok", "from the environment")
    if os.path.isfile(left):
        return Check("Ray token", "ok", f"{left}: a head started by hand asks for it; a study's own Ray has its own")
    return Check("Ray token", "ok", "none: a study's own Ray has its own")
