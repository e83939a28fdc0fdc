"""The fields of the configuration by name, in whichever part of it they are."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Iterator, Mapping
from typing import Any

from experiments.cifar.config import Config

_NO_VALUES = (
    *("runs_dir", "data_dir", "compare", "resume"),
    *("distributed", "coordinator", "num_processes", "process_id", "start_seconds"),
)
"""What is not of one run: a sweep decides it for all."""


def _types(config_class: type) -> dict[str, Any]:
    """Returns field to type, of a configuration and of those nested in it."""
    hints = typing.get_type_hints(config_class, include_extras=True)
    found: dict[str, Any] = {}
    for field in dataclasses.fields(config_class):
        if dataclasses.is_dataclass(hints[field.name]):
            found |= _types(hints[field.name])
        elif field.name not in _NO_VALUES:
            found[field.name] = hints[field.name]
    return found


TYPES: dict[str, Any] = _types(Config)
"""What a grid can vary: field of `Config`, or of a configuration nested in it, to its type."""


def is_tuple(kind: Any) -> bool:
    """Says whether a field takes several values by itself, as `drop_epochs` does."""
    origin = typing.get_origin(kind)
    return origin is tuple or origin is typing.Annotated and is_tuple(typing.get_args(kind)[0])


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
