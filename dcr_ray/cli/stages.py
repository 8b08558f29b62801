"""Commands that run stages by hand, in this process and without Ray: train and eval."""

from __future__ import annotations

import shutil
import sys
from argparse import Namespace
from dataclasses import replace
from pathlib import Path
from typing import Any

from dcr_ray.cli.show import print_json, print_table
from dcr_ray.errors import InputError, Problem, nearest_name
from dcr_ray.study import StudySpec, load_study


def train(options: Namespace) -> int:
    """The dcr and sft stages of one recipe. Finished stages are taken from the cache, as in a sweep."""
    from dcr_ray.planning.machine import this_machine
    from dcr_ray.preflight import preflight
    from dcr_ray.runtime import use_caches
    from dcr_ray.train.run import run_training_stage

    spec = load_study(options.spec, options.overrides)
    if spec.shape.ranks != 1:
        fix = "Use --set shape.ranks=1, or a sweep, whose worker groups have ranks."
        raise InputError([Problem("shape.ranks", str(spec.shape.ranks), "1 for training by hand", fix)])
    if options.out and Path(options.out).exists() and any(Path(options.out).iterdir()):
        raise InputError([Problem("--out", f"{options.out}, which is not empty", "a new or empty folder")])
    recipe = _recipe(spec, options)
    machine = this_machine()
    ready = preflight(spec, machine=machine, progress=_say)
    use_caches(ready.cache_dir)
    inputs = replace(ready.inputs, shape=spec.shape.settled(on_gpu=machine.gpus > 0))
    rows = []
    for task in inputs.tasks(recipe, "by-hand"):
        if task.place != "train":
            continue
        record = task.record()
        cached = record is not None
        if record is None:
            task.begin()
            record = task.commit(run_training_stage(task.job, _progress(task.stage)), {"worker": "by hand"})
        rows.append(
            {
                "stage": task.stage,
                "seconds": record.seconds,
                "cached": cached,
                **_scalars(record.results),
                "path": record.path,
            }
        )
    if options.out and recipe.scans is not None:
        # The model is that of the sft stage; what the edit stage left says how it is steered.
        shutil.copytree(rows[-2]["path"], options.out, dirs_exist_ok=True)
        shutil.copytree(rows[-1]["path"], Path(options.out, "scans"))
    elif options.out:
        shutil.copytree(rows[-1]["path"], options.out, dirs_exist_ok=True)
    _print(rows, options.json)
    return 0


def evaluate(options: Namespace) -> int:
    """The generate and judge stages for one model. Nothing is kept in the cache."""
    import tempfile

    from dcr_ray.evaluate.jobs import GenerateJob, JudgeJob
    from dcr_ray.evaluate.run import open_engine, run_generate
    from dcr_ray.judges.run import ANSWERS_FILE, run_judge
    from dcr_ray.preflight import preflight
    from dcr_ray.runtime import use_caches

    spec = load_study(options.spec, options.overrides)
    ready = preflight(spec, split=options.split, progress=_say)
    use_caches(ready.cache_dir)
    data, inputs = ready.inputs.data, ready.inputs
    prompts = {"compliance": data.compliance, "defense": data.defense}
    resources = spec.resources
    model = str(options.model or inputs.model_dir)
    if options.split == "test":
        _open_test_split(ready, model, options.force)
    engine = open_engine(
        spec.evaluation,
        model,
        threads=resources.threads_per_engine or _cores(),
        kv_cache_bytes=resources.kv_cache_mib * 2**20,
    )
    with tempfile.TemporaryDirectory() as folder:
        generate_dir, judge_dir = Path(folder, "generate"), Path(folder, "judge")
        generate_dir.mkdir()
        judge_dir.mkdir()
        job = GenerateJob(
            model,
            prompts,
            data.capability,
            spec.base_recipe().system_prompt,
            spec.evaluation.max_tokens,
            spec.evaluation.max_model_tokens,
            str(generate_dir),
            spec.evaluation.refusal_probability,
            stop_when_decided=spec.evaluation.stop_when_decided,
        )
        generated = run_generate(job, engine, _progress("generate"))
        judged = run_judge(
            JudgeJob(
                str(generate_dir),
                prompts,
                data.split,
                data.in_distribution,
                spec.judges,
                spec.judges[0].name,
                str(Path(inputs.cache_root) / ANSWERS_FILE),
                str(judge_dir),
            )
        )
    engine.close()
    metrics = generated["metrics"] | judged["metrics"]
    if options.json:
        print_json({"model": model, "split": options.split, "metrics": metrics, "seconds": generated["seconds"]})
    else:
        print_table([{"metric": name, "value": value} for name, value in metrics.items()], ("metric", "value"), model)
    return 0


def _open_test_split(ready: Any, model: str, force: bool) -> None:
    from dcr_ray.confirm.openings import finish_opening, open_test_split
    from dcr_ray.data.examples import dataset_fingerprint

    data = ready.inputs.data
    fields = ("compliance", "defense", "capability")
    purpose = {
        "what": "eval",
        "model": model,
        "test": {field: dataset_fingerprint(getattr(data, field)) for field in fields},
    }
    finish_opening(ready.study_dir, open_test_split(ready.study_dir, purpose, force=force))


def _recipe(spec: StudySpec, options: Namespace) -> Any:
    if options.trial:
        from dcr_ray.api import Study

        trials = {trial.name: trial for trial in Study(spec).results().trials}
        if options.trial not in trials:
            known = ", ".join(trials)
            raise InputError([Problem("--trial", f"'{options.trial}'", known, nearest_name(options.trial, trials))])
        return trials[options.trial].recipe
    return spec.baseline_recipe() if options.stl else spec.base_recipe()


def _cores() -> int:
    from dcr_ray.planning.machine import this_machine

    return this_machine().cores


def _scalars(results: dict[str, Any]) -> dict[str, Any]:
    losses = results.get("losses") or [None]
    return {
        "steps": results.get("steps"),
        "first_loss": losses[0],
        "last_loss": losses[-1],
        **results.get("metrics", {}),
    }


def _print(rows: list[dict[str, Any]], as_json: bool) -> None:
    if as_json:
        print_json(rows)
        return
    for row in rows:
        print_table([{"figure": name, "value": value} for name, value in row.items()], ("figure", "value"))


def _progress(stage: str) -> Any:
    def report(values: dict[str, Any]) -> None:
        loss = f" loss {values['loss']:.4g}" if values.get("loss") is not None else ""
        print(f"\r{stage} {values.get('step')}/{values.get('steps')}{loss}   ", end="", file=sys.stderr, flush=True)

    return report


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
