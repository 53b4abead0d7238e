"""Conversion of a Markdown report to one self-contained HTML page: no script, no font, no other file."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from jinja2 import Environment, PackageLoader
from markdown_it import MarkdownIt
from markdown_it.token import Token
from markupsafe import Markup, escape

TABLE = '<div class="table" role="region" aria-label="table" tabindex="0"><table>\n'


def html(title: str, markdown: str, images: Mapping[str, bytes]) -> str:
    """Return `markdown` as a page with the `images` (PNG, by their names in the text) inside."""
    reader = MarkdownIt("commonmark", {"html": False}).enable("table")

    def image(_self: Any, tokens: Sequence[Token], index: int, *_: Any) -> str:
        token = tokens[index]
        data = base64.b64encode(images[str(token.attrs["src"])]).decode()
        return f'<img alt="{escape(token.content)}" src="data:image/png;base64,{data}">'

    reader.add_render_rule("image", image)
    reader.add_render_rule("table_open", lambda _self, *_: TABLE)
    reader.add_render_rule("table_close", lambda _self, *_: "</table></div>\n")
    tokens = reader.parse(markdown)
    for paragraph, content in pairwise(tokens):
        if content.type == "inline" and any(child.type == "image" for child in content.children or ()):
            paragraph.attrSet("class", "plots")
    body = Markup(reader.renderer.render(tokens, reader.options, {}))
    template = Environment(loader=PackageLoader("nst_bench.drawing", "."), autoescape=True).get_template("report.html")
    return template.render(title=title, body=body)
