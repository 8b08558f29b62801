"""Optuna's storage of a study: opened, guarded against another search space, and read as Trials.

The journal (or RDB) is the truth about which trials there are and how they ended; nothing else remembers it. Searched
trials lie in an Optuna study of the study's name. The STL baseline lies in one of its own, `NAME/baseline`: it has none
of the searched parameters, and samplers that learn on the parameters all trials have in common would be left with none.
"""

from __future__ import annotations

import json
import warnings
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState

from dcr_ray.cache import identity_difference
from dcr_ray.errors import InputError, Problem
from dcr_ray.search.samplers import make_sampler
from dcr_ray.study import StudySpec, parse_study
from dcr_ray.trial import StageView, Trial

JOURNAL_FILE = "optuna-journal.log"
BASELINE_NAME = "stl"

_STATES = {
    TrialState.RUNNING: "running",
    TrialState.WAITING: "waiting",
    TrialState.COMPLETE: "complete",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "failed",
}


def mend_journal(file: Path) -> None:
    """Undo what a killed driver left: a lock nobody holds, and a last line that was not written to its end.

    Only for the process that holds the study's driver lock.
    """
    file.with_name(file.name + ".lock").unlink(missing_ok=True)
    if not file.exists():
        return
    content = file.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        with open(file, "r+b") as stream:
            stream.truncate(whole)


def open_storage(spec: StudySpec, study_dir: Path) -> BaseStorage:
    """The journal file in the study's folder, or the RDB that the spec names."""
    if spec.search.storage:
        return RDBStorage(spec.search.storage)
    return JournalStorage(JournalFileBackend(str(study_dir / JOURNAL_FILE)))


class StudyJournal:
    """The two Optuna studies of a study, searched trials and baseline.

    Raises InputError where the storage holds a study of this name with another identity, field by field.
    """

    def __init__(self, spec: StudySpec, study_dir: Path):
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        # Named metrics, grouped TPE and importances are marked experimental; the version is pinned, so they are known.
        warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
        warnings.filterwarnings("ignore", message="PedAnovaImportanceEvaluator computes", category=UserWarning)
        self.spec = spec
        storage = open_storage(spec, study_dir)
        directions = list(spec.objectives.values())
        known = {summary.study_name for summary in optuna.get_all_study_summaries(storage, include_best_trial=False)}
        if spec.study in known:
            _refuse_other_identity(optuna.load_study(study_name=spec.study, storage=storage), spec)
        # A study that is there is only loaded: creating it again would write to the journal that a driver may hold.
        self.searched, self.baseline = (
            optuna.load_study(study_name=name, storage=storage)
            if name in known
            else optuna.create_study(study_name=name, storage=storage, directions=directions)
            for name in (spec.study, f"{spec.study}/baseline")
        )
        self.searched.sampler = make_sampler(spec, seen=len(self.searched.get_trials(deepcopy=False)))
        if "fingerprint" not in self.searched.user_attrs:
            self.searched.set_metric_names(list(spec.objectives))
            self.searched.set_user_attr("identity", json.dumps(spec.identity(), sort_keys=True))
            self.searched.set_user_attr("fingerprint", spec.fingerprint())

    def trials(self) -> list[Trial]:
        """The baseline first, then the searched trials in the order they were asked for."""
        baseline = [
            self._view(frozen, BASELINE_NAME, "baseline") for frozen in self.baseline.get_trials(deepcopy=False)[-1:]
        ]
        searched = self.searched.get_trials(deepcopy=False)
        return baseline + [self._view(frozen, trial_name(frozen.number), "search") for frozen in searched]

    def _view(self, frozen: FrozenTrial, name: str, role: str) -> Trial:
        attrs = frozen.user_attrs
        recipe = self.spec.baseline_recipe() if role == "baseline" else self.spec.searched_recipe(frozen.params)
        return Trial(
            name=name,
            role=role,
            state=_STATES[frozen.state],
            recipe=recipe,
            params=dict(frozen.params),
            metrics=attrs.get("metrics", {}),
            stages=tuple(StageView(**stage) for stage in attrs.get("stages", ())),
            seconds=attrs.get("seconds", {}),
            ledger=attrs.get("ledger", {}).get("parts", {}),
            wall=attrs.get("ledger", {}).get("wall"),
            feasible=self._feasible(frozen),
            reason=attrs.get("reason"),
            number=frozen.number,
            started=_stamp(frozen.datetime_start),
            ended=_stamp(frozen.datetime_complete),
        )

    def _feasible(self, frozen: FrozenTrial) -> bool | None:
        if frozen.state != TrialState.COMPLETE:
            return None
        return all(value <= 0 for value in frozen.constraints.values())


def trial_name(number: int) -> str:
    return f"t{number:03d}"


def read_trials(spec: StudySpec, study_dir: Path) -> list[Trial]:
    """All trials of a study, from the journal, by anyone who does not run it."""
    return StudyJournal(spec, study_dir).trials()


def importances(journal: StudyJournal) -> dict[str, dict[str, float]]:
    """Importance of each searched parameter for each objective (PED-ANOVA, Watanabe et al., arXiv 2304.10255).

    Empty while fewer than four trials are complete or no parameter is common to them.
    """
    complete = journal.searched.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    if len(complete) < 4 or not set.intersection(*(set(trial.params) for trial in complete)):
        return {}
    found = {}
    for index, (name, direction) in enumerate(journal.spec.objectives.items()):
        if len({trial.values[index] for trial in complete}) > 1:
            # PED-ANOVA asks what makes the target low.
            sign = -1 if direction == "maximize" else 1
            found[name] = optuna.importance.get_param_importances(
                journal.searched, target=lambda trial, index=index, sign=sign: sign * trial.values[index]
            )
    return found


def _stamp(moment: datetime | None) -> str | None:
    # Optuna keeps naive local time.
    return None if moment is None else moment.astimezone(UTC).isoformat(timespec="seconds")


def _refuse_other_identity(study: optuna.Study, spec: StudySpec) -> None:
    if "identity" not in study.user_attrs:
        return
    stored = _with_newer_defaults(json.loads(study.user_attrs["identity"]), spec)
    changes = identity_difference(stored, spec.identity())
    if changes:
        raise InputError(
            Problem(
                "study",
                f"'{spec.study}', stored with other settings ({change})",
                "the settings it began with",
                "Give the study another name, or undo the change.",
            )
            for change in changes
        )


def _with_newer_defaults(stored: dict[str, Any], spec: StudySpec) -> dict[str, Any]:
    """A stored identity as this version writes it: settings that it does not name had their defaults."""
    plain = spec.model_dump(mode="json")
    judges = [stored["judge"]] if "judge" in stored else None
    named = {key: value for key, value in stored.items() if key != "judge"}
    raw = {key: value for key, value in plain.items() if key not in ("judges", *named)} | named
    raw["data"] = {"root": spec.data.root, **stored["data"]}
    try:
        return parse_study(raw | ({"judges": judges} if judges else {})).identity()
    except InputError:
        # Not readable by this version at all: then every difference is shown.
        return stored
