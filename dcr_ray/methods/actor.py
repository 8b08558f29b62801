"""ACTOR (Dabas et al., arXiv 2507.04250): one layer fine-tuned towards activations moved along the refusal direction.

At the output a of the layer at the last prompt token, R = mean a(harmful) - mean a(harmless). A prompt's target is
a + alpha P for harmful prompts and a - alpha P for harmless and seemingly harmful ones, P = (a . R / |R|^2) R being its
own projection; the loss is 1 - cos(a, target), targets held constant. R and targets are computed anew before each
epoch. No answers are needed. Only the layer's own weights train, so what enters it is computed once. There is no public
code: the steps follow summaries of the paper.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from dcr_ray.methods.states import blocks, end_states, left_padded, states_of
from dcr_ray.recipe import ActorRecipe

_HARMFUL = 1.0


class Rewired(NamedTuple):
    """The tensors that changed, by name, and what was found: metrics and notes."""

    changed: dict[str, Tensor]
    metrics: dict[str, float]
    notes: list[str]


class _Entering(NamedTuple):
    """A batch as it enters the layer, and what each prompt is: 1 harmful, -1 harmless, 0 seemingly harmful."""

    states: Tensor
    named: dict[str, Any]
    kind: Tensor


def run_actor(
    model: Any,
    recipe: ActorRecipe,
    pseudo: Sequence[list[int]],
    harmful: Sequence[list[int]],
    harmless: Sequence[list[int]],
    seed: int,
    report: Callable[[int, int], None],
) -> Rewired:
    """Fine-tune one layer of `model`, in place. Prompts are token ids."""
    layers = blocks(model)
    silhouettes = layer_silhouettes(model, harmful, harmless)
    if recipe.layer_depth is None:
        index = max(range(len(silhouettes)), key=silhouettes.__getitem__)
    else:
        index = min(len(layers), max(1, round(recipe.layer_depth * len(layers)))) - 1
    layer = layers[index]
    rows = [(row, 1.0) for row in harmful] + [(row, -1.0) for row in harmless] + [(row, 0.0) for row in pseudo]
    random.Random(seed).shuffle(rows)
    batches = [
        _entering(model, layer, rows[start : start + recipe.batch_size])
        for start in range(0, len(rows), recipe.batch_size)
    ]
    layer.requires_grad_(True)
    optimizer = torch.optim.AdamW(layer.parameters(), lr=recipe.learning_rate, weight_decay=0.0)
    losses: list[float] = []
    for epoch in range(recipe.epochs):
        with torch.no_grad():
            now = [_output(layer, batch) for batch in batches]
        targets = _targets(now, [batch.kind for batch in batches], recipe.alpha)
        order = list(range(len(batches)))
        random.Random(f"{seed} {epoch}").shuffle(order)
        for place in order:
            loss = (1 - cosine_similarity(_output(layer, batches[place]), targets[place])).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
            report(len(losses), recipe.epochs * len(batches))
    layer.requires_grad_(False)
    place = f"model.layers.{index}."
    changed = {name: tensor for name, tensor in model.named_parameters() if name.startswith(place)}
    metrics = {
        "actor_layer_depth": (index + 1) / len(layers),
        "actor_silhouette": silhouettes[index],
        "actor_first_loss": losses[0],
        "actor_final_loss": losses[-1],
    }
    note = f"layer {index + 1} of {len(layers)}, {len(losses)} steps, {len(pseudo)} seemingly toxic prompts"
    return Rewired(changed, metrics, [note])


def layer_silhouettes(model: Any, harmful: Sequence[list[int]], harmless: Sequence[list[int]]) -> list[float]:
    """Mean silhouette of the two kinds' last-token states at every block's output, in the order of the blocks."""
    from sklearn.metrics import silhouette_score

    states = end_states(model, [*harmful, *harmless], 1)[:, 1:, 0]
    labels = [1] * len(harmful) + [0] * len(harmless)
    return [float(silhouette_score(states[:, layer].numpy(), labels)) for layer in range(states.shape[1])]


def _entering(model: Any, layer: Any, rows: Sequence[tuple[list[int], float]]) -> _Entering:
    taken: dict[str, Any] = {}

    def before(_: Any, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        taken["states"] = arguments[0] if arguments else named["hidden_states"]
        taken["named"] = {name: value for name, value in named.items() if name != "hidden_states"}

    hook = layer.register_forward_pre_hook(before, with_kwargs=True)
    with torch.no_grad():
        model(**left_padded([row for row, _ in rows], model.device).inputs, use_cache=False, logits_to_keep=1)
    hook.remove()
    return _Entering(taken["states"], taken["named"], torch.tensor([kind for _, kind in rows], device=model.device))


def _output(layer: Any, batch: _Entering) -> Tensor:
    """The layer's output at the last token of every prompt, [prompts, width]."""
    return states_of(layer(batch.states, **batch.named))[:, -1]


def _targets(states: list[Tensor], kinds: list[Tensor], alpha: float) -> list[Tensor]:
    everything, kind = torch.cat(states), torch.cat(kinds)
    direction = everything[kind == _HARMFUL].mean(0) - everything[kind == -1.0].mean(0)
    targets = []
    for part, each in zip(states, kinds, strict=True):
        projection = (part @ direction / (direction @ direction))[:, None] * direction
        sign = torch.where(each == _HARMFUL, alpha, -alpha)
        targets.append(part + sign[:, None] * projection)
    return targets
