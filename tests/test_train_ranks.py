"""Two ranks with ZeRO-2 and ZeRO-3 over gloo against one rank with ZeRO-0: the same losses and weights."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from dcr_ray.errors import StageFailed
from dcr_ray.models import ModelCard
from dcr_ray.recipe import LoraRecipe
from dcr_ray.shape import Shape
from dcr_ray.train import divided
from dcr_ray.train.dcr import run_dcr
from dcr_ray.train.jobs import DcrJob, SftJob, StageStopped
from dcr_ray.train.run import run_training_stage
from dcr_ray.train.sft import run_sft
from dcr_ray.train.watch import Watch
from tests.train_models import GENERAL, SEEMINGLY_TOXIC, TOXIC, broken_model, dcr_job, sft_job, tiny_model

CUT_BY_TWO = (("dcr", 2), ("sft", 3), ("lora", 3))
CUT_BY_ONE = (("sft", 2), ("dcr", 3))
RUNS = (("dcr", 2), ("dcr", 3), ("dcr-kept", 3), ("sft", 3), ("lora", 3))

KEPT = {"general_share": 0.4, "retention": 0.5, "negatives": "same_source", "early_stop": "held_out_margin",
        "early_stop_every": 2, "early_stop_patience": 1}  # fmt: skip


def shape(zero_stage: int) -> Shape:
    return Shape(zero_stage=zero_stage, precision="fp32", micro_batch_size=2 if zero_stage == 3 else None)


def jobs(model_dir: str, folder: Path, zero_stage: int) -> dict:
    # Neither 7 nor 5 divides by two ranks, so there are fillers.
    return {
        "dcr": dcr_job(model_dir, folder / "dcr", shape(zero_stage), batch_size=7),
        "dcr-kept": with_general_prompts(dcr_job(model_dir, folder / "dcr-kept", shape(zero_stage), **KEPT)),
        "sft": sft_job(model_dir, folder / "sft", shape(zero_stage), safety_share=0.3),
        "lora": sft_job(model_dir, folder / "lora", shape(zero_stage), lora=LoraRecipe(rank=2), learning_rate=1e-2),
    }


def with_general_prompts(job: DcrJob) -> DcrJob:
    sources = {"seemingly_toxic": ("a", "b") * 6, "toxic": ("b", "a") * 10, "general": ("c",) * 5}
    watch = Watch({"toxic": TOXIC[:2], "seemingly_toxic": SEEMINGLY_TOXIC[:2]}, 2, 0, 1, ("all",), 2, None)
    return replace(job, general=tuple(prompt for prompt, _ in GENERAL[:5]), sources=sources, watch=watch)


def stop_after_one_step(job: DcrJob | SftJob) -> None:
    """Leave a checkpoint and nothing else."""
    with pytest.raises(StageStopped):
        (run_dcr if isinstance(job, DcrJob) else run_sft)(job, should_stop=lambda: True)


def elements_read(job: DcrJob) -> int:
    """Elements of the base model's files that this rank reads for its part of a stage under ZeRO-3."""
    read, original = [], divided.flat_run

    def counting(piece, begin: int, end: int) -> torch.Tensor:
        run = original(piece, begin, end)
        read.append(run.numel())
        return run

    divided.flat_run = counting
    try:
        run_training_stage(job)
    finally:
        divided.flat_run = original
    return sum(read)


def rank_main(rank: int, model_dir: str, folder: Path) -> None:
    """What each of the two ranks does: all jobs in one process, one after another, and one that diverges."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    results = {}
    for name, zero_stage in RUNS:
        job = jobs(model_dir, folder / f"zero{zero_stage}", zero_stage)[name]
        results[f"{name}-zero{zero_stage}"] = run_training_stage(job)
    bad = sft_job(str(folder / "broken" / "model"), folder / "bad", shape(2))
    try:
        run_training_stage(bad)
    except StageFailed as failure:
        results["bad"] = failure.kind
    for name, zero_stage in CUT_BY_TWO:
        stop_after_one_step(jobs(model_dir, folder / f"cut-by-two-{zero_stage}", zero_stage)[name])
    for name, zero_stage in CUT_BY_ONE:
        job = jobs(model_dir, folder / f"cut-by-one-{zero_stage}", zero_stage)[name]
        results[f"{name}-ended-by-two-{zero_stage}"] = run_training_stage(job)
    results["read"] = elements_read(jobs(model_dir, folder / "counted", 3)["dcr"])
    again = jobs(model_dir, folder / "again", 2)["dcr"]
    results["again"] = run_training_stage(again)
    (folder / f"rank{rank}.json").write_text(json.dumps(results))
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> tuple[Path, dict, dict]:
    """The folder, the results of one rank by job, and those of rank 0 and 1 of two."""
    folder = tmp_path_factory.mktemp("ranks")
    model_dir = tiny_model(folder)
    broken_model(folder)
    alone = {name: run_training_stage(job) for name, job in jobs(model_dir, folder / "alone", 0).items()}
    for name, zero_stage in CUT_BY_ONE:
        stop_after_one_step(jobs(model_dir, folder / f"cut-by-one-{zero_stage}", 0)[name])
    torch.multiprocessing.spawn(rank_main, (model_dir, folder), nprocs=2)
    return folder, alone, [json.loads((folder / f"rank{rank}.json").read_text()) for rank in (0, 1)]


@pytest.mark.parametrize(("name", "zero_stage"), RUNS)
def test_two_ranks_compute_what_one_does(name, zero_stage, runs):
    folder, alone, ranks = runs
    results = ranks[0][f"{name}-zero{zero_stage}"]
    assert_same(results, folder / f"zero{zero_stage}", name, runs)


def assert_same(results: dict, into: Path, name: str, runs: tuple[Path, dict, dict]) -> None:
    """As one undisturbed rank computed it."""
    folder, alone, _ = runs
    assert results["losses"] == pytest.approx(alone[name]["losses"], rel=1e-5)
    assert results["metrics"] == pytest.approx(alone[name]["metrics"], rel=1e-3, abs=1e-4)
    file = "trunk.safetensors" if name.startswith("dcr") else "model.safetensors"
    expected, weights = load_file(folder / "alone" / name / file), load_file(into / name / file)
    assert weights.keys() == expected.keys()
    for one, other in zip(results.get("dynamics", ()), alone[name].get("dynamics", ()), strict=True):
        assert one["step"] == other["step"]
        assert one["refusal"]["toxic"]["mean"] == pytest.approx(other["refusal"]["toxic"]["mean"], rel=1e-3)
    for key in expected:
        torch.testing.assert_close(weights[key], expected[key], rtol=1e-3, atol=5e-5)


@pytest.mark.parametrize(("name", "zero_stage"), CUT_BY_TWO)
def test_one_rank_goes_on_from_what_two_have_left(name, zero_stage, runs):
    folder = runs[0] / f"cut-by-two-{zero_stage}"
    assert not list((folder / name).glob("*.safetensors"))
    results = run_training_stage(jobs(str(runs[0] / "model"), folder, 0)[name])
    assert_same(results, folder, name, runs)


@pytest.mark.parametrize(("name", "zero_stage"), CUT_BY_ONE)
def test_two_ranks_go_on_from_what_one_has_left(name, zero_stage, runs):
    assert_same(runs[2][0][f"{name}-ended-by-two-{zero_stage}"], runs[0] / f"cut-by-one-{zero_stage}", name, runs)


def test_a_rank_under_zero_3_reads_its_part_of_the_model_and_no_more(runs):
    model = load_file(runs[0] / "model" / "model.safetensors")
    card = ModelCard.from_folder(runs[0] / "model")
    layer = jobs(str(runs[0] / "model"), runs[0], 3)["dcr"].recipe.layer(card.layers)
    trunk = sum(
        tensor.numel()
        for name, tensor in model.items()
        if "embed_tokens" in name or any(f"layers.{index}." in name for index in range(layer))
    )
    first, second = (rank["read"] for rank in runs[2])
    assert first + second == trunk and abs(first - second) < 0.01 * trunk


def test_every_rank_returns_the_same_results(runs):
    for name in ("dcr-zero2", "sft-zero3", "lora-zero3"):
        first, second = (rank[name] for rank in runs[2])
        for figure in ("losses", "steps", "tokens", "metrics"):
            assert first[figure] == second[figure]


def test_divergence_is_raised_on_all_ranks_and_the_group_takes_the_next_stage(runs):
    folder, _, ranks = runs
    assert [rank["bad"] for rank in ranks] == ["diverged", "diverged"]
    assert list((folder / "bad").iterdir()) == []
    assert [rank["again"]["losses"] == rank["dcr-zero2"]["losses"] for rank in ranks] == [True, True]
