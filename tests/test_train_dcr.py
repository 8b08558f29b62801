"""The dcr stage on tiny models: the trunk is the model cut off, and how it runs never changes what it computes."""

from __future__ import annotations

import gc
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from dcr_ray.data.chat import prompt_ids
from dcr_ray.errors import InputError, StageFailed
from dcr_ray.recipe import ContrastiveRecipe
from dcr_ray.shape import Shape
from dcr_ray.train.dcr import run_dcr
from dcr_ray.train.engine import memory_failures
from dcr_ray.train.jobs import StageStopped
from dcr_ray.train.loading import load_trunk
from dcr_ray.train.losses import contrastive_loss
from dcr_ray.train.packing import pack, shared_prefix
from dcr_ray.train.precision import resolved_precision
from dcr_ray.train.trunk import PooledStates
from dcr_ray.train.world import World
from tests.train_models import SEEMINGLY_TOXIC, SYSTEM_PROMPT, TOXIC, broken_model, dcr_job, tiny_model


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory) -> str:
    return tiny_model(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def plain_run(model_dir, tmp_path_factory) -> tuple[dict, dict]:
    """Results and weights of the job that the others are compared with: one rank, ZeRO 0, whole batches."""
    job = dcr_job(model_dir, tmp_path_factory.mktemp("plain"))
    return run_dcr(job), load_file(Path(job.output_dir, "trunk.safetensors"))


def assert_same_run(results: dict, output_dir: str, plain_run: tuple[dict, dict]) -> None:
    assert results["losses"] == pytest.approx(plain_run[0]["losses"], rel=1e-5)
    weights = load_file(Path(output_dir, "trunk.safetensors"))
    assert weights.keys() == plain_run[1].keys()
    for name, expected in plain_run[1].items():
        torch.testing.assert_close(weights[name], expected, rtol=1e-3, atol=2e-5)


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma2", "gemma3"])
@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_the_trunks_states_and_gradients_are_those_of_the_whole_model(family, pooling, tmp_path):
    folder = tiny_model(tmp_path, family=family, layers=4)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    rows = [prompt_ids(tokenizer, text, None) for text in (*SEEMINGLY_TOXIC[:3], *TOXIC[:3])]
    is_toxic = torch.tensor([False] * 3 + [True] * 3)
    recipe = ContrastiveRecipe(pooling=pooling)

    trunk = load_trunk(folder, 2, torch.float32)
    states = PooledStates(trunk, pooling, "fp32")([pack(rows, 0, torch.device("cpu"))])
    contrastive_loss(states, is_toxic, recipe).backward()

    whole = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    expected = []
    for row in rows:
        state = whole(torch.tensor([row]), output_hidden_states=True).hidden_states[2][0]
        expected.append(state[-1] if pooling == "last" else state.mean(0))
    expected = torch.stack(expected)
    contrastive_loss(expected, is_toxic, recipe).backward()

    torch.testing.assert_close(states, expected, rtol=1e-4, atol=1e-4)
    gradients = {name: p.grad for name, p in whole.named_parameters()}
    trained = {f"model.{name}": p.grad for name, p in trunk.named_parameters() if p.requires_grad}
    assert trained and not any("embed" in name for name in trained)
    assert all(f"layers.{i}." in " ".join(trained) for i in (0, 1))
    for name, gradient in trained.items():
        scale = gradients[name].abs().max().item()
        torch.testing.assert_close(gradient, gradients[name], rtol=1e-3, atol=1e-4 * max(scale, 1e-3))
    assert all(g is None or not g.any() for n, g in gradients.items() if "layers.2." in n or "layers.3." in n)


@pytest.mark.parametrize(("family", "window"), [("llama", None), ("gemma2", None), ("gemma3", 20), ("mistral", 20)])
@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_a_prefix_computed_once_gives_the_same_states_and_gradients(family, window, pooling, tmp_path):
    folder = tiny_model(tmp_path, family=family)
    if window:
        config = json.loads(Path(folder, "config.json").read_text())
        Path(folder, "config.json").write_text(json.dumps(config | {"sliding_window": window}))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    rows = [prompt_ids(tokenizer, text, SYSTEM_PROMPT) for text in (*SEEMINGLY_TOXIC[:3], *TOXIC[:3])]
    prefix = shared_prefix(rows, 1000)
    assert prefix > 20
    results = []
    for shared in (0, prefix):
        trunk = load_trunk(folder, 3, torch.float32)
        states = PooledStates(trunk, pooling, "fp32")([pack(rows, shared, torch.device("cpu"))])
        is_toxic = torch.tensor([False] * 3 + [True] * 3)
        contrastive_loss(states, is_toxic, ContrastiveRecipe(pooling=pooling)).backward()
        results.append((states, {name: p.grad for name, p in trunk.named_parameters() if p.requires_grad}))
    torch.testing.assert_close(*(states for states, _ in results), rtol=1e-4, atol=1e-4)
    for name, gradient in results[0][1].items():
        torch.testing.assert_close(results[1][1][name], gradient, rtol=1e-3, atol=1e-4 * gradient.abs().max().item())


def test_the_stage_lowers_its_loss_and_separates_held_out_prompts(plain_run):
    results = plain_run[0]
    assert results["losses"][-1] < 0.5 * results["losses"][0]
    assert results["steps"] == len(results["losses"]) == 6
    metrics = results["metrics"]
    assert metrics["held_out_margin"] > metrics["base_held_out_margin"]
    assert 0 <= metrics["base_held_out_auroc"] <= 1
    assert results["tokens"] > 0
    assert results["seconds"]["total"] >= results["seconds"]["forward_backward"] > 0


def test_the_output_holds_the_trained_tensors_under_their_full_names_and_nothing_else(model_dir, plain_run, tmp_path):
    weights = plain_run[1]
    base = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32).state_dict()
    layers = {name for name in base if name.startswith(("model.layers.0.", "model.layers.1."))}
    assert weights.keys() == layers
    assert all(not torch.equal(weights[name], base[name]) for name in layers)
    job = dcr_job(model_dir, tmp_path, epochs=0.1)
    run_dcr(job)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["trunk.json", "trunk.safetensors"]
    assert json.loads((tmp_path / "trunk.json").read_text()) == {"layer": 2, "layers": 4}


@pytest.mark.parametrize(
    "shape",
    [
        Shape(precision="fp32", micro_batch_size=3),
        Shape(precision="fp32", zero_stage=1, micro_batch_size=1),
        Shape(precision="fp32", zero_stage=2),
        Shape(precision="fp32", zero_stage=3, micro_batch_size=3, activation_checkpointing=True),
    ],
    ids=["chunks", "zero1", "zero2", "zero3"],
)
def test_chunks_and_zero_stages_change_nothing(shape, model_dir, plain_run, tmp_path):
    job = dcr_job(model_dir, tmp_path, shape)
    assert_same_run(run_dcr(job), job.output_dir, plain_run)


@pytest.mark.parametrize("zero_stage", [0, 2, 3])
def test_bf16_stays_near_fp32_and_keeps_fp32_weights(zero_stage, model_dir, plain_run, tmp_path):
    job = dcr_job(model_dir, tmp_path, Shape(precision="bf16", zero_stage=zero_stage))
    assert run_dcr(job)["losses"][0] == pytest.approx(plain_run[0]["losses"][0], rel=2e-2)
    weights = load_file(tmp_path / "trunk.safetensors")
    assert all(tensor.dtype == torch.float32 for tensor in weights.values())
    assert any(not torch.equal(tensor, tensor.bfloat16().float()) for tensor in weights.values())


@pytest.mark.parametrize("zero_stage", [0, 3])
def test_mixed_precision_stays_near_fp32_and_trains_fp32_weights(zero_stage, model_dir, plain_run, tmp_path):
    job = dcr_job(model_dir, tmp_path, Shape(precision="mixed", zero_stage=zero_stage))
    results = run_dcr(job)
    assert results["losses"] == pytest.approx(plain_run[0]["losses"], rel=5e-2)
    assert results["losses"] != pytest.approx(plain_run[0]["losses"], rel=1e-5)
    weights = load_file(tmp_path / "trunk.safetensors")
    assert any(not torch.equal(tensor, tensor.bfloat16().float()) for tensor in weights.values())


def test_a_killed_stage_goes_on_from_its_checkpoint_and_ends_the_same(model_dir, plain_run, tmp_path, monkeypatch):
    monkeypatch.setattr("dcr_ray.train.loop.REPORT_SECONDS", 0.0)
    job = dcr_job(model_dir, tmp_path, Shape(precision="fp32", checkpoint_seconds=1e-9))
    seen: list[int] = []

    def die_at_step_2(values: dict) -> None:
        seen.append(values["step"])
        if seen == [1, 2]:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_dcr(job, report=die_at_step_2)
    assert [p.name for p in tmp_path.iterdir()] == ["resume"]
    results = run_dcr(job, report=die_at_step_2)
    assert seen == [1, 2, 2, 3, 4, 5, 6]
    assert_same_run(results, job.output_dir, plain_run)
    assert not (tmp_path / "resume").exists()


def test_a_stage_that_is_asked_to_stop_saves_first(model_dir, plain_run, tmp_path):
    job = dcr_job(model_dir, tmp_path, Shape(precision="fp32", zero_stage=2))
    with pytest.raises(StageStopped, match="step 1 of 6"):
        run_dcr(job, should_stop=lambda: True)
    assert_same_run(run_dcr(job), job.output_dir, plain_run)


def test_a_checkpoint_of_another_job_is_not_taken(model_dir, plain_run, tmp_path):
    job = dcr_job(model_dir, tmp_path)
    with pytest.raises(StageStopped):
        run_dcr(replace(job, seed=7), should_stop=lambda: True)
    assert_same_run(run_dcr(job), job.output_dir, plain_run)


@pytest.mark.parametrize("zero_stage", [0, 3])
def test_a_stage_whose_loss_diverges_fails_with_that_reason_and_writes_nothing(zero_stage, tmp_path):
    job = dcr_job(broken_model(tmp_path), tmp_path / "out", Shape(precision="fp32", zero_stage=zero_stage))
    with pytest.raises(StageFailed) as failure:
        run_dcr(job)
    assert failure.value.kind == "diverged" and "loss is nan" in failure.value.reason
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("zero_stage", [0, 1, 2, 3])
def test_a_gradient_that_is_not_finite_under_a_finite_loss_is_divergence_too(
    zero_stage, precision, model_dir, tmp_path, monkeypatch
):
    # The square root of 0 is finite and its slope is not.
    monkeypatch.setattr("dcr_ray.train.dcr.contrastive_loss", lambda states, *_: (states * 0).sum().sqrt())
    with pytest.raises(StageFailed) as failure:
        run_dcr(dcr_job(model_dir, tmp_path, Shape(precision=precision, zero_stage=zero_stage)))
    assert failure.value.kind == "diverged" and "gradient" in failure.value.reason
    assert list(tmp_path.iterdir()) == []


def test_a_class_of_one_prompt_is_refused(model_dir, tmp_path):
    with pytest.raises(InputError, match="toxic training prompts: found 1"):
        run_dcr(replace(dcr_job(model_dir, tmp_path), toxic=TOXIC[:1]))


def test_running_out_of_memory_is_a_failure_of_the_stage_with_the_numbers():
    with pytest.raises(StageFailed, match="rank 0 of 1.*4000000000000000 bytes") as failure:
        with memory_failures(World(0, 1, torch.device("cpu"))):
            torch.empty(10**15)
    assert failure.value.kind == "out_of_memory"
    with pytest.raises(RuntimeError, match="shape"):
        with memory_failures(World(0, 1, torch.device("cpu"))):
            raise RuntimeError("some shape is wrong")


def test_auto_precision_is_fp32_on_a_cpu():
    assert resolved_precision("auto", torch.device("cpu")) == "fp32"
    assert resolved_precision("bf16", torch.device("cpu")) == "bf16"


@pytest.mark.parametrize("zero_stage", [0, 2, 3])
def test_a_finished_stage_leaves_no_weights_in_memory(zero_stage, model_dir, tmp_path):
    def tensor_bytes() -> int:
        gc.collect()
        # Fake tensors, which vLLM leaves behind in a process, have a type of their own and no memory.
        tensors = [item for item in gc.get_objects() if type(item) in (torch.Tensor, torch.nn.Parameter)]
        return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values())

    # The first stage of a process leaves the base model in memory, on purpose.
    run_dcr(dcr_job(model_dir, tmp_path / "first", Shape(precision="fp32", zero_stage=zero_stage)))
    before = tensor_bytes()
    run_dcr(dcr_job(model_dir, tmp_path / "second", Shape(precision="fp32", zero_stage=zero_stage)))
    model_bytes = Path(model_dir, "model.safetensors").stat().st_size
    assert tensor_bytes() - before < 0.02 * model_bytes


GENERAL = tuple(f"How do I write {i} programs that read a file?" for i in range(9))


def test_retention_keeps_general_prompts_nearer_to_the_base_model(model_dir, tmp_path):
    changes = {}
    for weight in (1e-6, 3.0):
        job = dcr_job(model_dir, tmp_path / str(weight), general_share=0.5, retention=weight)
        changes[weight] = run_dcr(replace(job, general=GENERAL))["metrics"]["general_state_change"]
    assert 0 < changes[3.0] < 0.7 * changes[1e-6]


def test_chunks_change_nothing_with_general_prompts_and_sources(model_dir, tmp_path):
    values = {"general_share": 0.5, "general_as": "own_class", "retention": 0.1, "negatives": "same_source"}
    losses = []
    for shape in (Shape(precision="fp32"), Shape(precision="fp32", micro_batch_size=3)):
        job = dcr_job(model_dir, tmp_path / str(shape.micro_batch_size), shape, **values)
        halves = {"seemingly_toxic": ("a", "b") * 6, "toxic": ("b", "c") * 10, "general": ("g",) * 9}
        losses.append(run_dcr(replace(job, general=GENERAL, sources=halves))["losses"])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_a_stage_ends_early_when_held_out_separation_stands_still_and_says_so(model_dir, tmp_path):
    values = {"epochs": 20, "early_stop": "held_out_auroc", "early_stop_every": 2, "early_stop_patience": 2}
    results = run_dcr(dcr_job(model_dir, tmp_path, **values))
    assert results["steps"] < 60 and results["steps"] % 2 == 0
    assert results["metrics"]["early_stop_step"] == results["steps"] == len(results["losses"])
    looks = [float(look) for look in results["notes"][-1].rpartition("held_out_auroc ")[2].split(", ")]
    assert looks[-3] == max(looks) and looks.index(max(looks)) == len(looks) - 3


def test_what_the_options_need_is_said_at_once(model_dir, tmp_path):
    job = dcr_job(model_dir, tmp_path, general_share=0.5, negatives="same_source", early_stop="held_out_auroc")
    with pytest.raises(InputError) as caught:
        run_dcr(replace(job, held_out_toxic=()))
    assert len(caught.value.problems) == 3
    assert {p.where for p in caught.value.problems} == {
        "general prompts", "negatives: same_source", "early_stop: held_out_auroc"
    }  # fmt: skip
