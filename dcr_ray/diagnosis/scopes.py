"""Scopes: which parameters a kernel is of.

`head` is the output matrix, `trunk` the layers up to l (without the embedding, which the DCR stage freezes), `tail` the
layers after l with final norm and head, `last<N>+head` the last N layers with final norm and head, `lora` fresh
adapters (A as drawn, B = 0), `all` everything. The head of a tied model is its matrix as far as it is used at the
output; the same matrix as embedding counts in `all` alone, together with what the two uses have in common.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from dcr_ray.errors import Problem

CAPPED_LOGITS = ("Gemma2ForCausalLM",)
"""Architectures whose logits are not a matrix times the last state, which all of this rests on."""

NAMES = ("head", "trunk", "tail", "last<N>+head", "lora", "all")


@dataclass(frozen=True)
class Scope:
    """`layers` are block numbers from 0. `ends` stands for final norm and head, `embedding` for the lookup."""

    name: str
    layers: range
    norm: bool
    head: bool
    embedding: bool
    lora: bool = False


def scope_of(name: str, layer: int, layers: int) -> Scope:
    """The scope of this name, with l = `layer` in 1..`layers`. Raises ValueError for a name that is none."""
    last = re.fullmatch(r"last(\d+)\+head", name)
    if last and 1 <= int(last[1]) <= layers:
        return Scope(name, range(layers - int(last[1]), layers), True, True, False)
    plain = {
        "head": Scope(name, range(0), False, True, False),
        "trunk": Scope(name, range(layer), False, False, False),
        "tail": Scope(name, range(layer, layers), True, True, False),
        "lora": Scope(name, range(layers), False, False, False, lora=True),
        "all": Scope(name, range(layers), True, True, True),
    }
    if name not in plain:
        raise ValueError(f"no scope '{name}'")
    return plain[name]


def scope_problems(names: tuple[str, ...], layer: int, layers: int) -> list[Problem]:
    """What is wrong with a choice of scopes on a model of so many layers."""
    problems = []
    for name in names:
        try:
            scope_of(name, layer, layers)
        except ValueError:
            allowed = f"{', '.join(NAMES)} with N from 1 to {layers}"
            problems.append(Problem("scopes", f"'{name}'", allowed))
    if not 1 <= layer <= layers:
        problems.append(Problem("layer", str(layer), f"1 to {layers}, the model's layers"))
    return problems
