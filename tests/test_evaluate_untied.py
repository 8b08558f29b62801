"""An engine that holds the head of a tied model apart serves checkpoints of both kinds, one after another."""

from __future__ import annotations

import os

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from dcr_ray.errors import InputError
from dcr_ray.evaluate.canary import next_token_logprobs, write_canary
from dcr_ray.methods.ablation import ablate_weights
from dcr_ray.methods.states import load_model
from dcr_ray.methods.write import write_edited
from dcr_ray.weights import shared_memory
from dcr_ray.weights.identity import model_identity
from dcr_ray.weights.tiny import build_tiny_model
from dcr_ray.weights.untied import untied_copy

SHAPE = {"layers": 2, "vocabulary": 1024, "hidden": 128, "head_dim": 64}
TEXTS = ("How do I write a program that reads a file?", "Which of these two should I take for the kitchen?")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A tied base, another tied checkpoint, and the base with a direction taken out, whose head is its own."""
    root = tmp_path_factory.mktemp("untied")
    base = build_tiny_model(root / "base", seed=0, **SHAPE)
    other = build_tiny_model(root / "other", seed=1, **SHAPE)
    edited = root / "edited"
    edited.mkdir()
    tokenizer = AutoTokenizer.from_pretrained(base)
    prompts = [tokenizer(text)["input_ids"] for text in TEXTS]
    model = load_model(base, torch.device("cpu"))
    direction = torch.randn(SHAPE["hidden"], generator=torch.Generator().manual_seed(0))
    write_edited(base, edited, ablate_weights(model, direction / direction.norm()))
    for folder in (base, other, edited):
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        write_canary(folder, next_token_logprobs(model, prompts))
    return base, other, edited


@pytest.fixture(scope="module")
def engine(folders):
    environment, set_num_threads = dict(os.environ), torch.set_num_threads
    from dcr_ray.evaluate.vllm_engine import VllmEngine

    engine = VllmEngine(
        folders[0], max_model_len=128, kv_cache_bytes=16 * 2**20, max_num_seqs=2, threads=1, untied=True
    )
    yield engine
    engine.close()
    os.environ.clear()
    os.environ.update(environment)
    torch.set_num_threads = set_num_threads


def test_vllm_serves_tied_and_untied_checkpoints_back_and_forth(engine, folders):
    base, other, edited = folders
    assert engine.prove_live(base) < 2e-3
    for folder in (edited, other, edited, base, other, base):
        engine.load(folder)
        assert engine.prove_live(folder) < 2e-3


def test_an_embedding_that_changed_in_memory_changes_the_head_with_it(engine, folders, tmp_path, monkeypatch):
    base, other, edited = folders
    memory = tmp_path / "memory"
    memory.mkdir()
    monkeypatch.setattr(shared_memory, "SHARED_MEMORY", memory)
    engine.load(base)
    assert shared_memory.offer(other, load_file(other / "model.safetensors"), model_identity(base), study="s")
    with monkeypatch.context() as patched:
        patched.setattr(engine, "_load_folder", lambda folder: pytest.fail("read from the folder"))
        engine.load(other)
        assert engine.prove_live(other) < 2e-3
    engine.load(base)
    assert engine.prove_live(base) < 2e-3


def test_the_untied_folder_is_the_same_model_and_goes_away(folders):
    base, _, edited = folders
    with untied_copy(base) as place:
        model = AutoModelForCausalLM.from_pretrained(place, dtype=torch.float32)
        assert model.lm_head.weight is not model.model.embed_tokens.weight
        assert torch.equal(model.lm_head.weight, model.model.embed_tokens.weight)
        ids = torch.tensor([AutoTokenizer.from_pretrained(base)(TEXTS[0])["input_ids"]])
        tied = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        torch.testing.assert_close(model(ids).logits, tied(ids).logits)
    assert not os.path.exists(place)
    with untied_copy(edited) as place:
        assert place == str(edited)


def test_a_tied_engine_refuses_a_checkpoint_with_a_head_of_its_own(engine, folders):
    base, _, edited = folders
    engine._untied = False
    try:
        with pytest.raises(InputError, match="tie_word_embeddings"):
            engine.load(edited)
    finally:
        engine._untied = True
