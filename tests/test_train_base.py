"""What a process keeps between stages, base weights, tokens, states below frozen layers: none changes a result."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from dcr_ray.recipe import ContrastiveRecipe, LoraRecipe
from dcr_ray.shape import Shape
from dcr_ray.train import base, dcr, frozen, tokens
from dcr_ray.train.base import fresh_causal_model, fresh_trunk, kept_model, model_of
from dcr_ray.train.dcr import run_dcr
from dcr_ray.train.loading import load_trunk
from dcr_ray.train.sft import run_sft
from tests.train_models import dcr_job, sft_job, tiny_model

CPU = torch.device("cpu")
FP32 = torch.float32


@pytest.fixture(autouse=True)
def nothing_kept():
    """Every test begins as a fresh process does."""
    for kept in (base._kept, frozen._kept, dcr._base_known):
        kept.clear()


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory) -> str:
    return tiny_model(tmp_path_factory.mktemp("models"))


def parameters(model) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("family", ["llama", "gemma3", "qwen2"])
@pytest.mark.parametrize("layer", [1, 3])
def test_a_trunk_from_memory_is_the_one_from_disk(family, layer, tmp_path):
    folder = tiny_model(tmp_path, family=family)
    ours, theirs = fresh_trunk(folder, layer, FP32, CPU), load_trunk(folder, layer, FP32)
    assert ours.config.to_dict() == theirs.config.to_dict()
    expected = dict(theirs.named_parameters())
    found = dict(ours.named_parameters())
    assert found.keys() == expected.keys()
    for name, parameter in found.items():
        assert torch.equal(parameter, expected[name]) and parameter.requires_grad == expected[name].requires_grad
    for name, buffer in theirs.named_buffers():
        assert torch.equal(buffer, ours.get_buffer(name))


def test_stages_leave_the_kept_model_as_it_was(model_dir, tmp_path):
    before = parameters(kept_model(model_dir, FP32, CPU))
    run_dcr(dcr_job(model_dir, tmp_path / "dcr"))
    trunk = str(tmp_path / "dcr")
    run_sft(sft_job(model_dir, tmp_path / "full", trunk_dir=trunk))
    run_sft(sft_job(model_dir, tmp_path / "lora", trunk_dir=trunk, lora=LoraRecipe(rank=2), learning_rate=1e-2))
    after = dict(kept_model(model_dir, FP32, CPU).named_parameters())
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


def test_under_adapters_only_written_tensors_are_copied(model_dir):
    kept = dict(kept_model(model_dir, FP32, CPU).named_parameters())
    written = "model.layers.0.mlp.up_proj.weight"
    fresh = dict(fresh_causal_model(model_dir, FP32, CPU, {written}).named_parameters())
    own = {name for name in kept if fresh[name].data_ptr() != kept[name].data_ptr()}
    assert own == {written}
    assert fresh["model.embed_tokens.weight"] is not kept["model.embed_tokens.weight"]


def test_a_base_that_changes_on_disk_is_read_again(tmp_path):
    folder = tiny_model(tmp_path)
    first = parameters(fresh_causal_model(folder, FP32, CPU, ()))
    weights = load_file(f"{folder}/model.safetensors")
    save_file({name: tensor + 1 for name, tensor in weights.items()}, f"{folder}/model.safetensors")
    second = parameters(fresh_causal_model(folder, FP32, CPU, ()))
    name = "model.layers.0.mlp.up_proj.weight"
    torch.testing.assert_close(second[name], first[name] + 1)


def test_a_model_too_large_for_the_host_is_not_kept_and_trains_the_same(model_dir, tmp_path, monkeypatch):
    kept = run_dcr(dcr_job(model_dir, tmp_path / "kept"))["losses"]
    base._kept.clear()
    monkeypatch.setattr(base, "KEPT_SHARE", 0.0)
    assert kept_model(model_dir, FP32, CPU) is None
    assert run_dcr(dcr_job(model_dir, tmp_path / "read"))["losses"] == kept
    losses = run_sft(sft_job(model_dir, tmp_path / "sft"))["losses"]
    monkeypatch.undo()
    assert run_sft(sft_job(model_dir, tmp_path / "again"))["losses"] == losses


@pytest.mark.parametrize("kept", [True, False])
def test_a_plain_model_from_tensors_gives_transformers_own_logits(kept, model_dir, tmp_path):
    run_sft(sft_job(model_dir, tmp_path / "out"))
    if not kept:
        base._kept.clear()
    model = model_of(model_dir, load_file(tmp_path / "out" / "model.safetensors"), FP32, CPU)
    ids = torch.arange(5, 25)[None]
    expected = AutoModelForCausalLM.from_pretrained(tmp_path / "out")(ids).logits
    torch.testing.assert_close(model(ids).logits, expected)


def test_texts_are_tokenised_once(model_dir):
    before = tokens._prompt_tokens.cache_info().misses
    one = tokens.prompt_tokens(model_dir, ("How?", "Why?"), None)
    assert tokens.prompt_tokens(model_dir, ("How?", "Why?"), None) is one
    assert tokens.prompt_tokens(model_dir, ("How?", "Why?"), "Be brief.") != one
    assert tokens._prompt_tokens.cache_info().misses == before + 2


def test_base_figures_are_computed_once_for_all_depths(model_dir, tmp_path, monkeypatch):
    fresh = {}
    for depth in (0.75, 0.25):
        dcr._base_known.clear()
        fresh[depth] = run_dcr(dcr_job(model_dir, tmp_path / f"fresh{depth}", layer_depth=depth))["metrics"]
    dcr._base_known.clear()
    measured = []
    states = dcr._Step.states

    def count(self, rows, layers=None):
        measured.append(layers)
        return states(self, rows, layers)

    monkeypatch.setattr(dcr._Step, "states", count)
    for depth in (0.75, 0.25):
        metrics = run_dcr(dcr_job(model_dir, tmp_path / f"kept{depth}", layer_depth=depth))["metrics"]
        assert metrics == pytest.approx(fresh[depth], rel=1e-4, abs=1e-6)
    # At depth .75 all three layers at once and then the trained ones; at .25 only the trained one.
    assert measured == [3, None, None]


@pytest.mark.parametrize("pooling", ["last", "mean"])
@pytest.mark.parametrize("micro", [None, 3])
def test_states_below_frozen_layers_are_put_in_without_changing_anything(pooling, micro, model_dir, tmp_path):
    recipe = {"layer_depth": 0.75, "frozen_depth": 0.5, "pooling": pooling}
    shape = Shape(precision="fp32", micro_batch_size=micro)
    put_in = run_dcr(dcr_job(model_dir, tmp_path / "put-in", shape, **recipe))
    # ZeRO-3 runs the frozen layers at every step.
    whole = run_dcr(dcr_job(model_dir, tmp_path / "whole", Shape(precision="fp32", zero_stage=3), **recipe))
    assert put_in["losses"] == pytest.approx(whole["losses"], rel=1e-5)
    assert put_in["metrics"] == pytest.approx(whole["metrics"], rel=1e-3, abs=1e-5)
    ours, theirs = (load_file(tmp_path / name / "trunk.safetensors") for name in ("put-in", "whole"))
    assert ours.keys() == theirs.keys() and all(name.startswith("model.layers.2.") for name in ours)
    for name, tensor in theirs.items():
        torch.testing.assert_close(ours[name], tensor, rtol=1e-3, atol=1e-4)


def test_frozen_states_are_kept_for_the_next_trial_within_their_bound(model_dir, tmp_path, monkeypatch):
    recipe = {"layer_depth": 0.75, "frozen_depth": 0.5}
    first = run_dcr(dcr_job(model_dir, tmp_path / "first", **recipe))["losses"]
    [kept] = frozen._kept.values()
    assert len(kept) >= 30
    monkeypatch.setattr(frozen.FrozenLayers, "_run", None)
    assert run_dcr(dcr_job(model_dir, tmp_path / "second", **recipe))["losses"] == first
    monkeypatch.undo()
    frozen._kept.clear()
    monkeypatch.setattr(frozen, "KEPT_BYTES", 10_000)
    assert run_dcr(dcr_job(model_dir, tmp_path / "third", **recipe))["losses"] == pytest.approx(first, rel=1e-5)
    [kept] = frozen._kept.values()
    assert sum(states.numel() * 4 for states in kept.values()) <= 10_000


def test_frozen_layers_leave_at_least_one_to_train():
    recipe = ContrastiveRecipe(layer_depth=0.5, frozen_depth=0.45)
    assert (recipe.layer(4), recipe.frozen_layers(4)) == (2, 1)
    assert ContrastiveRecipe(layer_depth=0.1).frozen_layers(4) == 0
    with pytest.raises(ValueError, match="leaves no layer below layer_depth 0.5"):
        ContrastiveRecipe(layer_depth=0.5, frozen_depth=0.5)


def test_tokens_are_those_of_the_folder_as_it_is_now(tmp_path):
    folder = tiny_model(tmp_path)
    before = tokens.prompt_tokens(folder, ("How?",), None)
    Path(folder, "chat_template.jinja").write_text("{{ messages[-1]['content'] }} :")
    assert tokens.prompt_tokens(folder, ("How?",), None) != before


@pytest.mark.parametrize("lora", [None, LoraRecipe(rank=2, targets=("q_proj", "o_proj"))], ids=["full", "lora"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_stage_tells_which_tensors_differ_from_the_base(lora, precision, model_dir, tmp_path):
    run_dcr(dcr_job(model_dir, tmp_path / "dcr", layer_depth=0.25))
    told = {}
    job = sft_job(model_dir, tmp_path / "sft", Shape(precision=precision), str(tmp_path / "dcr"), lora=lora)
    run_sft(job, leave=lambda changed, write: (told.update(changed), write()))
    written = load_file(tmp_path / "sft" / "model.safetensors")
    before = load_file(Path(model_dir, "model.safetensors"))
    differ = {name for name in written if not torch.equal(written[name].float(), before[name].float())}
    assert differ <= told.keys() and all(torch.equal(told[name], written[name]) for name in told)
    if lora and precision == "fp32":
        adapted = {name for name in written if ".q_proj." in name or ".o_proj." in name}
        assert told.keys() == adapted | load_file(tmp_path / "dcr" / "trunk.safetensors").keys()
