"""A direction taken out of the residual stream (arXiv 2406.11717, section 2.4): by hooks, and in the weights.

With hooks it is removed from the input of every block and from the output of every attention and MLP, at all positions.
In the weights, all matrices that write into the stream are projected: embedding, attention output, MLP output. The two
compute the same, as long as nothing stands between those matrices and the stream: models that norm a sublayer's output
(Gemma 2 and 3) have no such weights. The head never writes into the stream, so a tied one has to be untied.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from dcr_ray.methods.states import blocks, states_of

HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"


def without(states: Tensor, direction: Tensor) -> Tensor:
    """x - (x . r) r for states [..., width] and a unit direction [width]."""
    return states - (states @ direction)[..., None] * direction


@contextmanager
def ablated(model: Any, direction: Tensor) -> Iterator[None]:
    """The model without the unit direction [width], as long as the block lasts."""
    direction = direction.to(model.device, model.dtype)

    def before(_: Any, arguments: tuple[Any, ...], named: dict[str, Any]) -> Any:
        if arguments:
            return (without(arguments[0], direction), *arguments[1:]), named
        return arguments, named | {"hidden_states": without(named["hidden_states"], direction)}

    def after(_: Any, __: Any, output: Any) -> Any:
        states = without(states_of(output), direction)
        return (states, *output[1:]) if isinstance(output, tuple) else states

    hooks = []
    for block in blocks(model):
        hooks.append(block.register_forward_pre_hook(before, with_kwargs=True))
        hooks += [part.register_forward_hook(after) for part in (block.self_attn, block.mlp)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def ablate_weights(model: Any, direction: Tensor) -> dict[str, Tensor]:
    """Project the direction out of the model's own weights, in place. Returns the changed tensors by name.

    A tied head is untied first and keeps its weights, so that it is among the changed tensors.
    """
    direction = direction.to(model.device, torch.float64)
    changed: dict[str, Tensor] = {}
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    if head.weight is embedding.weight:
        head.weight = nn.Parameter(embedding.weight.detach().clone(), requires_grad=False)
        model.config.tie_word_embeddings = False
        changed[HEAD] = head.weight
    outputs = {EMBEDDING: embedding.weight.T}
    for index, block in enumerate(blocks(model)):
        for name, linear in (("self_attn.o_proj", block.self_attn.o_proj), ("mlp.down_proj", block.mlp.down_proj)):
            place = f"model.layers.{index}.{name}"
            outputs[f"{place}.weight"] = linear.weight
            if linear.bias is not None:
                outputs[f"{place}.bias"] = linear.bias[:, None]
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name, weight in outputs.items():
            # Columns of [width, n] are what is written into the stream.
            weight.copy_(without(weight.T.double(), direction).T)
            changed[name] = parameters[name]
    return changed
