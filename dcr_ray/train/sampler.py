"""The balanced sampler of the dcr stage: which prompts a batch holds. It does not know prompts, only their numbers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dcr_ray.recipe import ContrastiveRecipe

_SEEMINGLY_TOXIC, _TOXIC, _GENERAL = 0, 1, 2


@dataclass(frozen=True)
class BalancedSampler:
    """Batches with a fixed number of prompts of each class; the same for the same seed and step.

    Each class is shuffled, dealt out in full batches without replacement, and shuffled anew when no full batch is left;
    the few prompts left over then take their chance in the next shuffle, so a batch never holds a prompt twice, which
    would make it its own positive. A class with fewer prompts than its part of a batch gives all of them every time,
    and the batch is smaller. An epoch is as many steps as draw as many seemingly toxic prompts as there are.
    """

    seemingly_toxic_count: int
    toxic_count: int
    recipe: ContrastiveRecipe
    seed: int
    general_count: int = 0

    @property
    def seemingly_toxic_per_batch(self) -> int:
        return min(self.recipe.batch_size - self.recipe.toxic_per_batch, self.seemingly_toxic_count)

    @property
    def toxic_per_batch(self) -> int:
        return min(self.recipe.toxic_per_batch, self.toxic_count)

    @property
    def general_per_batch(self) -> int:
        return min(self.recipe.general_per_batch, self.general_count)

    @property
    def steps(self) -> int:
        """Optimizer steps of the stage, at least one."""
        return max(1, round(self.recipe.epochs * self.seemingly_toxic_count / self.seemingly_toxic_per_batch))

    def batch(self, step: int) -> tuple[list[int], list[int]]:
        """The numbers of the seemingly toxic and of the toxic prompts of a step, all counted from 0."""
        return (
            self._deal(_SEEMINGLY_TOXIC, self.seemingly_toxic_count, self.seemingly_toxic_per_batch, step),
            self._deal(_TOXIC, self.toxic_count, self.toxic_per_batch, step),
        )

    def general(self, step: int) -> list[int]:
        """The numbers of the general prompts that go with a step's batch."""
        if not self.general_per_batch:
            return []
        return self._deal(_GENERAL, self.general_count, self.general_per_batch, step)

    def _deal(self, kind: int, count: int, size: int, step: int) -> list[int]:
        shuffle, place = divmod(step, count // size)
        order = np.random.default_rng([self.seed, kind, shuffle]).permutation(count)
        return order[place * size : (place + 1) * size].tolist()
