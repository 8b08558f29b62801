"""Optuna's storage of a study: opened, guarded against another search space, and read as Trials.

The journal (or RDB) is the truth about which trials there are and how they ended; nothing else remembers it. Searched
trials lie in an Optuna study of the study's name. The STL baseline lies in one of its own, `NAME/baseline`: it has none
of the searched parameters, and samplers that learn on the parameters all trials have in common would be left with none.
"""

from __future__ import annotations

import json
import operator
import threading
import warnings
from datetime import UTC, datetime
from itertools import compress, count
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import BaseStorage, RDBStorage
from optuna.trial import FrozenTrial, TrialState

from dcr_ray.cache import identity_difference
from dcr_ray.errors import InputError, Problem
from dcr_ray.search.journal_file import JOURNAL_FILE, journal_storage
from dcr_ray.search.samplers import make_sampler
from dcr_ray.study import StudySpec, parse_study
from dcr_ray.trial import BASELINE_NAME, StageView, Trial

AHEAD, BEGAN = "asked_ahead", "began"
"""User attributes of a trial that was asked for before there was a place for it, and of when it got one."""

_STATES = {
    TrialState.RUNNING: "running",
    TrialState.WAITING: "waiting",
    TrialState.COMPLETE: "complete",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "failed",
}


def open_storage(spec: StudySpec, study_dir: Path) -> BaseStorage:
    """The journal file in the study's folder, or the RDB that the spec names."""
    if spec.search.storage:
        return RDBStorage(spec.search.storage)
    return journal_storage(study_dir / JOURNAL_FILE)


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
        self.storage = storage = open_storage(spec, study_dir)
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
        self._views_mutex = threading.Lock()
        self._seen: list[FrozenTrial] = []
        self._views: list[Trial] = []
        self._baseline_seen: tuple[FrozenTrial, Trial] | None = None
        self.searched.sampler = make_sampler(spec, seen=len(self.searched.get_trials(deepcopy=False)))
        if "fingerprint" not in self.searched.user_attrs:
            self.searched.set_metric_names(list(spec.objectives))
            self.searched.set_user_attr("identity", json.dumps(spec.identity(), sort_keys=True))
            self.searched.set_user_attr("fingerprint", spec.fingerprint())
            for point in spec.search.first:
                self.searched.enqueue_trial(dict(point))

    def trials(self) -> list[Trial]:
        """The baseline first, then the searched trials in the order they were asked for.

        A trial whose entry in the storage is the one of the last call is the same object as then: only what has changed
        is built again.
        """
        with self._views_mutex:
            baseline = self.baseline.get_trials(deepcopy=False)[-1:]
            searched = self.searched.get_trials(deepcopy=False)
            if baseline and (self._baseline_seen is None or self._baseline_seen[0] is not baseline[0]):
                self._baseline_seen = (baseline[0], self._view(baseline[0], BASELINE_NAME, "baseline"))
            known = len(self._seen)
            # The storage replaces an entry when it changes, so that to be the same one is to be unchanged.
            changed = [*compress(count(), map(operator.is_not, searched, self._seen)), *range(known, len(searched))]
            for number in changed:
                frozen = searched[number]
                view = self._view(frozen, trial_name(frozen.number), "search")
                if number < known:
                    self._views[number] = view
                else:
                    self._views.append(view)
            self._seen = searched
            return ([self._baseline_seen[1]] if self._baseline_seen else []) + self._views

    def trial(self, name: str) -> Trial:
        """One trial of `trials`, without the others. Raises KeyError for one that was never asked for."""
        if name == BASELINE_NAME:
            frozen = self.baseline.get_trials(deepcopy=False)[-1:]
            if not frozen:
                raise KeyError(name)
            return self._view(frozen[0], name, "baseline")
        storage, study = self.searched._storage, self.searched._study_id
        frozen = storage.get_trial(storage.get_trial_id_from_study_id_trial_number(study, trial_number(name)))
        return self._view(frozen, name, "search")

    def _view(self, frozen: FrozenTrial, name: str, role: str) -> Trial:
        attrs = frozen.user_attrs
        recipe = self.spec.baseline_recipe() if role == "baseline" else self.spec.searched_recipe(frozen.params)
        return Trial(
            name=name,
            role=role,
            state="waiting" if _waits(frozen) else _STATES[frozen.state],
            recipe=recipe,
            params=dict(frozen.params or frozen.system_attrs.get("fixed_params", {})),
            metrics=attrs.get("metrics", {}),
            stages=tuple(StageView(**stage) for stage in attrs.get("stages", ())),
            seconds=attrs.get("seconds", {}),
            ledger=attrs.get("ledger", {}).get("parts", {}),
            wall=attrs.get("ledger", {}).get("wall"),
            feasible=self._feasible(frozen),
            reason=attrs.get("reason"),
            number=frozen.number,
            started=attrs.get(BEGAN) or _stamp(frozen.datetime_start),
            ended=_stamp(frozen.datetime_complete),
        )

    def _feasible(self, frozen: FrozenTrial) -> bool | None:
        if frozen.state != TrialState.COMPLETE:
            return None
        return all(value <= 0 for value in frozen.constraints.values())


def _waits(frozen: FrozenTrial) -> bool:
    return frozen.state == TrialState.RUNNING and AHEAD in frozen.user_attrs and BEGAN not in frozen.user_attrs


def trial_name(number: int) -> str:
    return f"t{number:03d}"


def trial_number(name: str) -> int:
    """The number of a searched trial. Raises KeyError for a name that `trial_name` does not give."""
    if not name[1:].isdigit() or trial_name(int(name[1:])) != name:
        raise KeyError(name)
    return int(name[1:])


def read_trials(spec: StudySpec, study_dir: Path) -> list[Trial]:
    """All trials of a study, from the journal, by anyone who does not run it; none of one that has not begun.

    Nothing is written: a study that a reader had created would have begun with the reader's points.
    """
    if spec.search.storage is None and not (study_dir / JOURNAL_FILE).is_file():
        return []
    if spec.study not in optuna.get_all_study_names(open_storage(spec, study_dir)):
        return []
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
