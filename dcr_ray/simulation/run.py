"""A study rehearsed on a cluster that is not there, in virtual time.

Real are the search with its journal, halving and budget, the broker's queues and its rules about dead workers, the
order and the identity of stages, the report. Simulated are the nodes, how long a stage takes (the planner's figure,
spread by a tenth), what it finds (`simulation.surface`), and the stage cache, which lies in memory and in one file.
Ray, Tune and MLflow take no part.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dcr_ray.budget import UsageMeter, reached, read_usage
from dcr_ray.cache import Record
from dcr_ray.data.of_study import EVALUATED, TRAINED, load_study_data
from dcr_ray.errors import InputError, StageFailed
from dcr_ray.planning.cluster import Cluster
from dcr_ray.planning.cost import ClusterPlan
from dcr_ray.planning.plan import plan_for_cluster
from dcr_ray.planning.seconds import dcr_seconds, diagnose_seconds, edit_seconds, generation_seconds, sft_seconds
from dcr_ray.planning.work import DataFacts, dcr_work, edit_tokens, generation_work, sft_work
from dcr_ray.pools.broker import Broker
from dcr_ray.preflight import report_folder, study_folder
from dcr_ray.recipe import Recipe
from dcr_ray.report.of_study import write_study_report
from dcr_ray.search.ask_tell import Ask, Search
from dcr_ray.search.journal import StudyJournal
from dcr_ray.search.journal_file import JOURNAL_FILE, mend_journal
from dcr_ray.simulation.clock import VirtualLoop, run_virtually
from dcr_ray.simulation.surface import Surface, drawn_metrics, held_out_figures, made_up
from dcr_ray.simulation.workers import Faults, Node, SimulatedStage, Store, Tally, Worker
from dcr_ray.stages import StageTask, StudyInputs, course
from dcr_ray.stored import SPEC_FILE
from dcr_ray.study import StudySpec
from dcr_ray.sweep import driver_lock
from dcr_ray.time_ledger import TimeLine
from dcr_ray.trial import Trial

RECORDS_FILE = "simulated-records.jsonl"
SPREAD = 0.1
"""Standard deviation of a stage's seconds, as a share."""

TELL_SECONDS = 5.0


@dataclass(frozen=True)
class Rehearsal:
    """What a simulated study came to. `busy` is the share of the reserved time in which workers worked."""

    study: str
    hours: float
    trials: tuple[Trial, ...]
    complete: bool
    stopped: str | None
    tally: Tally
    groups: int
    engines: int
    nodes: int
    node_hours: float
    gpu_hours: float
    price: float
    busy: dict[str, float]
    unique_stages: int
    real_seconds: float
    report: Path

    def as_dict(self) -> dict[str, Any]:
        states = [trial.state for trial in self.trials]
        plain = {name: value for name, value in vars(self).items() if name not in ("trials", "tally", "report")}
        counts = {state: states.count(state) for state in sorted(set(states))}
        return plain | {"simulated": True, "trials": counts, "report": str(self.report)} | asdict(self.tally)


def simulate(
    spec: StudySpec,
    cluster: Cluster,
    faults: Faults = Faults(),
    *,
    surface: Surface = made_up,
    seed: int = 0,
    say: Callable[[str], None] = lambda line: None,
) -> Rehearsal:
    """Rehearse the study `NAME` as `NAME-simulated`, or go on with a rehearsal that was interrupted.

    The same study, cluster, faults and seed give the same course. Raises InputError for a study that does not fit the
    cluster.
    """
    plan = plan_for_cluster(spec, cluster)
    if plan.problems:
        raise InputError(plan.problems)
    spec = spec.model_copy(
        update={
            "study": f"{spec.study}-simulated",
            "shape": plan.training.shape,
            "resources": spec.resources.model_copy(update={"worker_groups": plan.groups, "engines": plan.engines}),
        }
    )
    folder = study_folder(spec)
    folder.mkdir(parents=True, exist_ok=True)
    with driver_lock(folder):
        (folder / SPEC_FILE).write_text(spec.as_yaml())
        mend_journal(folder / JOURNAL_FILE)
        with open(folder / RECORDS_FILE, "a+") as records:
            return _Simulation(spec, plan, faults, surface, seed, say, folder, records).run()


class _Simulation:
    def __init__(
        self,
        spec: StudySpec,
        plan: ClusterPlan,
        faults: Faults,
        surface: Surface,
        seed: int,
        say: Callable[[str], None],
        folder: Path,
        records: Any,
    ):
        self.spec, self.plan, self.faults, self.surface, self.say = spec, plan, faults, surface, say
        self.folder, self.chance = folder, random.Random(seed)
        data = load_study_data(spec.data)
        self.facts = DataFacts.of(data, (*TRAINED, *EVALUATED))
        self.inputs = StudyInputs(
            spec.study, "", f"simulated {plan.card.name}", plan.card, data, spec.evaluation, spec.shape, str(folder)
        )
        self.store = Store(_read_records(records), lambda record: _write_record(records, record))
        self.tally, self.saved = Tally(), {}
        self.loop = VirtualLoop()
        self.broker = Broker(self.loop.time, watched=False)
        self.search = Search(StudyJournal(spec, folder), clock=self.loop.time)
        self.meter: UsageMeter | None = None
        self.told = 0.0
        self.ended = self.search.total - self.search.remaining()

    def run(self) -> Rehearsal:
        began = time.monotonic()
        self.search.used_up = reached(self.spec.budget, read_usage(self.folder)) if self.search.remaining() else None
        hours = run_virtually(self._course(), self.loop) / 3600
        self.meter.write()
        trials = tuple(self.search.journal.trials())
        stopped = self.search.stopped or (self.search.used_up if self.search.remaining() else None)
        report = write_study_report(self.spec, self.search.journal, list(trials), report_folder(self.spec), stopped)
        _mark(report, self.plan)
        nodes = self.nodes
        facts = self.plan.training.where.node.facts
        size = {"train": self.plan.groups, "generate": self.plan.engines}
        return Rehearsal(
            study=self.spec.study,
            hours=hours,
            trials=trials,
            complete=not self.search.remaining(),
            stopped=stopped,
            tally=self.tally,
            groups=self.plan.groups,
            engines=self.plan.engines,
            nodes=len(nodes),
            node_hours=hours * len(nodes),
            gpu_hours=hours * len(nodes) * facts.gpus,
            price=hours * self.plan.cluster.price_per_hour,
            busy={
                place: seconds / (hours * 3600 * size[place]) if hours else 0.0
                for place, seconds in self.tally.busy_seconds.items()
            },
            unique_stages=len(self.store.records),
            real_seconds=time.monotonic() - began,
            report=report,
        )

    async def _course(self) -> float:
        workers = self._workers()
        self.meter = UsageMeter(self.spec.budget, self.folder, self._reserved_gpus(), self.loop.time)
        lives = [asyncio.ensure_future(node.live(self.faults, self._chance(), self.tally)) for node in self.nodes]
        serving = [asyncio.ensure_future(worker.serve(self.broker)) for worker in workers]
        await asyncio.gather(*(self._place() for _ in range(self.spec.search.concurrent)))
        ended = self.loop.time()
        await self.broker.close("the study has ended")
        for task in (*lives, *serving):
            task.cancel()
        await asyncio.gather(*lives, *serving, return_exceptions=True)
        return ended

    def _chance(self) -> random.Random:
        return random.Random(self.chance.random())

    def _reserved_gpus(self) -> float:
        if not self.plan.training.where.on_gpu:
            return 0.0
        return self.plan.groups * self.plan.training.where.ranks + self.plan.engines * self.plan.engine.where.ranks

    def _workers(self) -> list[Worker]:
        """Engines first, then gangs over what is left of the nodes, in their order (PACK)."""
        node = self.plan.training.where.node
        on_gpu = bool(node.facts.gpus)
        self.nodes = [Node(f"{node.name}-{index}") for index in range(node.count)]
        slots = [place for place in self.nodes for _ in range(node.facts.gpus if on_gpu else node.facts.cpus)]
        rates, shape = self.plan.calibration.rates, self.spec.shape
        wanted = [("generate", self.plan.engine.where.ranks, rates.engine_start_seconds[on_gpu])] * self.plan.engines
        wanted += [("train", shape.ranks, rates.group_start_seconds[on_gpu])] * self.plan.groups
        workers = []
        for index, (place, size, start) in enumerate(wanted):
            taken, slots = slots[:size], slots[size:]
            on = list(dict.fromkeys(taken)) or [self.nodes[-1]]
            name = f"{'engine' if place == 'generate' else 'group'}-{index}"
            workers.append(Worker(name, place, on, start, shape.checkpoint_seconds, self.saved, self.tally))
        return workers

    async def _place(self) -> None:
        """One of the places for trials that are under way at the same time."""
        while True:
            usage = self.meter.read()
            if self.search.used_up is None:
                self.search.used_up = reached(self.spec.budget, usage) if self.search.remaining() else None
            ask = self.search.next()
            if ask is None:
                return
            await self._trial(ask)
            self.ended += 1
            self._tell()

    async def _trial(self, ask: Ask) -> None:
        line = TimeLine(clock=self.loop.time)
        pruned: list[str] = []

        def after(task: StageTask, record: Record, so_far: dict[str, Any]) -> None:
            if task.stage == "dcr" and not self.search.reached_rung(ask.name, so_far["metrics"]):
                pruned.append(f"{self.spec.halving.metric} after the DCR stage is not among the best so far")
                raise _Pruned(so_far)

        steps = course(self.inputs.tasks(ask.recipe, ask.name), after)
        try:
            task = next(steps)
            while True:
                try:
                    answer = await self._submit(task, ask.recipe, line)
                except StageFailed as failure:
                    task = steps.throw(failure)
                else:
                    task = steps.send(answer)
        except StopIteration as end:
            outcome = end.value
        except _Pruned as end:
            outcome = end.so_far | {"pruned": pruned[0]}
        self.search.finish(ask.name, outcome | {"ledger": line.seconds})

    async def _submit(self, task: StageTask, recipe: Recipe, line: TimeLine) -> tuple[Record, bool]:
        line.lap("idle")
        stage = self._simulated(task, recipe)
        if task.place == "here":
            found = stage.record()
            if found is None:
                await asyncio.sleep(stage.seconds)
                self.store.commit(stage.finished("coordinator"))
            line.lap("judge")
            return self.store.records[stage.key], found is not None
        answer = await self.broker.submit(stage)
        line.answered(answer)
        if "failure" in answer:
            raise StageFailed(answer["failure"]["kind"], answer["failure"]["reason"])
        return answer["record"], answer["cached"]

    def _simulated(self, task: StageTask, recipe: Recipe) -> SimulatedStage:
        failure, metrics = None, {}
        try:
            truth = self.surface(recipe)
            if task.stage == "dcr":
                metrics = held_out_figures(recipe)
            elif task.stage == "judge":
                counts = {rate: self.facts.rows[rate] for rate in ("compliance", "defense")}
                metrics = drawn_metrics(truth, recipe, self.spec, counts)
        except StageFailed as diverged:
            failure = diverged if task.stage == "dcr" else None
        spread = random.Random(task.key).lognormvariate(0, SPREAD)
        return SimulatedStage(task, self.store, spread * self._seconds(task.stage, recipe), metrics, failure)

    def _seconds(self, stage: str, recipe: Recipe) -> float:
        """The planner's figure for the stage."""
        plan, facts, rates = self.plan, self.facts, self.plan.calibration.rates
        shape, where, storage = plan.training.shape, plan.training.where, plan.cluster.storage
        if stage == "dcr":
            work = dcr_work(recipe, facts)
            return dcr_seconds(plan.card, recipe.dcr, work, shape, where, storage, rates).total
        if stage == "sft":
            work = sft_work(recipe, facts)
            return sft_seconds(plan.card, recipe.sft, work, shape, where, storage, rates).total
        if stage == "edit":
            tokens = edit_tokens(recipe, facts, plan.card.layers)
            return edit_seconds(plan.card, tokens, where, storage, rates).total
        if stage == "generate":
            answers = generation_work(recipe, facts, self.spec.evaluation.max_tokens)
            return generation_seconds(plan.card, answers, plan.engine.where, storage, rates).total
        if stage == "diagnose":
            asked, length = self.spec.diagnosis, facts.prompt_tokens("compliance", recipe.system_prompt)
            prompts, probed = 3 * asked.prompts, 2 * asked.probed
            return diagnose_seconds(plan.card, prompts, asked.groups, probed, length, where, storage, rates).total
        return rates.judge_seconds

    def _tell(self) -> None:
        now = time.monotonic()
        if now - self.told < TELL_SECONDS:
            return
        self.told = now
        tally = self.tally
        self.say(
            f"simulated {self.loop.time() / 3600:.1f} h: {self.ended} of {self.search.total} trials ended, "
            f"{tally.preemptions} preemptions, {tally.failures} failures, {tally.interrupted} stages interrupted"
        )


class _Pruned(Exception):
    """Ends a trial's course after its DCR stage."""

    def __init__(self, so_far: dict[str, Any]):
        self.so_far = so_far


def _mark(report: Path, plan: ClusterPlan) -> None:
    """Say at the report's head that nothing of it was measured."""
    title, _, rest = report.read_text().partition("\n")
    note = (
        f"**SIMULATED.** Nothing here was trained or measured: a rehearsal on {plan.cluster.name}, whose findings come "
        "from a formula or a table and whose seconds come from the planner."
    )
    report.write_text(f"{title}\n\n{note}\n{rest}")


def _read_records(stream: Any) -> dict[str, Record]:
    stream.seek(0)
    text = stream.read()
    whole = text[: text.rfind("\n") + 1]
    # A line that a kill cut short is a stage that was not finished; the next one must not be glued to it.
    stream.truncate(len(whole.encode()))
    plain = [json.loads(line) for line in whole.splitlines()]
    return {record["key"]: Record(**record) for record in plain}


def _write_record(stream: Any, record: Record) -> None:
    stream.write(json.dumps(asdict(record)) + "\n")
    stream.flush()
