"""The crew of a study: its broker, WorkerGroups and Engines, started once, watched, and ended together.

An engine that dies is replaced by a fresh one a few times; a group is restarted by Ray Train. When the last worker of a
kind is gone for good, the stages that need one fail with that reason instead of waiting for ever.
"""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from dcr_ray.pools.broker import Broker
from dcr_ray.pools.engine import EngineSettings, EngineWorker
from dcr_ray.pools.fair_share import FairShare
from dcr_ray.pools.worker_group import GroupSettings, WorkerGroup
from dcr_ray.stages import StudyInputs
from dcr_ray.study import Resources
from dcr_ray.weights.shared_memory import withdraw

ENGINE_LIVES = 4
"""How many engines are started in one place before it is given up."""

ENGINE_START_SECONDS = 60.0
"""An engine's process that has not begun after so long is held to have no place: Ray does not tell which it is."""


class Crew:
    """Use as a context manager. `broker` is the actor's name; `watch` is to be called every second or so."""

    def __init__(
        self,
        inputs: StudyInputs,
        resources: Resources,
        namespace: str,
        study_dir: Path,
        environment: dict[str, str],
        share: FairShare | None = None,
    ):
        self.namespace = namespace
        self.broker_name = f"broker-{inputs.study}"
        self._inputs = inputs
        self._resources = resources
        self._environment = environment | resources.environment
        self._study_dir = study_dir
        self._engines: dict[str, _EngineSeat] = {}
        self._groups: list[WorkerGroup] = []
        self._given_up: set[str] = set()
        self._share = share
        self._released: set[str] = set()
        self._groups_started = 0

    def __enter__(self) -> Crew:
        actor = ray.remote(Broker)
        # Beside the driver: a node that is taken away must not take the queues with it.
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        self.broker = actor.options(
            name=self.broker_name,
            namespace=self.namespace,
            num_cpus=0,
            max_concurrency=10_000,
            max_restarts=0,
            scheduling_strategy=here,
        ).remote()
        ray.get(self.broker.events.remote())
        self._stamp = time.strftime("%Y%m%d-%H%M%S")
        for _ in range(self._share.groups if self._share else self._resources.worker_groups or 1):
            self.start_group()
        for index in range(self._resources.engines):
            settings = self._engine_settings(f"engine-{index}")
            self._engines[settings.name] = _EngineSeat(settings)
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close("the study has ended" if error is None else "the study was stopped")

    def close(self, reason: str, seconds: float = 20.0) -> None:
        """Tell everybody to stop, and wait a little for those who are in the middle of a step."""
        ray.get(self.broker.close.remote(reason))
        deadline = time.monotonic() + seconds
        for group in self._groups:
            group.wait(max(0.1, deadline - time.monotonic()))
        for seat in self._engines.values():
            seat.end(max(0.1, deadline - time.monotonic()))
        withdraw(self._inputs.study)
        if self._share is not None:
            self._share.leave()

    def start_group(self) -> str:
        """Start one more worker group. Returns its name."""
        settings = self._group_settings(f"group-{self._groups_started}", self._stamp)
        self._groups_started += 1
        self._groups.append(WorkerGroup(settings))
        return settings.name

    def release_group(self) -> str | None:
        """Let a group end after the stage that it is at, an idle one if there is one. Returns its name.

        None where no two groups are at work yet.
        """
        names = [group.settings.name for group in self._groups if group.alive]
        name = ray.get(self.broker.release.remote([name for name in names if name not in self._released]))
        if name is not None:
            self._released.add(name)
        return name

    @property
    def groups_up(self) -> int:
        """Groups that hold resources or wait for them."""
        return sum(group.alive for group in self._groups)

    @property
    def groups_wanted(self) -> int:
        """Those that have not been told to end."""
        return sum(group.alive and group.settings.name not in self._released for group in self._groups)

    @property
    def engines_pending(self) -> int:
        """Engines for which Ray has found no place so far."""
        return sum(seat.pending for seat in self._engines.values())

    def watch(self) -> list[str]:
        """Replace dead engines, give up kinds that are gone. Returns what a user should know, once."""
        messages = self._share.beat(self) if self._share is not None else []
        for seat in self._engines.values():
            messages += seat.watch(self.broker)
        for group in self._groups:
            if not group.alive and group.error and group.settings.name not in self._given_up:
                self._given_up.add(group.settings.name)
                ray.get(self.broker.lost.remote(group.settings.name))
                messages.append(f"{group.settings.name} ended: {group.error}")
        self._groups = [each for each in self._groups if each.alive or each.settings.name not in self._released]
        if self._groups and not any(group.alive for group in self._groups) and "train" not in self._given_up:
            self._given_up.add("train")
            ray.get(self.broker.give_up.remote("train", f"no worker group is left: {self._groups[-1].error}"))
        if self._engines and all(seat.error for seat in self._engines.values()) and "generate" not in self._given_up:
            self._given_up.add("generate")
            last = next(iter(self._engines.values())).error
            ray.get(self.broker.give_up.remote("generate", f"no engine is left: {last}"))
        return messages

    def news(self) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """The broker's events since the last call, and the stages that wait or run."""
        return ray.get([self.broker.events.remote(), self.broker.under_way.remote()], timeout=30)

    @property
    def gone(self) -> str | None:
        """Why the study cannot go on, if it cannot."""
        if "train" in self._given_up:
            return "no worker group is left"
        return "no engine is left" if "generate" in self._given_up else None

    def group_lines(self) -> list[str]:
        shape = self._inputs.shape
        how = f"{shape.ranks} rank{'s' if shape.ranks > 1 else ''}, ZeRO-{shape.zero_stage}"
        return [f"{group.settings.name} ({how}){'' if group.alive else ' ended'}" for group in self._groups]

    def engine_lines(self) -> list[str]:
        return [
            f"{name} ({self._inputs.evaluation.engine}){' gone' if seat.error else ''}"
            for name, seat in self._engines.items()
        ]

    def _group_settings(self, name: str, stamp: str) -> GroupSettings:
        resources = self._resources
        return GroupSettings(
            name=name,
            broker=self.broker_name,
            namespace=self.namespace,
            shape=self._inputs.shape,
            cpus_per_rank=resources.cpus_per_rank,
            gpus_per_rank=resources.gpus_per_rank or 0,
            threads_per_rank=resources.threads_per_rank or 1,
            # Ray Train resumes a run of the same name by itself; our stages resume from their own records.
            storage_path=str(self._study_dir / "ray-train" / stamp),
            environment=self._environment,
            model=self._inputs.model,
            model_identity=self._inputs.model_identity,
        )

    def _engine_settings(self, name: str) -> EngineSettings:
        resources = self._resources
        return EngineSettings(
            name=name,
            broker=self.broker_name,
            namespace=self.namespace,
            model_dir=self._inputs.model_dir,
            evaluation=self._inputs.evaluation,
            cpus=resources.cpus_per_engine,
            gpus=resources.gpus_per_engine or 0,
            threads=resources.threads_per_engine or 1,
            kv_cache_bytes=resources.kv_cache_mib * 2**20,
            environment=self._environment,
            tensor_parallel=resources.tensor_parallel,
            untied=self._inputs.untied,
            model=self._inputs.model,
            model_identity=self._inputs.model_identity,
        )


class _EngineSeat:
    """A place for one engine, and the engine that sits there now."""

    def __init__(self, settings: EngineSettings):
        self.settings = settings
        self.error: str | None = None
        self._lives = self._drained = 0
        self._start()

    def _start(self) -> None:
        settings = replace(
            self.settings, name=f"{self.settings.name}.{self._lives}" if self._lives else self.settings.name
        )
        self._lives += 1
        self._name = settings.name
        environment = settings.environment | {"OMP_NUM_THREADS": str(settings.threads)}
        self._actor = (
            ray.remote(EngineWorker)
            .options(
                # An actor lies on one node, and so do all the GPUs that an engine is divided over.
                num_cpus=settings.cpus * settings.tensor_parallel,
                num_gpus=settings.gpus * settings.tensor_parallel,
                max_restarts=0,
                runtime_env={"env_vars": environment},
            )
            .remote(settings)
        )
        self._started = time.monotonic()
        self._placing: Any = self._actor.__ray_ready__.remote()
        self._serving: Any = self._actor.serve.remote()

    @property
    def pending(self) -> bool:
        # An actor that has a place takes a while to start its process.
        late = time.monotonic() - self._started > ENGINE_START_SECONDS
        return late and not ray.wait([self._placing], timeout=0)[0]

    def watch(self, broker: Any) -> list[str]:
        if self.error is not None or not ray.wait([self._serving], timeout=0)[0]:
            return []
        try:
            ray.get(self._serving)
            return []
        except ray.exceptions.RayError as error:
            why = str(error).strip().splitlines()[-1]
        ray.get(broker.lost.remote(self._name))
        ray.kill(self._actor)
        if "NodeDrained" in why:
            self._drained += 1
        if self._lives - self._drained >= ENGINE_LIVES:
            self.error = why
            return [f"{self._name} ended and was the last of {ENGINE_LIVES}: {why}"]
        message = f"{self._name} ended and is replaced: {why}"
        self._start()
        return [message]

    def end(self, seconds: float) -> None:
        ray.wait([self._serving], timeout=seconds)
        ray.kill(self._actor)
