"""When the string judge has read enough: an answer may end where its verdict is all but sure to stay.

Two cases, on the answer so far without its last, perhaps unfinished, word. A word six times in a row or a letter
without end: DEGENERATE whatever follows, for every text. A refusal that also objects: the one pattern that takes a
refusal back, a false premise, needs a text without an objection. In the second case the answer can still turn
DEGENERATE further on, and a pattern that looks ahead can be undone by the next words, so it is not sound for every
text. Measured on the 1,800 XSTest completions of four models and on 197 answers of a 135M model, cut at 24, 32, 64 and
256 tokens: no verdict changed. Of XSTest's tokens 7, 11, 23 and 33 % were saved, of the small model's, which refuses
nothing, none.

That the patterns' window is full decides nothing: at 256 tokens a stop there would save 70 %, but 45 of the small
model's 197 answers turn DEGENERATE only after it. A thought between tags is always read to its end.
"""

from __future__ import annotations

from dcr_ray.judges.degenerate import LONGEST_RUN, degeneracy, letter_loop
from dcr_ray.judges.refusal_strings import objects, sounds_like_refusal


def verdict_decided(prompt: str, text: str) -> bool:
    """Whether the string judge's verdict on an answer that begins with `text` no longer waits for the rest."""
    finished = text[: _last_blank(text)]
    if finished.lstrip().startswith("<"):
        return False
    words = finished.lower().split()
    if loops_for_good(words):
        return True
    # What looks degenerate now may recover.
    return sounds_like_refusal(finished) and objects(finished) and degeneracy(prompt, finished) is None


def loops_for_good(words: list[str]) -> bool:
    """Whether finished words hold a loop that no further word undoes."""
    run = 1
    for before, word in zip(words, words[1:]):
        run = run + 1 if word == before else 1
        if run >= LONGEST_RUN:
            return True
    return any(map(letter_loop, words))


def _last_blank(text: str) -> int:
    return next((at for at in range(len(text) - 1, -1, -1) if text[at].isspace()), 0)
