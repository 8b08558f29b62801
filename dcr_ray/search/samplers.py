"""Optuna's samplers by the names that a study's YAML uses."""

from __future__ import annotations

from optuna.samplers import BaseSampler, GPSampler, GridSampler, NSGAIISampler, RandomSampler

from dcr_ray.search.tpe import RememberingTPESampler
from dcr_ray.space import grid_points
from dcr_ray.study import StudySpec


def make_sampler(spec: StudySpec, seen: int) -> BaseSampler:
    """The sampler of a study that already has `seen` trials.

    A sampler's random state is not stored. A resumed study gets another seed, or it would draw the same points again.
    """
    search = spec.search
    seed = (search.seed * 1_000_003 + seen) % 2**32
    conditional = any(dimension.when for dimension in spec.dimensions.values())
    match search.sampler:
        case "tpe":
            # Grouped TPE learns the coordinates of each branch of a conditional space apart.
            return RememberingTPESampler(
                seed=seed,
                n_startup_trials=search.startup_trials,
                multivariate=True,
                group=conditional,
                constant_liar=True,
            )
        case "gp":
            return GPSampler(seed=seed, n_startup_trials=search.startup_trials)
        case "nsga2":
            return NSGAIISampler(seed=seed, population_size=search.startup_trials)
        case "random":
            return RandomSampler(seed=seed)
        case "grid":
            return _AskedGridSampler(grid_points(spec.dimensions), seed=search.seed)


class _AskedGridSampler(GridSampler):
    """Optuna's grid ends a running `optimize` after its last point; asked and told, there is no loop to end."""

    def after_trial(self, *_: object) -> None:
        """Nothing: the study's budget ends it."""
