import pytest

from dcr_ray.models import ModelCard
from dcr_ray.planning.memory import (
    GIB,
    dcr_memory,
    engine_memory,
    layer_activation_bytes,
    lora_parameters,
    sft_memory,
    shortfalls,
)
from dcr_ray.recipe import LoraRecipe
from dcr_ray.shape import Shape


def llama(hidden, intermediate, layers, heads, kv_heads, vocabulary, tied):
    return ModelCard.from_config(
        {
            "architectures": ["LlamaForCausalLM"],
            "hidden_size": hidden,
            "intermediate_size": intermediate,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "num_key_value_heads": kv_heads,
            "vocab_size": vocabulary,
            "max_position_embeddings": 8192,
            "tie_word_embeddings": tied,
        },
        "llama",
    )


SMALL = llama(576, 1536, 30, 9, 3, 49152, True)
LARGE = llama(4096, 14336, 32, 32, 8, 128256, False)


def on_gpus(nodes=1, lora=None, tokens=4096, **changes):
    """SFT of the 8B model, one sequence at a time on 8 GPUs per node."""
    shape = {"ranks": 8 * nodes, "zero_stage": 3, "micro_batch_size": 1, "activation_checkpointing": True, **changes}
    return sft_memory(LARGE, Shape(**shape), lora, tokens=tokens, batch_size=64, device="cuda", nodes=nodes)


def on_cpu(batch_size=1, lora=None, **shape):
    return sft_memory(SMALL, Shape(**shape), lora, tokens=64, batch_size=batch_size, device="cpu")


def dcr_on_cpu(layer, batch_size=1, **shape):
    return dcr_memory(SMALL, layer, Shape(**shape), tokens=64, batch_size=batch_size, device="cpu")


def test_plain_float32_training_takes_sixteen_bytes_per_parameter():
    need = on_cpu()
    assert need.weights_bytes + need.gradients_bytes + need.optimizer_bytes == 16 * SMALL.parameters


@pytest.mark.parametrize(("stage", "bytes_per_parameter"), [(0, 20), (1, 2 + 2 + 2), (2, 2 + 0.25 + 2), (3, 2.5)])
def test_mixed_precision_states_over_eight_ranks_follow_the_zero_paper(stage, bytes_per_parameter):
    need = on_gpus(zero_stage=stage)
    states = need.weights_bytes + need.gradients_bytes + need.optimizer_bytes
    assert states == pytest.approx(bytes_per_parameter * LARGE.parameters, rel=1e-9)


def test_zero_2_states_equal_deepspeeds_own_estimate():
    """The estimator prices gradients and optimizer together at 18 bytes per parameter, as this one does."""
    zero = pytest.importorskip("deepspeed.runtime.zero.stage_1_and_2")
    _, device_bytes = zero.estimate_zero2_model_states_mem_needs(
        total_params=LARGE.parameters, num_gpus_per_node=8, num_nodes=2, cpu_offload=False
    )
    need = on_gpus(nodes=2, zero_stage=2)
    states = need.weights_bytes + need.gradients_bytes + need.optimizer_bytes
    assert states == pytest.approx(device_bytes, rel=1e-6)


def test_zero_2_offload_takes_deepspeeds_own_estimate_of_host_memory():
    zero = pytest.importorskip("deepspeed.runtime.zero.stage_1_and_2")
    host_bytes, _ = zero.estimate_zero2_model_states_mem_needs(
        total_params=LARGE.parameters, num_gpus_per_node=8, num_nodes=1, cpu_offload=True
    )
    need = on_gpus(zero_stage=2, offload_optimizer=True)
    assert need.host_bytes == pytest.approx(host_bytes, rel=1e-6)
    assert need.optimizer_bytes == need.gradients_bytes == 0


@pytest.mark.parametrize(
    ("changes", "gib"),
    [
        ({"zero_stage": 2}, 45),
        ({}, 33),
        ({"offload_optimizer": True}, 14),
        ({"nodes": 2}, 23),
        ({"nodes": 4}, 18),
    ],
)
def test_an_8b_model_with_4096_tokens_per_micro_batch_needs_what_the_published_formulas_give(changes, gib):
    """Figures worked out by hand from the ZeRO states and the activation formulas of arXiv 2205.05198.

    They hold logits of all tokens with log-probabilities and gradient, 10 bytes each, which the head's loss never has.
    """
    need = on_gpus(**changes)
    whole_logits = 10 * 4096 * LARGE.vocabulary
    assert need.logits_bytes < 0.6 * whole_logits
    assert (need.rank_bytes - need.logits_bytes + whole_logits) / GIB == pytest.approx(gib, abs=1.0)


def test_more_ranks_never_need_more_and_states_shrink_in_proportion():
    needs = [on_gpus(nodes=nodes) for nodes in (1, 2, 4, 8)]
    assert [need.rank_bytes for need in needs] == sorted((need.rank_bytes for need in needs), reverse=True)
    assert needs[0].optimizer_bytes == pytest.approx(8 * needs[3].optimizer_bytes, rel=1e-6)


def test_the_dcr_stage_scales_with_depth_but_for_the_frozen_embedding_and_has_no_logits():
    half, full = (dcr_on_cpu(layer, batch_size=16) for layer in (15, 30))
    assert half.logits_bytes == 0
    for part in ("gradients", "optimizer", "activations"):
        assert 2 * half.parts[part] == full.parts[part]
    assert full.weights_bytes - half.weights_bytes == 4 * 15 * SMALL.layer_parameters
    assert full.rank_bytes < on_cpu(batch_size=16).rank_bytes


def test_a_layer_that_the_model_does_not_have_is_refused():
    with pytest.raises(ValueError, match="1..30"):
        dcr_on_cpu(31)


def test_adapters_need_optimizer_state_for_themselves_alone():
    lora = LoraRecipe(rank=8)
    adapters = 30 * 8 * (2 * 576 + 2 * (576 + 192))
    assert lora_parameters(SMALL, lora) == adapters
    need, full = on_cpu(lora=lora), on_cpu()
    assert need.gradients_bytes == 4 * adapters and need.optimizer_bytes == 8 * adapters
    assert need.weights_bytes == full.weights_bytes + 4 * adapters
    assert need.rank_bytes < full.rank_bytes


def test_adapters_on_a_matrix_that_no_layer_has_are_refused():
    with pytest.raises(ValueError, match="c_attn"):
        lora_parameters(SMALL, LoraRecipe(targets=("q_proj", "c_attn")))


def test_adapter_parameters_equal_those_that_peft_makes():
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    peft = pytest.importorskip("peft")
    shape = {"hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 3, "num_attention_heads": 6}
    config = LlamaConfig(**shape, num_key_value_heads=2, vocab_size=101)
    targets = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    with torch.device("meta"):
        model = peft.get_peft_model(LlamaForCausalLM(config), peft.LoraConfig(r=4, target_modules=list(targets)))
    trained = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    assert lora_parameters(llama(48, 80, 3, 6, 2, 101, False), LoraRecipe(rank=4, targets=targets)) == trained


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("architecture", ["Llama", "Qwen2", "Qwen3", "Gemma"])
def test_kept_activations_are_what_autograd_keeps(architecture, dtype):
    import torch
    import transformers

    shape = {"hidden_size": 96, "intermediate_size": 160, "num_attention_heads": 4, "num_key_value_heads": 2}
    model_class = getattr(transformers, f"{architecture}ForCausalLM")
    tokens = torch.zeros(2, 64, dtype=torch.long)
    kept = []
    for layers in (1, 3):
        config = model_class.config_class(
            **shape, head_dim=16, num_hidden_layers=layers, vocab_size=64, max_position_embeddings=128, pad_token_id=0
        )
        model = model_class(config).to(getattr(torch, dtype)).model.train()
        parameters = {weight.untyped_storage().data_ptr() for weight in model.parameters()}
        saved = {}

        def keep(tensor, saved=saved, parameters=parameters):
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in parameters:
                saved[storage.data_ptr()] = (storage.nbytes(), tensor)
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            output = model(input_ids=tokens, use_cache=False).last_hidden_state
        kept.append(sum(size for size, _ in saved.values()))
        del output
    card = ModelCard.from_config({**config.to_dict(), "architectures": [f"{architecture}ForCausalLM"]}, "small")
    measured = (kept[1] - kept[0]) / 2 / tokens.numel()
    assert layer_activation_bytes(card, dtype) == pytest.approx(measured, rel=0.02)


def test_checkpointing_keeps_one_hidden_state_per_layer_and_one_live_layer():
    need = on_gpus(tokens=100)
    assert need.activations_bytes == 100 * (2 * 4096 * 32 + layer_activation_bytes(LARGE, "bfloat16"))


def test_the_engine_holds_weights_and_the_cache_of_its_sequences():
    need = engine_memory(LARGE, sequences=128, tokens=1024)
    assert need.weights_bytes == 2 * LARGE.parameters
    assert need.kv_cache_bytes == 128 * 1024 * 128 * 1024  # 128 KiB per token of an 8B model
    halved = engine_memory(LARGE, sequences=128, tokens=1024, tensor_parallel=2)
    assert 2 * halved.weights_bytes == need.weights_bytes and 2 * halved.kv_cache_bytes == need.kv_cache_bytes


def test_key_value_heads_are_never_split():
    by_eight, by_sixteen = (engine_memory(LARGE, 1, 1024, tensor_parallel=ranks) for ranks in (8, 16))
    assert by_eight.kv_cache_bytes == by_sixteen.kv_cache_bytes


def test_on_a_cpu_the_host_holds_every_rank():
    need = dcr_on_cpu(15, ranks=2, zero_stage=1)
    assert need.host_bytes == 2 * need.rank_bytes


def test_the_batch_is_shared_by_the_ranks_unless_the_micro_batch_is_smaller():
    whole, shared, small = on_cpu(16), on_cpu(16, ranks=4), on_cpu(16, micro_batch_size=2)
    assert whole.activations_bytes == 4 * shared.activations_bytes == 8 * small.activations_bytes


def test_automatic_precision_is_counted_as_bf16_on_a_gpu_and_as_fp32_on_a_cpu():
    assert on_gpus(precision="auto") == on_gpus(precision="bf16")
    assert on_cpu(precision="auto") == on_cpu(precision="fp32")


def test_what_does_not_fit_is_told_with_how_much_is_missing():
    need = on_gpus()
    (problem,) = shortfalls([need], device_bytes=need.rank_bytes - GIB, host_bytes=64 * GIB)
    assert problem.fix == "Short by 1.00 GiB." and "per GPU" in problem.found and "optimizer" in problem.found
    assert shortfalls([need], device_bytes=need.rank_bytes, host_bytes=0) == []


def test_without_gpus_nothing_on_gpus_fits():
    assert len(shortfalls([engine_memory(SMALL, 1, 64)], host_bytes=1 << 50)) == 1


def test_things_that_fit_alone_may_not_fit_together():
    group, engine = dcr_on_cpu(15), engine_memory(SMALL, 8, 512, "float32", "cpu")
    available = max(group.host_bytes, engine.host_bytes)
    assert shortfalls([group, engine], host_bytes=available) == []
    (problem,) = shortfalls([group, engine], host_bytes=available, together=True)
    assert "together" in problem.found and group.what in problem.where
