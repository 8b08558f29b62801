"""An Engine: a Ray actor that keeps a generation engine up for the whole study and is only handed weights.

It takes generate stages from the broker. After every change of weights the engine proves that it serves them; if it
cannot, the stage goes back to the queue and the actor ends, to be replaced by a fresh one.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

from dcr_ray.errors import StageFailed, StaleWeights
from dcr_ray.pools.draining import DrainWatch, NodeDrained
from dcr_ray.pools.local_model import local_model
from dcr_ray.study import EvaluationSpec
from dcr_ray.weights.shared_memory import withdraw_one

IDLE_SECONDS = 20.0
"""How long an engine waits for a stage before it looks whether its node is still there to stay."""


@dataclass(frozen=True)
class EngineSettings:
    """How an engine runs."""

    name: str
    broker: str
    namespace: str
    model_dir: str
    evaluation: EvaluationSpec
    cpus: float
    gpus: float
    threads: int
    kv_cache_bytes: int
    environment: dict[str, str]
    tensor_parallel: int = 1
    model: str = ""
    model_identity: str = ""
    untied: bool = False


class EngineWorker:
    """The actor's body. One call to `serve` lasts as long as the study."""

    def __init__(self, settings: EngineSettings):
        # Before torch is imported: its OpenMP pool is sized once.
        os.environ["OMP_NUM_THREADS"] = str(settings.threads)
        self.settings = settings

    def serve(self) -> None:
        """Load the base model, then answer generate stages until the broker says stop.

        Raises StaleWeights when new weights do not become live, and whatever a broken engine raises.
        """
        import ray

        settings = self.settings
        broker = ray.get_actor(settings.broker, namespace=settings.namespace)
        engine = self._open()
        drain = DrainWatch([ray.get_runtime_context().get_node_id()])
        while True:
            if drain.leaving():
                raise NodeDrained("its node is taken away")
            task = ray.get(broker.next.remote(settings.name, "generate", IDLE_SECONDS))
            if task == "stop":
                return
            if task is not None:
                self._run_one(task, engine, broker)

    def _run_one(self, task: Any, engine: Any, broker: Any) -> None:
        import ray

        from dcr_ray.evaluate.run import run_generate

        name = self.settings.name
        evaluation = self.settings.evaluation
        if task.job.steering_dir is not None and evaluation.engine != "transformers":
            # Its hidden states are steered as it answers, which vLLM gives no place for.
            evaluation = evaluation.model_copy(update={"engine": "transformers"})
            engine = self._open(evaluation)

        def report(values: dict[str, Any]) -> None:
            broker.progress.remote(name, task.key, values)

        try:
            task.begin()
            results = run_generate(task.job, engine, report)
        except StageFailed as failure:
            ray.get(broker.failed.remote(name, task.key, failure.kind, failure.reason))
        except StaleWeights:
            ray.get(broker.lost.remote(name))
            raise
        except Exception as error:
            ray.get(broker.failed.remote(name, task.key, "error", f"{type(error).__name__}: {error}"[:2000]))
            raise
        else:
            withdraw_one(task.job.checkpoint_dir)
            ran = {"worker": name, "engine": evaluation.engine, "threads": self.settings.threads}
            ray.get(broker.done.remote(name, task.commit(results, ran)))

    def _open(self, evaluation: EvaluationSpec | None = None) -> Any:
        from dcr_ray.evaluate.run import open_engine

        settings = self.settings
        return open_engine(
            evaluation or settings.evaluation,
            local_model(settings.model, settings.model_dir, settings.model_identity),
            threads=settings.threads,
            kv_cache_bytes=settings.kv_cache_bytes,
            tensor_parallel=settings.tensor_parallel,
            untied=settings.untied,
        )
