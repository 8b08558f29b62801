"""The data of a study: its training sets from their train splits, its evaluation sets from one other split."""

from __future__ import annotations

from dataclasses import dataclass, fields

from dcr_ray.data.examples import Pair, Prompt, Split
from dcr_ray.data.load import load_pairs, load_prompts
from dcr_ray.data.overlap import find_overlaps
from dcr_ray.errors import InputError, Problem
from dcr_ray.study import DataSpec, SetChoice

TRAINED = ("seemingly_toxic", "toxic", "general", "safety")
EVALUATED = ("compliance", "defense", "capability")


@dataclass(frozen=True)
class StudyData:
    """What every stage of the study reads."""

    seemingly_toxic: tuple[Prompt, ...]
    toxic: tuple[Prompt, ...]
    general: tuple[Pair, ...]
    safety: tuple[Pair, ...]
    compliance: tuple[Prompt, ...]
    defense: tuple[Prompt, ...]
    capability: tuple[Pair, ...]


def load_study_data(spec: DataSpec, split: Split = "search") -> StudyData:
    """Load every set that the study names. Raises InputError with all problems, overlaps between what is trained on and
    what is evaluated on among them."""
    problems: list[Problem] = []
    loaded: dict[str, tuple] = {}

    def load(field: str, section: str, choices: tuple[SetChoice, ...], wanted: Split) -> None:
        read = load_pairs if field in ("general", "safety", "capability") else load_prompts
        rows: list = []
        for choice in choices:
            try:
                rows += read(
                    choice.set, split=wanted, root=spec.root, fold=spec.fold, folds=spec.folds, limit=choice.limit
                )
            except InputError as error:
                problems.extend(
                    Problem(f"data.{section}.{field} ({p.where})", p.found, p.allowed, p.fix) for p in error.problems
                )
        loaded[field] = tuple(rows)

    for field in TRAINED:
        load(field, "train", getattr(spec.train, field), "train")
    for field in EVALUATED:
        load(field, "evaluate", getattr(spec.evaluate, field), split)
    problems += _overlap_problems(loaded)
    if problems:
        raise InputError(problems)
    return StudyData(**{field.name: loaded[field.name] for field in fields(StudyData)})


def _overlap_problems(loaded: dict[str, tuple]) -> list[Problem]:
    problems = []
    for overlap in find_overlaps({name: list(rows) for name, rows in loaded.items() if rows}, near=False):
        names = {overlap.one, overlap.other}
        if overlap.exact and names & set(TRAINED) and names & set(EVALUATED):
            problems.append(
                Problem(
                    f"data: {overlap.one} and {overlap.other}",
                    f"{overlap.exact} prompts that are in both",
                    "no prompt both trained and evaluated on",
                    "Choose other sets, or other folds; `dcr-ray data check` lists the rows.",
                )
            )
    return problems
