"""Cards of models that are known by name, against the counts that were published or that transformers makes."""

from __future__ import annotations

import pytest

from dcr_ray.planning.cards import known_card, known_models

PUBLISHED = {
    "Qwen/Qwen2.5-0.5B": 494_032_768,
    "Qwen/Qwen2.5-1.5B": 1_543_714_304,
    "Qwen/Qwen2.5-3B": 3_085_938_688,
    "Qwen/Qwen2.5-7B": 7_615_616_512,
    "Qwen/Qwen2.5-14B": 14_770_033_664,
    "Qwen/Qwen2.5-32B": 32_763_876_352,
    "Qwen/Qwen2.5-72B": 72_706_203_648,
    "Qwen/Qwen3-0.6B": 596_049_920,
    "Qwen/Qwen3-1.7B": 1_720_574_976,
    "Qwen/Qwen3-4B": 4_022_468_096,
    "Qwen/Qwen3-8B": 8_190_735_360,
    "Qwen/Qwen3-14B": 14_768_307_200,
    "Qwen/Qwen3-32B": 32_762_123_264,
    "meta-llama/Llama-3.2-1B": 1_235_814_400,
    "meta-llama/Llama-3.2-3B": 3_212_749_824,
    "meta-llama/Meta-Llama-3-8B": 8_030_261_248,
    "meta-llama/Llama-3.1-8B": 8_030_261_248,
    "meta-llama/Meta-Llama-3-70B": 70_553_706_496,
    "meta-llama/Llama-3.1-70B": 70_553_706_496,
    "meta-llama/Llama-3.3-70B": 70_553_706_496,
    "mistralai/Mistral-7B-v0.3": 7_248_023_552,
    "mistralai/Mistral-Nemo-2407": 12_247_782_400,
    "mistralai/Mistral-Small-24B-2501": 23_572_403_200,
    "google/gemma-2-2b": 2_614_341_888,
    "google/gemma-2-9b": 9_241_705_984,
    "google/gemma-2-27b": 27_227_128_320,
    "google/gemma-3-1b": 999_885_952,
    "HuggingFaceTB/SmolLM2-135M": 134_515_008,
    "HuggingFaceTB/SmolLM2-360M": 361_821_120,
    "HuggingFaceTB/SmolLM2-1.7B": 1_711_376_384,
}


def test_every_known_model_has_a_published_count():
    assert set(known_models()) == set(PUBLISHED)


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_known_model_has_its_published_number_of_parameters(name):
    assert known_card(name).parameters == PUBLISHED[name]


@pytest.mark.parametrize(
    "name, like",
    [
        ("Qwen/Qwen2.5-7B-Instruct", "Qwen/Qwen2.5-7B"),
        ("llama-3.1-8b-instruct", "meta-llama/Llama-3.1-8B"),
        ("mistralai/Mistral-7B-Instruct-v0.3", "mistralai/Mistral-7B-v0.3"),
        ("google/gemma-2-9b-it", "google/gemma-2-9b"),
        ("smollm2-135m-instruct", "HuggingFaceTB/SmolLM2-135M"),
    ],
)
def test_a_tuned_variant_has_its_bases_shape_and_its_own_name(name, like):
    assert known_card(name).parameters == PUBLISHED[like] and known_card(name).name == name


@pytest.mark.parametrize("name", ["Qwen/Qwen2.5-8B", "somebody/else", "/folder/model"])
def test_an_unknown_name_has_no_card(name):
    assert known_card(name) is None
