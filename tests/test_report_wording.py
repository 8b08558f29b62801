"""Text of others is shown as it stands: never as Markdown, HTML or a terminal command."""

from __future__ import annotations

import pytest
from markdown_it import MarkdownIt

from dcr_ray.report.wording import code_block, counted, duration, escape_markdown, one_line

HOSTILE = [
    "<script>alert(1)</script>",
    "[click](http://evil.example)",
    "![picture](https://evil.example/x.png)",
    "http://evil.example and www.evil.example",
    "a | b | c",
    "*bold* _soft_ ~~gone~~ `code` **x**",
    "back\\slash \\| &amp; &lt;b&gt;",
    "# title",
    "$x^2$",
]


def text_of(html_tokens) -> str:
    return "".join(child.content for token in html_tokens for child in (token.children or []))


@pytest.mark.parametrize("text", HOSTILE)
def test_escaped_text_renders_as_itself_and_makes_no_element(text):
    reader = MarkdownIt("gfm-like", {"html": True, "linkify": False})
    tokens = reader.parse(f"before {escape_markdown(text)} after")
    assert text_of(tokens) == f"before {text} after"
    assert {child.type for token in tokens for child in token.children or []} <= {"text", "text_special"}


@pytest.mark.parametrize("text", ["- item", "+ item", "12. item", "1) item", "---", "=", "# title", "> quote"])
def test_escaped_text_may_stand_at_the_start_of_a_line(text):
    tokens = MarkdownIt("gfm-like", {"linkify": False}).parse(f"{escape_markdown(text)}")
    assert [token.type for token in tokens] == ["paragraph_open", "inline", "paragraph_close"]
    assert text_of(tokens) == text


def test_escaped_text_stays_in_its_table_cell():
    table = f"| a | b |\n| --- | --- |\n| {escape_markdown('x | y')} | z |"
    cells = [
        token.content for token in MarkdownIt("gfm-like", {"linkify": False}).parse(table) if token.type == "inline"
    ]
    assert len(cells) == 4


def test_links_are_broken_before_a_renderer_may_find_them():
    assert escape_markdown("see https://evil.example") == "see https\\://evil.example"
    assert escape_markdown("see WWW.evil.example") == "see WWW\\.evil.example"


def test_one_line_drops_terminal_commands_line_breaks_and_invisible_characters():
    assert one_line("a\x1b[31mred\x1b[0m\x1b]0;title\x07 b\r\nc\td\x00\x08\u202ee") == "ared b c de"


def test_a_long_line_is_cut_with_dots():
    assert one_line("x" * 50, 10) == "x" * 7 + "..."
    assert one_line("x" * 10, 10) == "x" * 10


def test_a_code_block_cannot_be_ended_by_its_own_text():
    text = "a\n```\n# not a title\n`````\nb"
    tokens = MarkdownIt().parse(code_block(text, "yaml"))
    assert [(token.type, token.content) for token in tokens] == [("fence", text + "\n")]


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0, "0.0 s"),
        (4.21, "4.2 s"),
        (59.4, "59 s"),
        (59.6, "1 min 00 s"),
        (725, "12 min 05 s"),
        (11_220, "3 h 07 min"),
        (187_200, "2 d 04 h"),
    ],
)
def test_a_duration_names_its_two_largest_units(seconds, words):
    assert duration(seconds) == words


def test_counts_agree_with_their_noun():
    assert [counted(count, "trial") for count in (0, 1, 2)] == ["0 trials", "1 trial", "2 trials"]
