"""Base models that are known by name: their config.json's sizes, so that a study is planned without any file of theirs.

Parameter counts are not stored: `ModelCard.from_config` counts. A name that is not here is looked up in its folder.
"""

from __future__ import annotations

from dcr_ray.models import ModelCard

_LLAMA, _MISTRAL = "LlamaForCausalLM", "MistralForCausalLM"
_QWEN2, _QWEN3 = "Qwen2ForCausalLM", "Qwen3ForCausalLM"
_GEMMA2, _GEMMA3 = "Gemma2ForCausalLM", "Gemma3ForCausalLM"

_FIELDS = (
    "architecture",
    "num_hidden_layers",
    "hidden_size",
    "intermediate_size",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "vocab_size",
    "tie_word_embeddings",
    "max_position_embeddings",
)

# One line a model, in the order of _FIELDS.
_SIZES: dict[str, tuple[str, int, int, int, int, int, int, int, bool, int]] = {
    "Qwen/Qwen2.5-0.5B": (_QWEN2, 24, 896, 4864, 14, 2, 64, 151936, True, 32768),
    "Qwen/Qwen2.5-1.5B": (_QWEN2, 28, 1536, 8960, 12, 2, 128, 151936, True, 32768),
    "Qwen/Qwen2.5-3B": (_QWEN2, 36, 2048, 11008, 16, 2, 128, 151936, True, 32768),
    "Qwen/Qwen2.5-7B": (_QWEN2, 28, 3584, 18944, 28, 4, 128, 152064, False, 32768),
    "Qwen/Qwen2.5-14B": (_QWEN2, 48, 5120, 13824, 40, 8, 128, 152064, False, 32768),
    "Qwen/Qwen2.5-32B": (_QWEN2, 64, 5120, 27648, 40, 8, 128, 152064, False, 32768),
    "Qwen/Qwen2.5-72B": (_QWEN2, 80, 8192, 29568, 64, 8, 128, 152064, False, 32768),
    "Qwen/Qwen3-0.6B": (_QWEN3, 28, 1024, 3072, 16, 8, 128, 151936, True, 40960),
    "Qwen/Qwen3-1.7B": (_QWEN3, 28, 2048, 6144, 16, 8, 128, 151936, True, 40960),
    "Qwen/Qwen3-4B": (_QWEN3, 36, 2560, 9728, 32, 8, 128, 151936, True, 40960),
    "Qwen/Qwen3-8B": (_QWEN3, 36, 4096, 12288, 32, 8, 128, 151936, False, 40960),
    "Qwen/Qwen3-14B": (_QWEN3, 40, 5120, 17408, 40, 8, 128, 151936, False, 40960),
    "Qwen/Qwen3-32B": (_QWEN3, 64, 5120, 25600, 64, 8, 128, 151936, False, 40960),
    "meta-llama/Llama-3.2-1B": (_LLAMA, 16, 2048, 8192, 32, 8, 64, 128256, True, 131072),
    "meta-llama/Llama-3.2-3B": (_LLAMA, 28, 3072, 8192, 24, 8, 128, 128256, True, 131072),
    "meta-llama/Meta-Llama-3-8B": (_LLAMA, 32, 4096, 14336, 32, 8, 128, 128256, False, 8192),
    "meta-llama/Llama-3.1-8B": (_LLAMA, 32, 4096, 14336, 32, 8, 128, 128256, False, 131072),
    "meta-llama/Meta-Llama-3-70B": (_LLAMA, 80, 8192, 28672, 64, 8, 128, 128256, False, 8192),
    "meta-llama/Llama-3.1-70B": (_LLAMA, 80, 8192, 28672, 64, 8, 128, 128256, False, 131072),
    "meta-llama/Llama-3.3-70B": (_LLAMA, 80, 8192, 28672, 64, 8, 128, 128256, False, 131072),
    "mistralai/Mistral-7B-v0.3": (_MISTRAL, 32, 4096, 14336, 32, 8, 128, 32768, False, 32768),
    "mistralai/Mistral-Nemo-2407": (_MISTRAL, 40, 5120, 14336, 32, 8, 128, 131072, False, 131072),
    "mistralai/Mistral-Small-24B-2501": (_MISTRAL, 40, 5120, 32768, 32, 8, 128, 131072, False, 32768),
    "google/gemma-2-2b": (_GEMMA2, 26, 2304, 9216, 8, 4, 256, 256000, True, 8192),
    "google/gemma-2-9b": (_GEMMA2, 42, 3584, 14336, 16, 8, 256, 256000, True, 8192),
    "google/gemma-2-27b": (_GEMMA2, 46, 4608, 36864, 32, 16, 128, 256000, True, 8192),
    "google/gemma-3-1b": (_GEMMA3, 26, 1152, 6912, 4, 1, 256, 262144, True, 32768),
    "HuggingFaceTB/SmolLM2-135M": (_LLAMA, 30, 576, 1536, 9, 3, 64, 49152, True, 8192),
    "HuggingFaceTB/SmolLM2-360M": (_LLAMA, 32, 960, 2560, 15, 5, 64, 49152, True, 8192),
    "HuggingFaceTB/SmolLM2-1.7B": (_LLAMA, 24, 2048, 8192, 32, 32, 64, 49152, True, 8192),
}

_TUNED = ("-Instruct", "-it", "-pt", "-Base")
"""Suffixes of variants that have the base's shape."""


def known_models() -> list[str]:
    """The names, as the hub has them."""
    return list(_SIZES)


def known_card(name: str) -> ModelCard | None:
    """The card of a model by its hub id, with or without its owner, in any case; variants tuned from it are of its
    shape. None for any other name."""
    wanted = _plain(name)
    for known, sizes in _SIZES.items():
        if wanted in (_plain(known), _plain(known.partition("/")[2])):
            config = dict(zip(_FIELDS, sizes, strict=True))
            return ModelCard.from_config(config | {"architectures": [config.pop("architecture")]}, name)
    return None


def _plain(name: str) -> str:
    for suffix in _TUNED:
        name = name.removesuffix(suffix).removesuffix(suffix.lower())
    # Mistral's tuned models have the mark before the date or version.
    return name.replace("-Instruct-", "-").lower()
