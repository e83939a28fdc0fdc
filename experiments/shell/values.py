"""Values from TOML and JSON, as the types that the fields of a configuration have."""

from __future__ import annotations

import dataclasses
import types
import typing
from pathlib import Path
from typing import Any, Literal

from experiments.shell.command_line import check_name
from experiments.shell.errors import UserError

LONGEST = 1000
"""Characters in a string or path; names of files have 255 at most."""

_EXPECTED = {
    int: "an integer",
    float: "a number",
    bool: "true or false",
    str: "a string",
    Path: "a path, as a string",
}


def convert(value: Any, expected: Any, where: str) -> Any:
    """Returns a value from TOML or JSON as the type that its field has.

    Args:
        value: from TOML, which knows no `None`, the string `"none"` stands for it.
        expected: type of the field; of a dataclass every field that is missing has its default.
        where: names the value in messages.

    Raises:
        UserError: it cannot be of that type.
    """
    origin, arguments = typing.get_origin(expected), typing.get_args(expected)
    if dataclasses.is_dataclass(expected):
        return _convert_fields(value, expected, where)
    if origin is Literal:
        if not isinstance(value, str):
            raise UserError(f"{where}: expected one of {show(arguments)}, got {show_short(value)}")
        check_name(f"value in {where}:", value, arguments)
        return value
    if origin is types.UnionType:
        if value is None or value == "none":
            return None
        return convert(value, next(kind for kind in arguments if kind is not types.NoneType), where)
    if origin is tuple:
        if not isinstance(value, list):
            raise UserError(f"{where}: expected a list for a value, got {show_short(value)}")
        return tuple(convert(item, arguments[0], where) for item in value)
    if isinstance(value, bool) is (expected is bool):
        if isinstance(value, int) and expected in (int, float, bool):
            return _convert_integer(value, expected, where)
        if isinstance(value, float) and expected is float:
            return value
        if isinstance(value, str) and expected in (str, Path):
            return expected(_checked(value, where))
    raise UserError(f"{where}: expected {_EXPECTED[expected]}, got {show_short(value)}")


def _convert_fields(value: Any, expected: Any, where: str) -> Any:
    if not isinstance(value, dict):
        raise UserError(f"{where}: expected a table of fields, got {show_short(value)}")
    hints = typing.get_type_hints(expected)
    for name in value:
        check_name(f"field in {where}:", name, hints)
    return expected(
        **{name: convert(each, hints[name], f"{where}: {name}") for name, each in value.items()}
    )


def _convert_integer(value: int, expected: type, where: str) -> Any:
    if abs(value) >= 2**63:
        raise UserError(f"{where}: expected a number of at most 64 bits, got {show_short(value)}")
    return expected(value)


def _checked(text: str, where: str) -> str:
    if len(text) > LONGEST:
        raise UserError(f"{where}: expected at most {LONGEST} characters, got {len(text)}")
    if not text.isprintable():
        raise UserError(f"{where}: expected printable characters only, got {ascii(text)}")
    return text


def show(value: Any) -> str:
    """Writes a value as TOML does, near enough."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str | Path):
        return f'"{value}"'
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(show, value))}]"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def show_short(value: Any) -> str:
    """Writes what may be anything, of any length and depth, in a few words."""
    if isinstance(value, dict):
        return "a table"
    if isinstance(value, list) and any(isinstance(each, dict | list) for each in value):
        return "a list of lists or tables"
    if isinstance(value, int) and abs(value) >= 2**64:
        return f"a number of {value.bit_length()} bits"
    text = "a long list" if isinstance(value, list) and len(value) > 80 else show(value)
    return text if len(text) <= 80 else f"{text[:80]}..."
