"""How the API reference reads the package: an extension of griffe, which mkdocs.yml names.

Public is what the typing specification calls so: `from M import A as A` re-exports a name. It is
shown where it is re-exported, below what its file says of itself. Examples become code, and names
in backticks become links where they are public.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from typing import Any

import griffe

EXAMPLE = re.compile(r"^( *)>>> .*(?:\n\1.*\S.*)*", re.MULTILINE)
NAME = re.compile(r"(?<![`\[])`([A-Za-z_][\w.]*)(\([^`]*\))?`(?!`)")
BLOCK = re.compile(r"^( *```(?:.|\n)*?^ *```$|\n(?: {4}.*\n)+)", re.MULTILINE)


class PublicNames(griffe.Extension):
    """Moves re-exported objects to where they are public, and makes their docstrings Markdown."""

    def on_package(self, *, pkg: griffe.Module, **_: Any) -> None:
        """Changes the package once all of it is read."""
        modules = {module.path: module for module in public_modules(pkg)}
        moved = [
            (module, name, final(pkg.modules_collection[target]))
            for module in modules.values()
            for name, target in reexports(module).items()
            if target not in modules and target.rpartition(".")[0] not in modules
        ]
        told = set()
        for module, name, member in moved:
            file = member.parent
            if file.docstring and not file.is_private and file not in told:
                told.add(file)
                member.docstring.value = f"{file.docstring.value}\n\n{member.docstring.value}"
            if module.exports is None:
                module.exports = [obj.name for obj in public_objects(module, deep=False)]
            module.exports.append(name)
            module.set_member(name, member)
        public = {obj.path: obj for module in modules.values() for obj in public_objects(module)}
        for obj in [*modules.values(), *public.values()]:
            if obj.docstring:
                obj.docstring.value = markdown(obj, public.keys() | modules.keys())


def public_modules(module: griffe.Module) -> Iterator[griffe.Module]:
    """The module, and behind each submodule that it re-exports what that re-exports."""
    yield module
    for name, target in reexports(module).items():
        if target == f"{module.path}.{name}":
            yield from public_modules(module.members[name])


def reexports(module: griffe.Module) -> dict[str, str]:
    """What a module imports as `from M import A as A`: names, and where they come from."""
    return {
        name.name: f"{node.module}.{name.name}"
        for node in ast.parse(module.source).body
        if isinstance(node, ast.ImportFrom)
        for name in node.names
        if name.asname == name.name
    }


def final(obj: griffe.Object | griffe.Alias) -> griffe.Object:
    """What a name stands for, however often it was imported on the way."""
    return obj.final_target if isinstance(obj, griffe.Alias) else obj


def public_objects(parent: griffe.Object, *, deep: bool = True) -> Iterator[griffe.Object]:
    """Public functions, classes and constants of a module; attributes and methods of a class."""
    for member in parent.members.values():
        if not member.is_alias and not member.is_module and member.is_public:
            yield member
            if deep:
                yield from public_objects(member)


def markdown(obj: griffe.Object, public: set[str]) -> str:
    """The docstring of an object with its examples fenced and public names linked."""
    prefixes = (f"{obj.module.path}.", "ntksap_jax.", "ntksap_jax.types.", "ntksap_jax.structured.")

    def link(match: re.Match[str]) -> str:
        targets = [prefix + match.group(1) for prefix in prefixes]
        target = next((t for t in targets if t in public and t != obj.path), None)
        return f"[{match.group()}][{target}]" if target else match.group()

    text = EXAMPLE.sub(lambda m: f"{m[1]}```pycon\n{m[0]}\n{m[1]}```", obj.docstring.value)
    return "".join(
        part if index % 2 else NAME.sub(link, part) for index, part in enumerate(BLOCK.split(text))
    )
