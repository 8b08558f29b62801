"""Which benchmarks ask the same prompts: a set, and the same set wrapped in templates (see `data.attacks`).

Tables of outcomes have no column for it, and those that are stored are to be read too: it is known by the names alone.
"""

from __future__ import annotations


def plain_benchmark(benchmark: str, prompt: str) -> str:
    """The set that a benchmark's prompts are from: `advbench` of (`advbench-persona`, `17-persona`).

    A wrapped set's name and the ids of its prompts end alike, from a hyphen on; the longest such end is taken off.
    """
    hyphens = (place for place, letter in enumerate(benchmark) if letter == "-" and place)
    return next((benchmark[:place] for place in hyphens if prompt.endswith(benchmark[place:])), benchmark)
