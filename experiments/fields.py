"""The fields of the configuration by name, in whichever part of it they are: types and values."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from experiments.command_line import UserError, check_name
from experiments.config import Config

_NO_VALUES = ("runs_dir", "data_dir", "compare", "resume")
"""What is not of one run: a sweep decides it for all."""

_EXPECTED = {
    int: "an integer",
    float: "a number",
    bool: "true or false",
    str: "a string",
    Path: "a path, as a string",
}


def _types(config_class: type) -> dict[str, Any]:
    """Returns field to type, of a configuration and of those nested in it."""
    hints = typing.get_type_hints(config_class)
    found: dict[str, Any] = {}
    for field in dataclasses.fields(config_class):
        if dataclasses.is_dataclass(hints[field.name]):
            found |= _types(hints[field.name])
        elif field.name not in _NO_VALUES:
            found[field.name] = hints[field.name]
    return found


TYPES: dict[str, Any] = _types(Config)
"""What a grid can vary: field of `Config`, or of a configuration nested in it, to its type."""


def replace(config: Any, values: Mapping[str, Any]) -> Any:
    """Returns a configuration with new values, whichever of the nested ones the fields are of."""
    changes = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            changes[field.name] = replace(value, values)
        elif field.name in values:
            changes[field.name] = values[field.name]
    return dataclasses.replace(config, **changes)


def leaves(config: Any) -> Iterator[tuple[str, Any]]:
    """Yields name and value of every field."""
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            yield from leaves(value)
        else:
            yield field.name, value


def convert(value: Any, expected: Any, where: str) -> Any:
    """Returns a value from TOML as the type that its field has.

    Args:
        value: from TOML, which knows no `None`: the string `"none"` stands for it.
        expected: type of the field.
        where: names the value in messages.

    Raises:
        UserError: it cannot be of that type.
    """
    origin, arguments = typing.get_origin(expected), typing.get_args(expected)
    if origin is Literal:
        if not isinstance(value, str):
            raise UserError(f"{where}: expected one of {show(arguments)}, got {show(value)}")
        check_name(f"value in {where}:", value, arguments)
        return value
    if origin is types.UnionType:
        if value == "none":
            return None
        return convert(value, next(kind for kind in arguments if kind is not types.NoneType), where)
    if origin is tuple:
        if not isinstance(value, list):
            raise UserError(f"{where}: expected a list for a value, got {show(value)}")
        return tuple(convert(item, arguments[0], where) for item in value)
    if isinstance(value, bool) is (expected is bool):
        if isinstance(value, int) and expected in (int, float, bool):
            return expected(value)
        if isinstance(value, float) and expected is float:
            return value
        if isinstance(value, str) and expected in (str, Path):
            return expected(value)
    raise UserError(f"{where}: expected {_EXPECTED[expected]}, got {show(value)}")


def show(value: Any) -> str:
    """Writes a value as TOML does, near enough."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str | Path):
        return f'"{value}"'
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(show, value))}]"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
