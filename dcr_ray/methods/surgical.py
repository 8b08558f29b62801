"""Surgical (Wang et al., arXiv 2410.03415): ablation of the direction of false refusal, kept off that of true refusal.

At a token position p of the template's end and a layer l, r = mean(harmful) - mean(harmless) and w = mean(pseudo-
harmful) - mean(harmless), over prompts that are really refused or really answered; w' = w - lambda (w . r / |r|^2) r.
Position and layer are those that lower refusal of pseudo-harmful prompts most while harmless ones' first token keeps
its distribution within a bound. w' is then projected out of the weights, so that any engine serves the result.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from dcr_ray.errors import StageFailed
from dcr_ray.evaluate.first_token import refusal_first_tokens
from dcr_ray.methods.ablation import ablate_weights, ablated
from dcr_ray.methods.states import blocks, common_end, end_states, next_token_logprobs, refusal_scores
from dcr_ray.recipe import SurgicalRecipe

AGREEMENT_PROMPTS = 8


class Split(NamedTuple):
    """Token ids of one kind of prompts: those that directions are means of, and those that choose among them."""

    fit: list[list[int]]
    validate: list[list[int]]


class Surgery(NamedTuple):
    """The tensors that changed, by name, and what was found: metrics and notes."""

    changed: dict[str, Tensor]
    metrics: dict[str, float]
    notes: list[str]


def run_surgical(
    model: Any,
    tokenizer: Any,
    recipe: SurgicalRecipe,
    pseudo: Split,
    harmful: Split,
    harmless: Split,
    report: Callable[[int, int], None],
) -> Surgery:
    """Choose the direction and project it out of `model`, in place.

    Raises StageFailed where too few prompts are really refused, or no direction keeps the bound.
    """
    tokens = refusal_first_tokens(tokenizer)

    def scores(rows: Sequence[list[int]]) -> Tensor:
        return refusal_scores(next_token_logprobs(model, rows), tokens).cpu()

    tail = common_end([*pseudo.fit, *harmful.fit, *harmless.fit])
    positions = min(tail, recipe.positions or tail)
    refused, truly, answered = (
        [row for row, score in zip(split.fit, scores(split.fit), strict=True) if sign * score > 0]
        for split, sign in ((pseudo, 1), (harmful, 1), (harmless, -1))
    )
    _enough(recipe, {"seemingly toxic": (refused, pseudo.fit), "toxic": (truly, harmful.fit)}, answered)
    means = [end_states(model, rows, positions).double().mean(0) for rows in (refused, truly, answered)]
    false_direction, true_direction = means[0] - means[2], means[1] - means[2]
    before = scores(pseudo.validate)
    base = next_token_logprobs(model, harmless.validate)
    depths = range(0, math.ceil(recipe.deepest * len(blocks(model))), recipe.layer_step)
    # The template's embeddings are the same after every prompt, so there is no direction at the first block's input.
    candidates = [
        (layer, position)
        for layer in depths
        for position in range(positions)
        if false_direction[layer, position].any() and true_direction[layer, position].any()
    ]
    tried: list[tuple[float, float, int, int, Tensor]] = []
    for count, (layer, position) in enumerate(candidates):
        w, r = false_direction[layer, position], true_direction[layer, position]
        direction = w - recipe.orthogonality * (w @ r) / (r @ r) * r
        direction /= direction.norm()
        with ablated(model, direction.float()):
            score = scores(pseudo.validate).mean().item()
            now = next_token_logprobs(model, harmless.validate)
        # By columns: a log-probability of -inf times a probability of 0 would be no number.
        kl = (base.exp() * (base - now)).nan_to_num(0.0).sum(1).mean().item()
        tried.append((score, kl, layer, position, direction))
        report(count + 1, len(candidates))
    kept = [each for each in tried if each[1] <= recipe.kl_bound]
    if not kept:
        least = min(each[1] for each in tried)
        raise StageFailed(
            "error",
            f"no direction keeps harmless prompts within {recipe.kl_bound} nats; the nearest changes {least:.3g}",
        )
    score, kl, layer, position, direction = min(kept, key=lambda each: each[0])
    asked = [*pseudo.validate, *harmless.validate][:AGREEMENT_PROMPTS]
    with ablated(model, direction.float()):
        hooked = next_token_logprobs(model, asked)
    changed = ablate_weights(model, direction)
    agreement = (next_token_logprobs(model, asked) - hooked).abs().max().item()
    after_harmful = scores(harmful.validate).mean().item()
    metrics = {
        "surgical_layer_depth": layer / len(blocks(model)),
        "surgical_kl": kl,
        "surgical_score_before": before.mean().item(),
        "surgical_score_after": score,
        "surgical_toxic_score_after": after_harmful,
        "surgical_refused_share": len(refused) / len(pseudo.fit),
        "surgical_weights_against_hooks": agreement,
    }
    note = (
        f"direction of block {layer}'s input at template token -{positions - position}, from {len(refused)} refused of "
        f"{len(pseudo.fit)} seemingly toxic and {len(truly)} of {len(harmful.fit)} toxic prompts; {len(kept)} of "
        f"{len(tried)} candidates keep the bound"
    )
    return Surgery(changed, metrics, [note])


def _enough(recipe: SurgicalRecipe, found: dict[str, tuple[list, list]], answered: list) -> None:
    few = [
        f"{len(refused)} of {len(asked)} {kind} prompts are really refused"
        for kind, (refused, asked) in found.items()
        if len(refused) < recipe.fewest_refused
    ]
    if len(answered) < recipe.fewest_refused:
        few.append(f"{len(answered)} general prompts are really answered")
    if few:
        raise StageFailed("error", f"{' and '.join(few)}; Surgical needs {recipe.fewest_refused} or more of each")
