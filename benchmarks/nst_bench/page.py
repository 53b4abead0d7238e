"""A report in Markdown as one HTML page that needs nothing else: no script, no font, no file beside it."""

from __future__ import annotations

import base64
import html as escaping
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from markdown_it import MarkdownIt
from markdown_it.renderer import RendererHTML
from markdown_it.token import Token

STYLE = """
:root { color-scheme: light; }
body { margin: 0 auto; max-width: 72rem; padding: 1rem; background: #fff; color: #1b1b1b;
  font: 16px/1.5 system-ui, sans-serif; overflow-wrap: break-word; }
h1 { font-size: 1.5rem; line-height: 1.25; } h2 { font-size: 1.2rem; margin-top: 2rem; }
p { max-width: 48rem; }
p.plots { max-width: none; display: flex; flex-wrap: wrap; gap: 1rem; align-items: flex-start; }
p.plots img { width: 33rem; max-width: 100%; height: auto; }
.table { overflow-x: auto; margin: 1rem 0; }
table { border-collapse: collapse; font-size: .875rem; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .6rem; border-bottom: 1px solid #d5d5d5; text-align: left; vertical-align: top; }
th { border-bottom: 2px solid #555; }
td[style] { white-space: nowrap; }
em { color: #8a3b00; } td em { display: inline-block; max-width: 15rem; white-space: normal; }
code { font-size: .9em; background: #f3f3f3; padding: 0 .2em; }
"""


def html(title: str, markdown: str, images: Mapping[str, bytes]) -> str:
    """The page of `markdown`, in which `images` (PNG, by the name that the text has) stand inside."""
    reader = MarkdownIt("commonmark", {"html": False}).enable("table")

    def image(_self: RendererHTML, tokens: Sequence[Token], index: int, *_: Any) -> str:
        token = tokens[index]
        data = base64.b64encode(images[str(token.attrs["src"])]).decode()
        return f'<img alt="{escaping.escape(token.content)}" src="data:image/png;base64,{data}">'

    def table(_self: RendererHTML, *_: Any) -> str:
        return '<div class="table" role="region" aria-label="table" tabindex="0"><table>\n'

    reader.add_render_rule("image", image)
    reader.add_render_rule("table_open", table)
    reader.add_render_rule("table_close", lambda _self, *_: "</table></div>\n")
    tokens = reader.parse(markdown)
    for paragraph, content in pairwise(tokens):
        if content.type == "inline" and any(child.type == "image" for child in content.children or ()):
            paragraph.attrSet("class", "plots")
    body = reader.renderer.render(tokens, reader.options, {})
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escaping.escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n{body}</main>\n</body>\n</html>\n"
    )
