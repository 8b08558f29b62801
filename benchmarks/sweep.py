"""dcr_ray against the script that a capable engineer writes (`peer_sweep.py`): the same recipes, data and evaluation.

    python benchmarks/sweep.py --storage FOLDER                                       # 12 trials and the STL baseline
    python benchmarks/sweep.py --storage FOLDER --spec benchmarks/sweep_grid.yaml     # 4 DCR x 3 SFT settings
    python benchmarks/sweep.py --storage FOLDER --peer-trials 3                       # a quick look, scaled up

Both sides are processes of their own, timed from start to end, one after the other, with every file they read in the
page cache. The peer runs the recipes that the search of ours asked for, and unless --own-order is given the same
batches in the same order, so that the two compute the same numbers up to rounding: greedy answers may then part where
two tokens are nearly equal, which moves a rate by a prompt or two and not in one direction. The last line is one JSON
object.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import defaultdict
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psutil

from dcr_ray import Study
from dcr_ray.api import Results
from dcr_ray.data.of_study import StudyData, load_study_data
from dcr_ray.judges.exchange import Exchange
from dcr_ray.judges.string import judge_response
from dcr_ray.models import ModelCard
from dcr_ray.recipe import Recipe
from dcr_ray.space import sample
from dcr_ray.study import StudySpec
from dcr_ray.trial import Trial
from dcr_ray.verdict import HITS, Verdict
from dcr_ray.weights.resolve import default_cache_dir, resolve

HERE = Path(__file__).parent
LIBRARIES = "torch, transformers, peft, accelerate, pytorch_metric_learning, optuna, vllm, ray, deepspeed, mlflow"


class Memory(threading.Thread):
    """Some processes with all their descendants, looked at every few seconds.

    Their proportional set size is what they hold together, pages that several share counted once; their CPU seconds are
    hardly touched by other programs.
    """

    def __init__(self, roots: list[int], every: float):
        super().__init__(daemon=True)
        self.roots = [psutil.Process(root) for root in roots]
        self.every, self.over = every, threading.Event()
        self.peak, self.peak_of_role = 0, defaultdict(int)
        self.cpu: dict[psutil.Process, float] = {}

    def run(self) -> None:
        known: set[psutil.Process] = set()
        while not self.over.wait(self.every):
            below: set[psutil.Process] = set()
            # A process whose parent has ended is no longer a descendant, but it was seen as one before.
            for process in [*self.roots, *known]:
                if process not in below and process.is_running():
                    try:
                        below |= {process, *process.children(recursive=True)}
                    except psutil.NoSuchProcess:
                        continue
            known = below
            held: dict[str, int] = defaultdict(int)
            for process in known:
                try:
                    text = Path(f"/proc/{process.pid}/smaps_rollup").read_text()
                    role = _role(process.cmdline())
                    self.cpu[process] = sum(process.cpu_times()[:2])
                except (psutil.Error, OSError):
                    continue
                found = re.search(r"^Pss:\s+(\d+) kB", text, re.MULTILINE)
                held[role] += int(found.group(1)) * 1024 if found else 0
            self.peak = max(self.peak, sum(held.values()))
            for role, size in held.items():
                self.peak_of_role[role] = max(self.peak_of_role[role], size)

    def figures(self) -> dict[str, Any]:
        self.over.set()
        self.join()
        largest = sorted(self.peak_of_role.items(), key=lambda item: -item[1])
        cpu = round(sum(self.cpu.values()), 1)
        return {
            "cpu_seconds": cpu,
            "peak_gib": _gib(self.peak),
            "by_role_gib": {role: _gib(size) for role, size in largest[:8]},
        }


def _role(command: list[str]) -> str:
    first = command[0] if command else "?"
    if first.startswith("ray::"):
        # Ray appends the method that is running.
        return re.split(r"[(. ]", first)[0]
    names = [Path(part).name for part in command[:4] if not part.startswith("-")]
    script = next((name for name in names[1:] if re.fullmatch(r"[\w.]+", name)), "")
    return f"{Path(first.split(' ')[0]).name} {script}".strip()


def _gib(size: int) -> float:
    return round(size / 2**30, 2)


def timed(commands: list[list[str]], logs: list[Path], every: float) -> tuple[float, dict[str, Any]]:
    """Wall-clock seconds from the start of the commands, all at once, to the end of the last, and their memory.

    Raises SystemExit where one fails.
    """
    with ExitStack() as stack:
        files = []
        for command, log in zip(commands, logs, strict=True):
            log.parent.mkdir(parents=True, exist_ok=True)
            print(f"running {' '.join(command)} > {log}", flush=True)
            files.append(stack.enter_context(open(log, "w")))
        start = time.perf_counter()
        processes = [
            subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT)
            for command, file in zip(commands, files, strict=True)
        ]
        memory = Memory([process.pid for process in processes], every)
        memory.start()
        try:
            codes = [process.wait() for process in processes]
        finally:
            # Whoever stops the comparison stops the side that runs: a study ends in an orderly way.
            for process in processes:
                if process.poll() is None:
                    process.terminate()
        seconds = time.perf_counter() - start
    figures = memory.figures()
    for command, log, code in zip(commands, logs, codes, strict=True):
        if code:
            sys.exit(f"{command} ended with {code}:\n{log.read_text()[-3000:]}")
    return seconds, figures


def run_ours(spec: StudySpec, folder: Path, every: float) -> tuple[float, dict[str, Any], Results]:
    """A sweep by the command that a user types, in a storage folder without a cache."""
    spec = spec.model_copy(update={"storage": str(folder / "runs"), "reports": str(folder / "reports")})
    if (folder / "runs").exists():
        sys.exit(f"{folder / 'runs'} is there already; a sweep is only timed in a fresh storage folder")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "study.yaml").write_text(spec.as_yaml())
    command = [sys.executable, "-m", "dcr_ray.cli.main", "sweep", str(folder / "study.yaml")]
    seconds, memory = timed([command], [folder / "log.txt"], every)
    return seconds, memory, Study(spec).results()


def recipes_without_ours(spec: StudySpec) -> list[tuple[str, dict[str, Any], Recipe]]:
    """Recipes that a random search asks for, baseline first, where ours has not been run."""
    import optuna

    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=spec.search.seed))
    found = [("stl", {}, spec.baseline_recipe())]
    for number in range(spec.search.trials):
        params = sample(spec.dimensions, study.ask())
        found.append((f"t{number:03d}", params, spec.searched_recipe(params)))
    return found


def write_work(
    spec: StudySpec,
    data: StudyData,
    trials: list[tuple[str, dict[str, Any], Recipe]],
    folder: Path,
    with_order: bool,
) -> tuple[Path, dict[str, tuple[int, int]]]:
    """The peer's JSON files. Returns the work file and for every trial its steps of the DCR and of the SFT stage."""
    model = resolve(spec.model, cache_dir=default_cache_dir())
    folder.mkdir(parents=True, exist_ok=True)
    files = {}
    for field in ("seemingly_toxic", "toxic", "compliance", "defense", "general", "safety", "capability"):
        files[field] = str(folder / f"{field}.jsonl")
        rows = [
            {"prompt": item.prompt, "response": item.response} if hasattr(item, "response") else {"prompt": item.text}
            for item in getattr(data, field)
        ]
        Path(files[field]).write_text("".join(json.dumps(row) + "\n" for row in rows))
    orders = {name: _order(recipe, data, str(model)) for name, _, recipe in trials}
    work = {
        "model": str(model),
        "data": files,
        "base_recipe": spec.base_recipe().model_dump(mode="json"),
        "space": {path: dimension.model_dump(mode="json") for path, dimension in spec.dimensions.items()},
        "evaluation": spec.evaluation.model_dump(mode="json"),
        "trials": [
            {
                "name": name,
                "params": params,
                "recipe": recipe.model_dump(mode="json"),
                "order": orders[name] if with_order else {},
            }
            for name, params, recipe in trials
        ],
    }
    (folder / "work.json").write_text(json.dumps(work))
    steps = {name: (len(order.get("dcr", [])), len(order["sft"])) for name, order in orders.items()}
    return folder / "work.json", steps


def _order(recipe: Recipe, data: StudyData, model: str) -> dict[str, list[list[int]]]:
    """The batches of both training stages as our stages draw them, by numbers that count the second class last."""
    from dcr_ray.train.jobs import SftJob
    from dcr_ray.train.sampler import BalancedSampler
    from dcr_ray.train.sequences import batch_plan, job_sequences

    order = {}
    if recipe.dcr:
        first = len(data.seemingly_toxic)
        sampler = BalancedSampler(first, len(data.toxic), recipe.dcr, recipe.seed)
        batches = [sampler.batch(step) for step in range(sampler.steps)]
        order["dcr"] = [[*low, *(first + i for i in high)] for low, high in batches]
    pairs = [tuple((pair.prompt, pair.response) for pair in getattr(data, field)) for field in ("general", "safety")]
    job = SftJob(model, None, *pairs, recipe.sft, recipe.system_prompt, recipe.seed, "")
    general, safety, _ = job_sequences(job)
    lengths = [len(sequence.ids) for sequence in (*general, *safety)]
    sft = recipe.sft
    order["sft"] = batch_plan(lengths, len(general), sft.safety_share, sft.epochs, sft.batch_size, recipe.seed)
    return order


def scaled_up(rows: list[dict[str, Any]], whole: float, steps: dict[str, tuple[int, int]]) -> float:
    """The peer's seconds for all trials from some: DCR and SFT by the steps of every trial, all else by the trial."""
    done = [steps[row["name"]] for row in rows]
    per_step = []
    for place, part in enumerate(("dcr", "sft")):
        count = sum(each[place] for each in done)
        per_step.append(sum(row["seconds"].get(part, 0.0) for row in rows) / count if count else 0.0)
    rest = [
        row["seconds"]["total"] - row["seconds"].get("dcr", 0.0) - row["seconds"]["sft"] - row["seconds"]["vllm_import"]
        for row in rows
    ]
    once = whole - sum(row["seconds"]["total"] for row in rows) + sum(row["seconds"]["vllm_import"] for row in rows)
    trained = sum(d * per_step[0] + s * per_step[1] for d, s in steps.values())
    return once + trained + len(steps) * sum(rest) / len(rest)


def judged(answers: Path, data: StudyData) -> dict[str, float]:
    """Rates of the peer's answers by our string judge, so that only models are compared and not judges."""
    rates = {}
    rows = [json.loads(line) for line in answers.read_text().splitlines()]
    for field in ("compliance", "defense"):
        prompts = [prompt.text for prompt in getattr(data, field)]
        found = [row for row in rows if row["set"] == field]
        verdicts = [
            judge_response(Exchange(prompt, row["text"], row["finish_reason"]))
            for prompt, row in zip(prompts, found, strict=True)
        ]
        scored = [verdict for verdict in verdicts if verdict is not Verdict.UNSCORED]
        rates[field] = sum(verdict in HITS[field] for verdict in scored) / len(scored)
    return rates


def our_answers(trial: Trial) -> list[str]:
    generate = next(stage for stage in trial.stages if stage.name == "generate")
    lines = (Path(generate.path) / "generations.jsonl").read_text().splitlines()
    return [json.loads(line)["text"] for line in lines]


def losses_of(trial: Trial, stage: str) -> list[float]:
    path = next((Path(view.path) for view in trial.stages if view.name == stage), None)
    return json.loads((path / "record.json").read_text())["results"]["losses"] if path else []


def compare(ours: dict[str, Trial], peer: list[dict[str, Any]], data: StudyData, folder: Path) -> dict[str, float]:
    """Both sides' figures trial by trial, and their largest differences."""
    print(f"\n{'quality':14} compliance          defense           perplexity           losses: largest difference")
    print(
        "trial        ours  peer  diff   ours  peer  diff    ours    peer  ratio    dcr (rel.)  sft mean  same answers"
    )
    worst = defaultdict(float)
    for row in peer:
        trial = ours.get(row["name"])
        if trial is None or trial.state != "complete":
            continue
        rates = judged(folder / "answers" / f"{row['name']}.jsonl", data)
        cells = [trial.name.ljust(11)]
        for field in ("compliance", "defense"):
            difference = rates[field] - trial.metrics[field]
            worst[field] = max(worst[field], abs(difference))
            worst[f"mean_{field}_difference"] += difference / len(peer)
            cells.append(f"{trial.metrics[field]:5.3f} {rates[field]:5.3f} {difference:+5.3f}")
        ratio = row["metrics"]["perplexity"] / trial.metrics["perplexity"]
        worst["perplexity_ratio_less_1"] = max(worst["perplexity_ratio_less_1"], abs(ratio - 1))
        cells.append(f"{trial.metrics['perplexity']:7.3f} {row['metrics']['perplexity']:7.3f} {ratio:6.4f}")
        dcr = [abs(a - b) / abs(b) for a, b in zip(row["dcr_losses"], losses_of(trial, "dcr"))]
        sft = losses_of(trial, "sft")
        difference = abs(row["sft_loss"] - sum(sft) / len(sft))
        worst["dcr_loss"] = max([worst["dcr_loss"], *dcr])
        worst["sft_mean_loss"] = max(worst["sft_mean_loss"], difference)
        lines = (folder / "answers" / f"{row['name']}.jsonl").read_text().splitlines()
        pairs = list(zip(our_answers(trial), [json.loads(line)["text"] for line in lines], strict=True))
        same = sum(a == b for a, b in pairs) / len(pairs)
        worst["fewest_same_answers"] = min(worst.get("fewest_same_answers", 1.0), same)
        cells.append(f"{max(dcr, default=0.0):9.1e}  {difference:8.1e}  {same:6.1%}")
        print("  ".join(cells))
    return {name: float(f"{value:.3g}") for name, value in worst.items()}


def table(ours: dict[str, Any] | None, peer: dict[str, Any] | None) -> None:
    for name, side in (("ours", ours), ("peer", peer)):
        if side:
            print(f"\n{name}: {side['seconds']:.1f} s{side['note']}, {side['seconds'] / side['trials']:.1f} s a trial")
            print("  mean seconds a trial (stages overlap in ours; the four after `engine` are parts of it): ", end="")
            print(", ".join(f"{part} {seconds:.1f}" for part, seconds in side["parts"].items()))
            print(f"  CPU seconds of all its processes, to one look: {side['memory']['cpu_seconds']:.0f}")
            print(f"  memory: {side['memory']['peak_gib']} GiB in all; peaks by role {side['memory']['by_role_gib']}")


def mean_parts(rows: list[dict[str, float]]) -> dict[str, float]:
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: round(sum(row.get(name, 0.0) for row in rows) / len(rows), 2) for name in names}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--spec", default=str(HERE / "sweep.yaml"))
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="A.B=VALUE")
    parser.add_argument("--trials", type=int, help="searched trials; the STL baseline comes on top")
    parser.add_argument("--storage", required=True, help="a folder for both sides' files, fresh unless --only peer")
    parser.add_argument("--only", choices=["ours", "peer"])
    parser.add_argument("--peer-trials", type=int, help="run so many of the peer's (the baseline is one), scale up")
    parser.add_argument("--peer-argument", action="append", default=[], help="passed on: --peer-argument=--truncate")
    parser.add_argument(
        "--peer-workers", type=int, default=1, help="so many copies of the peer at once, cores and trials divided"
    )
    parser.add_argument("--own-order", action="store_true", help="the peer draws its own batches")
    parser.add_argument("--halving", action="store_true", help="ours once more, stopping trials after the DCR stage")
    parser.add_argument("--memory-every", type=float, default=2.0, help="seconds between two looks at the memory")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    overrides = options.overrides + ([f"search.trials={options.trials}"] if options.trials else [])
    spec = Study.from_yaml(options.spec, overrides).spec
    storage = Path(options.storage).absolute()
    data = load_study_data(spec.data)
    model = resolve(spec.model, cache_dir=default_cache_dir())
    print(f"{spec.study}: {spec.search.trials} trials and the STL baseline, {ModelCard.from_folder(model).name}")
    print("warming: every library is imported once and the model's files are read; not counted", flush=True)
    for file in model.iterdir():
        file.read_bytes()
    subprocess.run([sys.executable, "-c", f"import {LIBRARIES}"], check=True, capture_output=True)

    document: dict[str, Any] = {"study": spec.study, "trials": spec.search.trials + 1, "ratio": None}
    ours: dict[str, Trial] = {}
    ours_side = peer_side = None
    if options.only != "peer":
        seconds, memory, results = run_ours(spec, storage / "ours", options.memory_every)
        ours = {trial.name: trial for trial in results.trials}
        parts = mean_parts([trial.seconds for trial in results.trials])
        ours_side = {"seconds": seconds, "note": "", "trials": len(ours), "parts": parts, "memory": memory}
        document["ours"] = ours_side
    elif (storage / "ours" / "runs").exists():
        ours = {t.name: t for t in Study.open(spec.study, str(storage / "ours" / "runs")).results().trials}
    if options.only != "ours":
        if options.peer_workers > 1 and options.peer_trials:
            parser.error("--peer-trials scales up one worker's trials only")
        trials = [(t.name, t.params, t.recipe) for t in ours.values()] or recipes_without_ours(spec)
        folder = storage / "peer"
        _, steps = write_work(spec, data, trials, folder, not options.own_order)
        few = options.peer_trials is not None and options.peer_trials < len(trials)
        chosen = trials[: options.peer_trials]
        shares = [chosen[place :: options.peer_workers] for place in range(options.peer_workers)]
        threads = str(max(1, (os.cpu_count() or 1) // len(shares)))
        commands, logs = [], []
        for place, share in enumerate(shares):
            part = folder / f"worker-{place}"
            work, _ = write_work(spec, data, share, part, not options.own_order)
            script = [sys.executable, str(HERE / "peer_sweep.py"), str(work), "--out", str(folder)]
            commands.append([*script, "--threads", threads, *options.peer_argument])
            logs.append(part / "log.txt")
        seconds, memory = timed(commands, logs, options.memory_every)
        rows = [row for log in logs for row in json.loads(log.read_text().splitlines()[-1])["trials"]]
        parts = mean_parts([row["seconds"] for row in rows])
        note = ""
        if few:
            note = f" ESTIMATED FROM {len(rows)} OF {len(trials)} TRIALS ({seconds:.1f} s measured)"
            seconds = scaled_up(rows, seconds, steps)
        peer_side = {"seconds": seconds, "note": note, "trials": len(trials), "parts": parts, "memory": memory}
        document["peer"] = peer_side | {"estimated": few}
        if ours:
            document["differences"] = compare(ours, rows, data, folder)
    table(ours_side, peer_side)
    if ours_side and peer_side:
        document["ratio"] = round(peer_side["seconds"] / ours_side["seconds"], 3)
        if not few:
            document["cpu_ratio"] = round(peer_side["memory"]["cpu_seconds"] / ours_side["memory"]["cpu_seconds"], 3)
        print(f"\npeer / ours: {document['ratio']:.2f}{peer_side['note']}")
    if options.halving:
        halved = Study.from_yaml(options.spec, [*overrides, "halving={}", f"study={spec.study}-halving"]).spec
        seconds, memory, results = run_ours(halved, storage / "ours-halving", options.memory_every)
        states = [trial.state for trial in results.trials]
        document["ours_halving"] = {"seconds": seconds, "pruned": states.count("pruned"), "memory": memory}
        pruned = states.count("pruned")
        print(f"\nNOT THE SAME WORK: ours with halving after the DCR stage {seconds:.1f} s, {pruned} stopped")
        if peer_side:
            document["ratio_halving"] = round(peer_side["seconds"] / seconds, 3)
    print(json.dumps(document))


if __name__ == "__main__":
    main()
