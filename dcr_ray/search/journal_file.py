"""Optuna's journal file, for a study of thousands of trials: fewer writes for a trial, and no search through all.

Optuna locks, writes and syncs the file once for every parameter and attribute, and looks through all trials for the few
that have not ended. Here what belongs together is written together, and the unfinished trials are known. The lines of
the file are Optuna's own; either storage reads what the other wrote.
"""

from __future__ import annotations

import threading
from collections.abc import Container, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from optuna.storages import BaseStorage, JournalStorage
from optuna.storages.journal import JournalFileBackend

# Only these two of Optuna's own modules know how a journal becomes trials; the version is pinned.
from optuna.storages.journal._storage import JournalStorageReplayResult
from optuna.trial import FrozenTrial, TrialState

JOURNAL_FILE = "optuna-journal.log"
_UNFINISHED = frozenset({TrialState.RUNNING, TrialState.WAITING})


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


def journal_storage(file: Path) -> BaseStorage:
    """The storage in this file, which is made where it is not there."""
    return _Storage(_File(str(file)))


@contextmanager
def together(storage: BaseStorage) -> Iterator[None]:
    """Write what this thread tells the storage in the block at once, at its end; nothing of it where the block raises.

    What is told in the block cannot be read in it. A crash leaves a beginning of the lines, as it does without. Any
    other storage than the journal file writes as it always does.
    """
    if not isinstance(storage, _Storage):
        yield
        return
    file = storage.file
    if file.held.lines is not None:
        raise RuntimeError("a block within a block")
    file.held.lines = []
    try:
        yield
        lines = file.held.lines
    finally:
        file.held.lines = None
    if lines:
        file.append_logs(lines)


class _Held(threading.local):
    lines: list[dict[str, Any]] | None = None


class _File(JournalFileBackend):
    """`held` has the lines that this thread has not written yet, or None where it writes at once."""

    def __init__(self, path: str):
        super().__init__(path)
        self.held = _Held()

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        if self.held.lines is None:
            super().append_logs(logs)
        else:
            self.held.lines += logs


class _Storage(JournalStorage):
    """Optuna's storage on what `_Replayed` knows."""

    def __init__(self, file: _File):
        super().__init__(file)
        self.file = file
        self._replay_result = _Replayed(self._replay_result)


class _Replayed(JournalStorageReplayResult):
    """Optuna's replay of a journal, with the numbers of the unfinished trials of each study beside it."""

    def __init__(self, replayed: JournalStorageReplayResult):
        vars(self).update(vars(replayed))
        self._unfinished: dict[int, dict[int, None]] = {study: {} for study in self._studies}
        for study, trials in self._study_id_to_trial_ids.items():
            self._unfinished[study] = {trial: None for trial in trials if self._trials[trial].state in _UNFINISHED}

    def get_all_trials(self, study_id: int, states: Container[TrialState] | None) -> list[FrozenTrial]:
        if states is None or not _UNFINISHED.issuperset(states) or study_id not in self._unfinished:
            return super().get_all_trials(study_id, states)
        trials = [self._trials[trial] for trial in self._unfinished[study_id]]
        return [trial for trial in trials if trial.state in states]

    def _apply_create_trial(self, log: dict[str, Any]) -> None:
        count = len(self._trials)
        super()._apply_create_trial(log)
        if len(self._trials) > count and self._trials[count].state in _UNFINISHED:
            self._unfinished.setdefault(log["study_id"], {})[count] = None

    def _apply_set_trial_state_values(self, log: dict[str, Any]) -> None:
        super()._apply_set_trial_state_values(log)
        trial = log["trial_id"]
        if trial in self._trials and self._trials[trial].state.is_finished():
            self._unfinished[self._trial_id_to_study_id[trial]].pop(trial, None)
