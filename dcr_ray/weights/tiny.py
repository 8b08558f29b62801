"""Small random language models of every supported family, with a real tokenizer, built offline in about a second.

They stand in for base models in tests and dry runs: same code paths, meaningless answers. They know nothing of caches.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dcr_ray.errors import InputError, Problem, nearest_name
from dcr_ray.weights.save import save_model

TINY_FAMILIES: dict[str, str] = {
    "llama": "LlamaForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "mistral": "MistralForCausalLM",
    "gemma": "GemmaForCausalLM",
    "gemma2": "Gemma2ForCausalLM",
    "gemma3": "Gemma3ForCausalLM",
}

PAD, START, END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"

CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

TOKENIZER_TEXT = """
How do I write a program that reads a file? You open the file, read every line and close it again when you are done.
What is the best way to explain the question to a child? The best answer is short, kind and true, and it has an example.
Can you tell me where the process comes from, how it works and what it is used for? Here are some steps that can help.
I would like to learn about the history of the city, the people who lived there and the language that they spoke.
Which of these two should I take for the kitchen? That depends on the size of the room and on how much you want to pay.
I am sorry, but I cannot help with that request. As an assistant, I would rather suggest something that is safe for you.
Sure, here is a list of things that you could do: first, make a plan; second, find someone who knows more; third, begin.
user assistant system You are a helpful assistant. Please answer the following question in one or two sentences.
"""


def build_tiny_model(
    folder: Path | str,
    family: str = "llama",
    tied: bool = True,
    seed: int = 0,
    layers: int = 4,
    hidden: int = 64,
    intermediate: int = 128,
    heads: int = 2,
    kv_heads: int = 1,
    head_dim: int = 32,
    vocabulary: int = 512,
    max_positions: int = 2048,
    initializer_std: float = 0.2,
) -> Path:
    """Write a random causal language model with tokenizer and chat template to `folder` and return it.

    The same arguments give the same weights. The standard deviation of the weights is ten times the usual, so that
    logits have a standard deviation near initializer_std x sqrt(hidden) = 1.6 and tell prompts and seeds clearly apart.
    Biases and norms are random too, since zeros and ones would hide code that drops them. vLLM's CPU attention takes a
    head_dim of 32, 64 or larger multiples of 32.

    Raises InputError for a family that is not in TINY_FAMILIES.
    """
    if family not in TINY_FAMILIES:
        fix = nearest_name(family, TINY_FAMILIES)
        raise InputError([Problem("family of a tiny model", repr(family), ", ".join(TINY_FAMILIES), fix)])
    import torch
    import transformers

    folder = Path(folder)
    tokenizer = _byte_level_tokenizer(vocabulary, max_positions)
    special: dict[str, Any] = {
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    model_class = getattr(transformers, TINY_FAMILIES[family])
    config = model_class.config_class(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=head_dim,
        max_position_embeddings=max_positions,
        tie_word_embeddings=tied,
        initializer_range=initializer_std,
        **special,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = model_class(config).to(torch.float32)
        with torch.no_grad():
            for weight in model.parameters():
                if weight.dim() == 1:
                    weight.add_(torch.randn_like(weight), alpha=0.1)
    model.generation_config = transformers.GenerationConfig(**special)
    save_model(model, tokenizer, folder)
    return folder


def _byte_level_tokenizer(vocabulary: int, max_positions: int) -> Any:
    """A byte-level BPE tokenizer with `vocabulary` tokens: every text has tokens, and decoding gives the text back."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=[PAD, START, END], initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(TOKENIZER_TEXT.splitlines(), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token=END,
        pad_token=PAD,
        additional_special_tokens=[START],
        chat_template=CHAT_TEMPLATE,
        model_max_length=max_positions,
    )
