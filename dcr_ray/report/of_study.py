"""The report of a study: what its journal and its spec say, handed to the report's writer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dcr_ray.budget import read_usage, used
from dcr_ray.confirm.selected import selected_trial
from dcr_ray.data.ledger import read_ledger
from dcr_ray.gathered import OUTCOMES_FILE
from dcr_ray.outcomes import Outcomes
from dcr_ray.preflight import study_folder
from dcr_ray.report.dynamics_chart import dynamics_section
from dcr_ray.report.judging import judges_section
from dcr_ray.report.ledger import ledger_markdown
from dcr_ray.report.markdown import write_report
from dcr_ray.report.selection import selection_section
from dcr_ray.study import Bound, StudySpec
from dcr_ray.trial import Trial


def write_study_report(spec: StudySpec, journal: Any, trials: list[Trial], folder: Path, stopped: str | None) -> Path:
    """Write the report of the trials so far into `folder`; returns the path of report.md."""
    from dcr_ray.search.journal import importances

    searched = f"{spec.search.trials} searched trials by {spec.search.sampler} and the STL baseline"
    known = used(spec.budget, read_usage(study_folder(spec)))
    limits = f"; {', '.join(known)} used" if known else ""
    return write_report(
        trials,
        spec.study,
        spec.objectives,
        spec.as_yaml(),
        folder,
        constraints=[constraint_sentence(name, bound) for name, bound in spec.constraints.items()],
        budget=searched + (f", halved on {spec.halving.metric}" if spec.halving else "") + limits,
        importances=importances(journal),
        notes=[f"The study has not ended: {stopped}."] if stopped else [],
        further=_further_sections(spec, trials, study_folder(spec), folder),
    )


def _further_sections(spec: StudySpec, trials: list[Trial], study_dir: Path, folder: Path) -> list[tuple[str, str]]:
    """What needs the outcomes, the ledger and the looks into training, where the study has left them."""
    sections = []
    chart = folder / "dynamics.png"
    chart.unlink(missing_ok=True)
    if spec.dynamics is not None:
        folder.mkdir(parents=True, exist_ok=True)
        if dynamics := dynamics_section(trials, chart):
            sections.append(("Learning dynamics", dynamics))
    file = study_dir / OUTCOMES_FILE
    outcomes = Outcomes.read(file) if file.is_file() else None
    if outcomes is not None and len(outcomes) and (found := selected_trial(spec, outcomes, trials)):
        sections.append(("The luck of being chosen", selection_section(found)))
    if outcomes is not None and len(outcomes) and (judges := judges_section(outcomes)):
        sections.append(("Judges", judges))
    if (ledger := read_ledger(study_dir)) is not None:
        sections.append(("What stands in two places", ledger_markdown(ledger)))
    return sections


def constraint_sentence(metric: str, bound: Bound) -> str:
    """'defense at least the baseline's - 0.05'."""
    parts = []
    if bound.at_least is not None:
        parts.append(f"at least {bound.at_least:g}")
    if bound.at_most is not None:
        parts.append(f"at most {bound.at_most:g}")
    if bound.at_least_baseline_plus is not None:
        parts.append(f"at least the baseline's {bound.at_least_baseline_plus:+g}")
    if bound.at_most_baseline_times is not None:
        parts.append(f"at most {bound.at_most_baseline_times:g} times the baseline's")
    return f"{metric} {' and '.join(parts)}"
