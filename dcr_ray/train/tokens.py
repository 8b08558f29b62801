"""Token ids of a job's texts, made once a process: trials of a study train on the same texts again and again.

What is kept is found by the model folder's stamp, the texts and the system prompt, so another tokenizer is never
mistaken for this one. It does not know what the tokens are for.
"""

from __future__ import annotations

import os
from functools import lru_cache
from pathlib import Path
from typing import Any

from dcr_ray.data.chat import pair_ids, prompt_ids

Stamp = tuple[tuple[str, int, int], ...]


def folder_stamp(folder: str | Path) -> Stamp:
    """Names, sizes and times of a folder's files. The same stamp, the same contents."""
    files = (entry for entry in os.scandir(folder) if entry.is_file())
    return tuple(sorted((entry.name, entry.stat().st_size, entry.stat().st_mtime_ns) for entry in files))


def tokenizer_of(folder: str) -> Any:
    """The folder's tokenizer. It is shared: nobody may change it."""
    return _tokenizer(folder, folder_stamp(folder))


def prompt_tokens(folder: str, texts: tuple[str, ...], system_prompt: str | None) -> tuple[list[int], ...]:
    """Token ids of every user turn up to where its answer begins. Not to be changed by the caller."""
    return _prompt_tokens(folder, folder_stamp(folder), texts, system_prompt)


def pair_tokens(
    folder: str, pairs: tuple[tuple[str, str], ...], system_prompt: str | None
) -> tuple[tuple[list[int], int], ...]:
    """For every (prompt, response) its token ids with the end, and how many belong to the prompt."""
    return _pair_tokens(folder, folder_stamp(folder), pairs, system_prompt)


@lru_cache(maxsize=4)
def _tokenizer(folder: str, stamp: Stamp) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder, local_files_only=True)


@lru_cache(maxsize=64)
def _prompt_tokens(folder: str, stamp: Stamp, texts: tuple[str, ...], system_prompt: str | None) -> tuple[Any, ...]:
    tokenizer = _tokenizer(folder, stamp)
    return tuple(prompt_ids(tokenizer, text, system_prompt) for text in texts)


@lru_cache(maxsize=64)
def _pair_tokens(
    folder: str, stamp: Stamp, pairs: tuple[tuple[str, str], ...], system_prompt: str | None
) -> tuple[Any, ...]:
    tokenizer = _tokenizer(folder, stamp)
    return tuple(pair_ids(tokenizer, prompt, response, system_prompt) for prompt, response in pairs)
