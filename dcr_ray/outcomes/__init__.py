"""The table of outcomes: trial x seed x prompt x judge -> verdict. Every statistic is computed from it, without a GPU.

    rows     from the answers of a generate stage and a judge's verdicts to rows
    table    Outcomes: read, write, join, choose, count
    hits     HitMatrix: aligned arrays for the statistics
    variants which benchmarks ask the same prompts
    schema   the columns and their checks

No texts are in it, so it may be shown and shared where prompts and answers may not.
"""

from dcr_ray.outcomes.hits import HitMatrix
from dcr_ray.outcomes.rows import outcome_rows
from dcr_ray.outcomes.schema import COLUMNS, KEY, OUTCOMES_VERSION
from dcr_ray.outcomes.table import Outcomes
from dcr_ray.outcomes.variants import plain_benchmark

__all__ = ["COLUMNS", "KEY", "OUTCOMES_VERSION", "HitMatrix", "Outcomes", "outcome_rows", "plain_benchmark"]
