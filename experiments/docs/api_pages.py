"""The API reference: a page for each public module, written from what is public and no more."""

from __future__ import annotations

import importlib
import inspect
import types
from pathlib import Path

from experiments.docs import docstrings, public_api

_INTRODUCTION = """API reference
=============

What ``ntksap_jax`` lists, from the docstrings. The examples are run by the test suite. What is not
here may change without notice.

"""


def write(folder: Path) -> None:
    """Writes a page for each public module and a contents page; unchanged files are left alone."""
    modules = [module for module in public_api.modules() if module != public_api.ROOT]
    pages = {f"{module}.rst": _page(module) for module in modules}
    pages["index.rst"] = _contents(modules)
    folder.mkdir(exist_ok=True)
    for old in folder.glob("*.rst"):
        if old.name not in pages:
            old.unlink()
    for name, text in pages.items():
        path = folder / name
        if not path.exists() or path.read_text() != text:
            path.write_text(text)


def resolve(module: str, name: str) -> str | None:
    """Returns the full name of what a docstring in `module` calls `name`, where that is public."""
    root = public_api.ROOT
    module = module if module in public_api.modules() else root
    if name == root:  # has no page: the contents are its
        return None
    for prefix in (f"{module}.", f"{root}.", f"{root}.types.", f"{root}.structured.", ""):
        owner, _, last = f"{prefix}{name}".rpartition(".")
        if f"{prefix}{name}" in public_api.modules() and prefix != f"{module}.":
            return f"{prefix}{name}"
        if owner in public_api.modules() and last in public_api.names(owner):
            return f"{public_api.home(owner, last)}.{last}"
    return None


def _contents(modules: list[str]) -> str:
    rows = [".. list-table::", "   :widths: auto", ""]
    for module in modules:
        text = inspect.getdoc(importlib.import_module(module)) or ""
        summary = docstrings.inline(text.partition("\n\n")[0], lambda name: None)
        rows += [f"   * - :doc:`{module}`", f"     - {' '.join(summary.split())}"]
    toctree = ["", ".. toctree::", "   :hidden:", "", *(f"   {module}" for module in modules), ""]
    return "\n".join([_INTRODUCTION, *rows, *toctree])


def _title(module: str) -> str:
    return module.removeprefix(f"{public_api.ROOT}.")


def _page(module: str) -> str:
    title = _title(module)
    lines = [title, "=" * len(title), "", f".. automodule:: {module}", ""]
    elsewhere, file = [], module
    for name in public_api.names(module):
        value = getattr(importlib.import_module(module), name)
        if isinstance(value, types.ModuleType):
            continue
        if (home := public_api.home(module, name)) != module:
            elsewhere.append(f":py:obj:`~{home}.{name}`")
            continue
        if (source := public_api.source(module, name)) != file:
            file = source
            lines += _section(module, file)
        if name in public_api.constants(module):
            lines += _constant(module, name)
        else:
            kind = "class" if inspect.isclass(value) else "function"
            lines += [f".. auto{kind}:: {module}.{name}", ""]
    if elsewhere:
        lines += [f"Also here: {', '.join(elsewhere)}.", ""]
    return "\n".join(lines)


def _section(module: str, file: str) -> list[str]:
    """What the file says of itself that a package's next names are from: formulas, sources."""
    stem = file.rpartition(".")[2]
    if stem.startswith("_"):
        return []
    text = inspect.getdoc(importlib.import_module(file)) or ""
    rst = docstrings.to_rst(text, lambda name: resolve(module, name))
    return [stem, "-" * len(stem), "", *rst]


def _constant(module: str, name: str) -> list[str]:
    source, docstring = public_api.constants(module)[name]
    text = docstrings.to_rst(docstring, lambda name: resolve(module, name))
    return [
        f".. py:data:: {name}",
        f"   :module: {module}",
        f"   :value: {source}",
        "",
        *(f"   {line}" for line in text),
        "",
    ]
