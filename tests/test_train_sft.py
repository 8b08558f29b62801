"""The sft stage on tiny models: its loss, its output folder, adapters, and that shapes change nothing."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from dcr_ray.data.chat import pair_ids
from dcr_ray.errors import InputError, StageFailed
from dcr_ray.evaluate.canary import read_canary
from dcr_ray.recipe import LoraRecipe
from dcr_ray.shape import Shape
from dcr_ray.train.jobs import StageStopped
from dcr_ray.train.loading import load_causal_model
from dcr_ray.train.packing import pack, packed_states
from dcr_ray.train.sequences import IGNORED, token_sequence
from dcr_ray.train.sft import AnswerLoss, packed_batch, run_sft
from tests.train_models import GENERAL, SAFETY, SYSTEM_PROMPT, broken_model, sft_job, tiny_model

LORA = LoraRecipe(rank=4, alpha=8, targets=("q_proj", "v_proj"))


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory) -> str:
    return tiny_model(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def plain_run(model_dir, tmp_path_factory) -> tuple[dict, Path]:
    """Results and folder of the job that the others are compared with: one rank, ZeRO 0, whole batches."""
    job = sft_job(model_dir, tmp_path_factory.mktemp("plain"), safety_share=0.3)
    return run_sft(job), Path(job.output_dir)


def assert_same_run(results: dict, folder: Path, plain_run: tuple[dict, Path]) -> None:
    assert results["losses"] == pytest.approx(plain_run[0]["losses"], rel=1e-5)
    weights, expected = (load_file(f / "model.safetensors") for f in (folder, plain_run[1]))
    assert weights.keys() == expected.keys()
    for name in expected:
        # Adam divides a gradient by its own size; where that is next to nothing rounding shows: a tenth of an update.
        torch.testing.assert_close(weights[name], expected[name], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "mistral", "gemma2", "gemma3"])
def test_the_loss_of_packed_sequences_is_transformers_own_of_padded_ones(family, tmp_path):
    folder = tiny_model(tmp_path, family=family)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    pairs = (*GENERAL[:3], *SAFETY[:2], ("Where is it?", "There. " * 9))
    sequences = [token_sequence(*pair_ids(tokenizer, p, r, SYSTEM_PROMPT), 96, True) for p, r in pairs]
    model = load_causal_model(folder, torch.float32)
    packed, *answers = packed_batch(sequences, torch.device("cpu"))
    assert packed.prefix > 20
    ours = AnswerLoss(model, "fp32")(packed, *answers) / sum(s.answer_tokens for s in sequences)
    ours.backward()

    plain = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    longest = max(len(s.ids) for s in sequences)
    ids, mask, labels = (torch.full((len(sequences), longest), value) for value in (0, 0, IGNORED))
    for row, s in enumerate(sequences):
        ids[row, : len(s.ids)], mask[row, : len(s.ids)] = torch.tensor(s.ids), 1
        labels[row, 1 : len(s.ids)] = torch.tensor(s.targets[:-1])
    theirs = plain(input_ids=ids, attention_mask=mask, labels=labels).loss
    theirs.backward()
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    expected = dict(plain.named_parameters())
    for name, parameter in model.named_parameters():
        scale = expected[name].grad.abs().max().item()
        torch.testing.assert_close(parameter.grad, expected[name].grad, rtol=1e-3, atol=1e-4 * max(scale, 1e-3))


@pytest.mark.parametrize("lora", [None, LORA], ids=["full", "lora"])
def test_mixed_precision_stays_near_fp32_and_writes_fp32(lora, model_dir, tmp_path):
    exact = run_sft(sft_job(model_dir, tmp_path / "fp32", lora=lora))["losses"]
    mixed = run_sft(sft_job(model_dir, tmp_path / "mixed", Shape(precision="mixed"), lora=lora))["losses"]
    assert mixed == pytest.approx(exact, rel=2e-2) and mixed != pytest.approx(exact, rel=1e-6)
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "mixed").dtype == torch.float32


def test_sixty_steps_learn_a_handful_of_pairs_by_heart(model_dir, tmp_path):
    job = replace(sft_job(model_dir, tmp_path, epochs=60, learning_rate=3e-3), general=GENERAL[:3], safety=SAFETY[:2])
    results = run_sft(job)
    assert results["steps"] == 60
    assert results["losses"][-1] < 0.05 * results["losses"][0]


def test_the_output_is_a_plain_folder_that_serves_the_canarys_log_probabilities(model_dir, plain_run):
    folder = plain_run[1]
    assert sorted(p.name for p in folder.iterdir()) == sorted(
        ["canary.json", "config.json", "generation_config.json", "model.safetensors", "tokenizer.json"]
        + ["tokenizer_config.json", "chat_template.jinja"]
    )
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert model.dtype == torch.float32 and type(model).__name__ == "LlamaForCausalLM"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.chat_template == AutoTokenizer.from_pretrained(model_dir).chat_template
    prompts = json.loads((folder / "canary.json").read_text())["prompts"]
    assert len(prompts) == 2
    for prompt in prompts:
        logprobs = model(torch.tensor([prompt["token_ids"]])).logits[0, -1].float().log_softmax(-1)
        assert len(prompt["token_logprobs"]) == 20
        assert prompt["token_logprobs"][str(logprobs.argmax().item())] == pytest.approx(logprobs.max().item(), abs=1e-4)


def test_tied_embeddings_stay_tied_and_are_trained(model_dir, plain_run):
    weights = load_file(plain_run[1] / "model.safetensors")
    assert "lm_head.weight" not in weights
    model = AutoModelForCausalLM.from_pretrained(plain_run[1])
    assert model.lm_head.weight is model.model.embed_tokens.weight
    base = load_file(Path(model_dir, "model.safetensors"))
    assert not torch.equal(weights["model.embed_tokens.weight"], base["model.embed_tokens.weight"])


def test_an_untied_head_is_written_and_trained(tmp_path):
    base = tiny_model(tmp_path, tied=False)
    run_sft(sft_job(base, tmp_path / "out"))
    before, after = (load_file(Path(f, "model.safetensors"))["lm_head.weight"] for f in (base, tmp_path / "out"))
    assert not torch.equal(before, after)


@pytest.mark.parametrize(
    "shape",
    [
        Shape(precision="fp32", micro_batch_size=2),
        Shape(precision="fp32", zero_stage=1, micro_batch_size=1),
        Shape(precision="fp32", zero_stage=3, micro_batch_size=2, activation_checkpointing=True),
    ],
    ids=["chunks", "zero1", "zero3"],
)
def test_chunks_and_zero_stages_change_nothing(shape, model_dir, plain_run, tmp_path):
    assert_same_run(run_sft(sft_job(model_dir, tmp_path, shape, safety_share=0.3)), tmp_path, plain_run)


def trunk_of(folder: Path, model_dir: str, change: float) -> str:
    base = load_file(Path(model_dir, "model.safetensors"))
    folder.mkdir()
    save_file({n: t + change for n, t in base.items() if "layers.0." in n}, folder / "trunk.safetensors")
    return str(folder)


@pytest.mark.parametrize("zero_stage", [0, 3])
def test_training_starts_from_the_trunk_where_one_is_given(zero_stage, model_dir, plain_run, tmp_path):
    shape = Shape(precision="fp32", zero_stage=zero_stage)
    same = trunk_of(tmp_path / "same", model_dir, 0.0)
    job = sft_job(model_dir, tmp_path / "a", shape, trunk_dir=same, safety_share=0.3)
    assert run_sft(job)["losses"][0] == pytest.approx(plain_run[0]["losses"][0], rel=1e-5)
    moved = trunk_of(tmp_path / "moved", model_dir, 0.1)
    job = sft_job(model_dir, tmp_path / "b", shape, trunk_dir=moved, learning_rate=1e-12)
    assert run_sft(job)["losses"][0] != pytest.approx(plain_run[0]["losses"][0], rel=1e-3)
    weights = load_file(tmp_path / "b" / "model.safetensors")
    base = load_file(Path(model_dir, "model.safetensors"))
    name = "model.layers.0.mlp.up_proj.weight"
    torch.testing.assert_close(weights[name], base[name] + 0.1, rtol=0, atol=1e-6)


@pytest.mark.parametrize("zero_stage", [2, 3])
def test_a_trunk_smaller_than_bf16_can_show_survives_in_the_fp32_masters(zero_stage, model_dir, tmp_path, monkeypatch):
    import dcr_ray.train.sft as sft

    trunk = trunk_of(tmp_path / "trunk", model_dir, 1e-5)
    seen, original = {}, sft._set_masters

    def look(engine, model, *rest):
        original(engine, model, *rest)
        parameter = dict(model.named_parameters())["model.layers.0.mlp.up_proj.weight"]
        seen["master"] = engine.full_tensor(parameter).cpu()

    monkeypatch.setattr(sft, "_set_masters", look)
    shape = Shape(precision="bf16", zero_stage=zero_stage)
    run_sft(sft_job(model_dir, tmp_path / "out", shape, trunk_dir=trunk, epochs=0.1))
    expected = load_file(Path(trunk, "trunk.safetensors"))["model.layers.0.mlp.up_proj.weight"]
    torch.testing.assert_close(seen["master"], expected, rtol=0, atol=0)
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out").dtype == torch.bfloat16


def test_a_trunk_of_another_model_is_refused_with_every_tensor_that_does_not_fit(tmp_path):
    small, large = tiny_model(tmp_path, hidden=64), tiny_model(tmp_path, hidden=32, layers=1)
    with pytest.raises(InputError) as error:
        run_sft(sft_job(large, tmp_path / "out", trunk_dir=trunk_of(tmp_path / "trunk", small, 0.0)))
    assert len(error.value.problems) == 9
    assert "shape (64,)" in str(error.value)


@pytest.mark.parametrize("zero_stage", [0, 3])
def test_merged_adapters_give_the_logits_of_the_model_with_adapters(zero_stage, model_dir, tmp_path, monkeypatch):
    import dcr_ray.train.sft as sft

    logits, export = {}, sft.Export
    ids = torch.tensor([[5, 9, 200, 31, 77]])

    def look(engine, model, *rest):
        with torch.no_grad():
            states = packed_states(model.eval().base_model, pack(ids.tolist(), 0, model.device))
            logits["adapters"] = model.get_output_embeddings()(states)[None].cpu()
        return export(engine, model, *rest)

    monkeypatch.setattr(sft, "Export", look)
    shape = Shape(precision="fp32", zero_stage=zero_stage)
    run_sft(sft_job(model_dir, tmp_path, shape, lora=LORA, learning_rate=3e-2))
    weights, base = load_file(tmp_path / "model.safetensors"), load_file(Path(model_dir, "model.safetensors"))
    assert weights.keys() == base.keys()
    changed = {name for name in base if not torch.equal(weights[name], base[name])}
    assert changed == {f"model.layers.{i}.self_attn.{p}_proj.weight" for i in range(4) for p in "qv"}
    merged = AutoModelForCausalLM.from_pretrained(tmp_path)(ids).logits
    torch.testing.assert_close(merged, logits["adapters"], rtol=1e-4, atol=1e-4)


def test_adapters_for_modules_that_the_model_lacks_are_refused(model_dir, tmp_path):
    with pytest.raises(InputError, match="found query; allowed: .*q_proj"):
        run_sft(sft_job(model_dir, tmp_path, lora=LoraRecipe(targets=("query", "q_proj"))))


def test_a_shared_system_prompt_changes_nothing_but_the_time(model_dir, tmp_path, monkeypatch):
    runs = {}
    for name, shortest in (("once", 8), ("every-row", 1000)):
        monkeypatch.setattr("dcr_ray.train.packing.SHORTEST_PREFIX", shortest)
        runs[name] = run_sft(sft_job(model_dir, tmp_path / name))["losses"]
    assert runs["once"] == pytest.approx(runs["every-row"], rel=1e-5)


@pytest.mark.parametrize("lora", [None, LoraRecipe(rank=4, dropout=0.3)], ids=["full", "lora-with-dropout"])
def test_a_stopped_stage_goes_on_and_ends_as_if_never_stopped(lora, model_dir, tmp_path):
    whole, parts = (sft_job(model_dir, tmp_path / name, lora=lora) for name in ("whole", "parts"))
    run = (run_sft(whole), tmp_path / "whole")
    with pytest.raises(StageStopped):
        run_sft(parts, should_stop=lambda: True)
    assert [p.name for p in (tmp_path / "parts").iterdir()] == ["resume"]
    assert_same_run(run_sft(parts), tmp_path / "parts", run)


def test_a_stage_that_diverges_fails_with_that_reason_and_writes_nothing(tmp_path):
    with pytest.raises(StageFailed) as failure:
        run_sft(sft_job(broken_model(tmp_path), tmp_path / "out"))
    assert failure.value.kind == "diverged"
    assert list((tmp_path / "out").iterdir()) == []


def test_pairs_cut_before_their_answer_are_left_out_and_counted(model_dir, tmp_path):
    job = sft_job(model_dir, tmp_path)
    results = run_sft(replace(job, general=(*GENERAL, ("word " * 200, "answer"))))
    assert any(note.startswith("1 of 19 pairs left out") for note in results["notes"])
    assert math.isfinite(results["losses"][0])


def test_pairs_without_any_answer_token_are_refused(model_dir, tmp_path):
    with pytest.raises(InputError, match="none with an answer token within 16 tokens"):
        run_sft(replace(sft_job(model_dir, tmp_path, max_tokens=16), general=(("word " * 50, "x"),), safety=()))


@pytest.mark.parametrize("tied", [True, False])
def test_a_model_written_in_shards_has_the_same_weights_and_a_canary_read_layer_by_layer(tied, tmp_path, monkeypatch):
    base = tiny_model(tmp_path, tied=tied)
    prompts = ("How do I sharpen a knife?", "Name a colour.")
    whole, parts = (
        replace(sft_job(base, tmp_path / name, epochs=0.1), canary_prompts=prompts) for name in ("whole", "parts")
    )
    run_sft(whole)
    monkeypatch.setattr("dcr_ray.train.export.SHARD_BYTES", 100_000)
    run_sft(parts)
    files = sorted(Path(parts.output_dir).glob("model-*.safetensors"))
    assert len(files) > 3
    shards = {name: tensor for file in files for name, tensor in load_file(file).items()}
    expected = load_file(Path(whole.output_dir, "model.safetensors"))
    assert shards.keys() == expected.keys() and all(torch.equal(shards[name], expected[name]) for name in expected)
    one, two = read_canary(whole.output_dir), read_canary(parts.output_dir)
    assert len(two) == 1 and two[0].token_ids == one[0].token_ids
    assert two[0].token_logprobs == pytest.approx(one[0].token_logprobs, abs=1e-5)
