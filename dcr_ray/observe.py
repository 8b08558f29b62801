"""What a running study shows: the broker's events and the journal's trials, turned into a snapshot and into MLflow.

It only looks. Nothing it does or fails to do changes the study.
"""

from __future__ import annotations

import json
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from dcr_ray.pareto import pareto_front
from dcr_ray.recipe import Recipe
from dcr_ray.report.dynamics_chart import figures_of, looks_of
from dcr_ray.report.leaderboard import leaderboard
from dcr_ray.report.progress import RunningStage, Snapshot
from dcr_ray.study import RATES, StudySpec
from dcr_ray.time_ledger import summed, unaccounted
from dcr_ray.tracking import STUDY_UID, Tracker
from dcr_ray.trial import BASELINE_NAME, StageView, Trial

_CURVES = {"loss": "loss", "learning_rate": "learning_rate"}


class Observer:
    """`fault` is set when watching itself failed in a way that ends the study."""

    def __init__(self, spec: StudySpec, journal: Any, tracker: Tracker, spec_text: str):
        self.fault: Exception | None = None
        self.usage: list[str] = []
        self._spec = spec
        self._journal = journal
        self._tracker = tracker
        self._started = time.time()
        self._messages: list[str] = []
        self._stages: dict[str, dict[str, StageView]] = {}
        self._changed = threading.Event()
        self._refresh()
        tracker.study(
            spec.study, spec.model_dump(mode="json"), {"dcr.model": spec.model, "dcr.fingerprint": spec.fingerprint()}
        )
        tracker.text(STUDY_UID, spec_text, "study.yaml")
        for trial in self._trials:
            # Its driver was killed after it had told the journal and before it had told the mirror.
            if trial.name in tracker.left_open:
                self._mirror_end(trial)

    def say(self, message: str) -> None:
        """A line for the user."""
        self._messages.append(message)

    def trial_started(self, name: str, recipe: Recipe) -> None:
        role = "baseline" if name == BASELINE_NAME else "search"
        params = {"trial": name, "role": role, **recipe.model_dump(mode="json", exclude_none=True)}
        self._tracker.trial(name, name, params, {"dcr.state": "running", "dcr.role": role})
        self._changed.set()

    def trial_ended(self, name: str) -> None:
        self._changed.set()
        if name != BASELINE_NAME:
            self._mirror_end(self._journal.trial(name))
            return
        # A trial that waits for the baseline's value ends together with it.
        for trial in self._journal.trials():
            if trial.name == name or trial.state in ("complete", "failed"):
                self._mirror_end(trial)

    def look(self, crew: Any) -> Snapshot:
        """The study now. Also passes the broker's events on to MLflow."""
        events, under_way = crew.news()
        for event in events:
            self._mirror(event)
        if self._changed.is_set():
            self._changed.clear()
            self._refresh()
        running = [
            RunningStage(
                stage["trial"],
                stage["stage"] if stage["worker"] else f"{stage['stage']} (waits)",
                stage["step"] or 0,
                stage["steps"] or 0,
                stage["loss"],
                time.time() - stage["since"],
            )
            for stage in under_way
        ]
        return Snapshot(
            trials=self._with_stages_so_far(),
            running=running,
            groups=crew.group_lines(),
            engines=crew.engine_lines(),
            tracking=self._tracker.state(),
            usage=self.usage,
            started=self._started,
            messages=self._messages[-20:],
        )

    def end(self, trials: list[Trial], report: Path, interrupted: bool, usage: dict[str, float] | None = None) -> None:
        """The study's own figures and files; `usage` is what it has used of its budget."""
        front = {trial.name for trial in pareto_front(trials, self._spec.objectives)}
        for trial in trials:
            if trial.state == "complete":
                self._tracker.tags(trial.name, {"dcr.pareto": str(trial.name in front).lower()})
        rows = leaderboard(trials, self._spec.objectives)
        self._tracker.text(STUDY_UID, json.dumps(rows, indent=1), "leaderboard.json")
        for file in sorted(report.parent.glob("*")):
            if file.is_file():
                self._tracker.artifact(STUDY_UID, file, "report")
        self._tracker.metrics(
            STUDY_UID,
            {
                f"trials/{state}": float(sum(t.state == state for t in trials))
                for state in ("complete", "pruned", "failed")
            }
            | _time_figures(trials)
            | {f"usage/{name}": value for name, value in (usage or {}).items()},
        )
        self._tracker.end(STUDY_UID, "killed" if interrupted else "finished")

    def _refresh(self) -> None:
        self._trials: list[Trial] = self._journal.trials()
        self._under_way = [place for place, trial in enumerate(self._trials) if trial.state == "running"]
        names = {self._trials[place].name for place in self._under_way}
        self._stages = {name: stages for name, stages in self._stages.items() if name in names}

    def _with_stages_so_far(self) -> list[Trial]:
        """The journal knows a trial's stages when it has ended; until then the broker's events tell of them."""
        trials = list(self._trials)
        for place in self._under_way:
            if known := self._stages.get(trials[place].name):
                trials[place] = replace(trials[place], stages=tuple(known.values()))
        return trials

    def _mirror(self, event: dict[str, Any]) -> None:
        trial, stage, kind = event["trial"], event["stage"], event["event"]
        uid = f"{trial}/{stage}"
        if kind == "told":
            self.say(f"{event['worker']}: {event['message']}")
            return
        if kind == "started":
            self._tracker.stage(
                uid, trial, stage, {"key": event["key"], "worker": event["worker"]}, {"dcr.stage": stage}
            )
            self._tracker.metrics(uid, {"queued_seconds": event["queued_seconds"]})
        elif kind == "progress":
            curve = {
                name: event["values"][key] for key, name in _CURVES.items() if event["values"].get(key) is not None
            }
            if curve:
                self._tracker.metrics(uid, curve, int(event["values"].get("step") or 0))
        elif kind == "finished":
            self._keep_stage(event, cached=False)
            self._tracker.metrics(uid, {**event["metrics"], "seconds": event["seconds"]})
            self._tracker.end(uid, "finished")
        elif kind == "failed":
            self._tracker.tags(uid, {"dcr.reason": event["reason"]})
            self._tracker.end(uid, "failed")
            self.say(f"{trial}: {stage} failed: {event['reason']}")
        elif kind == "cached":
            self._keep_stage(event, cached=True)
            self._tracker.stage(
                uid, trial, stage, {"key": event["key"], "worker": "cache"}, {"dcr.stage": stage, "dcr.cached": "true"}
            )
            self._tracker.end(uid, "finished")
        elif kind == "requeued":
            self.say(f"{trial}: {stage} goes back to the queue, its worker {event['worker']} died")
        elif kind == "given_back":
            self.say(f"{trial}: {stage} goes back to the queue: {event['reason']}")

    def _mirror_judge(self, trial: Trial, stage: StageView) -> None:
        uid = f"{trial.name}/judge"
        self._tracker.stage(uid, trial.name, "judge", {"key": stage.key}, {"dcr.stage": "judge"})
        rates = {name: value for name, value in trial.metrics.items() if name.startswith(RATES)}
        self._tracker.metrics(uid, {**rates, "seconds": stage.seconds})
        self._tracker.end(uid, "finished")

    def _keep_stage(self, event: dict[str, Any], cached: bool) -> None:
        view = StageView(event["stage"], event["key"], "", event["seconds"], cached)
        self._stages.setdefault(event["trial"], {})[event["stage"]] = view

    def _mirror_end(self, trial: Trial) -> None:
        if trial.state not in ("complete", "pruned", "failed"):
            return
        seconds = {f"seconds/{stage}": value for stage, value in trial.seconds.items()}
        numbers = {**trial.metrics, **seconds, **_time_figures([trial])}
        self._tracker.metrics(trial.name, numbers)
        tags = {"dcr.state": trial.state, "dcr.feasible": str(trial.feasible).lower(), "dcr.reason": trial.reason or ""}
        self._tracker.tags(trial.name, tags)
        if trial.role == "search" and trial.state == "complete":
            course = {name: trial.metrics[name] for name in (*self._spec.objectives, *self._spec.constraints)}
            self._tracker.metrics(STUDY_UID, course, trial.number)
        for stage in trial.stages:
            if stage.name == "judge":
                # Judged by the trial's coordinator: the broker, which tells of all other stages, never saw it.
                self._mirror_judge(trial, stage)
        if self._spec.dynamics is not None:
            for name, looks in looks_of(trial):
                for line in looks:
                    self._tracker.metrics(f"{trial.name}/{name}", figures_of(line), line["step"])
        sample = _generation_sample(trial)
        if sample:
            self._tracker.text(trial.name, sample, "generations.md")
        self._tracker.end(trial.name, {"complete": "finished", "pruned": "killed", "failed": "failed"}[trial.state])


def _time_figures(trials: list[Trial]) -> dict[str, float]:
    """The time ledger of these trials together, without those that have none."""
    ended = [trial for trial in trials if trial.wall is not None]
    if not ended:
        return {}
    ledger, wall = summed(trial.ledger for trial in ended), sum(trial.wall for trial in ended)
    whole = {"wall": wall, "unaccounted": unaccounted(ledger, wall)}
    return {f"time/{name}": seconds for name, seconds in {**ledger, **whole}.items()}


def _generation_sample(trial: Trial) -> str | None:
    from dcr_ray.evaluate.sample import generation_sample

    stages = {stage.name: stage.path for stage in trial.stages}
    if "generate" not in stages or "judge" not in stages:
        return None
    return generation_sample(Path(stages["generate"]), Path(stages["judge"]))
