"""ModelCard: the facts of a base model that planning and scaling need, read from its config.json alone.

It knows nothing of weights, devices or torch; parameter counts are closed forms of the shape and exact.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from dcr_ray.errors import InputError, Problem, nearest_name


@dataclass(frozen=True)
class _Family:
    """How one architecture departs from the plain Llama block, and what its config leaves out when it is the default.

    `attention_bias`: "config" follows the config's attention_bias (queries, keys, values and output), "qkv" is always
    on without the output's, "never" is never.
    """

    attention_bias: Literal["config", "qkv", "never"] = "config"
    mlp_bias: bool = False
    qk_norm: bool = False
    norms_per_layer: int = 2
    tied_by_default: bool = False
    default_head_dim: int | None = None


FAMILIES: dict[str, _Family] = {
    "LlamaForCausalLM": _Family(mlp_bias=True),
    "MistralForCausalLM": _Family("never"),
    "Qwen2ForCausalLM": _Family("qkv"),
    "Qwen3ForCausalLM": _Family(qk_norm=True, default_head_dim=128),
    "GemmaForCausalLM": _Family(tied_by_default=True, default_head_dim=256),
    "Gemma2ForCausalLM": _Family(norms_per_layer=4, tied_by_default=True, default_head_dim=256),
    "Gemma3ForCausalLM": _Family(qk_norm=True, norms_per_layer=4, tied_by_default=True, default_head_dim=256),
}
"""The supported decoder-only architectures, by their name in config.json."""


@dataclass(frozen=True)
class ModelCard:
    """Shape and exact parameter counts of a decoder-only language model.

    `embedding_parameters` is one vocabulary x hidden_size matrix (an untied head is a second one);
    `layer_parameters` is one decoder layer, norms and biases included.
    """

    name: str
    architecture: str
    layers: int
    hidden_size: int
    intermediate_size: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    tied_embeddings: bool
    qkv_bias: bool
    qk_norm: bool
    max_positions: int
    parameters: int
    embedding_parameters: int
    layer_parameters: int

    @property
    def head_parameters(self) -> int:
        """Parameters of the output head that are its own: none where it shares the embedding's matrix."""
        return 0 if self.tied_embeddings else self.embedding_parameters

    def trunk_parameters(self, layer: int) -> int:
        """Parameters of the embedding and layers 1..`layer`: what a loss at the output of that layer runs through.

        Raises ValueError for a layer outside 1..L.
        """
        if not 1 <= layer <= self.layers:
            raise ValueError(f"layer {layer} is not in 1..{self.layers} of {self.name}")
        return self.embedding_parameters + layer * self.layer_parameters

    @classmethod
    def from_config(cls, config: dict[str, Any], name: str) -> ModelCard:
        """The card of a model from its config.json as a dict.

        Per layer, with h hidden, a heads and k key-value heads of d dimensions and f intermediate:
        (q, o) 2had + (k, v) 2hkd + (gate, up, down) 3hf + norms h each, plus biases and query-key norms; and
        Vh per embedding matrix, h for the last norm. Raises InputError for architectures that are not in FAMILIES and
        for every size that is missing or not a positive whole number.
        """
        where = f"model {name}"
        architecture = _architecture(config, where)
        family = FAMILIES[architecture]
        problems: list[Problem] = []

        def size(key: str, default: int | None = None) -> int:
            value = config.get(key)
            value = default if value is None else value
            if isinstance(value, int) and not isinstance(value, bool) and value > 0:
                return value
            problems.append(Problem(f"{where}, config.json: {key}", repr(value), "a whole number above 0"))
            return 1

        hidden, heads = size("hidden_size"), size("num_attention_heads")
        kv_heads = size("num_key_value_heads", heads if architecture == "LlamaForCausalLM" else None)
        head_dim = size("head_dim", family.default_head_dim or max(1, hidden // heads))
        intermediate, layers = size("intermediate_size"), size("num_hidden_layers")
        vocabulary, positions = size("vocab_size"), size("max_position_embeddings")
        if not problems and heads % kv_heads:
            problems.append(
                Problem(f"{where}, config.json: num_key_value_heads", str(kv_heads), f"a divisor of {heads} heads")
            )
        if problems:
            raise InputError(problems)

        output_bias = family.attention_bias == "config" and bool(config.get("attention_bias", False))
        qkv_bias = output_bias or family.attention_bias == "qkv"
        tied = config.get("tie_word_embeddings")
        tied = family.tied_by_default if tied is None else bool(tied)
        query, key_value = heads * head_dim, kv_heads * head_dim
        layer = 2 * hidden * (query + key_value) + 3 * hidden * intermediate + family.norms_per_layer * hidden
        layer += (query + 2 * key_value) * qkv_bias + hidden * output_bias
        layer += 2 * head_dim * family.qk_norm
        layer += (2 * intermediate + hidden) * (family.mlp_bias and bool(config.get("mlp_bias", False)))
        embedding = vocabulary * hidden
        return cls(
            name=name,
            architecture=architecture,
            layers=layers,
            hidden_size=hidden,
            intermediate_size=intermediate,
            heads=heads,
            kv_heads=kv_heads,
            head_dim=head_dim,
            vocabulary=vocabulary,
            tied_embeddings=tied,
            qkv_bias=qkv_bias,
            qk_norm=family.qk_norm,
            max_positions=positions,
            parameters=embedding * (1 if tied else 2) + layers * layer + hidden,
            embedding_parameters=embedding,
            layer_parameters=layer,
        )

    @classmethod
    def from_folder(cls, folder: Path | str, name: str | None = None) -> ModelCard:
        """The card of the model in `folder`, read from its config.json; named after the folder unless `name` is given.

        Raises InputError where there is no readable config.json, and as `from_config` does.
        """
        folder = Path(folder)
        file = folder / "config.json"
        try:
            config = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
            raise InputError([Problem(str(file), reason, "a config.json as transformers writes it")]) from error
        if not isinstance(config, dict):
            raise InputError([Problem(str(file), f"a JSON {type(config).__name__}", "a JSON object")])
        return cls.from_config(config, name or folder.resolve().name)


def _architecture(config: dict[str, Any], where: str) -> str:
    """The one supported architecture that the config names, or InputError that says what it names instead."""
    listed = config.get("architectures")
    names = [str(item) for item in listed] if isinstance(listed, list) else []
    if len(names) == 1 and names[0] in FAMILIES:
        return names[0]
    found = ", ".join(names) or f"none (model_type {config.get('model_type')!r})"
    fix = nearest_name(names[0], FAMILIES) if names else "Name the architecture, as transformers' save_pretrained does."
    if names and not names[0].endswith("ForCausalLM"):
        fix = "dcr_ray trains and evaluates text-only decoder language models (…ForCausalLM)."
    raise InputError([Problem(f"{where}, config.json: architectures", found, ", ".join(FAMILIES), fix)])
