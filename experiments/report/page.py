"""The HTML page: everything in one file, without scripts, for wide and narrow, light and dark."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from experiments.report.drawing import data_uri
from experiments.report.tables import Table

CSS = """
:root { color-scheme: light dark; --ink: #1c1c1e; --paper: #fff; --soft: #5f6368; --rule: #d9dce0;
        --warn: #8a4b00; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #d8d8d8; --paper: #16181c; --soft: #9aa0a6; --rule: #33373e; --warn: #f0b060; } }
body { margin: 0 auto; max-width: 52rem; padding: 1rem; background: var(--paper);
       color: var(--ink); font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.5rem; line-height: 1.25; } h2 { font-size: 1.25rem; margin-top: 2.5rem;
     border-top: 2px solid var(--rule); padding-top: 1.2rem; } h3 { font-size: 1.05rem; }
p, li, figcaption, summary { overflow-wrap: anywhere; }
figure { margin: 1.2rem 0; overflow-x: auto; }
figure img { width: 100%; min-width: 34rem; height: auto; display: block; }
figcaption, .soft { color: var(--soft); font-size: 0.9rem; }
.warn { color: var(--warn); }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: 0.9rem; font-variant-numeric: tabular-nums; }
th, td { padding: 0.25rem 0.7rem; text-align: right; border-bottom: 1px solid var(--rule);
         white-space: nowrap; }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
td:first-child { position: sticky; left: 0; background: var(--paper); white-space: normal;
                 min-width: 7rem; }
code { font-size: 0.85rem; overflow-wrap: anywhere; }
summary { cursor: pointer; }
""".strip()


class Picture(NamedTuple):
    """A picture in both themes.

    Attributes:
        name: of its file, without ending.
        caption: what it shows.
        light: PNG.
        dark: PNG.
    """

    name: str
    caption: str
    light: bytes
    dark: bytes


def page(title: str, blocks: Iterable[str]) -> str:
    """Returns a whole page."""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{_text(title)}</title>\n<style>\n{CSS}\n</style>\n</head>\n<body>\n"
        f"<h1>{_text(title)}</h1>\n" + "\n".join(blocks) + "\n</body>\n</html>\n"
    )


def heading(text: str, *, level: int = 2, anchor: str = "") -> str:
    """Returns a heading."""
    name = f' id="{_text(anchor)}"' if anchor else ""
    return f"<h{level}{name}>{_text(text)}</h{level}>"


def paragraph(text: str, *, kind: str = "") -> str:
    """Returns a paragraph; `kind` is `soft`, `warn` or nothing."""
    style = f' class="{kind}"' if kind else ""
    return f"<p{style}>{_text(text)}</p>"


def bullets(texts: Sequence[str], *, code: bool = False) -> str:
    """Returns a list, of code if asked for."""
    items = (f"<code>{_text(text)}</code>" if code else _text(text) for text in texts)
    return "<ul>" + "".join(f"<li>{item}</li>" for item in items) + "</ul>"


def contents(links: Sequence[tuple[str, str]]) -> str:
    """Returns links to headings, from (anchor, text)."""
    items = (f'<li><a href="#{_text(anchor)}">{_text(text)}</a></li>' for anchor, text in links)
    return "<ul>" + "".join(items) + "</ul>"


def folded(summary: str, *blocks: str) -> str:
    """Returns something that is shown when the reader opens it."""
    return f"<details><summary>{_text(summary)}</summary>\n" + "\n".join(blocks) + "\n</details>"


def table(content: Table) -> str:
    """Returns a table that scrolls by itself where the screen is narrow."""
    head = "".join(f'<th scope="col">{_text(cell)}</th>' for cell in content.header)
    rows = (
        "<tr>" + "".join(f"<td>{_bold(_text(cell))}</td>" for cell in row) + "</tr>"
        for row in content.rows
    )
    return (
        f'<div class="scroll"><table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n'
        + "\n".join(rows)
        + "\n</tbody></table></div>"
    )


def figure(picture: Picture) -> str:
    """Returns a picture with its caption, in the theme that the reader's screen has."""
    caption = _text(picture.caption)
    return (
        '<figure><picture><source media="(prefers-color-scheme: dark)" '
        f'srcset="{data_uri(picture.dark)}"><img alt="{caption}" '
        f'src="{data_uri(picture.light)}"></picture><figcaption>{caption}</figcaption></figure>'
    )


def _text(text: str) -> str:
    return html.escape(text)


def _bold(text: str) -> str:
    return re.sub(r"^\*\*(.*)\*\*$", r"<strong>\1</strong>", text)
