"""What an engine yields for one prompt, and the rules that every engine keeps. It knows no engine."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

from dcr_ray.errors import InputError, Problem

TOP_LOGPROBS = 20
"""How many first-token logprobs are kept; also how many a canary holds for each prompt."""

MOST_NEXT_TOKENS = 128
"""How many tokens may follow one prefix of the scored continuations: as many as vLLM gives by their ids at once."""

Precision = Literal["auto", "fp32", "bf16"]
FinishReason = Literal["stop", "length", "decided"]
"""An end token, the token cap, or that whoever reads the answer had read enough."""

Progress = Callable[[int, int], None]
"""Called with (prompts finished, prompts in all)."""

Decided = Callable[[int, str], bool]
"""Told of (place of a prompt, its answer so far): whether what follows no longer matters."""

DECIDED_EVERY = 8
"""Tokens between two such questions. A fixed number makes the place of a stop the answer's own, not its batch's."""

_SHAPE_FIELDS = (
    "architectures", "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers",
    "num_attention_heads", "num_key_value_heads", "head_dim", "tie_word_embeddings",
)  # fmt: skip


class Generation(NamedTuple):
    """One greedy response. `token_count` includes the stop token, the text does not hold it."""

    text: str
    token_count: int
    finish_reason: FinishReason
    first_token_logprobs: dict[int, float]


class GenerationSeconds(NamedTuple):
    """Wall-clock seconds spent on reading prompts, and on all tokens after an answer's first."""

    prefill: float = 0.0
    decode: float = 0.0


class Place(NamedTuple):
    """Where a walk through continuations stands: the number of a prompt, and the tokens taken after it."""

    prompt: int
    prefix: tuple[int, ...]


class Engine(Protocol):
    """One loaded model that answers greedily, and whose weights can be exchanged for others of its architecture."""

    generation_seconds: GenerationSeconds
    """Of the latest call of `generate`."""

    @property
    def tokenizer(self) -> Any: ...

    def load(self, checkpoint_dir: Path | str) -> None:
        """Exchange the weights, and prove it by `prove_live`. Raises InputError and StaleWeights."""

    def prove_live(
        self, checkpoint_dir: Path | str, *, without_canary: Literal["compute", "skip"] = "compute"
    ) -> float | None:
        """Largest difference to the checkpoint's canary. Raises StaleWeights where it is beyond the tolerance."""

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        max_tokens: int,
        stop_token_ids: Sequence[int] = (),
        logprobs: int = TOP_LOGPROBS,
        progress: Progress | None = None,
        decided: Decided | None = None,
    ) -> list[Generation]:
        """Greedy responses in the order of the prompts. An answer ends where `decided`, asked every DECIDED_EVERY
        tokens, says so; its finish reason is then "decided"."""

    def sequence_logprobs(self, sequences: Sequence[tuple[list[int], int]]) -> list[float]:
        """For each (token ids, n_prompt): log-probability in nats of all tokens after the first n_prompt."""

    def continuation_logprobs(
        self,
        prompts: Sequence[Sequence[int]],
        continuations: Sequence[Sequence[int]],
        *,
        negligible: float = 0.0,
        progress: Progress | None = None,
    ) -> list[list[float]]:
        """Log-probability in nats of every continuation after every prompt, shape (prompts, continuations).

        What they share is computed once, and so is the prompt. One that begins with a prefix less probable than
        `negligible` is not followed and is given as -inf.
        """

    def close(self) -> None: ...


def end_tokens(model_dir: Path | str, tokenizer: Any) -> frozenset[int]:
    """Every token that ends an answer, from the folder's generation_config.json and config.json and the tokenizer.

    Both engines stop at the same tokens, whatever their libraries would take for the end by themselves.
    """
    found = {tokenizer.eos_token_id}
    for name in ("generation_config.json", "config.json"):
        path = Path(model_dir) / name
        if path.exists():
            end = json.loads(path.read_text()).get("eos_token_id")
            found.update(end if isinstance(end, list) else [end])
    return frozenset(found - {None})


def check_prompts(prompts: Sequence[Sequence[int]], new_tokens: int, max_model_len: int) -> None:
    """Raises InputError that names every prompt which is empty, or leaves no room for `new_tokens`."""
    problems = [
        Problem(
            f"prompt {index}",
            f"{len(prompt)} tokens",
            f"1 to {max_model_len - new_tokens} tokens",
            f"{new_tokens} more are to be generated and the engine holds {max_model_len}",
        )
        for index, prompt in enumerate(prompts)
        if not 1 <= len(prompt) <= max_model_len - new_tokens
    ]
    if problems:
        raise InputError(problems)


def check_sequences(sequences: Sequence[tuple[list[int], int]], max_model_len: int) -> None:
    """Raises InputError that names every sequence that is too long or has nothing before or after its prompt."""
    problems = [
        Problem(
            f"sequence {index}",
            f"{len(tokens)} tokens with a prompt of {n_prompt}",
            f"a prompt of 1 token or more, at least one token after it, and {max_model_len} tokens in all at most",
        )
        for index, (tokens, n_prompt) in enumerate(sequences)
        if not 1 <= n_prompt < len(tokens) <= max_model_len
    ]
    if problems:
        raise InputError(problems)


def check_continuations(
    prompts: Sequence[Sequence[int]], continuations: Sequence[Sequence[int]], max_model_len: int
) -> None:
    """Raises InputError for continuations that are empty or too many of which part at one place, and for prompts that
    leave no room for the longest."""
    problems = [
        Problem(f"continuation {index}", "no tokens", "1 token or more")
        for index, continuation in enumerate(continuations)
        if not continuation
    ]
    most = max(map(len, next_tokens(continuations).values()), default=0)
    if most > MOST_NEXT_TOKENS:
        found = f"{most} tokens that follow one prefix"
        problems.append(Problem("continuations", found, f"{MOST_NEXT_TOKENS} at most"))
    if problems:
        raise InputError(problems)
    check_prompts(prompts, max(map(len, continuations), default=0), max_model_len)


def next_tokens(continuations: Sequence[Sequence[int]]) -> dict[tuple[int, ...], tuple[int, ...]]:
    """The prefix tree of some token sequences: for every proper prefix of one, the tokens that follow it."""
    tree: dict[tuple[int, ...], dict[int, None]] = {}
    for continuation in continuations:
        for length in range(len(continuation)):
            tree.setdefault(tuple(continuation[:length]), {})[continuation[length]] = None
    return {prefix: tuple(tokens) for prefix, tokens in tree.items()}


def walk_continuations(
    prompts: int,
    continuations: Sequence[Sequence[int]],
    negligible: float,
    score: Callable[[list[Place], list[tuple[int, ...]]], Iterable[Sequence[float]]],
) -> list[list[float]]:
    """Log-probability in nats of every continuation after each of `prompts` prompts, -inf for one not followed.

    The prefix tree is walked one token deeper at a time, past prefixes that are as probable as `negligible`.
    `score(places, tokens)` answers for every (prompt, prefix) the log-probability of each of its next tokens; the
    prefixes of one call are all of one length, each a token longer than one of the call before.
    """
    tree = next_tokens(continuations)
    floor = math.log(negligible) if negligible > 0 else -math.inf
    known: list[dict[tuple[int, ...], float]] = [{(): 0.0} for _ in range(prompts)]
    places = [Place(prompt, ()) for prompt in range(prompts) if tree]
    while places:
        deeper = []
        tokens = [tree[place.prefix] for place in places]
        for place, following, logprobs in zip(places, tokens, score(places, tokens), strict=True):
            found = known[place.prompt]
            for token, logprob in zip(following, logprobs, strict=True):
                child = (*place.prefix, token)
                found[child] = found[place.prefix] + logprob
                if child in tree and found[child] >= floor:
                    deeper.append(Place(place.prompt, child))
        places = deeper
    return [[found.get(tuple(continuation), -math.inf) for continuation in continuations] for found in known]


def check_same_shape(model_dir: Path | str, checkpoint_dir: Path | str, *, tied_or_not: bool = False) -> None:
    """Raises InputError where a checkpoint's config differs from the loaded model's in what gives weights their shape.

    Fields that one of the two leaves to its default are not compared; the canary still is. `tied_or_not` says that the
    engine takes heads that share the embedding's matrix and such that do not.
    """
    path = Path(checkpoint_dir) / "config.json"
    if not path.exists():
        raise InputError([Problem("checkpoint", f"no config.json in {checkpoint_dir}", "a Hugging Face model folder")])
    loaded = json.loads((Path(model_dir) / "config.json").read_text())
    other = json.loads(path.read_text())
    problems = [
        Problem(f"checkpoint's {field}", str(other.get(field)), f"{loaded.get(field)}, as in the engine's model")
        for field in _SHAPE_FIELDS
        if not (tied_or_not and field == "tie_word_embeddings")
        if field in loaded and field in other and loaded[field] != other[field]
    ]
    if problems:
        raise InputError(problems)
