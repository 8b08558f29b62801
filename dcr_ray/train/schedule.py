"""Learning rates by step: a linear rise, then a cosine to a final share of the highest rate."""

from __future__ import annotations

import math


def learning_rate(step: int, steps: int, highest: float, warmup_share: float, final_share: float) -> float:
    """The rate of step 0 <= step < steps.

    It rises over the first round(warmup_share * steps) steps, then starts at the highest rate and falls by a cosine to
    final_share * highest at the last step. A final share of 1 keeps it constant.
    """
    rising = round(warmup_share * steps)
    if step < rising:
        return highest * (step + 1) / (rising + 1)
    done = (step - rising) / max(1, steps - rising - 1)
    return highest * (final_share + (1 - final_share) * 0.5 * (1 + math.cos(math.pi * done)))
