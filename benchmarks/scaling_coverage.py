"""Do 95 % intervals of a scaling law hold when sizes up to 7B are carried to 32B and 70B?

    python benchmarks/scaling_coverage.py --studies 2000

Studies are simulated: logit-linear in size, with families, luck of each checkpoint (shared by its seeds) and of each
run, 250 prompts. A hit is when the interval holds the rate that a new checkpoint of that size is measured at with one
seed, or pooled over two with the interval for two. The naive interval pools all cells and is that of their mean. The
last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator

import numpy as np

from dcr_ray.scaling.cells import Cell
from dcr_ray.scaling.law import fit_law, naive_interval, predict

QWEN = {"0.5B": 0.5e9, "1.5B": 1.5e9, "3B": 3e9, "7B": 7e9}
LLAMA = {"1B": 1.2e9, "3B": 3.2e9, "8B": 8e9}
MISTRAL = {"3B": 3.5e9, "7B": 7.2e9}
LADDERS = {
    "4 sizes of one family": {"qwen": QWEN},
    "7 sizes of two families": {"qwen": QWEN, "llama": LLAMA},
    "9 sizes of three families": {"qwen": QWEN, "llama": LLAMA, "mistral": MISTRAL},
}
TARGETS = {"32B": 32e9, "70B": 70e9}
SLOPE, CHECKPOINT_SD, RUN_SD, FAMILY_SD, DATA_SLOPE = 0.6, 0.3, 0.15, 0.5, 0.4
PROMPTS, SEEDS = 250, 2
DATA_SIZES = {"one data size": (1000,), "three data sizes": (250, 500, 1000)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--studies", type=int, default=1000)
    options = parser.parse_args()
    rows = []
    for ladder, families in LADDERS.items():
        for name, sizes in DATA_SIZES.items():
            hits = {target: [0, 0, 0, 0.0, 0.0] for target in TARGETS}
            for number in range(options.studies):
                generator = np.random.default_rng([number, len(families), len(sizes)])
                cells, measured = study(generator, families, sizes)
                law = fit_law(cells)
                for target, parameters in TARGETS.items():
                    found = predict(law, "qwen", parameters, max(sizes))
                    pooled = predict(law, "qwen", parameters, max(sizes), seeds=SEEDS)
                    _, low, high = naive_interval(cells, "qwen", parameters)
                    seen, mean = measured[target][0], sum(measured[target]) / SEEDS
                    hits[target][0] += found.low <= seen <= found.high
                    hits[target][1] += pooled.low <= mean <= pooled.high
                    hits[target][2] += low <= seen <= high
                    hits[target][3] += found.high - found.low
                    hits[target][4] += abs(found.rate - seen)
            for target, (inside, both, naive, width, error) in hits.items():
                row = {
                    "ladder": ladder, "data": name, "target": target, "coverage": inside / options.studies,
                    "pooled": both / options.studies, "naive": naive / options.studies,
                    "mean_width": width / options.studies, "mean_error": error / options.studies,
                }  # fmt: skip
                rows.append(row)
                print(
                    f"{ladder:28s} {name:18s} {target}: coverage {row['coverage']:.3f}, pooled {row['pooled']:.3f}, "
                    f"naive {row['naive']:.3f}, "
                    f"mean width {row['mean_width']:.2f}, mean error {row['mean_error']:.3f}",
                    flush=True,
                )
    print(json.dumps({"studies": options.studies, "rows": rows}))


def study(
    generator: np.random.Generator, families: dict[str, dict[str, float]], data_sizes: tuple[int, ...]
) -> tuple[list[Cell], dict[str, list[float]]]:
    """The cells of a simulated study, and the rates that Qwen's checkpoints of the target sizes are measured at."""
    level = {family: 1.2 + FAMILY_SD * generator.standard_normal() for family in families}

    def rates(family: str, parameters: float, sizes: tuple[int, ...], seeds: int) -> Iterator[tuple[int, int, int]]:
        luck = CHECKPOINT_SD * generator.standard_normal()
        for size in sizes:
            for seed in range(seeds):
                logit = level[family] + SLOPE * np.log10(parameters / 3e9) + luck
                logit += DATA_SLOPE * np.log10(size / 1000) + RUN_SD * generator.standard_normal()
                yield size, seed, int(generator.binomial(PROMPTS, 1 / (1 + np.exp(-logit))))

    cells = [
        Cell(family, f"{family}-{name}", int(parameters), size, "dcr", seed, "compliance", hits, PROMPTS)
        for family, ladder in families.items()
        for name, parameters in ladder.items()
        for size, seed, hits in rates(family, parameters, data_sizes, SEEDS)
    ]
    measured = {
        target: [hits / PROMPTS for *_, hits in rates("qwen", parameters, (max(data_sizes),), SEEDS)]
        for target, parameters in TARGETS.items()
    }
    return cells, measured


if __name__ == "__main__":
    main()
