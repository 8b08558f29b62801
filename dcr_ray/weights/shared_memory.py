"""Weights left in shared memory: what a training changed, for an engine on the same node.

An offer is one safetensors file in /dev/shm with the tensors in which a checkpoint differs from its base model. The
checkpoint's folder stays the truth, and an offer is only a quicker way to the same weights: whoever finds none reads
the folder. The folder names its offer in a small file, so it may be moved after the offer was made.

Files lie in a folder of this user's (mode 0700), in one folder for each study. A file gets its name when it is whole,
and the name says which process wrote it: what a dead one left is removed when the next offer is made. It knows neither
trainers nor engines.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple
from uuid import uuid4

from dcr_ray.fingerprint import digest

if TYPE_CHECKING:
    from torch import Tensor

SHARED_MEMORY = Path("/dev/shm")
POINTER_FILE = "shared_memory.json"
"""In a checkpoint's folder: its offer."""

MOST_BYTES = 4 * 2**30
"""Of one study's offers together."""

FREE_SHARE = 0.25
"""Of the room that is free, at most this much is taken: Ray's object store lives in /dev/shm as well, and a process
that finds no room there is killed."""

_NAME = re.compile(r"(?P<boot>[0-9a-f]{12})-(?P<space>\d+)-(?P<pid>\d+)-(?P<start>\d+)-[0-9a-f]{32}")


class Offer(NamedTuple):
    """Tensors of a checkpoint in one safetensors file of this node, by the names that they have in the checkpoint."""

    file: Path
    names: frozenset[str]


def offer(
    checkpoint_dir: Path | str,
    tensors: Mapping[str, Tensor],
    base_identity: str,
    *,
    study: str,
    most_bytes: int = MOST_BYTES,
) -> bool:
    """Leave a finished checkpoint's changed tensors in shared memory; False where there is none or too little room.

    `tensors` are all that differ, in the values that the folder holds, from the model of `base_identity`
    (`weights.identity.model_identity`), by their names in the checkpoint's files. A tied head is not among them. Call
    it when all files of the checkpoint are written: an offer is void once a weight file changes. `study` names whom
    `withdraw` is for. The study's oldest offers are removed where all together would be more than `most_bytes`.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    remove_stale()
    size = sum(tensor.nbytes for tensor in tensors.values())
    folder = _study_folder(study)
    if folder is None or not _make_room(folder, size, most_bytes):
        return False
    name = f"{_process_name()}-{uuid4().hex}"
    partial, file = folder / f"{name}.partial", folder / f"{name}.safetensors"
    plain = {key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}
    try:
        save_file(plain, partial, metadata={"format": "pt", "base": base_identity})
        partial.chmod(0o600)
        partial.rename(file)
    except (OSError, SafetensorError):
        # Another process took the room in between, or the study was withdrawn: the folder serves as well.
        partial.unlink(missing_ok=True)
        return False
    pointer = {"study": folder.name, "offer": name, "files": _facts(Path(checkpoint_dir))}
    written = Path(checkpoint_dir) / f".{POINTER_FILE}.{os.getpid()}"
    written.write_text(json.dumps(pointer))
    written.replace(Path(checkpoint_dir) / POINTER_FILE)
    return True


def offered(checkpoint_dir: Path | str, base_identity: str) -> Offer | None:
    """The offer for a checkpoint on this node, made against the base of that identity; None where there is none.

    One whose checkpoint's weight files have changed since, or that is no whole file, is none.
    """
    from safetensors import SafetensorError, safe_open

    file = _pointed_at(Path(checkpoint_dir))
    if file is None:
        return None
    try:
        with safe_open(file, "pt") as opened:
            if (opened.metadata() or {}).get("base") != base_identity:
                return None
            return Offer(file, frozenset(opened.keys()))
    except (OSError, SafetensorError):
        return None


def withdraw(study: str) -> None:
    """Remove all offers of a study on this node. Who has one open keeps it."""
    root = _root(create=False)
    if root is not None:
        shutil.rmtree(root / digest(study), ignore_errors=True)


def withdraw_one(checkpoint_dir: Path | str) -> None:
    """Remove a checkpoint's offer, when whoever it was for has taken it. The folder serves all others."""
    if (file := _pointed_at(Path(checkpoint_dir))) is not None:
        file.unlink(missing_ok=True)


def remove_stale() -> None:
    """Remove what processes of this node left that no longer run, whatever study they were of.

    What was written in another process namespace (a container) cannot be judged and is kept.
    """
    root = _root(create=False)
    for file in root.glob("*/*") if root else ():
        name = _NAME.match(file.name)
        if name is None:
            continue
        boot, space, _, _ = _process_name().split("-")
        if name["boot"] != boot or (name["space"] == space and _started(int(name["pid"])) != name["start"]):
            file.unlink(missing_ok=True)
    for folder in root.glob("*/") if root else ():
        try:
            folder.rmdir()
        except OSError:
            pass  # it holds offers


def _pointed_at(folder: Path) -> Path | None:
    """Where the offer lies that a checkpoint's folder names, if it was made for the weight files as they are."""
    try:
        pointer = json.loads((folder / POINTER_FILE).read_text())
        study, name, files = pointer["study"], pointer["offer"], pointer["files"]
    except (OSError, ValueError, TypeError, KeyError):
        return None
    root = _root(create=False)
    if root is None or not re.fullmatch(r"[0-9a-f]{64}", str(study)) or not _NAME.fullmatch(str(name)):
        return None
    return root / study / f"{name}.safetensors" if files == _facts(folder) else None


def _root(create: bool) -> Path | None:
    """This user's own folder in shared memory, or None where it cannot be had or is somebody else's."""
    root = SHARED_MEMORY / f"dcr_ray-{os.getuid()}"
    try:
        if create:
            root.mkdir(mode=0o700, exist_ok=True)
        facts = root.lstat()
    except OSError:
        return None
    private = root.is_dir() and not root.is_symlink() and facts.st_uid == os.getuid() and not facts.st_mode & 0o077
    return root if private else None


def _study_folder(study: str) -> Path | None:
    root = _root(create=True)
    if root is None:
        return None
    folder = root / digest(study)
    folder.mkdir(mode=0o700, exist_ok=True)
    return folder


def _make_room(folder: Path, size: int, most_bytes: int) -> bool:
    """Remove the oldest offers until `size` more bytes fit; False, and nothing removed, where they never do."""
    facts = []
    for file in folder.glob("*.safetensors"):
        try:
            facts.append((file.stat().st_mtime_ns, file.stat().st_size, file))
        except FileNotFoundError:
            continue  # another trainer made room
    held = sum(bytes_of_one for _, bytes_of_one, _ in facts)
    system = os.statvfs(folder)
    if size > most_bytes or size > FREE_SHARE * (system.f_bavail * system.f_frsize + held):
        return False
    for _, bytes_of_one, file in sorted(facts):
        system = os.statvfs(folder)
        if held + size <= most_bytes and size <= FREE_SHARE * system.f_bavail * system.f_frsize:
            break
        file.unlink(missing_ok=True)
        held -= bytes_of_one
    return True


def _facts(folder: Path) -> dict[str, list[int]]:
    """Size and time of change of a checkpoint's weight files, which moving the folder leaves as they are."""
    return {file.name: [file.stat().st_size, file.stat().st_mtime_ns] for file in sorted(folder.glob("*.safetensors"))}


@lru_cache(maxsize=1)
def _boot() -> tuple[str, str]:
    """This boot of the kernel, and this namespace of process numbers."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip().replace("-", "")[:12]
    return boot, str(os.stat("/proc/self/ns/pid").st_ino)


def _process_name() -> str:
    boot, space = _boot()
    return f"{boot}-{space}-{os.getpid()}-{_started(os.getpid())}"


def _started(pid: int) -> str | None:
    """When a process started, in the kernel's ticks since boot: with its number, no other process is meant."""
    try:
        # The second field is the command's name in brackets, which may hold blanks.
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        return None
