"""Exchange of a running vLLM's weights: from a folder, or only those tensors that changed.

Both go through vLLM's own layerwise reloading, which loads whole modules and packs them anew for their kernels. A
module that vLLM has fused (query, key and value; gate and up) needs all of its parts, so the unchanged ones among them
are read from the base folder; a module of which nothing is loaded keeps what it has. Files are memory-mapped. The
functions run in vLLM's workers, which are other processes where there is more than one GPU.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any


def load_folder(worker: Any, folder: str) -> None:
    """All weights of a folder. Where the engine's head is its own and the folder's is tied, it gets the embedding."""
    if worker.model_config.hf_config.tie_word_embeddings:
        worker.reload_weights(weights_path=folder)
    else:
        with ExitStack() as stack:
            where = _with_head(_opened(stack, sorted(Path(folder).glob("*.safetensors"))))
            worker.reload_weights(weights_iterator=_tensors(where, sorted(where)))
    _pack_embeddings(worker)


def load_changed(worker: Any, base_dir: str, changed_file: str, names: Sequence[str] | None) -> None:
    """The tensors of `names` and their modules' others, or all where it is None: those of `changed_file` from there,
    the rest from the base folder.

    Raises FileNotFoundError, before anything is loaded, where the file is gone.
    """
    with ExitStack() as stack:
        where = _opened(stack, [*sorted(Path(base_dir).glob("*.safetensors")), Path(changed_file)])
        if not worker.model_config.hf_config.tie_word_embeddings:
            where = _with_head(where)
            if names is not None and EMBEDDING in names:
                names = [*names, HEAD]
        packed = getattr(worker.get_model(), "packed_modules_mapping", None)
        whole = names is None or packed is None or any(".experts." in name for name in where)
        wanted = sorted(
            where if whole else whole_modules(names, where, packed), key=lambda n: module_of(n, packed or {})
        )
        worker.reload_weights(weights_iterator=_tensors(where, wanted))
    if whole or any(_is_embedding(name) for name in wanted):
        _pack_embeddings(worker)


Places = Mapping[str, tuple[Any, str]]
"""For every tensor the open file that holds it, and its name there."""

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


def _opened(stack: ExitStack, files: Sequence[Path]) -> Places:
    from safetensors import safe_open

    where = {}
    for file in files:
        opened = stack.enter_context(safe_open(file, "pt"))
        where |= {name: (opened, name) for name in opened.keys()}
    return where


def _with_head(where: Places) -> Places:
    return where if HEAD in where else {**where, HEAD: where[EMBEDDING]}


def _tensors(where: Places, names: Iterable[str]) -> Iterator[tuple[str, Any]]:
    for name in names:
        opened, stored = where[name]
        yield name, opened.get_tensor(stored)


def module_of(name: str, packed: Mapping[str, Sequence[str]]) -> str:
    """The vLLM module that holds a checkpoint's tensor: `...self_attn.qkv_proj` for `...self_attn.q_proj.weight`.

    `packed` is the model's packed_modules_mapping: the name of a fused module and those of its parts.
    """
    fused = {part: whole for whole, parts in packed.items() for part in parts}
    parent, _, last = name.rpartition(".")[0].rpartition(".")
    return f"{parent}.{fused.get(last, last)}"


def whole_modules(names: Iterable[str], known: Iterable[str], packed: Mapping[str, Sequence[str]]) -> set[str]:
    """All of the `known` tensors that share a vLLM module with one of `names`."""
    modules = {module_of(name, packed) for name in names}
    return {name for name in known if module_of(name, packed) in modules}


def _is_embedding(name: str) -> bool:
    return name.rpartition(".")[0].rpartition(".")[2] in ("embed_tokens", "lm_head", "wte")


def _pack_embeddings(worker: Any) -> None:
    """Pack the output head anew for oneDNN.

    On a CPU reloading leaves the head's packed copy of the old weights in use where head and embedding are tied:
    nothing raises, and log-probabilities are off by some tenths (vLLM 0.32).
    """
    from vllm.model_executor.layers.vocab_parallel_embedding import VocabParallelEmbedding
    from vllm.platforms import current_platform

    if not current_platform.is_cpu():
        return
    from vllm.model_executor.layers.utils import dispatch_cpu_unquantized_gemm

    for module in worker.get_model().modules():
        if isinstance(module, VocabParallelEmbedding) and hasattr(module, "cpu_linear"):
            dispatch_cpu_unquantized_gemm(module, remove_weight=False)
