"""Made-up trials for the tests of what a person sees of a study."""

from __future__ import annotations

import random

from dcr_ray.rates import Rate
from dcr_ray.recipe import ContrastiveRecipe, Recipe
from dcr_ray.time_ledger import full_ledger
from dcr_ray.trial import StageView, Trial

TWO = {"compliance": "maximize", "defense": "maximize"}
THREE = {**TWO, "perplexity": "minimize"}


def rate(name: str, hits: int, n: int = 60) -> dict[str, float]:
    low, high = Rate(hits, n).interval()
    return {
        name: hits / n,
        f"{name}/low": low,
        f"{name}/high": high,
        f"{name}/n": float(n),
        f"{name}/degenerate_share": 0.02,
        f"{name}/cut_share": 0.1,
    }


def stages(name: str, dcr: bool = True, cached: bool = False) -> tuple[StageView, ...]:
    first = (StageView("dcr", f"{name}-dcr", f"/cache/dcr/{name}", 40.0, cached, "group-0"),) if dcr else ()
    workers = {"sft": "group-0", "generate": "engine-0.1"}
    rest = (("sft", 90.0), ("generate", 30.0), ("judge", 2.0))
    return first + tuple(
        StageView(stage, f"{name}-{stage}", f"/cache/{stage}/{name}", time, False, workers.get(stage))
        for stage, time in rest
    )


def ledger(dcr: float = 40.0, sft: float = 90.0, awaited: float = 0.0) -> dict[str, float]:
    """The parts of a trial whose generate and judge stages took 30 s and 2 s, after 10 s in the queue."""
    training = {"weights_in": 5.0, "optimizer": 0.2 * sft, "checkpoint": 0.05 * sft}
    training["forward_backward"] = dcr + sft - sum(training.values())
    engine = {"weights_to_engine": 1.5, "prefill": 6.0, "decode": 22.5}
    rest = {"start": 1.0, "queue": 10.0 + awaited, "judge": 2.0, "tracking": 0.4, "idle": 0.6, "queue/awaited": awaited}
    return full_ledger(training | engine | rest)


def baseline(compliance: int = 37, defense: int = 48, n: int = 60) -> Trial:
    return Trial(
        name="stl",
        role="baseline",
        state="complete",
        recipe=Recipe(dcr=None),
        stages=stages("stl", dcr=False),
        feasible=True,
        metrics=rate("compliance", compliance, n) | rate("defense", defense, n) | {"perplexity": 13.5},
        started="2025-03-01T10:00:00+00:00",
        ended="2025-03-01T10:02:00+00:00",
        ledger=ledger(dcr=0.0),
        wall=135.0,
    )


def search_trial(name: str, compliance: int = 40, defense: int = 45, depth: float = 0.5, n: int = 60, **more) -> Trial:
    values = dict(
        name=name,
        role="search",
        state="complete",
        recipe=Recipe(dcr=ContrastiveRecipe(layer_depth=depth)),
        stages=stages(name),
        params={"dcr.layer_depth": depth, "dcr.margin": 0.25},
        feasible=True,
        metrics=rate("compliance", compliance, n) | rate("defense", defense, n) | {"perplexity": 12.25},
        started="2025-03-01T10:00:00+00:00",
        ended="2025-03-01T10:03:00+00:00",
        ledger=ledger(),
        wall=175.0,
    )
    return Trial(**(values | more))


def failed_trial(
    name: str, reason: str = "diverged: the loss is not finite at step 12", state: str = "failed"
) -> Trial:
    return search_trial(name, state=state, metrics={}, stages=stages(name)[:1], feasible=None, reason=reason)


def many_trials(count: int, seed: int = 0) -> list[Trial]:
    """A baseline and `count` search trials along a trade-off, some infeasible, pruned, failed or partly cached."""
    generator = random.Random(seed)
    trials = [baseline()]
    for place in range(count):
        name, share = f"trial-{place:03d}", generator.random()
        compliance, defense = (
            min(59, max(1, round(60 * x + generator.gauss(0, 5)))) for x in (0.4 + share / 2, 0.95 - share / 2)
        )
        if place % 9 == 5:
            trials.append(failed_trial(name, state=generator.choice(["failed", "pruned"])))
            continue
        cached = place % 3 == 2
        more = {"feasible": generator.random() > 0.2, "stages": stages(name, cached=cached)}
        more["ledger"] = ledger(dcr=0.0, awaited=25.0) if cached else ledger(sft=60.0 + 3 * place)
        more["wall"] = 1.01 * sum(seconds for part, seconds in more["ledger"].items() if "/" not in part)
        trial = search_trial(name, compliance, defense, generator.choice([0.3, 0.4, 0.5, 0.6, 0.7]), **more)
        trial.metrics["perplexity"] = 12 + 2 * generator.random()
        trials.append(trial)
    return trials
