"""Both engines against transformers itself, on tiny random models: what they answer, and with which weights."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from dcr_ray.errors import InputError, StaleWeights
from dcr_ray.evaluate.canary import next_token_logprobs, write_canary
from dcr_ray.evaluate.figures import perplexity
from dcr_ray.evaluate.generation import DECIDED_EVERY
from dcr_ray.evaluate.transformers_engine import TransformersEngine
from dcr_ray.weights import shared_memory
from dcr_ray.weights.identity import model_identity
from dcr_ray.weights.tiny import build_tiny_model

MODELS = {"llama-tied": ("llama", True), "llama-untied": ("llama", False), "qwen2-tied": ("qwen2", True)}
QUESTIONS = (
    "How do I write a program that reads a file?",
    "Sure",
    "Which of these two should I take for the kitchen? That depends on the size of the room.",
    "What is the best way to explain the question to a child?",
    "Here is a list of steps that is long enough to stay in the cache of prefixes. " * 3,
)
CANARY_TEXTS = ("What is the history of the city?", "Can you tell me where the process comes from?")


class Checkpoints:
    """Two checkpoints of one architecture, each with its canary and its transformers model in fp32."""

    def __init__(self, folder: Path, family: str, tied: bool):
        shape = {"tied": tied, "layers": 2, "vocabulary": 1024, "hidden": 128, "head_dim": 64}
        self.name = f"{family} {'tied' if tied else 'untied'}"
        self.a = build_tiny_model(folder / "a", family, seed=0, **shape)
        self.b = build_tiny_model(folder / "b", family, seed=1, **shape)
        self.tokenizer = AutoTokenizer.from_pretrained(self.a)
        self.prompts = [self.tokenizer(text)["input_ids"] for text in QUESTIONS]
        self.models = {}
        for path in (self.a, self.b):
            model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
            write_canary(path, next_token_logprobs(model, [self.tokenizer(text)["input_ids"] for text in CANARY_TEXTS]))
            self.models[path] = model

    def first_token_error(self, engine, path: Path) -> float:
        """Largest difference in nats over the first 20 tokens of every prompt between engine and transformers."""
        worst = 0.0
        answers = engine.generate(self.prompts, max_tokens=1)
        for expected, answer in zip(next_token_logprobs(self.models[path], self.prompts), answers, strict=True):
            assert len(answer.first_token_logprobs) >= 20
            shared = expected.token_logprobs.keys() & answer.first_token_logprobs.keys()
            assert len(shared) >= 18
            worst = max(worst, *(abs(expected.token_logprobs[t] - answer.first_token_logprobs[t]) for t in shared))
        return worst

    def greedy(self, path: Path, prompt: list[int], max_tokens: int) -> list[int]:
        """Greedy tokens, one prompt alone, the whole sequence anew for every token."""
        tokens = list(prompt)
        for _ in range(max_tokens):
            with torch.inference_mode():
                tokens.append(self.models[path](torch.tensor([tokens])).logits[0, -1].argmax().item())
            if tokens[-1] == self.tokenizer.eos_token_id:
                break
        return tokens[len(prompt) :]

    def sequence_logprob(self, path: Path, tokens: list[int], n_prompt: int) -> float:
        with torch.inference_mode():
            logprobs = self.models[path](torch.tensor([tokens])).logits[0].double().log_softmax(-1)
        return sum(logprobs[at - 1, tokens[at]].item() for at in range(n_prompt, len(tokens)))


@pytest.fixture(scope="module", params=MODELS)
def checkpoints(request, tmp_path_factory):
    family, tied = MODELS[request.param]
    return Checkpoints(tmp_path_factory.mktemp(request.param), family, tied)


@pytest.fixture(scope="module")
def untouched_process():
    """vLLM sets environment variables and takes torch.set_num_threads away: later tests get theirs back."""
    environment, set_num_threads = dict(os.environ), torch.set_num_threads
    yield
    os.environ.clear()
    os.environ.update(environment)
    torch.set_num_threads = set_num_threads


@pytest.fixture(scope="module", params=["transformers", "vllm"])
def engine(request, checkpoints, untouched_process):
    if request.param == "transformers":
        engine = TransformersEngine(checkpoints.a, batch_size=3)
    else:
        pytest.importorskip("vllm")
        from dcr_ray.evaluate.vllm_engine import VllmEngine

        engine = VllmEngine(checkpoints.a, max_model_len=256, kv_cache_bytes=16 * 2**20, max_num_seqs=2, threads=1)
    yield engine
    engine.close()
    assert not torch.distributed.is_initialized()


def test_weights_go_back_and_forth_and_every_answer_is_theirs(engine, checkpoints):
    assert engine.precision == "fp32"
    for path in (checkpoints.b, checkpoints.a, checkpoints.b, checkpoints.a):
        engine.load(path)
        assert checkpoints.first_token_error(engine, path) < 2e-3
        assert engine.prove_live(path) < 2e-3


def test_another_checkpoints_canary_is_stale(engine, checkpoints):
    engine.load(checkpoints.a)
    with pytest.raises(StaleWeights, match=r"differ by up to .* nats"):
        engine.prove_live(checkpoints.b)


def test_without_a_new_pack_of_the_head_vllm_keeps_a_stale_one_and_the_canary_says_so(engine, checkpoints):
    if isinstance(engine, TransformersEngine) or not checkpoints.name.endswith(" tied"):
        pytest.skip("the fault is vLLM's, with tied embeddings on a CPU")
    engine.load(checkpoints.a)
    engine._llm.collective_rpc("reload_weights", kwargs={"weights_path": str(checkpoints.b)})
    engine._llm.reset_prefix_cache()
    with pytest.raises(StaleWeights):
        engine.prove_live(checkpoints.b)
    engine.load(checkpoints.b)


CHANGES = {
    "one part of a fused module": ("layers.0.self_attn.q_proj.weight",),
    "half of another, the norms and the embedding": (
        "layers.1.mlp.up_proj.weight",
        "layers.1.mlp.down_proj.weight",
        "norm.weight",
        "embed_tokens.weight",
        "lm_head.weight",
    ),
}


@pytest.fixture
def offers(checkpoints, tmp_path, monkeypatch):
    """Checkpoints that differ from `checkpoints.a` in a few tensors, each offered in shared memory."""
    memory = tmp_path / "memory"
    memory.mkdir()
    monkeypatch.setattr(shared_memory, "SHARED_MEMORY", memory)
    made = []
    for number, endings in enumerate(CHANGES.values()):
        folder = tmp_path / f"changed{number}"
        shutil.copytree(checkpoints.a, folder)
        model = AutoModelForCausalLM.from_pretrained(checkpoints.a, dtype=torch.float32).eval()
        generator = torch.Generator().manual_seed(number)
        changed = {name: weight for name, weight in model.named_parameters() if name.endswith(endings)}
        with torch.no_grad():
            for weight in changed.values():
                weight.add_(torch.randn(weight.shape, generator=generator), alpha=0.2)
        model.save_pretrained(folder)
        texts = [checkpoints.tokenizer(text)["input_ids"] for text in CANARY_TEXTS]
        write_canary(folder, next_token_logprobs(model, texts))
        checkpoints.models[folder] = model
        assert shared_memory.offer(folder, changed, model_identity(checkpoints.a), study="s")
        made.append((folder, frozenset(changed)))
    yield made
    for folder, _ in made:
        del checkpoints.models[folder]


def test_changed_weights_come_from_shared_memory_and_what_they_replaced_comes_back(engine, checkpoints, offers):
    if isinstance(engine, TransformersEngine):
        pytest.skip("it reads the folder, which it maps into memory")
    (one, names_of_one), (other, names_of_other) = offers
    engine.load(checkpoints.a)
    folders: list[Path] = []
    read_folder = engine._load_folder

    def watched(folder):
        folders.append(folder)
        read_folder(folder)

    engine._load_folder = watched
    try:
        for path in (checkpoints.b, one, other, one, checkpoints.b, other, one, checkpoints.a, other):
            engine.load(path)
            assert checkpoints.first_token_error(engine, path) < 2e-4
            known = {one: names_of_one, other: names_of_other, checkpoints.a: frozenset()}.get(path)
            assert engine._changed == known
        assert folders == [checkpoints.b, checkpoints.b, checkpoints.a]
        # Half an offer, and one that is gone, are not used.
        for file in (tmp for tmp in shared_memory.SHARED_MEMORY.rglob("*.safetensors")):
            file.write_bytes(file.read_bytes()[:-8])
        engine.load(one)
        assert folders[-1] == one and checkpoints.first_token_error(engine, one) < 2e-4
        shared_memory.withdraw("s")
        engine.load(other)
        assert folders[-1] == other and checkpoints.first_token_error(engine, other) < 2e-4
    finally:
        engine._load_folder = read_folder


def test_an_offer_that_is_not_what_the_folder_holds_is_found_out_and_the_folder_read(engine, checkpoints, offers):
    if isinstance(engine, TransformersEngine):
        pytest.skip("it reads the folder")
    (folder, _), _ = offers
    wrong = {"model.layers.0.self_attn.q_proj.weight": torch.zeros(128, 128)}
    assert shared_memory.offer(folder, wrong, model_identity(checkpoints.a), study="s")
    engine.load(folder)
    assert engine._changed is None
    assert checkpoints.first_token_error(engine, folder) < 2e-4


def test_weights_that_are_there_already_are_proven_and_not_read_again(engine, checkpoints, monkeypatch):
    if isinstance(engine, TransformersEngine):
        pytest.skip("it reads the folder, which it maps into memory")
    engine.load(checkpoints.b)
    monkeypatch.setattr(engine, "_load_folder", lambda folder: pytest.fail("read again"))
    engine.load(checkpoints.b)
    assert checkpoints.first_token_error(engine, checkpoints.b) < 2e-3


def test_greedy_answers_equal_those_of_transformers_one_by_one(engine, checkpoints):
    engine.load(checkpoints.b)
    finished = []
    answers = engine.generate(checkpoints.prompts, max_tokens=12, progress=lambda *counts: finished.append(counts))
    assert finished[-1] == (5, 5) and finished == sorted(finished) and len(finished) > 1
    for prompt, answer in zip(checkpoints.prompts, answers, strict=True):
        expected = checkpoints.greedy(checkpoints.b, prompt, 12)
        assert answer.token_count == len(expected)
        assert answer.text == checkpoints.tokenizer.decode(expected, skip_special_tokens=True)
        assert max(answer.first_token_logprobs, key=answer.first_token_logprobs.get) == expected[0]


def test_a_stop_token_ends_an_answer_and_is_not_in_its_text(engine, checkpoints):
    engine.load(checkpoints.b)
    prompt = checkpoints.prompts[0]
    expected = checkpoints.greedy(checkpoints.b, prompt, 8)
    stop = expected[4]
    (answer,) = engine.generate([prompt], max_tokens=8, stop_token_ids=[stop])
    (cut,) = engine.generate([prompt], max_tokens=3, stop_token_ids=[])
    length = expected.index(stop) + 1
    assert (answer.finish_reason, answer.token_count) == ("stop", length)
    assert answer.text == checkpoints.tokenizer.decode(expected[: length - 1], skip_special_tokens=True)
    assert (cut.finish_reason, cut.token_count) == ("length", 3)


def test_an_answer_ends_where_its_reader_has_read_enough_and_the_others_go_on(engine, checkpoints):
    engine.load(checkpoints.b)
    most = 3 * DECIDED_EVERY
    full = engine.generate(checkpoints.prompts, max_tokens=most)
    asked = []

    def decided(place: int, text: str) -> bool:
        asked.append((place, text))
        return place in (1, 4)

    answers = engine.generate(checkpoints.prompts, max_tokens=most, decided=decided)
    for place, (whole, answer) in enumerate(zip(full, answers, strict=True)):
        if place in (1, 4):
            assert (answer.finish_reason, answer.token_count) == ("decided", DECIDED_EVERY)
            assert whole.text.startswith(answer.text) and (place, answer.text) in asked
            assert answer.first_token_logprobs == pytest.approx(whole.first_token_logprobs, abs=2e-3)
        else:
            assert answer == whole._replace(first_token_logprobs=answer.first_token_logprobs)
    assert {place for place, _ in asked} == set(range(5))


def test_seconds_are_those_of_prompts_and_of_answers(engine, checkpoints):
    engine.load(checkpoints.b)
    engine.generate(checkpoints.prompts, max_tokens=1)
    one = engine.generation_seconds
    engine.generate(checkpoints.prompts, max_tokens=12)
    many = engine.generation_seconds
    assert one.prefill > 0 and one.decode == 0
    assert many.prefill > 0 and many.decode > many.prefill


def test_requests_are_taken_back_where_progress_raises(engine, checkpoints):
    engine.load(checkpoints.b)

    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    expected = engine.generate(checkpoints.prompts[:1], max_tokens=3)
    with pytest.raises(KeyboardInterrupt):
        engine.generate(checkpoints.prompts, max_tokens=12, progress=interrupt)
    assert [answer.text for answer in engine.generate(checkpoints.prompts[:1], max_tokens=3)] == [expected[0].text]


def test_the_same_prompts_give_the_same_generations_again(engine, checkpoints):
    engine.load(checkpoints.a)
    first, second = (engine.generate(checkpoints.prompts, max_tokens=6) for _ in range(2))
    assert [answer.text for answer in first] == [answer.text for answer in second]


def test_perplexity_equals_that_of_transformers(engine, checkpoints):
    engine.load(checkpoints.b)
    sequences = [(prompt + prompt[::-1], len(prompt)) for prompt in checkpoints.prompts]
    expected = [checkpoints.sequence_logprob(checkpoints.b, *sequence) for sequence in sequences]
    counts = [len(tokens) - n_prompt for tokens, n_prompt in sequences]
    found = engine.sequence_logprobs(sequences)
    assert found == pytest.approx(expected, abs=2e-3)
    assert perplexity(found, counts) == pytest.approx(perplexity(expected, counts), rel=1e-4)


def test_prompts_and_sequences_that_do_not_fit_are_all_named(engine):
    long = [1] * 5000
    with pytest.raises(InputError) as caught:
        engine.generate([long, [1, 2], [], long], max_tokens=4)
    assert [problem.where for problem in caught.value.problems] == ["prompt 0", "prompt 2", "prompt 3"]
    with pytest.raises(InputError) as caught:
        engine.sequence_logprobs([([1, 2, 3], 3), ([1, 2, 3], 1), ([1, 2], 0)])
    assert [problem.where for problem in caught.value.problems] == ["sequence 0", "sequence 2"]


def test_a_checkpoint_of_another_shape_is_refused_before_anything_is_loaded(engine, checkpoints, tmp_path):
    other = build_tiny_model(tmp_path / "other", layers=3, hidden=32)
    with pytest.raises(InputError) as caught:
        engine.load(other)
    assert {"checkpoint's num_hidden_layers", "checkpoint's hidden_size"} <= {p.where for p in caught.value.problems}
    with pytest.raises(InputError, match="no config.json"):
        engine.load(tmp_path)


def test_a_folder_without_canary_is_proven_by_transformers_or_left_unproven(engine, checkpoints, tmp_path):
    bare = tmp_path / "bare"
    shutil.copytree(checkpoints.a, bare)
    (bare / "canary.json").unlink()
    engine.load(bare)
    assert engine.prove_live(bare) < 2e-3
    assert engine.prove_live(bare, without_canary="skip") is None


def test_a_folder_without_a_model_is_refused(tmp_path):
    with pytest.raises(InputError, match="config.json"):
        TransformersEngine(tmp_path)
