"""The data of a study: its training sets from their train splits, its evaluation sets from one other split, and no leak
between them.

A set that the study also trains on is split into folds; one that it only evaluates on gives all its prompts to search
and test. What would stand on both sides is dropped from the side that matters less: from training before evaluation,
from search before test. Every drop is in the ledger.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import NamedTuple

from dcr_ray.data.attacks import attack_problems, templates_of, wrapped
from dcr_ray.data.dataset import DataSet
from dcr_ray.data.examples import Pair, Prompt, Split
from dcr_ray.data.leaks import Dropped, Items, Pool, without_leaks
from dcr_ray.data.load import load_pairs, load_prompts
from dcr_ray.data.own_sets import set_of
from dcr_ray.data.splits import Part, in_part
from dcr_ray.errors import InputError, Problem
from dcr_ray.study import DataSpec, SetChoice, attack_name

TRAINED = ("seemingly_toxic", "toxic", "general", "safety", "augment")
EVALUATED = ("compliance", "defense", "capability")
_PAIRS = ("general", "safety", "augment", "capability")
_REFUSED = ("toxic", "safety", "defense")
_GOOD_MODEL = {"should_comply": "answers", "should_refuse": "refuses"}


@dataclasses.dataclass(frozen=True)
class StudyData:
    """What every stage of the study reads. `compliance`, `defense` and `capability` are of the split asked for; the
    held-out prompts of the DCR stage are always the search split's, so that training never looks at a test split, and
    plain: a study that adds wrapped sets shares its DCR stages with one that does not."""

    seemingly_toxic: tuple[Prompt, ...]
    toxic: tuple[Prompt, ...]
    general: tuple[Pair, ...]
    safety: tuple[Pair, ...]
    compliance: tuple[Prompt, ...]
    defense: tuple[Prompt, ...]
    capability: tuple[Pair, ...]
    split: Split = "search"
    held_out_seemingly_toxic: tuple[Prompt, ...] = ()
    held_out_toxic: tuple[Prompt, ...] = ()
    augment: tuple[Pair, ...] = ()
    in_distribution: frozenset[str] = frozenset()
    """Names of the evaluated sets whose file the study also trains on."""
    dropped: tuple[Dropped, ...] = ()
    source_of: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """For each set, the name of the first set of the study from the same file: where its prompts come from."""


class Chosen(NamedTuple):
    """A set that a field of the study names, and how much of it is wanted."""

    data_set: DataSet
    choice: SetChoice


def load_study_data(spec: DataSpec, split: Split = "search") -> StudyData:
    """Load every set that the study names. Raises InputError with all problems, among them a field of which nothing is
    left once its leaks are dropped."""
    kept, dropped = load_pools(spec)
    chosen = chosen_sets(spec, [])
    attacked = {name: (one.attack, templates_of(one.attack, spec.root)) for name, one in _attacked(chosen).items()}

    def in_templates(rows: Items) -> Items:
        return tuple(wrapped(row, *attacked[row.source]) if row.source in attacked else row for row in rows)

    trained_on = _trained_files(chosen)
    return StudyData(
        **{field: kept["train", field] for field in TRAINED},
        **{field: in_templates(_half(kept[split, field], field, spec, split)) for field in EVALUATED},
        split=split,
        held_out_seemingly_toxic=_plain(kept["search", "compliance"], chosen),
        held_out_toxic=_plain(kept["search", "defense"], chosen),
        in_distribution=frozenset(
            data_set.name for field in EVALUATED for data_set, _ in chosen[field] if data_set.file in trained_on
        ),
        dropped=tuple(dropped),
        source_of=_source_of(chosen),
    )


def _half(rows: Items, field: str, spec: DataSpec, split: Split) -> Items:
    """The rows of the half that is scored; groups stay whole, and a test split is never halved."""
    if split != "search" or field == "capability" or spec.search_half == "both":
        return rows
    part = Part(0, 1, 2) if spec.search_half == "first" else Part(1, 2, 2)
    return tuple(row for row in rows if in_part(row.group, part))


def load_pools(spec: DataSpec) -> tuple[dict[Pool, Items], list[Dropped]]:
    """The rows of every (split, field) of the study without their leaks, and what was dropped. Those of wrapped sets
    are not wrapped yet: leaks and the ledger speak of plain prompts. Raises InputError as `load_study_data` does."""
    problems: list[Problem] = []
    chosen = chosen_sets(spec, problems)
    # The order says who keeps a shared prompt.
    order: list[Pool] = [(part, field) for part in ("test", "search") for field in EVALUATED]
    order += [("train", field) for field in TRAINED]
    pools = {(part, field): _load(spec, part, field, chosen, problems) for part, field in order}
    if problems:
        raise InputError(problems)
    kept, dropped = without_leaks(pools, {name: one.attack for name, one in _attacked(chosen).items()})
    fix = "Choose other sets; `dcr-ray data ledger` lists what they share."
    problems = [
        Problem(
            _path(field),
            f"{len(rows)} prompts in the {part} split, each of which also stands elsewhere in the study",
            "prompts of its own",
            fix,
        )
        for (part, field), rows in pools.items()
        if rows and not kept[part, field]
    ]
    if problems:
        raise InputError(problems)
    return kept, dropped


def chosen_sets(spec: DataSpec, problems: list[Problem]) -> dict[str, list[Chosen]]:
    """The sets of every field. What is wrong with the choice goes to `problems`: a set that is not known, or of the
    other polarity, or twice in a field, and two files that would share a name."""
    chosen: dict[str, list[Chosen]] = {}
    files: dict[str, str] = {}
    for field in (*TRAINED, *EVALUATED):
        chosen[field] = []
        wanted = "should_refuse" if field in _REFUSED else "should_comply"
        for choice in getattr(spec.train if field in TRAINED else spec.evaluate, field):
            try:
                data_set = set_of(choice)
            except InputError as error:
                problems += _placed(field, error)
                continue
            if choice.attack is not None:
                problems += _attack_problems(field, data_set.name, choice.attack, spec.root)
                data_set = dataclasses.replace(data_set, name=f"{data_set.name}-{attack_name(choice.attack)}")
            name = data_set.name
            if data_set.polarity not in (None, wanted):
                found = f"'{name}', whose prompts a good model {_GOOD_MODEL[data_set.polarity]}"
                problems.append(Problem(_path(field), found, f"prompts that a good model {_GOOD_MODEL[wanted]}"))
            if any(name == other.name for other, _ in chosen[field]):
                problems.append(Problem(_path(field), f"'{name}' twice", "every set once"))
            if files.setdefault(name, data_set.file) != data_set.file:
                found = f"'{data_set.file}' and '{files[name]}', both called '{name}'"
                problems.append(Problem(_path(field), found, "files of different names"))
            chosen[field].append(Chosen(data_set, choice))
    return chosen


def _load(spec: DataSpec, split: Split, field: str, chosen: dict[str, list[Chosen]], problems: list[Problem]) -> Items:
    read = load_pairs if field in _PAIRS else load_prompts
    trained_on = _trained_files(chosen)
    rows: list = []
    for data_set, choice in chosen[field]:
        try:
            # What is wrong with a file is said under the name by which the file can be fetched.
            own = read(
                set_of(choice),
                split=split,
                root=spec.root,
                fold=spec.fold,
                folds=spec.folds,
                halves=data_set.file not in trained_on,
                limit=choice.test_limit if split == "test" else choice.limit,
            )
            rows += [row._replace(source=data_set.name) for row in own]
        except InputError as error:
            # What is wrong with a set as a whole is said once, not once a split.
            problems += [each for each in _placed(field, error) if each not in problems]
    return tuple(rows)


def _trained_files(chosen: dict[str, list[Chosen]]) -> set[str]:
    """The files that the study trains on. A set that it evaluates on is in distribution where its file is one of them:
    XSTest's safe prompts share their families with its unsafe ones."""
    return {data_set.file for field in TRAINED for data_set, _ in chosen[field]}


def _source_of(chosen: dict[str, list[Chosen]]) -> dict[str, str]:
    files = sorted({(data_set.name, data_set.file) for of_field in chosen.values() for data_set, _ in of_field})
    first: dict[str, str] = {}
    return {name: first.setdefault(file, name) for name, file in files}


class _Attacked(NamedTuple):
    """A wrapped set: the set that it wraps, and by what."""

    data_set: DataSet
    attack: str


def _attacked(chosen: dict[str, list[Chosen]]) -> dict[str, _Attacked]:
    """The wrapped sets by their names."""
    return {
        data_set.name: _Attacked(set_of(choice), choice.attack)
        for of_field in chosen.values()
        for data_set, choice in of_field
        if choice.attack is not None
    }


def _plain(rows: Items, chosen: dict[str, list[Chosen]]) -> Items:
    """The rows of sets that are not wrapped; of a field whose sets all are, their prompts, each once."""
    wraps = {name: one.data_set.name for name, one in _attacked(chosen).items()}
    once = {(wraps.get(row.source), row.id): row._replace(source=wraps.get(row.source, row.source)) for row in rows}
    return tuple(row for row in rows if row.source not in wraps) or tuple(once.values())


def _attack_problems(field: str, name: str, attack: str, root: str | None) -> list[Problem]:
    if field not in ("compliance", "defense"):
        found = f"'{attack}' on {name}"
        fix = "Attacks are for what a model is asked, under data.evaluate.compliance and defense."
        return [Problem(f"{_path(field)} (attack)", found, "no attack here", fix)]
    return [
        Problem(f"{_path(field)} ({problem.where})", problem.found, problem.allowed, problem.fix)
        for problem in attack_problems(attack, root)
    ]


def _path(field: str) -> str:
    return f"data.{'train' if field in TRAINED else 'evaluate'}.{field}"


def _placed(field: str, error: InputError) -> list[Problem]:
    return [Problem(f"{_path(field)} ({p.where})", p.found, p.allowed, p.fix) for p in error.problems]
