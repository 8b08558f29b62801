"""What the figures of a study allow one to say about its front and the baseline, in sentences of Markdown.

It knows nothing of single prompts, so every comparison here is between two rates with their own intervals. Paired
tests on fresh seeds and the test split are the business of a confirmation.
"""

from __future__ import annotations

from collections.abc import Sequence

from dcr_ray.pareto import Objectives, gain, pareto_front
from dcr_ray.report.measured import baseline_of, layer_depth, measured, smallest_visible_difference
from dcr_ray.report.wording import counted, escape_markdown
from dcr_ray.trial import Trial

MOST_TRIALS_IN_WORDS = 10


def verdict(trials: Sequence[Trial], objectives: Objectives) -> list[str]:
    """Paragraphs: what was reached, each front trial beside the baseline, and what difference n could have shown."""
    search = [trial for trial in trials if trial.role == "search"]
    complete = [trial for trial in search if trial.state == "complete"]
    front, baseline = pareto_front(trials, objectives), baseline_of(trials)
    if not complete:
        return [
            f"No search trial is complete out of {len(search)}, so there is nothing to conclude.",
            *_noise(trials, objectives),
        ]
    broken = sum(trial.feasible is False for trial in complete)
    kept = "" if not broken else f"; {broken} of these broke a constraint and cannot win"
    paragraphs = [f"{len(complete)} of {counted(len(search), 'search trial')} are complete{kept}."]
    if not front:
        paragraphs.append("No trial is on the front: none has every objective and keeps the constraints.")
    elif baseline is None:
        paragraphs.append(
            f"The front has {counted(len(front), 'trial')}. No baseline is complete, so the study does not show what "
            "DCR adds."
        )
    else:
        paragraphs += _beside(front, baseline, objectives)
    return paragraphs + _noise(trials, objectives)


def choose(trials: Sequence[Trial], objectives: Objectives) -> tuple[Trial, str] | None:
    """The front trial to look at first and why it was taken, or None where the front is empty.

    It is the best by the first objective among those that are nowhere worse than the baseline; where there is none
    such, the best by the first objective of the whole front.
    """
    front, baseline = pareto_front(trials, objectives), baseline_of(trials)
    if not front:
        return None
    first = escape_markdown(next(iter(objectives)))
    safe = [trial for trial in front if baseline and _nowhere_worse(trial, baseline, objectives)]
    if safe:
        return safe[0], f"the best {first} among the front's trials that are nowhere worse than the baseline"
    if baseline is None or _nowhere_worse(front[0], baseline, objectives) is None:
        return front[0], f"the best {first} on the front, not compared with a baseline"
    return front[0], f"the best {first} on the front, though it is worse than the baseline on some objective"


def _beside(front: Sequence[Trial], baseline: Trial, objectives: Objectives) -> list[str]:
    name = escape_markdown(baseline.name)
    better = sum(_nowhere_worse(trial, baseline, objectives) is True for trial in front)
    clear = [trial for trial in front if any(_clear(trial, baseline, each, 1, objectives) for each in objectives)]
    dear = sum(any(_clear(trial, baseline, each, -1, objectives) for each in objectives) for trial in clear)
    opening = (
        f"The front has {counted(len(front), 'trial')}. {better or 'None'} of them measured nowhere worse than the "
        f"baseline ({name}). "
    )
    if not clear:
        opening += "No gain over it comes with 95 % intervals that are apart, so none is shown to be more than chance."
    else:
        opening += f"{len(clear)} beat it on some objective with 95 % intervals that do not overlap"
        opening += f", {dear} of them at the price of another that is as clearly worse." if dear else "."
    lines = [f"- {_sentence(trial, baseline, objectives)}" for trial in front[:MOST_TRIALS_IN_WORDS]]
    if len(front) > MOST_TRIALS_IN_WORDS:
        lines.append(f"- The other {len(front) - MOST_TRIALS_IN_WORDS} are in the table below.")
    return [opening, "\n".join(lines)]


def _sentence(trial: Trial, baseline: Trial, objectives: Objectives) -> str:
    parts = []
    for name, direction in objectives.items():
        new, old = measured(trial, name), measured(baseline, name)
        text = f"{escape_markdown(name)} {new}"
        if old is not None:
            better = gain(new.value, old.value, direction)
            word = "better" if better > 0 else "worse" if better < 0 else "equal"
            apart = {True: "intervals overlap", False: "intervals apart", None: "no intervals"}[new.overlaps(old)]
            text += f" against {old} ({'equal' if word == 'equal' else f'{new.difference(old)}, {word}'}; {apart})"
        parts.append(text)
    depth = layer_depth(trial)
    at = "" if depth is None else f" (layer depth {depth:.3g})"
    return f"**{escape_markdown(trial.name)}**{at}: {', '.join(parts)}."


def _noise(trials: Sequence[Trial], objectives: Objectives) -> list[str]:
    """What each objective's n could have shown. A metric without a count gets no sentence about it."""
    complete = [trial for trial in trials if trial.state == "complete"]
    sentences = []
    for name in objectives:
        counts = [found.n for trial in complete if (found := measured(trial, name)) and found.n]
        if not counts:
            continue
        anchor = measured(baseline_of(trials), name) or next(
            found for trial in complete if (found := measured(trial, name))
        )
        seen = smallest_visible_difference(anchor.value, min(counts))
        span = f"{min(counts)}" if min(counts) == max(counts) else f"{min(counts)} to {max(counts)}"
        sentences.append(
            f"{escape_markdown(name)} was judged on {span} prompts a trial: two separate rates near {anchor.value:.2f} "
            f"must differ by about {seen:.2f} for a test at 5 % to notice it four times in five, and smaller "
            "differences are mostly missed."
        )
    if not sentences:
        return []
    sentences.insert(
        0,
        "Intervals are 95 % Wilson intervals of single rates; they hold the chance in which prompts were drawn, not "
        "the chance of another training seed.",
    )
    sentences.append(
        "Intervals that are apart show a difference; intervals that overlap do not show that there is none, and a "
        "paired comparison over the same prompts sees smaller ones."
    )
    searched = sum(trial.role == "search" for trial in complete)
    if searched > 1:
        sentences.append(
            f"The front was chosen from {searched} trials by these same figures, so its best look better than they "
            "are, and intervals that are apart say less of them than of a trial named beforehand."
        )
    return [" ".join(sentences)]


def _nowhere_worse(trial: Trial, baseline: Trial, objectives: Objectives) -> bool | None:
    """Whether no objective of the trial is worse than the baseline's; None where the baseline lacks one."""
    pairs = [(measured(trial, name), measured(baseline, name), way) for name, way in objectives.items()]
    if any(new is None or old is None for new, old, _ in pairs):
        return None
    return all(gain(new.value, old.value, way) >= 0 for new, old, way in pairs)


def _clear(trial: Trial, baseline: Trial, name: str, sign: int, objectives: Objectives) -> bool:
    """Whether the trial is better (sign 1) or worse (sign -1) than the baseline with intervals that are apart."""
    new, old = measured(trial, name), measured(baseline, name)
    if not (new and old):
        return False
    return sign * gain(new.value, old.value, objectives[name]) > 0 and new.overlaps(old) is False
