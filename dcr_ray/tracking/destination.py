"""Where tracking goes: which tracking addresses are accepted, the default one, and how one is written down.

It connects to nothing: whether a server answers is found out by the sender.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from urllib.parse import unquote, urlsplit, urlunsplit

from dcr_ray.errors import Problem, nearest_name

_DATABASE_DRIVERS = {"postgresql": "psycopg2", "mysql": "MySQLdb"}
_DRIVER_MODULES = {"mysqldb": "MySQLdb", "mysqlconnector": "mysql"}
_SCHEMES = ("sqlite", "http", "https", *_DATABASE_DRIVERS)
_ALLOWED = "sqlite:////absolute/path/mlflow.db, http(s)://host:port, postgresql://... or mysql://..."


def default_tracking_uri(study_dir: Path) -> str:
    """An SQLite database in the study's directory, by its absolute path; needs no server."""
    return f"sqlite:///{Path(study_dir).absolute() / 'mlflow.db'}"


def check_tracking_uri(uri: str, where: str = "tracking_uri") -> list[Problem]:
    """All that is wrong with a tracking address; an empty list where nothing is."""
    try:
        urlsplit(uri)
    except ValueError as error:
        return [Problem(where, f"an address that cannot be read ({error})", _ALLOWED)]
    scheme, separator, rest = uri.partition(":")
    dialect, _, driver = scheme.lower().partition("+")
    if not separator or dialect == "file":
        return [_file_store(uri, where)]
    if dialect not in _SCHEMES:
        return [Problem(where, f"'{without_password(uri)}'", _ALLOWED, nearest_name(dialect, _SCHEMES))]
    if dialect == "sqlite":
        return _check_sqlite(uri, rest, where)
    problems = []
    if not urlsplit(uri).hostname:
        problems.append(Problem(where, f"'{without_password(uri)}', which names no host", f"{scheme}://host..."))
    if dialect in _DATABASE_DRIVERS:
        module = _DRIVER_MODULES.get(driver, driver) or _DATABASE_DRIVERS[dialect]
        if find_spec(module) is None:
            fix = f"Install the Python package that provides '{module}', or track through an MLflow server (http://...)"
            problems.append(Problem(where, f"a {dialect} address without its driver", f"module '{module}'", fix))
    return problems


def _file_store(uri: str, where: str) -> Problem:
    directory = Path(urlsplit(uri).path if uri.startswith("file:") else uri or ".").absolute()
    return Problem(
        where,
        f"the file store '{uri}'" if uri else "an empty address",
        _ALLOWED,
        f"MLflow no longer writes file stores. Use sqlite:///{directory.parent / 'mlflow.db'}; "
        "`mlflow migrate-filestore` carries old runs over",
    )


def _check_sqlite(uri: str, rest: str, where: str) -> list[Problem]:
    path = rest.removeprefix("///") if rest.startswith("///") else ""
    path = path.partition("?")[0]
    if not path or path == ":memory:":
        fix = "A database in memory is gone when the study ends"
        return [Problem(where, f"'{uri}', a database without a file", "sqlite:////absolute/path/mlflow.db", fix)]
    if path.startswith("/"):
        return []
    fix = f"Use sqlite:///{Path(path).absolute()}: a relative path is another database in every directory"
    return [Problem(where, f"the relative path '{path}'", "sqlite:////absolute/path/mlflow.db", fix)]


def without_password(uri: str) -> str:
    """The address as it may be written to files and logs."""
    parts = urlsplit(uri)
    if parts.password is None:
        return uri
    return urlunsplit(parts._replace(netloc=f"{parts.username or ''}:***@{parts.netloc.rpartition('@')[2]}"))


def credentials_apart(uri: str) -> tuple[str, dict[str, str]]:
    """A server's address without user and password, and the environment in which MLflow looks for them.

    MLflow's errors quote the address of a server, and errors are logged. Those of databases leave the password out.
    """
    parts = urlsplit(uri)
    if parts.scheme not in ("http", "https") or parts.username is None:
        return uri, {}
    names = {"MLFLOW_TRACKING_USERNAME": parts.username, "MLFLOW_TRACKING_PASSWORD": parts.password or ""}
    bare = urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))
    return bare, {name: unquote(value) for name, value in names.items()}


def artifact_location(uri: str, study_dir: Path) -> str | None:
    """Where a new experiment keeps its artifacts: a server decides for itself, a database cannot."""
    return None if urlsplit(uri).scheme in ("http", "https") else (Path(study_dir).absolute() / "mlartifacts").as_uri()
