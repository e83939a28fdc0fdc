"""Our docstrings as reStructuredText, which Sphinx reads.

They are written to be read in an editor: `names` in single backticks, formulas in plain text and
indented, tables and lists as in Markdown. Google-style sections are left to napoleon.
"""

from __future__ import annotations

import re
from collections.abc import Callable

Resolve = Callable[[str], str | None]
"""`resolve("masks.create")` returns the full name of something public, or None."""

_SECTION = re.compile(r"(Args|Attributes|Raises|Returns|Example|Yields):$")
_CODE = re.compile(r"`([^`]+)`")
_EMPHASIS = re.compile(r"(?<![\w*])(\*\*?)(?=[^\s*])([^*]*[^\s*])\1(?![\w*])")
_NAME = re.compile(r"([A-Za-z_][\w.]*)(\(.*\))?$", re.DOTALL)


def to_rst(docstring: str, resolve: Resolve) -> list[str]:
    """Translates a docstring, its indentation already cleaned."""
    blocks, in_section = [], False
    for block in _blocks(docstring.splitlines()):
        indented = block[0].startswith("    ")
        if not indented:
            in_section = any(_SECTION.match(line) for line in block)
        if block[0].lstrip().startswith(">>>"):
            blocks.append(block)
        elif indented and not in_section:
            blocks.append([".. code-block:: text", "   :class: formula", "", *block])
        elif len(block) > 1 and block[1].startswith("|--"):
            blocks.append(_table(block, resolve))
        else:
            blocks.append(_prose(block, resolve))
    return [line for block in blocks for line in [*block, ""]]


def inline(text: str, resolve: Resolve) -> str:
    """Translates running text: names become links where they are public, code where not."""
    parts = _CODE.split(text)  # text, code, text, ...
    for i, part in enumerate(parts):
        parts[i] = _code(" ".join(part.split()), resolve) if i % 2 else _plain(part)
        if i and i % 2 == 0 and re.match(r"\w", part):  # as the s of `Network`s
            parts[i] = "\\ " + parts[i]
    return "".join(parts)


def _blocks(lines: list[str]) -> list[list[str]]:
    """Splits at blank lines, and where an indented block or a doctest ends without one."""
    blocks: list[list[str]] = [[]]
    for line in lines:
        starts = line.lstrip().startswith(">>>") and not _is_doctest(blocks[-1])
        if not line.strip() or starts:
            blocks.append([])
        if line.strip():
            blocks[-1].append(line)
    return [block for block in blocks if block]


def _is_doctest(block: list[str]) -> bool:
    return bool(block) and block[0].lstrip().startswith(">>>")


def _prose(block: list[str], resolve: Resolve) -> list[str]:
    if re.match(r" ?- ", block[0]) or re.match(r"  +\S", block[0]):
        block = [line.removeprefix(" ") for line in block] if block[0].startswith(" -") else block
    text = inline("\n".join(block), resolve)
    # Napoleon would take what comes before a colon for the type of the result.
    return re.sub(r"^Returns:$", ":returns:", text, flags=re.MULTILINE).split("\n")


def _code(code: str, resolve: Resolve) -> str:
    name = _NAME.match(code)
    target = resolve(name.group(1)) if name else None
    return f":py:obj:`{code} <{target}>`" if target else f"``{code}``"


def _plain(text: str) -> str:
    """Escapes what is markup in reStructuredText, save for *this* and **this**."""
    marked = _EMPHASIS.split(text)  # text, stars, emphasised, text, ...
    kept = []
    for i in range(0, len(marked), 3):
        kept.append(re.sub(r"([\\|*]|(?<=\w)_(?!\w))", r"\\\1", marked[i]))
        if i + 2 < len(marked):
            kept.append(marked[i + 1] + marked[i + 2].replace("|", r"\|") + marked[i + 1])
    return "".join(kept)


def _table(block: list[str], resolve: Resolve) -> list[str]:
    rows = [[cell.strip() for cell in line.strip().strip("|").split("|")] for line in block]
    lines = [".. list-table::", "   :header-rows: 1", ""]
    for row in [rows[0], *rows[2:]]:
        for i, cell in enumerate(row):
            lines.append(f"   {'* -' if i == 0 else '  -'} {inline(cell, resolve)}")
    return lines
