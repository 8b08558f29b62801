"""From prompts to token ids, through the model's own chat template.

The template and the system prompt are part of a recipe's identity: the same weights behave differently under another.
"""

from __future__ import annotations

from typing import Any


def messages(prompt: str, system_prompt: str | None) -> list[dict[str, str]]:
    """One user turn. A system prompt of None leaves the template's default, an empty one replaces it by nothing."""
    turns = [{"role": "user", "content": prompt}]
    return turns if system_prompt is None else [{"role": "system", "content": system_prompt}, *turns]


def prompt_text(tokenizer: Any, prompt: str, system_prompt: str | None) -> str:
    """The text a model is given, up to the point where its answer begins.

    Models without a chat template (base models) get the bare prompt and a line break.
    """
    if getattr(tokenizer, "chat_template", None) is None:
        return (f"{system_prompt}\n\n" if system_prompt else "") + f"{prompt}\n"
    return tokenizer.apply_chat_template(messages(prompt, system_prompt), tokenize=False, add_generation_prompt=True)


def prompt_ids(tokenizer: Any, prompt: str, system_prompt: str | None) -> list[int]:
    """Token ids of `prompt_text`. A template writes its own special tokens, so none are added to its text."""
    bare = getattr(tokenizer, "chat_template", None) is None
    return tokenizer(prompt_text(tokenizer, prompt, system_prompt), add_special_tokens=bare)["input_ids"]


def pair_ids(tokenizer: Any, prompt: str, response: str, system_prompt: str | None) -> tuple[list[int], int]:
    """Token ids of prompt, response and end-of-sequence, and how many of them belong to the prompt.

    Prompt and response are tokenised apart, so that the boundary is the one seen in generation.
    """
    prompt_tokens = prompt_ids(tokenizer, prompt, system_prompt)
    response_tokens = tokenizer(response, add_special_tokens=False)["input_ids"]
    return [*prompt_tokens, *response_tokens, end_token(tokenizer)], len(prompt_tokens)


def end_token(tokenizer: Any) -> int:
    """The token that ends an answer. Raises ValueError for a tokenizer that has none."""
    if tokenizer.eos_token_id is None:
        raise ValueError("the tokenizer names no end-of-sequence token, so answers could never end")
    return tokenizer.eos_token_id
