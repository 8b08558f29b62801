"""A sweep: the study's search, run to its end or to an interruption, watched, mirrored and reported.

It ties the parts together and decides nothing itself: the search chooses, the broker hands out, the records remember.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from dcr_ray.budget import UsageMeter, reached, read_usage, used
from dcr_ray.data.ledger import study_ledger, write_ledger
from dcr_ray.errors import DcrError, InputError, Problem
from dcr_ray.evaluate.vllm_engine import batch_invariance_problems
from dcr_ray.gathered import evaluated, write_outcomes
from dcr_ray.observe import Observer
from dcr_ray.preflight import Ready, machine_for, preflight
from dcr_ray.report.live import LiveView
from dcr_ray.report.of_study import write_study_report
from dcr_ray.runtime import RayCluster, ray_messages_in, start_ray
from dcr_ray.stored import SPEC_FILE
from dcr_ray.study import Resources, StudySpec
from dcr_ray.tracking import Tracker
from dcr_ray.trial import Trial

WATCH_SECONDS = 1.0


@dataclass(frozen=True)
class SweepResult:
    """What a sweep left. `complete` is False for one that was interrupted or stopped early; `stopped` says why."""

    trials: tuple[Trial, ...]
    study_dir: Path
    report: Path
    tracking_uri: str
    complete: bool
    stopped: str | None
    within_budget: bool = True
    """False for a study that ended because its budget was used up, which is an orderly end."""


def sweep(spec: StudySpec, *, address: str | None = None, console: Any = None) -> SweepResult:
    """Run a study, or go on with it. Raises InputError before anything is started, for everything that is wrong.

    Call it from the main thread: Ctrl-C and SIGTERM end it in an orderly way, and the same call goes on later.
    """
    from rich.console import Console

    console = console or Console(stderr=True)
    with console.status("checking data and model") if console.is_terminal else _silence():
        ready = preflight(spec, machine=machine_for(address), progress=console.log)
    with driver_lock(ready.study_dir):
        (ready.study_dir / SPEC_FILE).write_text(spec.as_yaml())
        write_ledger(study_ledger(spec.data), ready.study_dir)
        return run_ready(ready, address, console)


def run_ready(ready: Ready, address: str | None, console: Any, make_crew: Any = None) -> SweepResult:
    """The sweep of a study that was found ready, by whoever holds its `driver_lock`. `make_crew` replaces `Crew`."""
    from dcr_ray.search.ask_tell import Search, places_ahead
    from dcr_ray.search.journal import StudyJournal
    from dcr_ray.search.journal_file import JOURNAL_FILE, mend_journal

    spec = ready.spec
    mend_journal(ready.study_dir / JOURNAL_FILE)
    journal = StudyJournal(spec, ready.study_dir)
    search = Search(journal, ahead=places_ahead(spec))
    with Tracker(ready.study_dir, ready.tracking_uri, spec.study) as tracker:
        observer = Observer(spec, journal, tracker, spec.as_yaml())
        search.used_up = reached(spec.budget, read_usage(ready.study_dir)) if search.remaining() else None
        stopped = search.used_up
        if search.remaining() and not search.used_up:
            try:
                stopped = _run_on_ray(ready, address, console, search, observer, make_crew)
            finally:
                search.close()
        trials = journal.trials()
        write_outcomes(ready.study_dir, Path(ready.inputs.cache_root), evaluated(trials))
        report = write_study_report(spec, journal, trials, ready.report_dir, stopped)
        observer.end(trials, report, stopped not in (None, search.used_up), read_usage(ready.study_dir).as_dict())
    return SweepResult(
        tuple(trials),
        ready.study_dir,
        report,
        ready.tracking_uri,
        not search.remaining(),
        stopped,
        stopped is None or stopped != search.used_up,
    )


def _run_on_ray(
    ready: Ready, address: str | None, console: Any, search: Any, observer: Observer, make_crew: Any
) -> str | None:
    spec = ready.spec
    cpus = cpus_needed(spec)
    cluster = start_ray(address, cpus, spec.study, ready.study_dir, ready.cache_dir)
    import ray

    try:
        resources = fitted(spec, cluster, cpus)
        observer.say(
            f"Ray {'started on this machine' if cluster.own else 'found at ' + cluster.address}"
            + (f", dashboard http://{cluster.dashboard}" if cluster.dashboard else "")
        )
        return _run_with_crew(ready, cluster, resources, console, search, observer, make_crew)
    finally:
        # What Ray held back it prints now.
        with ray_messages_in(ready.study_dir):
            ray.shutdown()


def _run_with_crew(
    ready: Ready,
    cluster: RayCluster,
    resources: Resources,
    console: Any,
    search: Any,
    observer: Observer,
    make_crew: Any,
) -> str | None:
    from dcr_ray.pools.crew import Crew
    from dcr_ray.pools.fair_share import FairShare
    from dcr_ray.search.tune import StageHalving, TuneSearcher, run_trials

    spec = ready.spec
    inputs = replace(ready.inputs, shape=spec.shape.settled(on_gpu=bool(resources.gpus_per_rank)))
    meter = UsageMeter(spec.budget, ready.study_dir, reserved_gpus(spec, resources))
    # A Ray of the study's own is shared with nobody.
    alone = cluster.own or make_crew is not None
    share = None if alone else FairShare(spec.study, resources, inputs.shape.ranks)
    make_crew = make_crew or partial(Crew, share=share)
    prunings: dict[str, str] = {}
    searcher = TuneSearcher(search, observer.trial_started, observer.trial_ended, prunings)
    tune_dir = ready.study_dir / "ray-tune"
    shutil.rmtree(tune_dir, ignore_errors=True)
    view = LiveView(console, spec.study, search.total, spec.objectives, spec.search.concurrent)
    with (
        ray_messages_in(ready.study_dir),
        _orderly_interruption(searcher),
        make_crew(inputs, resources, cluster.namespace, ready.study_dir, cluster.environment) as crew,
        view,
    ):
        with watching(crew, observer, view, searcher, lambda: _keep_to_budget(meter, share, spec, search, observer)):
            run_trials(
                searcher,
                StageHalving(search, prunings),
                search.remaining(),
                spec.search.concurrent,
                crew.broker_name,
                crew.namespace,
                inputs,
                str(tune_dir),
                time.strftime("%Y%m%d-%H%M%S"),
            )
    shutil.rmtree(tune_dir, ignore_errors=True)
    meter.write()
    if observer.fault is not None:
        raise observer.fault
    if search.stopped:
        return search.stopped
    if searcher.interrupted:
        return "interrupted"
    return search.used_up if search.remaining() else None


def reserved_gpus(spec: StudySpec, resources: Resources) -> float:
    """GPUs that the study's groups and engines hold while it runs."""
    groups = (resources.worker_groups or 1) * spec.shape.ranks * (resources.gpus_per_rank or 0.0)
    return groups + resources.engines * resources.tensor_parallel * (resources.gpus_per_engine or 0.0)


def _keep_to_budget(meter: UsageMeter, share: Any, spec: StudySpec, search: Any, observer: Observer) -> None:
    """No trial is begun once the budget is used up; those under way are ended, since they are nearly paid for.

    `share` knows what a study on a shared cluster holds, which may be less than it asks for.
    """
    if share is not None:
        meter.hold(share.gpus)
    usage = meter.read()
    observer.usage = used(spec.budget, usage)
    if search.used_up is None and (reason := reached(spec.budget, usage)) is not None:
        search.used_up = reason
        observer.say(f"{reason}; no further trial is begun, those under way are ended")


def cpus_needed(spec: StudySpec) -> float:
    """CPUs that Ray reserves for the study's groups and engines."""
    resources = spec.resources
    groups = (resources.worker_groups or 1) * spec.shape.ranks * resources.cpus_per_rank
    return groups + resources.engines * resources.tensor_parallel * resources.cpus_per_engine


def placement_problems(
    rank: dict[str, float],
    ranks: int,
    engine: dict[str, float],
    tensor_parallel: int,
    nodes: Sequence[dict[str, float]],
) -> list[Problem]:
    """What no node, or no set of nodes, has room for although the cluster as a whole has: a rank lies on one node, and
    so does an engine with all of its devices."""

    def room(bundle: dict[str, float], node: dict[str, float]) -> int:
        return int(min((node.get(name, 0.0) / amount for name, amount in bundle.items() if amount), default=ranks))

    def told(bundle: dict[str, float]) -> str:
        return ", ".join(f"{amount:g} {name}s" for name, amount in bundle.items() if amount)

    have = "; ".join(told({name: node.get(name, 0.0) for name in ("CPU", "GPU")}) for node in nodes)
    problems = []
    if (found := sum(room(rank, node) for node in nodes)) < ranks:
        fix = "Lower cpus_per_rank or gpus_per_rank, or shape.ranks."
        wanted = f"{ranks} ranks of {told(rank)} each, of which the nodes hold {found}"
        problems.append(Problem("shape.ranks", wanted, f"what single nodes have: {have}", fix))
    divided = {name: amount * tensor_parallel for name, amount in engine.items()}
    if not any(room(divided, node) for node in nodes):
        wanted = f"an engine of {told(divided)} on one node"
        fix = "Lower resources.tensor_parallel, cpus_per_engine or gpus_per_engine."
        problems.append(Problem("resources.tensor_parallel", wanted, f"what single nodes have: {have}", fix))
    return problems


def fitted(spec: StudySpec, cluster: RayCluster, cpus_needed: float) -> Resources:
    """The study's resources with what it left open filled in. Raises InputError where the cluster has too little."""
    resources, ranks = spec.resources, spec.shape.ranks * (spec.resources.worker_groups or 1)
    cores = os.cpu_count() or 1
    gpus_per_rank = resources.gpus_per_rank if resources.gpus_per_rank is not None else float(cluster.gpus > 0)
    gpus_per_engine = resources.gpus_per_engine if resources.gpus_per_engine is not None else float(cluster.gpus > 0)
    gpus_needed = ranks * gpus_per_rank + resources.engines * resources.tensor_parallel * gpus_per_engine
    problems = []
    if cpus_needed > cluster.cpus:
        fix = "Lower shape.ranks, resources.worker_groups, cpus_per_rank or cpus_per_engine, or add nodes."
        problems.append(
            Problem("resources", f"{cpus_needed:g} CPUs wanted", f"at most {cluster.cpus:g} (the cluster's)", fix)
        )
    problems += (
        batch_invariance_problems(spec.evaluation.engine, gpus_per_engine) if spec.evaluation.batch_invariant else []
    )
    if gpus_needed > cluster.gpus:
        fix = "Let ranks and engines share GPUs with fractions (resources.gpus_per_rank: 0.5), or lower shape.ranks."
        problems.append(
            Problem("resources", f"{gpus_needed:g} GPUs wanted", f"at most {cluster.gpus:g} (the cluster's)", fix)
        )
    if not problems:
        rank = {"CPU": resources.cpus_per_rank, "GPU": gpus_per_rank}
        engine = {"CPU": resources.cpus_per_engine, "GPU": gpus_per_engine}
        problems += placement_problems(rank, spec.shape.ranks, engine, resources.tensor_parallel, cluster.nodes)
    if problems:
        raise InputError(problems)
    return resources.model_copy(
        update={
            "gpus_per_rank": gpus_per_rank,
            "gpus_per_engine": gpus_per_engine,
            "threads_per_rank": resources.threads_per_rank
            or (max(1, cores // ranks) if cluster.own else max(1, int(resources.cpus_per_rank))),
            "threads_per_engine": resources.threads_per_engine
            or (max(1, cores // 2) if cluster.own else max(1, int(resources.cpus_per_engine))),
        }
    )


@contextmanager
def watching(
    crew: Any, observer: Observer, view: LiveView, searcher: Any, each: Callable[[], None] = lambda: None
) -> Iterator[None]:
    """A thread that looks at the crew, tells the observer and draws the view, about once a second.

    `searcher` is whoever knows that the study is being interrupted; `each` is called every time.
    """
    over = threading.Event()

    def watch() -> None:
        while not over.wait(WATCH_SECONDS):
            try:
                for message in crew.watch():
                    observer.say(message)
                each()
                view.update(observer.look(crew))
                if crew.gone and not searcher.interrupted:
                    raise DcrError(crew.gone)
            except Exception as error:
                if not over.is_set() and not searcher.interrupted:
                    observer.fault = error
                    os.kill(os.getpid(), signal.SIGINT)
                return

    thread = threading.Thread(target=watch, name="watch", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(10)
        view.update(observer.look(crew))


@contextmanager
def _orderly_interruption(searcher: Any) -> Iterator[None]:
    """Ctrl-C and SIGTERM let Tune end its loop; trials under way stay open in the journal. A second one is abrupt."""

    def interrupt(number: int, frame: Any) -> None:
        searcher.interrupted = True
        signal.signal(signal.SIGINT, signal.default_int_handler)
        # Tune's own handler for an orderly end; it leaves SIGINT to us (TUNE_DISABLE_SIGINT_HANDLER).
        signal.raise_signal(signal.SIGUSR1)

    ours = (signal.SIGINT, signal.SIGTERM)
    # Until Tune has installed its handler there is nothing to end.
    before = {number: signal.getsignal(number) for number in (*ours, signal.SIGUSR1)}
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    for number in ours:
        signal.signal(number, interrupt)
    try:
        yield
    except KeyboardInterrupt:
        searcher.interrupted = True
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def driver_lock(study_dir: Path) -> Iterator[None]:
    """One driver per study. The lock is the kernel's, so a killed driver leaves none."""
    with open(study_dir / "driver.lock", "a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.seek(0)
            holder = file.read().strip() or "another process"
            raise InputError(
                [
                    Problem(
                        "study",
                        f"{study_dir.name}, which {holder} is running",
                        "a study that nobody runs",
                        "Wait for it, stop it with `dcr-ray stop`, or give this one another name.",
                    )
                ]
            ) from None
        file.truncate(0)
        file.write(json.dumps({"pid": os.getpid(), "host": os.uname().nodename}))
        file.flush()
        yield


@contextmanager
def _silence() -> Iterator[None]:
    yield
