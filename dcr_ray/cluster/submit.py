"""A study as a job on a Ray head: what is sent there, under which name, and how it is followed.

The head is known by its job server alone, over HTTP; no Ray is started here. dcr_ray has to be installed on the
cluster's nodes: what is sent is the study's spec and, if asked for, a folder of code and data; no earlier results.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
import shlex
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TextIO

from dcr_ray.cluster.sent_files import lay_out
from dcr_ray.data.records import SUFFIXES
from dcr_ray.data.sets import SETS
from dcr_ray.errors import DcrError, InputError, Problem
from dcr_ray.runtime import use_token_of_the_machine
from dcr_ray.study import StudySpec, parse_study

SPEC_FILE = "submitted-study.yaml"
"""In the job's working directory. A name that a folder of the user's will not have."""

ANSWER_SECONDS = 4.0
RECONNECTIONS = 5
RECONNECTION_SECONDS = 2.0

_STOP_ENVIRONMENT = {
    # A sweep ends in an orderly way on SIGTERM; Ray would kill it after 3 seconds.
    "RAY_JOB_STOP_SIGNAL": "SIGTERM",
    "RAY_JOB_STOP_WAIT_TIME_S": "60",
}
DRIVER_RESOURCE = "TRAIN_DRIVER_RESOURCE"
"""A node whose Ray offers this resource is meant for drivers: it is no GPU node, and not taken away at short notice."""

_PASSED_FOLDERS = ("DCR_RAY_STORAGE", "DCR_RAY_CACHE")
_URL = "the URL of a head's job server, http://HEAD:8265"


@dataclass(frozen=True)
class Driver:
    """What Ray reserves for the process that runs `dcr-ray sweep`. Without any of it that process runs on the head."""

    cpus: float | None = None
    resources: dict[str, float] = field(default_factory=dict)


ON_THE_HEAD = Driver()


@dataclass(frozen=True)
class Ended:
    """How a job ended. `exit_code` is None where its command never ran; `message` is Ray's account of it."""

    status: str
    exit_code: int | None
    message: str


def connect(address: str) -> Any:
    """A `JobSubmissionClient` for the job server at the URL `address`; without a scheme it is http.

    Raises InputError within ANSWER_SECONDS or so for one that does not answer, is not Ray's, or refuses our token.
    """
    url = (address if "://" in address else f"http://{address}").rstrip("/")
    if not re.match(r"^https?://[^/]+", url):
        raise InputError([Problem("--address", address, _URL)])
    use_token_of_the_machine()

    import requests
    from ray.exceptions import AuthenticationError
    from ray.job_submission import JobSubmissionClient

    for module in ("dashboard.modules.job.sdk", "dashboard.modules.dashboard_sdk", "_private.runtime_env.packaging"):
        logging.getLogger(f"ray.{module}").setLevel(logging.WARNING)
    try:
        # Ray's client waits for ever, so that somebody else has to find out first whether anybody is there.
        requests.get(f"{url}/api/version", timeout=ANSWER_SECONDS)
        with _no_other_address(url):
            return JobSubmissionClient(url)
    except AuthenticationError as error:
        raise InputError([_refused(url, error)]) from error
    except (OSError, RuntimeError, ValueError) as error:
        fix = "Is the head up, with --dashboard-host=0.0.0.0, and its dashboard's port (8265) reachable from here?"
        raise InputError([Problem("--address", f"{url} ({_short(error)})", _URL, fix)]) from error


def submit_study(
    client: Any,
    spec: StudySpec,
    environment: dict[str, str],
    driver: Driver = ON_THE_HEAD,
    sent: Path | None = None,
    exclude: Sequence[str] = (),
) -> str:
    """Send the study as a job that runs `dcr-ray sweep`. Returns the job's submission id.

    `spec` is what `portable` gives, `environment` what `passed_environment` does. The spec is sent with its overrides
    applied, so that none of them (a tracking address may hold a password) shows in the command that the head displays.
    `sent` is a folder whose files are sent as well, without those that `exclude` names. Raises InputError for a study
    that the head is running already.
    """
    with tempfile.TemporaryDirectory(prefix="dcr_ray-job-") as folder:
        if sent is not None:
            lay_out(sent, exclude, Path(folder))
        Path(folder, SPEC_FILE).write_text(spec.as_yaml(), encoding="utf-8")
        facts = {
            "storage": storage_of(spec, environment).removesuffix(f"/{spec.study}"),
            "trials": str(spec.search.trials),
            "driver": json.dumps(asdict(driver)),
        }
        entrypoint = shlex.join(["dcr-ray", "sweep", SPEC_FILE])
        return submit_job(client, spec.study, entrypoint, Path(folder), environment, driver, facts)


def submit_job(
    client: Any,
    study: str,
    entrypoint: str,
    folder: Path,
    environment: dict[str, str],
    driver: Driver = ON_THE_HEAD,
    facts: dict[str, str] | None = None,
) -> str:
    """Submit `entrypoint`, a shell command, to run in a copy of `folder`. Returns `dcr-<study>-<n>`.

    Ray takes an id once only, so every try of a study gets the number after the last one's. `facts` are kept with the
    job, for whoever asks about it later.
    """
    jobs = [job for job in client.list_jobs() if (job.metadata or {}).get("study") == study]
    if running := [job.submission_id for job in jobs if not job.status.is_terminal()]:
        fix = f"Wait for it, stop it with `{command_for('stop', study, client)}`, or give this one another name."
        found = f"{study}, which runs as job {running[0]}"
        raise InputError([Problem("study", found, "a study that the head is not running", fix)])
    name = re.compile(rf"dcr-{re.escape(study)}-(\d+)")
    used = [int(found[1]) for job in jobs if (found := name.fullmatch(job.submission_id or ""))]
    number = max(used, default=0)
    while True:
        number += 1
        try:
            return client.submit_job(
                entrypoint=entrypoint,
                submission_id=f"dcr-{study}-{number}",
                # Ray's client fills in what it is given, and must not find the last try's answers there.
                runtime_env={"working_dir": str(folder), "env_vars": _STOP_ENVIRONMENT | environment},
                metadata={"study": study} | (facts or {}),
                entrypoint_num_cpus=driver.cpus,
                entrypoint_resources=driver.resources or None,
            )
        except RuntimeError as error:
            # Somebody else's submission may have come in between.
            if "already exists" not in str(error) or number > max(used, default=0) + 20:
                raise DcrError(f"the head did not take the job: {_short(error)}") from error


def driver_on(client: Any, cpus: float | None, resources: dict[str, float] | None) -> tuple[Driver, str]:
    """What to reserve for a study's driver, and a sentence about it for the user, or ''.

    Where no resources are named and a node offers DRIVER_RESOURCE, the driver goes there.
    """
    offered = _resources(client)
    if resources is None:
        resources = {DRIVER_RESOURCE: 0.01} if offered.get(DRIVER_RESOURCE) else {}
    missing = sorted(name for name, amount in resources.items() if offered.get(name, 0) < amount)
    said = f"the driver goes where there is {', '.join(sorted(resources))}" if resources else ""
    if missing:
        said = f"no node has {', '.join(missing)} now: the job waits until one comes, for 15 minutes at most"
    return Driver(cpus, resources), said


def _resources(client: Any) -> dict[str, float]:
    """The most that one node of the cluster offers of each resource; nothing where its State API does not answer."""
    from ray.util.state import list_nodes
    from ray.util.state.exception import RayStateApiException

    url = client.get_address()
    try:
        with _no_other_address(url):
            nodes = list_nodes(address=url, limit=10_000, timeout=5)
    except RayStateApiException:
        return {}
    most: dict[str, float] = {}
    for node in nodes:
        if node.state == "ALIVE":
            most |= {name: max(amount, most.get(name, 0)) for name, amount in (node.resources_total or {}).items()}
    return most


async def follow(client: Any, submission_id: str, stream: TextIO, skip: int = 0) -> Ended:
    """Write the job's log to `stream` as it grows, from its character `skip` on, until the job has ended.

    Raises DcrError when the head has been away for longer than RECONNECTIONS tries; the job may go on all the same.
    """
    import aiohttp

    written, lost = skip, 0
    while True:
        read = 0
        try:
            # A log is always told from its beginning.
            async for text in client.tail_job_logs(submission_id):
                lost = 0
                stream.write(text[max(0, written - read) :])
                stream.flush()
                read += len(text)
                written = max(written, read)
            info = client.get_job_info(submission_id)
            if info.status.is_terminal():
                return Ended(info.status.value, info.driver_exit_code, info.message or "")
        except BrokenPipeError:
            raise  # the reader of our own output has gone, not the head
        except (aiohttp.ClientError, OSError, RuntimeError) as error:
            lost += 1
            if lost > RECONNECTIONS:
                raise DcrError(f"no contact with the head any more ({_short(error)}); the job may go on") from error
        await asyncio.sleep(RECONNECTION_SECONDS)


def portable(spec: StudySpec, sent: Path | None = None) -> StudySpec:
    """The study as it can be run from another working directory.

    Absolute paths, and those that begin with `~`, are passed on as they are and mean the cluster's file system. A
    relative path that is here becomes absolute, for a head on this machine or a shared file system; data below `sent`,
    the folder that is sent along, are named from there. Raises InputError for the other relative paths: a job's
    working directory is a copy that Ray throws away.
    """
    problems: list[Problem] = []
    plain = spec.model_dump(mode="json")
    plain["storage"] = _portable_folder("storage", spec.storage, problems)
    plain["data"]["root"] = _within(spec.data.root, sent) or _portable_folder("data.root", spec.data.root, problems)
    for section in ("train", "evaluate"):
        for choices in plain["data"][section].values():
            for choice in choices:
                file = Path(choice["set"])
                # A file that is not here is one below data.root.
                if choice["set"] not in SETS and file.suffix.lower() in SUFFIXES and file.exists():
                    choice["set"] = _within(choice["set"], sent) or str(file.absolute())
                if choice["file"] and Path(choice["file"]).exists():
                    choice["file"] = _within(choice["file"], sent) or str(Path(choice["file"]).absolute())
    if (Path(spec.model) / "config.json").is_file():
        plain["model"] = str(Path(spec.model).absolute())
    elif spec.model.startswith("."):
        found = f"'{spec.model}', a relative path that is not here"
        problems.append(Problem("model", found, "a model's name, or an absolute path on the cluster"))
    if spec.search.storage and re.match(r"sqlite:///(?!/)", spec.search.storage):
        fix = "Leave it out, or name the file by its absolute path."
        found = f"'{spec.search.storage}', a relative path"
        problems.append(Problem("search.storage", found, "sqlite:////absolute/path", fix))
    if problems:
        raise InputError(problems)
    return parse_study(plain)


def passed_environment(given: Sequence[str] = ()) -> dict[str, str]:
    """What the job is told of this process's environment: where results and fetched models go, if that is set.

    `given` are further variables as NAME=VALUE, or as NAME for the value that it has here. Raises InputError for a
    relative folder that is not here, and for every variable that cannot be passed on.
    """
    problems: list[Problem] = []
    found = {name: _portable_folder(f"${name}", os.environ.get(name), problems) for name in _PASSED_FOLDERS}
    passed = {name: folder for name, folder in found.items() if folder}
    for each in given:
        name, equals, value = each.partition("=")
        # A value may be a secret, so that no message repeats it.
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
            problems.append(Problem("--env", f"the name '{name}'", "NAME=VALUE, or NAME for its value here"))
        elif name in _STOP_ENVIRONMENT or name.startswith("RAY_JOB_"):
            problems.append(Problem("--env", name, "a variable that is not Ray's own for its jobs"))
        elif not equals and name not in os.environ:
            problems.append(Problem("--env", f"{name}, which is not set here", "NAME=VALUE, or a variable that is set"))
        else:
            passed[name] = value if equals else os.environ[name]
    if problems:
        raise InputError(problems)
    return passed


def storage_of(spec: StudySpec, environment: dict[str, str]) -> str:
    """Where on the cluster the job keeps the study: what `preflight.storage_root` will find there."""
    return f"{spec.storage or environment.get('DCR_RAY_STORAGE') or '~/dcr_ray_runs'}/{spec.study}"


def command_for(verb: str, study: str, client: Any) -> str:
    """What a user types to ask about the study, or to end it in an orderly way."""
    return f"dcr-ray {verb} {study} --address {client.get_address()}"


def _within(path: str | None, sent: Path | None) -> str | None:
    """The path as it is named in a job that was sent the folder; None where it is not below it."""
    if sent is None or not path or not Path(path).exists():
        return None
    here, folder = Path(path).resolve(), sent.resolve()
    return str(here.relative_to(folder)) if here.is_relative_to(folder) else None


def _portable_folder(where: str, value: str | None, problems: list[Problem]) -> str | None:
    if not value or Path(value).is_absolute() or value.startswith("~"):
        return value or None
    if Path(value).exists():
        return str(Path(value).absolute())
    fix = "Name the folder by its absolute path on the cluster, or by one below ~, the home folder there."
    problems.append(Problem(where, f"'{value}', a relative path that is not here", "an absolute path", fix))
    return None


def _refused(url: str, error: Exception) -> Problem:
    """The problem of a head that does not accept our token."""
    fix = (
        "Set RAY_AUTH_MODE=token, and the head's token as RAY_AUTH_TOKEN, as a file named by RAY_AUTH_TOKEN_PATH, "
        "or in ~/.ray/auth_token."
    )
    return Problem("--address", f"{url}, which asks for a token ({_short(error)})", "the head's own token", fix)


@contextmanager
def _no_other_address(url: str) -> Iterator[None]:
    """RAY_API_SERVER_ADDRESS and RAY_ADDRESS go before the address that Ray's client is given."""
    before = os.environ.get("RAY_API_SERVER_ADDRESS")
    os.environ["RAY_API_SERVER_ADDRESS"] = url
    try:
        yield
    finally:
        if before is None:
            del os.environ["RAY_API_SERVER_ADDRESS"]
        else:
            os.environ["RAY_API_SERVER_ADDRESS"] = before


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
