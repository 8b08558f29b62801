"""SCANS (Cao, Yang and Zhao, arXiv 2408.11491): steering at inference, by a harmfulness test on hidden states.

v_l is the unit vector along mean(harmful) - mean(harmless) of block l's output at a prompt's last token. A prompt is
harmful if s = mean over layers of cos(t_l, r_l) reaches a threshold. t_l is the state at the first token after the
instruction less that at the last token, once an affirmative beginning is appended; r_l is the mean of t_l over harmful
anchors. Steered layers get + alpha v_l for a harmful prompt and - alpha v_l for another one, from the first
token after the instruction on, hence at all generated ones.

It needs hidden states while it generates, so it runs in the transformers engine; vLLM batches the tokens of many
prompts and gives no place to tell them apart.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.functional import cosine_similarity, normalize

from dcr_ray.errors import StageFailed
from dcr_ray.methods.states import blocks, common_end, end_states, states_of
from dcr_ray.recipe import ScansRecipe

VECTORS_FILE, SETTINGS_FILE = "scans.safetensors", "scans.json"


class Fitted(NamedTuple):
    """What SCANS has to know of a model, and what was found on the way: metrics and notes."""

    vectors: dict[str, Tensor]
    settings: dict[str, Any]
    metrics: dict[str, float]
    notes: list[str]

    def write(self, folder: Path) -> None:
        save_file(self.vectors, folder / VECTORS_FILE)
        (folder / SETTINGS_FILE).write_text(json.dumps(self.settings, indent=1))


def fit_scans(
    model: Any,
    tokenizer: Any,
    recipe: ScansRecipe,
    harmful: Sequence[list[int]],
    harmless: Sequence[list[int]],
    seemingly: Sequence[list[int]],
) -> Fitted:
    """Steering vectors, references and threshold from anchors, given as token ids of their prompts.

    Seemingly toxic prompts are only tested, to say how often they are taken for harmful. Raises StageFailed for a
    template that puts nothing after an instruction.
    """
    after = common_end([*harmful, *harmless])
    if not after:
        raise StageFailed("error", "prompts end with their own text, so there is no token after an instruction")
    layers = recipe.layers(len(blocks(model)))
    bad, good = (end_states(model, rows, 1)[:, 1:, 0].double() for rows in (harmful, harmless))
    directions = normalize(bad.mean(0) - good.mean(0), dim=1)
    sizes = (
        torch.cat([bad, good]).norm(dim=2).mean(0) if recipe.strength_in == "residual_norm" else torch.ones(len(bad[0]))
    )
    affirmative = tokenizer(recipe.affirmative, add_special_tokens=False)["input_ids"]
    moved = transitions(model, harmful, after, affirmative)
    references = moved.mean(0)
    scores = [
        harmfulness(transitions(model, rows, after, affirmative), references, layers.start)
        for rows in (harmful, harmless, seemingly)
    ]
    threshold = recipe.threshold if recipe.threshold is not None else between(scores[0], scores[1])
    vectors = {
        "steering": (recipe.strength * sizes[:, None] * directions)[layers.start : layers.stop].float().contiguous(),
        "references": references.float().contiguous(),
    }
    settings = {
        "first_layer": layers.start,
        "threshold": threshold,
        "after_instruction": after,
        "affirmative": affirmative,
    }
    shares = [float((each >= threshold).double().mean()) for each in scores]
    metrics = {
        f"scans_taken_for_harmful.{kind}": share for kind, share in zip(("toxic", "general", "seemingly_toxic"), shares)
    }
    toxic, general, seemingly_toxic = (f"{share:.0%}" for share in shares)
    note = (
        f"steers layers {layers.start + 1} to {layers.stop} of {len(blocks(model))} by +-{recipe.strength:g}; "
        f"threshold {threshold:.3f}; taken for harmful: {toxic} of toxic, {general} of general, {seemingly_toxic} "
        "of seemingly toxic training prompts"
    )
    return Fitted(vectors, settings, metrics, [note])


def transitions(model: Any, rows: Sequence[list[int]], after: int, affirmative: Sequence[int]) -> Tensor:
    """t_l of every row, [rows, layers, width]: how the state changes from the instruction's end to an affirmative."""
    states = end_states(model, [[*row, *affirmative] for row in rows], after + len(affirmative))[:, 1:].double()
    return states[:, :, 0] - states[:, :, -1]


def harmfulness(moved: Tensor, references: Tensor, first_layer: int) -> Tensor:
    """s of every row in [-1, 1]: mean cosine to the references over the layers from `first_layer`, counted from 0."""
    return cosine_similarity(moved[:, first_layer:], references[None, first_layer:].to(moved.dtype), dim=2).mean(1)


def between(harmful: Tensor, harmless: Tensor) -> float:
    """The threshold that parts the two kinds of scores best (balanced accuracy), in the middle of its gap."""
    values = torch.cat([harmful, harmless]).unique()
    cuts = (values[1:] + values[:-1]) / 2 if len(values) > 1 else values
    accuracy = [float((harmful >= cut).double().mean() + (harmless < cut).double().mean()) for cut in cuts]
    return float(cuts[max(range(len(cuts)), key=accuracy.__getitem__)])


class Steering:
    """A fitted SCANS on a model that generates. Prompts end with the template that it was fitted with."""

    def __init__(self, model: Any, folder: Path | str):
        settings = json.loads((Path(folder) / SETTINGS_FILE).read_text())
        vectors = load_file(Path(folder) / VECTORS_FILE)
        self.after: int = settings["after_instruction"]
        self._model = model
        self._first: int = settings["first_layer"]
        self._threshold: float = settings["threshold"]
        self._affirmative: list[int] = settings["affirmative"]
        self._vectors = vectors["steering"].to(model.device, model.dtype)
        self._references = vectors["references"].double()

    def signs(self, prompts: Sequence[Sequence[int]]) -> Tensor:
        """1 for a prompt that is taken for harmful, -1 for any other, [prompts]."""
        moved = transitions(self._model, [list(prompt) for prompt in prompts], self.after, self._affirmative)
        harmful = harmfulness(moved, self._references, self._first) >= self._threshold
        return torch.where(harmful, 1.0, -1.0).to(self._model.device, self._model.dtype)

    @contextmanager
    def applied(self, signs: Tensor) -> Iterator[Steered]:
        """Steer every pass of the model inside the block, whose rows have these signs."""
        steered = Steered(signs)
        hooks = []
        for index, vector in enumerate(self._vectors):

            def after(_: Any, __: Any, output: Any, vector: Tensor = vector) -> Any:
                moved = states_of(output) + steered.weights[..., None] * vector
                return (moved, *output[1:]) if isinstance(output, tuple) else moved

            hooks.append(blocks(self._model)[self._first + index].register_forward_hook(after))
        try:
            yield steered
        finally:
            for hook in hooks:
                hook.remove()


class Steered:
    """Which positions of the next pass are steered, and how. `weights` is [rows, positions] or broadcasts to it."""

    def __init__(self, signs: Tensor):
        self._signs = signs
        self.weights = signs[:, None]

    def everywhere(self) -> None:
        """All positions, as where answers are generated."""
        self.weights = self._signs[:, None]

    def from_places(self, places: Sequence[int], width: int) -> None:
        """For each row the positions from its place on, of a pass over `width` positions."""
        columns = torch.arange(width, device=self._signs.device)[None, :]
        first = torch.tensor(list(places), device=self._signs.device)[:, None]
        self.weights = self._signs[:, None] * (columns >= first)
