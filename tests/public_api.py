"""What is public in `ntksap_jax`, by the rule of Python's typing specification for typed packages.

A name is public if it has no leading underscore and is defined where it is found, or is imported
there in the form `from M import A as A`. Every other import (`import jax`, `from M import B`) is
a module's own business, whatever `dir` shows. A module is public if a public module re-exports it
so, from `ntksap_jax/__init__.py` on: that file is the table of contents.
"""

from __future__ import annotations

import ast
import functools
import importlib
import inspect
import itertools
import types
from pathlib import Path

ROOT = "ntksap_jax"


@functools.cache
def names(module: str) -> tuple[str, ...]:
    """Returns the public names of a module in the order of its source; submodules included."""
    found: dict[str, None] = {}
    for node in _tree(module).body:
        found |= dict.fromkeys(name for name in _bound(node) if not name.startswith("_"))
    return tuple(found)


@functools.cache
def modules() -> tuple[str, ...]:
    """Returns the public modules: the package, what it lists, and behind each what that lists."""

    def listed(module: str) -> list[str]:
        values = [getattr(importlib.import_module(module), name) for name in names(module)]
        below = [value.__name__ for value in values if isinstance(value, types.ModuleType)]
        return [module, *itertools.chain.from_iterable(map(listed, below))]

    return tuple(listed(ROOT))


@functools.cache
def home(module: str, name: str) -> str:
    """Returns the public module that a name is documented in: where it is defined, if public."""
    defined = source(module, name)
    return defined if defined in modules() else module


@functools.cache
def source(module: str, name: str) -> str:
    """Returns the module that a name is defined in: this one, or where it is re-exported from."""
    for node in _tree(module).body:
        if isinstance(node, ast.ImportFrom) and name in _bound(node):
            return str(node.module)
    return module


@functools.cache
def constants(module: str) -> dict[str, tuple[str, str]]:
    """Returns source and docstring of what a module assigns: type aliases, constants."""
    body = _tree(module).body
    found: dict[str, tuple[str, str]] = {}
    for node, following in zip(body, [*body[1:], None], strict=True):
        if isinstance(node, ast.Assign | ast.AnnAssign):
            is_docstring = isinstance(following, ast.Expr) and isinstance(
                following.value, ast.Constant
            )
            text = inspect.cleandoc(following.value.value) if is_docstring else ""  # type: ignore
            found |= {name: (ast.unparse(node.value), text) for name in _bound(node)}  # type: ignore
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith(ROOT):
            source = importlib.import_module(node.module).__file__
            if source and Path(source).name != "__init__.py":
                elsewhere = constants(node.module)
                found |= {name: elsewhere[name] for name in _bound(node) if name in elsewhere}
    return found


@functools.cache
def _tree(module: str) -> ast.Module:
    return ast.parse(Path(str(importlib.import_module(module).__file__)).read_text())


def _bound(node: ast.stmt) -> list[str]:
    """Names that a statement defines, or re-exports."""
    match node:
        case ast.FunctionDef(name=name) | ast.ClassDef(name=name):
            return [name]
        case ast.Assign(targets=targets):
            return [target.id for target in targets if isinstance(target, ast.Name)]
        case ast.AnnAssign(target=ast.Name(id=name)):
            return [name]
        case ast.ImportFrom(names=aliases):
            return [alias.name for alias in aliases if alias.asname == alias.name]
    return []
