"""The Python API: a Study that is loaded, planned, run and asked for its results.

from dcr_ray import ScalingStudy, Study
study = Study.from_yaml("search_spaces/quickstart.yaml")
results = study.run()
results.to_frame(); results.pareto(); results.checkpoint(results.best())
ladder = ScalingStudy.from_yaml("search_spaces/ladder_local.yaml"); ladder.run(); ladder.fit(); ladder.report()
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dcr_ray.errors import DcrError, InputError, Problem
from dcr_ray.pareto import pareto_front
from dcr_ray.preflight import storage_root, study_folder
from dcr_ray.scaling.spec import ScalingSpec, load_scaling, parse_scaling
from dcr_ray.study import Direction, StudySpec, load_study, parse_study
from dcr_ray.trial import Trial

if TYPE_CHECKING:
    import pandas

    from dcr_ray.confirm.analysis import Confirmation
    from dcr_ray.ladder import Fitted
    from dcr_ray.ladder_search import Transfer
    from dcr_ray.outcomes import Outcomes
    from dcr_ray.planning.plan import StudyPlan
    from dcr_ray.scaling.backtest import Outcome
    from dcr_ray.scaling.cells import Cell
    from dcr_ray.scaling.design import Choice


@dataclass(frozen=True)
class Results:
    """The trials of a study, ended or not, and the ways to look at them."""

    trials: tuple[Trial, ...]
    objectives: dict[str, Direction]
    report: Path | None = None
    complete: bool = False
    stopped: str | None = None

    def to_frame(self) -> pandas.DataFrame:
        """One row a trial: name, role, state, feasible, reason, wall, unaccounted, then `params.*`, `metrics.*`,
        `seconds.*` (of each stage) and `ledger.*` (of each part of the wall clock).
        """
        import pandas

        rows = []
        for trial in self.trials:
            row: dict[str, Any] = {
                name: getattr(trial, name) for name in ("name", "role", "state", "feasible", "reason")
            }
            row |= {"wall": trial.wall, "unaccounted": trial.unaccounted}
            for group in ("params", "metrics", "seconds", "ledger"):
                row |= {f"{group}.{name}": value for name, value in getattr(trial, group).items()}
            rows.append(row | {"checkpoint": self.checkpoint(trial) if trial.stages else None})
        return pandas.DataFrame(rows)

    def baseline(self) -> Trial | None:
        return next((trial for trial in self.trials if trial.role == "baseline"), None)

    def pareto(self) -> list[Trial]:
        """Complete, feasible trials that no other beats on every objective."""
        return pareto_front(list(self.trials), self.objectives)

    def best(self) -> Trial | None:
        """The trial on the front that the report recommends, or None while the front is empty."""
        from dcr_ray.report.verdict import choose

        chosen = choose(list(self.trials), self.objectives)
        return chosen[0] if chosen else None

    def checkpoint(self, trial: Trial) -> str | None:
        """The trial's model as a Hugging Face folder, ready for `transformers` and `vllm`; None if it has none."""
        from dcr_ray.report.loading import checkpoint_folder

        return checkpoint_folder(trial)


class Study:
    """A study that is specified. Nothing runs before `run`."""

    def __init__(self, spec: StudySpec):
        self.spec = spec

    @classmethod
    def from_yaml(cls, path: str | Path, overrides: Sequence[str] = ()) -> Study:
        """Load a YAML file; `overrides` are `a.b=value` strings. Raises InputError with every problem."""
        return cls(load_study(path, list(overrides)))

    @classmethod
    def from_dict(cls, plain: dict[str, Any]) -> Study:
        """Build a study from plain values of the YAML's form. Raises InputError with every problem."""
        return cls(parse_study(plain))

    @classmethod
    def open(cls, name: str, storage: str | Path | None = None) -> Study:
        """A study that has been run, by its name. Raises InputError for a name that the storage does not have."""
        from dcr_ray.stored import open_spec

        return cls(open_spec(name, storage))

    def plan(self) -> StudyPlan:
        """What it will take. Takes nothing itself."""
        from dcr_ray.planning.plan import plan_study

        return plan_study(self.spec)

    def run(self, address: str | None = None) -> Results:
        """Run it, or go on with it: here, or on the Ray at `address` or $RAY_ADDRESS. Blocks until it ends.

        Raises InputError before anything is started.
        """
        from dcr_ray.sweep import sweep

        done = sweep(self.spec, address=address)
        return Results(done.trials, self.spec.objectives, done.report, done.complete, done.stopped)

    def confirm(self, top: int = 2, seeds: int = 3, *, force: bool = False, address: str | None = None) -> Confirmation:
        """Finalists and baseline trained anew with fresh seeds and compared on the test split, which this opens, once.

        The same call goes on, or reads its result again. Raises InputError before anything is started, DcrError where a
        training failed or was interrupted.
        """
        from dcr_ray.confirm.analysis import analyse
        from dcr_ray.confirm.run import confirm
        from dcr_ray.report.confirmation import write_confirmation

        done = confirm(self.spec, top=top, seeds=seeds, force=force, address=address)
        if not done.complete:
            failed = ", ".join(f"{trial.name}: {trial.reason}" for trial in done.trials if trial.state == "failed")
            raise DcrError(f"the confirmation is not complete; the same call goes on. {failed}".rstrip())
        found = analyse(self.spec, done)
        write_confirmation(found, done.report_dir)
        return found

    def outcomes(self) -> Outcomes:
        """Every verdict of the search so far: one row a trial, prompt and judge. `.frame` is a pandas frame."""
        from dcr_ray.gathered import evaluated, gather

        return gather(storage_root(self.spec) / "cache", evaluated(self.results().trials))

    def results(self) -> Results:
        """What there is by now, also while it runs elsewhere."""
        from dcr_ray.search.journal import read_trials

        folder = study_folder(self.spec)
        if not folder.is_dir():
            raise InputError(
                [Problem("study", f"no study '{self.spec.study}' in {folder.parent}", "a study that has begun")]
            )
        trials = tuple(read_trials(self.spec, folder))
        searched = [
            trial for trial in trials if trial.role == "search" and trial.state in ("complete", "pruned", "failed")
        ]
        return Results(trials, self.spec.objectives, complete=len(searched) >= self.spec.search.trials)


class ScalingStudy:
    """A ladder of models, data sizes, methods and seeds. Nothing runs before `run`."""

    def __init__(self, spec: ScalingSpec):
        self.spec = spec

    @classmethod
    def from_yaml(cls, path: str | Path, overrides: Sequence[str] = ()) -> ScalingStudy:
        """Load a YAML file; `overrides` are `a.b=value` strings. Raises InputError with every problem."""
        return cls(load_scaling(path, list(overrides)))

    @classmethod
    def from_dict(cls, plain: dict[str, Any]) -> ScalingStudy:
        """Build a ladder from plain values of the YAML's form. Raises InputError with every problem."""
        return cls(parse_scaling(plain))

    def plan(self, cluster: str | Path | None = None) -> list[dict[str, Any]]:
        """One row for each study of the ladder: what it takes, here or on the cluster that a file describes."""
        from dcr_ray.ladder_run import ladder_plan
        from dcr_ray.planning.cluster import load_cluster

        return ladder_plan(self.spec, load_cluster(cluster) if cluster else None)

    def run(self, address: str | None = None) -> bool:
        """Run all studies of the ladder, or go on with them, the smallest model first. Whether all came to their end.

        Raises InputError before anything is started.
        """
        from dcr_ray.ladder_run import run_ladder

        return run_ladder(self.spec, address, lambda _: None)

    def cells(self) -> list[Cell]:
        """The rates that there are by now, also while it runs elsewhere."""
        from dcr_ray.ladder import ladder_cells

        return ladder_cells(self.spec)[0]

    def fit(self) -> list[Fitted]:
        """Law, predictions and back-test of every metric and arm."""
        from dcr_ray.ladder import fit_ladder

        return fit_ladder(self.spec, self.cells())

    def forecast(self) -> list[Path]:
        """Write forecasts of the targets, once. Raises InputError for one that is there, or whose target was run."""
        from dcr_ray.ladder import forecast_ladder

        return forecast_ladder(self.spec, self.cells())

    def outcomes(self) -> list[Outcome]:
        """What became of forecasts whose targets have been run since."""
        from dcr_ray.ladder import outcomes

        return outcomes(self.spec, self.cells())

    def report(self, folder: str | Path | None = None) -> Path:
        """Write the report and return its page."""
        from dcr_ray.report.scaling import report_ladder

        return report_ladder(self.spec, Path(folder) if folder else None)

    def transfer(self) -> Transfer | None:
        """Whether searched settings carry over between sizes; None where the ladder has no search."""
        from dcr_ray.ladder_search import transfer_of

        return transfer_of(self.spec)

    def next(
        self, cluster: str | Path, *, target: str | None = None, metric: str | None = None, arm: str | None = None,
        budget: float | None = None,
    ) -> list[Choice]:  # fmt: skip
        """Which model and data size to run next for its price on a described cluster, the best first.

        The first target, metric and arm unless they are named. Raises InputError where no law can be fitted.
        """
        from dcr_ray.ladder import choices, target_of
        from dcr_ray.planning.cluster import load_cluster

        found, metric, arm = target_of(self.spec, target, metric, arm)
        return choices(self.spec, self.cells(), found, metric, arm, load_cluster(cluster), budget)
