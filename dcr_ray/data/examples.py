"""A prompt, and a prompt with its response: what every other part is handed.

They know which set they come from, but not where its file lies nor which split they were put in.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, NamedTuple

from dcr_ray.fingerprint import digest

Split = Literal["train", "search", "test"]
SPLITS: tuple[Split, ...] = ("train", "search", "test")


class Prompt(NamedTuple):
    """`id` is unique within `source`; `group` is the family of texts that must stay in one split."""

    id: str
    text: str
    kind: str
    group: str
    source: str


class Pair(NamedTuple):
    """A prompt with the response to be learnt; `id` and `group` as in Prompt."""

    id: str
    prompt: str
    response: str
    kind: str
    group: str
    source: str


def prompt_text_of(item: Prompt | Pair) -> str:
    """The text given to the model, for either of the two."""
    return item.text if isinstance(item, Prompt) else item.prompt


def dataset_fingerprint(items: Iterable[Prompt | Pair]) -> str:
    """SHA-256 over all fields of all items, in their order: the identity of what is trained or evaluated on."""
    return digest([list(item) for item in items])
