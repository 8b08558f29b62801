"""A simulated crew: stages answered from a formula, for searches whose own cost or course is what is looked at.

The rest is real: the broker, the records in the cache, the judge over answers that are written to disk, Tune, Optuna.
Nothing is trained and no model is read.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any, get_args

from dcr_ray.data.examples import Pair, Prompt
from dcr_ray.data.of_study import StudyData
from dcr_ray.errors import StageFailed
from dcr_ray.evaluate.run import GENERATIONS_FILE
from dcr_ray.models import ModelCard
from dcr_ray.shape import Shape
from dcr_ray.stages import Place, StageTask, StudyInputs
from dcr_ray.study import StudySpec

CARD_CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "num_hidden_layers": 4,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "vocab_size": 256,
    "tie_word_embeddings": True,
    "max_position_embeddings": 512,
    "head_dim": 32,
}

DIVERGES_ABOVE = 9e-4
"""A DCR strength above this one diverges."""


def simulated_data(count: int = 10) -> StudyData:
    """`count` made-up prompts or pairs in every field."""

    def prompts(name: str) -> tuple[Prompt, ...]:
        return tuple(Prompt(f"{name}-{i}", f"{name} question {i}?", "kind", f"{name}-{i}", name) for i in range(count))

    def pairs(name: str) -> tuple[Pair, ...]:
        return tuple(
            Pair(f"{name}-{i}", f"{name} question {i}?", f"Answer {i}.", "kind", f"{name}-{i}", name)
            for i in range(count)
        )

    return StudyData(
        prompts("st"),
        prompts("tx"),
        pairs("general"),
        pairs("safety"),
        prompts("held-st"),
        prompts("held-tx"),
        pairs("held"),
        held_out_seemingly_toxic=prompts("held-st"),
        held_out_toxic=prompts("held-tx"),
    )


def simulated_inputs(spec: StudySpec, folder: Path) -> StudyInputs:
    """What the stages of a simulated study read; its cache lies in `folder`."""
    return StudyInputs(
        spec.study,
        "no-model",
        "identity",
        ModelCard.from_config(CARD_CONFIG, "simulated"),
        simulated_data(),
        spec.evaluation,
        Shape(),
        str(folder / "cache"),
    )


def run_simulated(task: StageTask) -> dict[str, Any]:
    """The results of a training or generate stage, and its files.

    Compliance peaks at middle depth. Raises StageFailed for a strength above `DIVERGES_ABOVE`.
    """
    task.begin()
    work = Path(task.job.output_dir)
    metrics: dict[str, float] = {}
    if task.stage == "dcr":
        if task.job.recipe.strength > DIVERGES_ABOVE:
            raise StageFailed("diverged", "the loss is not finite at step 3")
        metrics["held_out_margin"] = 1 - abs(task.job.recipe.layer_depth - 0.5)
        (work / "depth").write_text(str(task.job.recipe.layer_depth))
    elif task.stage == "diagnose":
        metrics["separability.auroc"] = 0.5 + float(Path(task.job.checkpoint_dir, "depth").read_text()) / 2
    elif task.stage == "edit":
        (work / "depth").write_text(Path(task.job.checkpoint_dir, "depth").read_text())
    elif task.stage == "sft":
        depth = Path(task.job.trunk_dir, "depth").read_text() if task.job.trunk_dir else "0"
        (work / "depth").write_text(depth)
    else:
        depth = float(Path(task.job.checkpoint_dir, "depth").read_text())
        complied = round(10 * (1 - abs(depth - 0.5)))
        metrics["perplexity"] = 10 + depth
        with open(work / GENERATIONS_FILE, "w") as file:
            for name, prompts in task.job.prompts.items():
                for index, prompt in enumerate(prompts):
                    helpful = name == "compliance" and index < complied
                    text = (
                        "Here is a plain and helpful answer to that."
                        if helpful
                        else "I'm sorry, but I can't help with that."
                    )
                    row = {"set": name, "id": prompt.id, "source": prompt.source, "text": text, "token_count": 9}
                    file.write(
                        json.dumps(row | {"finish_reason": "stop", "first_token_refusal_probability": 0.1}) + "\n"
                    )
    return {"metrics": metrics, "seconds": {"total": 0.01}}


class SimulatedWorker:
    """A Ray actor in the place of a group or an engine; each stage takes `stage_seconds` and its files."""

    def __init__(self, stage_seconds: float = 0.02):
        self._stage_seconds = stage_seconds

    def serve(self, broker_name: str, namespace: str, place: Place, name: str) -> int:
        """Run stages until the broker says stop. Returns how many."""
        import ray

        broker = ray.get_actor(broker_name, namespace=namespace)
        served = 0
        while True:
            task = ray.get(broker.next.remote(name, place, 5.0))
            if task == "stop":
                return served
            if task is None:
                continue
            served += 1
            started = time.monotonic()
            time.sleep(self._stage_seconds)
            try:
                results = run_simulated(task)
                part = "forward_backward" if place == "train" else "decode"
                results["seconds"] = {part: self._stage_seconds, "total": time.monotonic() - started}
                record = task.commit(results, {"worker": name})
            except StageFailed as failure:
                ray.get(broker.failed.remote(name, task.key, failure.kind, failure.reason))
            else:
                ray.get(broker.done.remote(name, record))


class SimulatedCrew:
    """In the place of a `Crew`: a real broker, and simulated workers that answer in no time. Needs a running Ray."""

    gone: str | None = None

    def __init__(self, inputs: StudyInputs, resources: Any, namespace: str, *_: Any):
        self.namespace = namespace
        self.broker_name = f"broker-{inputs.study}"

    def __enter__(self) -> SimulatedCrew:
        import ray

        from dcr_ray.pools.broker import Broker

        place = {"namespace": self.namespace, "num_cpus": 0}
        self.broker = ray.remote(Broker).options(name=self.broker_name, max_concurrency=10_000, **place).remote()
        ray.get(self.broker.events.remote())
        self._workers = {kind: ray.remote(SimulatedWorker).options(**place).remote(0.0) for kind in get_args(Place)[:2]}
        self._serving = [
            worker.serve.remote(self.broker_name, self.namespace, kind, kind) for kind, worker in self._workers.items()
        ]
        return self

    def __exit__(self, *_: object) -> None:
        import ray

        ray.get(self.broker.close.remote("the study has ended"))
        ray.wait(self._serving, num_returns=len(self._serving), timeout=20)
        for actor in (*self._workers.values(), self.broker):
            ray.kill(actor)

    def watch(self) -> list[str]:
        return []

    def news(self) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        import ray

        return ray.get([self.broker.events.remote(), self.broker.under_way.remote()], timeout=30)

    def group_lines(self) -> list[str]:
        return ["simulated"]

    def engine_lines(self) -> list[str]:
        return ["simulated"]
