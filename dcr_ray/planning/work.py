"""What the stages of a study have to do, in prompts, tokens and steps, before a tokenizer has been asked.

Tokens are reckoned from characters; a template's are added to each prompt. Both are assumptions that measured records
replace (`planning.calibration`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil
from typing import Any

from dcr_ray.recipe import Recipe

CHARACTERS_PER_TOKEN = 4.0
TEMPLATE_TOKENS = 24
"""Of a chat template without a system prompt."""


@dataclass(frozen=True)
class DataFacts:
    """Rows by field of a study's data, and mean characters of its prompts and, where there are any, answers."""

    rows: Mapping[str, int]
    prompt_characters: Mapping[str, float]
    answer_characters: Mapping[str, float]

    @classmethod
    def of(cls, data: Any, fields: tuple[str, ...]) -> DataFacts:
        """From a StudyData: its `fields` hold prompts, or pairs of prompt and response."""

        def mean(texts: list[str]) -> float:
            return sum(map(len, texts)) / max(1, len(texts))

        rows, prompts, answers = {}, {}, {}
        for field in fields:
            items = getattr(data, field)
            rows[field] = len(items)
            prompts[field] = mean([getattr(item, "text", None) or item.prompt for item in items])
            answers[field] = mean([getattr(item, "response", "") for item in items])
        return cls(rows, prompts, answers)

    def prompt_tokens(self, field: str, system_prompt: str | None) -> float:
        characters = self.prompt_characters[field] + len(system_prompt or "")
        return TEMPLATE_TOKENS + characters / CHARACTERS_PER_TOKEN

    def answer_tokens(self, field: str) -> float:
        return self.answer_characters[field] / CHARACTERS_PER_TOKEN


@dataclass(frozen=True)
class TrainingWork:
    """A training stage: `steps` steps of `batch` sequences of `length` tokens, `answer_tokens` of them with a loss."""

    steps: int
    batch: int
    length: float
    answer_tokens: float

    @property
    def tokens(self) -> float:
        return self.steps * self.batch * self.length


@dataclass(frozen=True)
class GenerationWork:
    """A generate stage: `prompts` answers of up to `answer_tokens` tokens, and `scored` tokens read for perplexity."""

    prompts: int
    prompt_tokens: float
    answer_tokens: int
    scored: float


def dcr_work(recipe: Recipe, facts: DataFacts) -> TrainingWork:
    """Steps as the balanced sampler counts them, by passes over the seemingly toxic prompts. Needs `recipe.dcr`.

    A stage that ends early is reckoned in full.
    """
    dcr = recipe.dcr
    seemingly = dcr.batch_size - dcr.toxic_per_batch
    prompts = min(facts.rows["seemingly_toxic"], dcr.prompts_per_class or facts.rows["seemingly_toxic"])
    steps = max(1, ceil(dcr.epochs * prompts / seemingly))
    fields = {"seemingly_toxic": seemingly, "toxic": dcr.toxic_per_batch, "general": dcr.general_per_batch}
    batch = sum(fields.values())
    length = sum(facts.prompt_tokens(field, recipe.system_prompt) * rows for field, rows in fields.items() if rows)
    return TrainingWork(steps, batch, min(length / batch, dcr.max_prompt_tokens), 0.0)


def sft_work(recipe: Recipe, facts: DataFacts) -> TrainingWork:
    """Passes over general and safety pairs, each cut at `max_tokens`."""
    sft = recipe.sft
    rows = {field: facts.rows[field] for field in ("general", "safety")}
    rows["safety"] = min(rows["safety"], sft.safety_pairs or rows["safety"])
    if recipe.augment is not None:
        rows["augment"] = min(facts.rows["augment"], recipe.augment.pairs or facts.rows["augment"])
    total = max(1, sum(rows.values()))
    prompt = sum(facts.prompt_tokens(field, recipe.system_prompt) * n for field, n in rows.items()) / total
    answer = sum(facts.answer_tokens(field) * n for field, n in rows.items()) / total
    length = min(prompt + answer, sft.max_tokens)
    share = answer / (prompt + answer) if sft.mask_prompt else 1.0
    steps = max(1, ceil(sft.epochs * total / sft.batch_size))
    return TrainingWork(steps, sft.batch_size, length, length * share * sft.batch_size * steps)


def edit_tokens(recipe: Recipe, facts: DataFacts, layers: int) -> float:
    """Tokens of prompts that the edit stage reads, each forwards through the model. Needs `recipe.edit`.

    Surgical with all positions is reckoned at five template tokens. What ACTOR trains is one layer, and left out.
    """
    kinds = ("seemingly_toxic", "toxic", "general")
    mean = sum(facts.prompt_tokens(field, recipe.system_prompt) for field in kinds) / 3

    def prompts(most: int) -> int:
        return sum(min(facts.rows[field], most) for field in kinds)

    if recipe.surgical is not None:
        surgical = recipe.surgical
        candidates = ceil(surgical.deepest * layers / surgical.layer_step) * (surgical.positions or 5)
        read = 2 * prompts(surgical.prompts) + candidates * 2 * surgical.validation_prompts
    elif recipe.scans is not None:
        read = 2 * prompts(recipe.scans.anchors)
    else:
        read = 2 * prompts(recipe.actor.prompts)
    return read * mean


def generation_work(recipe: Recipe, facts: DataFacts, max_tokens: int) -> GenerationWork:
    """Answers to all evaluated prompts, every one to its token cap: the most that it can be."""
    fields = ("compliance", "defense")
    prompts = sum(facts.rows[field] for field in fields)
    read = sum(facts.rows[field] * facts.prompt_tokens(field, recipe.system_prompt) for field in fields)
    pairs = facts.prompt_tokens("capability", recipe.system_prompt) + facts.answer_tokens("capability")
    return GenerationWork(prompts, read / max(1, prompts), max_tokens, facts.rows["capability"] * pairs)
