"""Gram products of gradients, module by module, down through the layers: no gradient of a whole model is ever held.

For a linear map y = W a over positions t, the gradient of a scalar is sum_t d_t a_t^T, d being the cotangent of y; so
what a layer contributes to the inner products of gradients needs only inputs and cotangents of its modules. The model
runs forwards once and the input of every layer is kept; then each layer, from the last to the first, runs again with a
graph of its own, the cotangents of all probes are pulled back through it, and its products are added up.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dcr_ray.diagnosis.opened import EMBEDDING, Opened, normed, right_padded
from dcr_ray.methods.states import states_of

CHUNK_ELEMENTS = 2**25
"""Of gradients that are formed at a time, in the larger of the products."""

PULLED_PROMPTS = 32
"""Prompts that a layer's graph is built for at a time."""


@dataclass(frozen=True)
class Lora:
    """Fresh adapters of PEFT's kind: A [rank, inputs] uniform in +-1/sqrt(inputs), B = 0, scaled by alpha/rank."""

    rank: int = 8
    alpha: float = 16.0
    targets: tuple[str, ...] = ("q_proj", "k_proj", "v_proj")
    seed: int = 0


@dataclass(frozen=True)
class Grams:
    """Inner products <g_(i,n), g_(j,m)> of the gradients of cotangent i at prompt n, [C, N, C, N] in fp64, by part.

    `states` [N, width] are the normed last states h. `embedded` [C, N, T, width] are the cotangents of the embedding's
    rows for `tokens` [N, T], of which the cross terms of a tied head are made; 0 where a prompt is padded.
    """

    states: Tensor
    layers: list[Tensor]
    lora: list[Tensor]
    norm: Tensor
    embedding: Tensor
    embedded: Tensor
    tokens: Tensor


Report = Callable[[int, int], None]


def gradient_grams(
    opened: Opened,
    rows: Sequence[Sequence[int]],
    cotangents: Tensor,
    *,
    lora: Lora | None = None,
    report: Report = lambda *_: None,
) -> Grams:
    """Products of the gradients of c_i . h(x_n) for prompts as token ids and cotangents [C, width], or [C, N, width]
    where each prompt has its own.

    h is the state that the head is applied to, at the last token of a prompt. Prompts are padded on the right, where a
    causal model does not look.
    """
    device, dtype = opened.device, opened.dtype
    ids, mask, at = right_padded(rows, device)
    entering, named, last = _forwards(opened, ids, mask)
    count = len(opened.layers)
    report(1, count + 1)
    scale = _embedding_scale(opened, ids[0], entering[0][0])

    final = last[torch.arange(len(rows), device=device), at].clone().requires_grad_()
    with torch.enable_grad():
        states = opened.model.base_model.norm(final[:, None])[:, 0]
    if cotangents.dim() == 2:
        cotangents = cotangents[:, None].expand(-1, len(rows), -1)
    norm_gradient = cotangents * normed(final.detach(), opened.model.base_model.norm)[None]
    pulled = torch.stack([torch.autograd.grad(states, final, each, retain_graph=True)[0] for each in cotangents])
    cotangent = torch.zeros(len(cotangents), *last.shape, device=device, dtype=dtype)
    cotangent[:, torch.arange(len(rows), device=device), at] = pulled
    del last

    layer_grams: list[Tensor] = [torch.empty(0)] * count
    lora_grams: list[Tensor] = [torch.empty(0)] * count
    for index in reversed(range(count)):
        layer_grams[index], lora_grams[index], cotangent = _one_layer(
            opened.layers[index], index, entering[index], named[index], cotangent, lora, (at + 1).tolist()
        )
        entering[index] = torch.empty(0)
        report(count - index + 1, count + 1)
    embedded = cotangent * scale
    return Grams(
        states.detach(),
        layer_grams,
        lora_grams,
        _gram(norm_gradient).reshape(len(cotangents), len(rows), len(cotangents), len(rows)),
        _lookup_gram(embedded, ids),
        embedded,
        ids,
    )


def _forwards(opened: Opened, ids: Tensor, mask: Tensor) -> tuple[list[Tensor], list[dict[str, Any]], Tensor]:
    """Every layer's input and its other arguments, and the last one's output."""
    entering: list[Tensor] = []
    named: list[dict[str, Any]] = []
    last: list[Tensor] = []

    def before(_: Any, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        entering.append(arguments[0] if arguments else keywords["hidden_states"])
        named.append({key: value for key, value in keywords.items() if key != "hidden_states"})

    hooks = [layer.register_forward_pre_hook(before, with_kwargs=True) for layer in opened.layers]
    hooks.append(opened.layers[-1].register_forward_hook(lambda _, __, output: last.append(states_of(output))))
    try:
        with torch.no_grad():
            opened.model.base_model(input_ids=ids, attention_mask=mask, use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    return entering, named, last[0]


def _one_layer(
    layer: Any,
    index: int,
    entering: Tensor,
    named: dict[str, Any],
    cotangent: Tensor,
    lora: Lora | None,
    lengths: Sequence[int],
) -> tuple[Tensor, Tensor, Tensor]:
    """The layer's products, those of fresh adapters in it, and the cotangents of its input [C, N, T, width]."""
    prompts = entering.shape[0]
    below = torch.empty_like(cotangent)
    inputs: dict[str, list[Tensor]] = {}
    pulled: dict[str, list[Tensor]] = {}
    modules: dict[str, nn.Module] = {}
    for start in range(0, prompts, PULLED_PROMPTS):
        part = slice(start, start + PULLED_PROMPTS)
        found, gradients = _pull_back(layer, entering[part], _rows_of(named, part, prompts), cotangent[:, part])
        below[:, part] = gradients.pop("")
        for name, (module, given) in found.items():
            modules[name] = module
            inputs.setdefault(name, []).append(given)
            pulled.setdefault(name, []).append(gradients[name])
    size = cotangent.shape[0] * prompts
    total = torch.zeros(size, size, dtype=torch.float64)
    adapted = torch.zeros(size, size, dtype=torch.float64)
    for name, module in modules.items():
        given, gradient = torch.cat(inputs.pop(name)), torch.cat(pulled.pop(name), 1)
        if isinstance(module, nn.Linear):
            total += _linear_gram(gradient, given, lengths)
            if module.bias is not None:
                total += _gram(gradient.sum(2))
            if lora is not None and name.rpartition(".")[2] in lora.targets:
                adapted += _linear_gram(gradient, given @ _adapter(lora, index, name, given).T, lengths)
        else:
            over = tuple(range(2, gradient.dim() - 1))
            total += _gram((gradient * normed(given, module)[None]).sum(over))
    shape = (cotangent.shape[0], prompts, cotangent.shape[0], prompts)
    return total.reshape(shape), adapted.reshape(shape), below


def _pull_back(
    layer: Any, entering: Tensor, named: dict[str, Any], cotangent: Tensor
) -> tuple[dict[str, tuple[nn.Module, Tensor]], dict[str, Tensor]]:
    """By name every module with weights and its input, and the cotangents of their outputs; under "" the input's."""
    found: dict[str, tuple[nn.Module, Tensor]] = {}
    outputs: dict[str, Tensor] = {}
    hooks = []
    for name, module in layer.named_modules():
        if not any(True for _ in module.children()) and any(True for _ in module.parameters()):

            def after(of: nn.Module, given: tuple[Tensor, ...], output: Tensor, name: str = name) -> None:
                found[name] = (of, given[0].detach())
                outputs[name] = output

            hooks.append(module.register_forward_hook(after))
    leaf = entering.detach().clone().requires_grad_()
    try:
        with torch.enable_grad():
            leaving = states_of(layer(leaf, **named))
    finally:
        for hook in hooks:
            hook.remove()
    names = ["", *outputs]
    wanted = [leaf, *outputs.values()]
    each = [
        torch.autograd.grad(leaving, wanted, one, retain_graph=place + 1 < len(cotangent))
        for place, one in enumerate(cotangent)
    ]
    return found, {name: torch.stack([one[place] for one in each]) for place, name in enumerate(names)}


def _rows_of(named: dict[str, Any], part: slice, prompts: int) -> dict[str, Any]:
    """The arguments of some of the prompts: tensors whose first dimension is that of prompts are cut."""

    def cut(value: Any) -> Any:
        if isinstance(value, Tensor):
            return value[part] if value.dim() and value.shape[0] == prompts and prompts > 1 else value
        if isinstance(value, tuple):
            return tuple(cut(each) for each in value)
        return value

    return {name: cut(value) for name, value in named.items()}


def _linear_gram(cotangents: Tensor, inputs: Tensor, lengths: Sequence[int]) -> Tensor:
    """<sum_t d_t a_t^T, sum_s d'_s a'_s^T> for cotangents [C, N, T, o] and inputs [N, T, i], as [C N, C N] in fp64.

    By forming the gradients, or from products of inputs and of cotangents (`_factored_gram`), whichever takes fewer
    operations. Only the first `lengths` tokens of a prompt count.
    """
    c, n, _, o = cotangents.shape
    i, tokens, rows = inputs.shape[2], sum(lengths), c * n
    formed = rows * max(lengths) * o * i + 0.75 * rows**2 * o * i
    factored = tokens**2 / 2 * (i + c * o) + tokens * n / 2 * c**2 * o
    if factored <= formed:
        return _factored_gram(cotangents, inputs, lengths)
    total = torch.zeros(rows, rows, dtype=torch.float64)
    step = max(1, CHUNK_ELEMENTS // (rows * i))
    for start in range(0, o, step):
        piece = torch.einsum("cnto,nti->cnoi", cotangents[..., start : start + step], inputs)
        total += _gram(piece.reshape(c, n, -1))
    return total


def _factored_gram(cotangents: Tensor, inputs: Tensor, lengths: Sequence[int]) -> Tensor:
    """sum_(t, s) (a_t . a'_s) <d_t, d'_s>: for every prompt m its cotangents are weighted by how like its inputs are to
    each token of the prompts from m on, and then meet that token's own, all pairs of probes at once."""
    c, n, _, o = cotangents.shape
    kept = torch.cat([torch.arange(length) + place * inputs.shape[1] for place, length in enumerate(lengths)])
    given = inputs.flatten(0, 1)[kept.to(inputs.device)]
    pulled = cotangents.flatten(1, 2)[:, kept.to(inputs.device)].transpose(0, 1).contiguous()  # [tokens, C, o]
    prompt_of = torch.repeat_interleave(torch.arange(n), torch.tensor(lengths)).to(inputs.device)
    total = torch.zeros(n, c, n, c, dtype=torch.float64)
    begin = 0
    for m, length in enumerate(lengths):
        own = pulled[begin : begin + length].reshape(length, c * o)
        summed = torch.zeros(n, c, c, dtype=torch.float64, device=inputs.device)
        step = max(1, CHUNK_ELEMENTS // (4 * c * o))
        for start in range(begin, len(given), step):
            part = slice(start, start + step)
            weighted = (given[part] @ given[begin : begin + length].T @ own).reshape(-1, c, o)
            summed.index_add_(0, prompt_of[part], torch.bmm(pulled[part], weighted.mT).double())
        total[m:, :, m] = summed[m:].cpu()
        total[m, :, m:] = summed[m:].permute(2, 0, 1).cpu()
        begin += length
    return total.permute(1, 0, 3, 2).reshape(c * n, c * n)


def _gram(vectors: Tensor) -> Tensor:
    """Inner products of vectors [C, N, k], as [C N, C N] in fp64. The lower triangle is computed in blocks."""
    flat = vectors.reshape(vectors.shape[0] * vectors.shape[1], -1)
    half = len(flat) // 2
    if half < 64:
        return (flat @ flat.T).double().cpu()
    total = torch.empty(len(flat), len(flat), dtype=torch.float64)
    upper, lower = flat[:half], flat[half:]
    total[:half, :half], total[half:, half:] = (upper @ upper.T).cpu(), (lower @ lower.T).cpu()
    total[half:, :half] = (lower @ upper.T).cpu()
    total[:half, half:] = total[half:, :half].T
    return total


def _lookup_gram(embedded: Tensor, ids: Tensor) -> Tensor:
    """Of the embedding's gradients: cotangents of the same token add up. [C, N, C, N] in fp64."""
    c, n, t, d = embedded.shape
    kinds, place = ids.unique(return_inverse=True)
    total = torch.zeros(c * n, c * n, dtype=torch.float64)
    step = max(1, CHUNK_ELEMENTS // (c * n * len(kinds)))
    where = place[None, :, :, None]
    for start in range(0, d, step):
        piece = embedded[..., start : start + step]
        summed = piece.new_zeros(c, n, len(kinds), piece.shape[-1])
        summed.scatter_add_(2, where.expand(c, n, t, piece.shape[-1]), piece)
        total += _gram(summed.reshape(c, n, -1))
    return total.reshape(c, n, c, n)


def _adapter(lora: Lora, index: int, name: str, inputs: Tensor) -> Tensor:
    """alpha/rank times A [rank, inputs] of a module, the same for the same seed, layer and name."""
    seed = hash((lora.seed, index)) ^ sum(ord(letter) << (8 * (place % 4)) for place, letter in enumerate(name))
    generator = torch.Generator().manual_seed(seed & (2**62 - 1))
    size = inputs.shape[2]
    drawn = (2 * torch.rand(lora.rank, size, dtype=torch.float64, generator=generator) - 1) / size**0.5
    return (lora.alpha / lora.rank * drawn).to(inputs.device, inputs.dtype)


def _embedding_scale(opened: Opened, ids: Tensor, given: Tensor) -> float:
    """What the model multiplies a token's row by before the first layer: 1, or the root of the width in Gemma.

    Raises ValueError where what is `given` to the first layer, [T, width], is no multiple of the rows of `ids` [T].
    """
    rows = opened.tensor(EMBEDDING)[ids]
    scale = float((given * rows).sum() / rows.square().sum())
    if not torch.allclose(given, scale * rows, rtol=1e-3, atol=1e-4 * float(given.abs().max())):
        raise ValueError("what enters the first layer is not a multiple of the tokens' embeddings")
    return scale
