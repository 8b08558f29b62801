"""The form of a text in which two texts count as the same, and its digest.

Case, width, punctuation and white space are folded; letters, marks, digits and symbols are kept, so that
"3 + 4" and "3 < 4" stay apart and so do words that differ in an accent or a vowel sign.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata

_ASCII_FOLDED = re.compile(r"[\s\x00-\x1f\x7f!\"#%&'()*,\-./:;?@\[\\\]_`{}]+")
_FOLDED_CATEGORIES = frozenset("PZC")


def normalised(text: str) -> str:
    """NFKC, case-folded, every run of punctuation and white space as one space, none at the ends."""
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    if not folded.isascii():
        folded = "".join(" " if unicodedata.category(letter)[0] in _FOLDED_CATEGORIES else letter for letter in folded)
    return _ASCII_FOLDED.sub(" ", folded).strip()


def text_digest(text: str) -> str:
    """16 hexadecimal digits that texts with the same normalised form share."""
    return hashlib.sha256(normalised(text).encode()).hexdigest()[:16]
