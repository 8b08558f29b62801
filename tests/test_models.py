import json

import pytest

from dcr_ray.errors import InputError
from dcr_ray.models import FAMILIES, ModelCard

SMALL = {
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "vocab_size": 101,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}
QWEN_05B = {
    "architectures": ["Qwen2ForCausalLM"],
    "hidden_size": 896,
    "intermediate_size": 4864,
    "num_hidden_layers": 24,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
    "vocab_size": 151936,
    "max_position_embeddings": 32768,
    "tie_word_embeddings": True,
}


def built_by_transformers(architecture: str, **changes):
    """Number of parameters that transformers makes for this shape, and the config it would save."""
    import torch
    import transformers

    model_class = getattr(transformers, architecture)
    config = model_class.config_class(**{**SMALL, **changes})
    with torch.device("meta"):
        model = model_class(config)
    if config.tie_word_embeddings:
        model.tie_weights()
    layer = sum(weight.numel() for weight in model.model.layers[0].parameters())
    return (
        sum(weight.numel() for weight in model.parameters()),
        layer,
        {
            **config.to_dict(),
            "architectures": [architecture],
        },
    )


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("architecture", FAMILIES)
def test_parameter_counts_equal_those_of_transformers(architecture, tied):
    total, layer, config = built_by_transformers(architecture, tie_word_embeddings=tied, head_dim=16)
    card = ModelCard.from_config(config, "small")
    assert card.tied_embeddings is tied
    assert card.layer_parameters == layer
    assert card.parameters == total


@pytest.mark.parametrize(
    ("architecture", "changes"),
    [
        ("LlamaForCausalLM", {"attention_bias": True, "mlp_bias": True}),
        ("LlamaForCausalLM", {"num_key_value_heads": None}),
        ("Qwen3ForCausalLM", {"attention_bias": True}),
        ("GemmaForCausalLM", {"attention_bias": True}),
        ("MistralForCausalLM", {"head_dim": None}),
    ],
)
def test_biases_and_defaults_are_counted_as_transformers_counts_them(architecture, changes):
    total, layer, config = built_by_transformers(architecture, **changes)
    card = ModelCard.from_config(config, "small")
    assert (card.layer_parameters, card.parameters) == (layer, total)


@pytest.mark.parametrize("architecture", FAMILIES)
def test_a_config_that_leaves_out_the_defaults_is_read_as_transformers_reads_it(architecture):
    """Published configs name only what differs from the class: head_dim and tie_word_embeddings are often missing."""
    total, _, _ = built_by_transformers(architecture)
    assert ModelCard.from_config({**SMALL, "architectures": [architecture]}, "small").parameters == total


def llama(hidden, intermediate, layers, heads, kv_heads, vocabulary, tied):
    return {
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "vocab_size": vocabulary,
        "max_position_embeddings": 8192,
        "tie_word_embeddings": tied,
    }


@pytest.mark.parametrize(
    ("config", "published"),
    [
        (llama(576, 1536, 30, 9, 3, 49152, True), 134_515_008),  # SmolLM2-135M
        (llama(2048, 8192, 16, 32, 8, 128256, True), 1_235_814_400),  # Llama-3.2-1B
        (llama(4096, 14336, 32, 32, 8, 128256, False), 8_030_261_248),  # Llama-3.1-8B
        (llama(8192, 28672, 80, 64, 8, 128256, False), 70_553_706_496),  # Llama-3.1-70B
        (QWEN_05B, 494_032_768),  # Qwen2.5-0.5B
        (
            QWEN_05B
            | {
                "hidden_size": 3584,
                "intermediate_size": 18944,
                "num_hidden_layers": 28,
                "num_attention_heads": 28,
                "num_key_value_heads": 4,
                "vocab_size": 152064,
                "tie_word_embeddings": False,
            },
            7_615_616_512,  # Qwen2.5-7B
        ),
    ],
)
def test_published_parameter_counts_come_out(config, published):
    assert ModelCard.from_config(config, "published").parameters == published


def test_the_trunk_grows_by_one_layer_at_a_time_and_never_holds_head_or_tail():
    card = ModelCard.from_config(QWEN_05B, "qwen")
    assert card.trunk_parameters(1) == card.embedding_parameters + card.layer_parameters
    assert card.trunk_parameters(24) == card.parameters - card.hidden_size
    for layer in (0, 25):
        with pytest.raises(ValueError, match="1..24"):
            card.trunk_parameters(layer)


@pytest.mark.parametrize(
    "architectures",
    [["BertModel"], ["T5ForConditionalGeneration"], ["GPT2LMHeadModel"], ["MixtralForCausalLM"], [], None],
)
def test_an_unsupported_architecture_is_refused_by_name_with_what_is_allowed(architectures):
    with pytest.raises(InputError) as caught:
        ModelCard.from_config(QWEN_05B | {"architectures": architectures, "model_type": "what-it-is"}, "other")
    (problem,) = caught.value.problems
    assert (architectures[0] if architectures else "what-it-is") in problem.found
    assert "LlamaForCausalLM" in problem.allowed and problem.fix


def test_every_wrong_size_is_named_at_once():
    with pytest.raises(InputError) as caught:
        ModelCard.from_config(QWEN_05B | {"hidden_size": "896", "vocab_size": None, "num_hidden_layers": 0}, "broken")
    assert {problem.where.split(": ")[1] for problem in caught.value.problems} == {
        "hidden_size",
        "vocab_size",
        "num_hidden_layers",
    }


def test_heads_that_cannot_share_key_value_heads_are_refused():
    with pytest.raises(InputError, match="a divisor of 14 heads"):
        ModelCard.from_config(QWEN_05B | {"num_key_value_heads": 4}, "broken")


def test_a_card_is_read_from_a_folder_and_named_after_it(tmp_path):
    folder = tmp_path / "qwen-small"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(QWEN_05B))
    assert ModelCard.from_folder(folder).name == "qwen-small"
    assert ModelCard.from_folder(folder, "base").parameters == 494_032_768


@pytest.mark.parametrize("content", [None, "{not json", "[1, 2]"])
def test_a_folder_without_a_readable_config_is_bad_input(tmp_path, content):
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(InputError, match="config.json"):
        ModelCard.from_folder(tmp_path)
