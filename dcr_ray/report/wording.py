"""How text that others wrote, and lengths of time, are put into a report or onto a terminal.

Names, reasons and model output are data: nothing in them may act as Markdown, as rich markup or as a terminal command.
It knows nothing of trials.
"""

from __future__ import annotations

import re
import unicodedata

_MARKDOWN = re.compile(r"[\\`*_{}\[\]<>#|~&!$()@]")
# Escape sequences of ECMA-48: control sequences, operating system commands, and the short ones.
_TERMINAL_COMMAND = re.compile(r"\x1b(\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(\x07|\x1b\\)?|.)?", re.DOTALL)
_LIST_MARK = re.compile(r"^(\d*)([-+=.])")
_AUTOLINK = re.compile(r"(:(?=//))|((?<=www)\.)", re.IGNORECASE)


def one_line(text: str, limit: int | None = None) -> str:
    """The text on one line without terminal commands or invisible characters, cut to `limit` characters with '...'."""
    spaced = "".join(
        " " if character.isspace() else character
        for character in _TERMINAL_COMMAND.sub("", str(text))
        if character.isspace() or unicodedata.category(character) not in ("Cc", "Cf", "Cs")
    )
    line = " ".join(spaced.split())
    return line if limit is None or len(line) <= limit else line[: max(0, limit - 3)].rstrip() + "..."


def escape_markdown(text: str, limit: int | None = None) -> str:
    """The text as one line that CommonMark and its tables show as it stands: no markup, links, HTML, cells or lists."""
    escaped = _MARKDOWN.sub(lambda match: "\\" + match.group(), one_line(text, limit))
    escaped = _AUTOLINK.sub(lambda match: "\\" + match.group(), escaped)
    return _LIST_MARK.sub(r"\1\\\2", escaped)


def code_block(text: str, language: str = "") -> str:
    """A fenced block whose fence is longer than any run of backticks in the text, so that the text cannot end it."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    kept = "".join(character for character in text if character in "\n\t" or unicodedata.category(character) != "Cc")
    return f"{fence}{language}\n{kept.rstrip()}\n{fence}"


def duration(seconds: float) -> str:
    """A length of time in its two largest units: '4.2 s', '12 min 05 s', '3 h 07 min', '2 d 04 h'."""
    if seconds < 10:
        return f"{max(0.0, seconds):.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    if whole < 86400:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 86400} d {whole % 86400 // 3600:02d} h"


def counted(count: int, singular: str) -> str:
    """'1 trial', '2 trials', '0 trials'."""
    return f"{count} {singular}" if count == 1 else f"{count} {singular}s"
