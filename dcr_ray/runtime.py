"""The Ray that a study runs on: one of its own on this machine, or one that is already there.

Nothing depends on what an earlier Ray left behind. Ray's token, the caches of the compilers and of the plotting library
lie in the study's own folders, so that an empty or read-only HOME serves, and a second Ray on the machine is not
mistaken for ours.
"""

from __future__ import annotations

import os
import secrets
import socket
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

from dcr_ray.errors import InputError, Problem

_TUNE_ENVIRONMENT = {
    # Trials report several kinds of results; the search checks what it needs itself.
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    # The study has its own records; Tune's CSV, JSON and TensorBoard files would be copies of them.
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "RAY_AIR_NEW_OUTPUT": "0",
    # The sweep has its own answer to Ctrl-C.
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    # Pickles of Tune's state are never read: the journal is.
    "TUNE_GLOBAL_CHECKPOINT_S": "3600",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    # A group that finds no room on a busy cluster waits for it as long as it takes; that does not count as a failure.
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": str(30 * 86400),
}


_START_ONE = "Start one with `ray start --head`, or unset RAY_ADDRESS to run on this machine."


def cache_environment(cache_dir: Path) -> dict[str, str]:
    """Environment variables that move every library's cache below `cache_dir`, where the user has not moved it."""
    places = {
        "TORCH_EXTENSIONS_DIR": "torch-extensions",
        "TORCHINDUCTOR_CACHE_DIR": "torch-inductor",
        "TRITON_CACHE_DIR": "triton",
        "VLLM_CACHE_ROOT": "vllm",
        "VLLM_CONFIG_ROOT": "vllm-config",
        "MPLCONFIGDIR": "matplotlib",
        "HF_HOME": "huggingface",
    }
    found = {name: os.environ.get(name, str(cache_dir / folder)) for name, folder in places.items()}
    fixed = {
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_LOGGING_LEVEL": "ERROR",
        # Standard output is for a command's table or JSON document.
        "VLLM_LOGGING_STREAM": "ext://sys.stderr",
        "RAY_USAGE_STATS_ENABLED": "0",
        # OpenMP threads that spin while they wait take the core that an engine or another rank needs (GNU, Intel).
        "OMP_WAIT_POLICY": "PASSIVE",
        "KMP_BLOCKTIME": "1",
    }
    return found | {name: os.environ.get(name, value) for name, value in fixed.items()}


def use_caches(cache_dir: Path) -> dict[str, str]:
    """Move this process's caches; call it before torch, vLLM or matplotlib is imported. Returns what was set."""
    environment = cache_environment(cache_dir)
    os.environ.update(environment)
    return environment


_NETWORK = ("NCCL_", "TORCH_NCCL_", "GLOO_", "FI_", "OFI_", "EFA_", "UCX_", "RDMAV_")


def network_environment() -> dict[str, str]:
    """What the driver was told about the network, for workers on other nodes: NCCL's variables, EFA's, gloo's."""
    return {name: value for name, value in os.environ.items() if name.startswith(_NETWORK)}


@dataclass(frozen=True)
class RayCluster:
    """What a started or found Ray offers. `environment` is what workers have to be given besides their own."""

    address: str
    namespace: str
    own: bool
    cpus: float
    gpus: float
    environment: dict[str, str]
    dashboard: str
    nodes: tuple[dict[str, float], ...] = ()
    """What each living node has in all."""


def start_ray(address: str | None, cpus_needed: float, study: str, study_dir: Path, cache_dir: Path) -> RayCluster:
    """Attach to `address` (or $RAY_ADDRESS), or start a Ray on this machine with at least `cpus_needed` logical CPUs.

    Raises InputError for an address that does not answer.
    """
    environment = use_caches(cache_dir)
    os.environ.update({name: os.environ.get(name, value) for name, value in _TUNE_ENVIRONMENT.items()})
    address = address or os.environ.get("RAY_ADDRESS") or None
    namespace = f"dcr-ray-{study}"
    if address in (None, "local"):
        _use_own_token(study_dir)
        own = True
        options = {"address": "local", "num_cpus": max(os.cpu_count() or 1, int(-(-cpus_needed // 1)))}
        options |= {"include_dashboard": True, "dashboard_host": "127.0.0.1"}
    else:
        own = False
        _refuse_closed_port(address)
        options = {"address": address}
        use_token_of_the_machine()

    import ray

    try:
        context = ray.init(
            **options, namespace=namespace, log_to_driver=False, logging_level="ERROR", configure_logging=True
        )
    except (ConnectionError, RuntimeError, ValueError, TimeoutError) as error:
        if own:
            raise
        found = f"{address} ({' '.join(str(error).split())[:300]})"
        raise InputError([Problem("--address", found, "a Ray that answers", _START_ONE)]) from error
    found = ray.cluster_resources()
    gcs_address = ray.get_runtime_context().gcs_address
    # Ray Train's cleaner asks "the" Ray of the machine unless it is told which one.
    passed = {name: os.environ[name] for name in _TUNE_ENVIRONMENT} | environment
    passed |= (
        {name: os.environ[name] for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN_PATH") if name in os.environ}
        if own
        else {}
    )
    return RayCluster(
        address=gcs_address,
        namespace=namespace,
        own=own,
        cpus=found.get("CPU", 0),
        gpus=found.get("GPU", 0),
        environment=network_environment() | passed | {"RAY_ADDRESS": gcs_address},
        dashboard=context.dashboard_url or "",
        nodes=tuple(node["Resources"] for node in ray.nodes() if node["Alive"]),
    )


@contextmanager
def ray_messages_in(study_dir: Path) -> Iterator[None]:
    """Within the block what Ray prints goes to `ray-messages.log`: standard output is for a command's document.

    Most of it is of no use to anyone here, such as a warning at the eighth process on a machine of two cores.
    """
    with open(study_dir / "ray-messages.log", "a") as file, redirect_stdout(file):
        yield


def _refuse_closed_port(address: str) -> None:
    """Ray's client asks a closed port for minutes before it gives up. Raises InputError at once instead."""
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if not port.isdigit():
        return
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except OSError as error:
        raise InputError([Problem("--address", f"{address} ({error})", "a Ray that answers", _START_ONE)]) from error


def _use_own_token(study_dir: Path) -> None:
    """Ray turns token authentication on for a cluster of its own and keeps the token in HOME unless told where."""
    if any(os.environ.get(name) for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")):
        return
    file = study_dir / "ray-token"
    if not file.exists():
        file.touch(mode=0o600)
        file.write_text(secrets.token_hex(32))
    os.environ["RAY_AUTH_TOKEN_PATH"] = str(file)


def use_token_of_the_machine() -> None:
    """A head that was started where a token lay asks for it; Ray's client offers one only when it is told to."""
    from ray._private.authentication.authentication_token_setup import maybe_enable_token_auth_if_token_available

    maybe_enable_token_auth_if_token_available(warn_if_disabled=False)
