"""A WorkerGroup: one Ray Train run whose DeepSpeed ranks take stages from the broker until the study ends.

Starting such a run costs half a minute before the first step, so it is started once per study and not once per stage.
A stage that raises takes its group down with it, since no rank can know in what state the others are; Ray Train starts
the group again. The group does not know about trials.
"""

from __future__ import annotations

import threading
import traceback
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dcr_ray.errors import StageFailed
from dcr_ray.pools.draining import DrainWatch, NodeDrained
from dcr_ray.pools.finishing import Finishing
from dcr_ray.pools.local_model import local_model
from dcr_ray.pools.probe import probe
from dcr_ray.shape import Shape
from dcr_ray.stages import StageTask
from dcr_ray.weights.shared_memory import offer

RETURNED_BYTES = {"MALLOC_MMAP_THRESHOLD_": "1000000"}
"""glibc's own threshold grows with what is freed, and then gathered parameters stay with the process as holes."""

IDLE_SECONDS = 20.0
"""How long rank 0 waits for a stage before it lets the other ranks know that it is alive."""


@dataclass(frozen=True)
class GroupSettings:
    """How a group runs; nothing in here changes what it computes."""

    name: str
    broker: str
    namespace: str
    shape: Shape
    cpus_per_rank: float
    gpus_per_rank: float
    threads_per_rank: int
    storage_path: str
    environment: dict[str, str]
    model: str = ""
    model_identity: str = ""
    max_restarts: int = 50
    """Ends for reasons of its own and nodes that were taken away; a stage that keeps killing groups fails before."""


class WorkerGroup:
    """A Ray Train run in a thread of the driver. `error` is set when it ended before it was told to."""

    def __init__(self, settings: GroupSettings):
        self.settings = settings
        self.error: str | None = None
        self._thread = threading.Thread(target=self._run, name=settings.name, daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    def wait(self, seconds: float) -> bool:
        """Wait for the run's end after the broker has closed. False if it is still there."""
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def _run(self) -> None:
        import ray.train
        from ray.train.torch import TorchConfig, TorchTrainer

        settings = self.settings
        resources = {"CPU": settings.cpus_per_rank}
        if settings.gpus_per_rank:
            resources["GPU"] = settings.gpus_per_rank
        trainer = TorchTrainer(
            rank_loop,
            train_loop_config={"settings": settings},
            torch_config=TorchConfig(backend="cpu:gloo,cuda:nccl" if settings.gpus_per_rank else "gloo"),
            scaling_config=ray.train.ScalingConfig(
                num_workers=settings.shape.ranks,
                use_gpu=bool(settings.gpus_per_rank),
                resources_per_worker=resources,
                # As few nodes as hold the ranks: their exchange is then as fast as it can be.
                placement_strategy="PACK",
            ),
            run_config=ray.train.RunConfig(
                name=settings.name,
                storage_path=settings.storage_path,
                failure_config=ray.train.FailureConfig(max_failures=settings.max_restarts, controller_failure_limit=5),
                # Ray gives a worker as many OpenMP threads as it has CPUs, and torch sizes its pool by that once.
                worker_runtime_env={
                    "env_vars": settings.environment
                    | {"OMP_NUM_THREADS": str(settings.threads_per_rank)}
                    | (RETURNED_BYTES if settings.shape.zero_stage == 3 else {})
                },
            ),
        )
        try:
            trainer.fit()
        except Exception as error:  # the driver's loop reads `error` and decides; a thread has nobody to raise to
            self.error = "".join(traceback.format_exception_only(error)).strip()


def rank_loop(config: dict[str, Any]) -> None:
    """What every rank does: take the stage that rank 0 was handed, run it with the others, report, repeat."""
    import datetime
    from importlib import import_module

    import ray
    import torch.distributed as dist

    # Loaded before the first stage is taken: the time that this takes is the group's start, not a stage's.
    for module in ("train.dcr", "train.sft", "methods.run"):
        import_module(f"dcr_ray.{module}")
    settings: GroupSettings = config["settings"]
    broker = ray.get_actor(settings.broker, namespace=settings.namespace)
    # Stages travel over gloo whatever the gradients travel over, and a group may be idle for days.
    handover = dist.new_group(backend="gloo", timeout=datetime.timedelta(days=30))
    rank, size = dist.get_rank(), dist.get_world_size()
    nodes: list[Any] = [None] * size
    dist.all_gather_object(nodes, ray.get_runtime_context().get_node_id(), group=handover)
    drain = DrainWatch(nodes)
    if size > 1 and len(set(nodes)) > 1:
        found = probe(Path(settings.storage_path) / settings.name, nodes, handover, _device())
        if rank == 0:
            broker.tell.remote(settings.name, str(found), vars(found))
    finishing = Finishing(
        lambda record: ray.get(broker.done.remote(settings.name, record)),
        lambda key, reason: ray.get(broker.failed.remote(settings.name, key, "error", reason)),
    )
    while True:
        box: list[StageTask | str | None] = [None]
        if rank == 0:
            box = ["drained"]
            if not drain.leaving():
                box = [ray.get(broker.next.remote(settings.name, "train", IDLE_SECONDS, finishing.held))]
        dist.broadcast_object_list(box, src=0, group=handover)
        if box[0] == "stop":
            finishing.wait()
            return
        if box[0] == "drained":
            finishing.wait()
            raise NodeDrained("a node of this group is taken away")
        if box[0] is not None:
            _run_one(box[0], settings, broker, rank, finishing, drain)


def _run_one(
    task: StageTask, settings: GroupSettings, broker: Any, rank: int, finishing: Finishing, drain: DrainWatch
) -> None:
    import ray

    from dcr_ray.train.jobs import StageStopped
    from dcr_ray.train.run import run_training_stage

    left: list[Callable[[], None]] = []

    def leave(changed: dict[str, Any], write: Callable[[], None]) -> None:
        def write_and_offer() -> None:
            write()
            if changed:
                # An engine on this node takes them from memory; any other reads the folder.
                offer(task.job.output_dir, changed, task.identity["model"], study=task.owner)

        left.append(write_and_offer)

    def report(values: dict[str, Any]) -> None:
        if rank == 0:
            broker.progress.remote(settings.name, task.key, values)

    try:
        if rank == 0:
            task.begin()
        job = replace(task.job, model_dir=local_model(settings.model, task.job.model_dir, settings.model_identity))
        results = run_training_stage(job, report, leave, drain.leaving)
    except StageStopped:
        # Its checkpoint is written; whoever takes it goes on from there.
        if rank == 0:
            ray.get(broker.give_back.remote(settings.name, task.key, f"a node of {settings.name} is taken away"))
        finishing.wait()
        raise
    except StageFailed as failure:
        alone = failure.kind == "out_of_memory" and settings.shape.ranks > 1
        if rank == 0 or alone:
            ray.get(broker.failed.remote(settings.name, task.key, failure.kind, failure.reason))
        if alone:
            # Memory runs out on one rank while the others wait for it in a collective: only a new group helps them.
            raise
        # All else is raised on every rank together, so the group stays whole and takes the next stage.
        return
    except Exception as error:
        if of_lost_peer(error):
            # Another rank has gone. If it had a reason it has told it; if its node died, the stage is to be taken up
            # again when the group is back, and counts a death.
            raise
        reason = f"{type(error).__name__}: {error}"
        ray.get(broker.failed.remote(settings.name, task.key, "error", reason[:2000]))
        raise
    if rank == 0:
        ran = {"worker": settings.name, "shape": settings.shape.model_dump(mode="json")}
        if left:
            finishing.start(task, results, ran, left[0])
        else:
            ray.get(broker.done.remote(settings.name, task.commit(results, ran)))


def of_lost_peer(error: BaseException) -> bool:
    """Whether an error only says that an exchange with another rank broke off: gloo's and NCCL's, by their words."""
    import torch.distributed as dist

    if isinstance(error, dist.DistError):
        return True
    words = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "gloo/transport", "NCCL error")
    return isinstance(error, RuntimeError) and any(each in str(error) for each in words)


def _device() -> Any:
    from ray.train.torch import get_device

    return get_device()
