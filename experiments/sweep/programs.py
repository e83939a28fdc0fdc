"""The programs whose runs a sweep can carry out, and the fields of their configurations.

A grid calls a field by its name, in whichever part of the configuration it is.
"""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, NamedTuple

from experiments.cifar import config as cifar_config
from experiments.cifar import presets as cifar_presets
from experiments.cifar.choices import CRITERIA
from experiments.shell.configuration import to_dict
from experiments.tpp import config as tpp_config
from experiments.tpp import presets as tpp_presets


class Program(NamedTuple):
    """A program that trains."""

    module: str  # `python -m` starts it.
    presets: Mapping[str, tuple[str, Any]]  # Name to (one line for the help, configuration).
    # Returns the configuration of one run, without others to compare with.
    alone: Callable[[Any], Any]
    run_name: Callable[[Any], str]  # Names the folder of a run.
    computed: Callable[[Any], dict[str, Any]]  # Returns what a run depends on, from `to_dict`.
    accuracy: str  # What summary.json calls the test accuracy at the end.


def _cifar_computed(config: cifar_config.Config) -> dict[str, Any]:
    """Not on the search if dense, nor on the number of rounds if one-shot."""
    values, criterion = to_dict(config), CRITERIA[config.search.criterion]
    if criterion is None:
        del values["search"]
    elif criterion.one_shot:
        values["search"]["rounds"] = 1
    return values


CIFAR = Program(
    "experiments.cifar",
    cifar_presets.PRESETS,
    alone=lambda config: cifar_config.with_criterion(config, config.search.criterion),
    run_name=cifar_config.run_name,
    computed=_cifar_computed,
    accuracy="last_test_accuracy",
)
TPP = Program(
    "experiments.tpp",
    tpp_presets.PRESETS,
    alone=lambda config: tpp_config.with_method(config, config.method),
    run_name=tpp_config.run_name,
    computed=to_dict,
    accuracy="last_accuracy",
)
PRESETS: dict[str, tuple[Program, str]] = {
    **{name: (CIFAR, name) for name in CIFAR.presets},
    **{name if name not in CIFAR.presets else f"tpp:{name}": (TPP, name) for name in TPP.presets},
}
"""What a grid calls a preset, to the program and what that calls it."""


# -- Fields --------------------------------------------------------------------------------------

_NOT_VARIED = (
    *("runs_dir", "data_dir", "compare", "resume"),
    *("distributed", "coordinator", "num_processes", "process_id", "start_seconds"),
)
"""What is not of one run: a sweep decides it for all."""


def types(config_class: type, but: Collection[str] = _NOT_VARIED) -> dict[str, Any]:
    """Returns name to type of the fields, those of nested parts included, but for some."""
    hints = typing.get_type_hints(config_class, include_extras=True)
    varied: dict[str, Any] = {}
    for field in dataclasses.fields(config_class):
        if dataclasses.is_dataclass(hints[field.name]):
            varied |= types(hints[field.name], but)
        elif field.name not in but:
            varied[field.name] = hints[field.name]
    return varied


def takes_several(kind: Any) -> bool:
    """Says whether a field takes several values by itself, as `drop_epochs` does."""
    if typing.get_origin(kind) is typing.Annotated:
        kind = typing.get_args(kind)[0]
    return typing.get_origin(kind) is tuple


def replace(config: Any, values: Mapping[str, Any]) -> Any:
    """Returns a configuration with new values, whichever part of it the fields are in."""
    changes = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            changes[field.name] = replace(value, values)
        elif field.name in values:
            changes[field.name] = values[field.name]
    return dataclasses.replace(config, **changes)


def leaves(config: Any) -> Iterator[tuple[str, Any]]:
    """Yields name and value of every field, of nested parts too."""
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            yield from leaves(value)
        else:
            yield field.name, value


def flags(preset: Any, config: Any) -> tuple[str, ...]:
    """Returns the flags that make a configuration of that of a preset."""
    words: list[str] = []
    for (name, before), (_, value) in zip(leaves(preset), leaves(config), strict=True):
        flag = name.replace("_", "-")
        if value == before:
            continue
        if isinstance(value, bool):
            words.append(f"--{flag}" if value else f"--no-{flag}")
        elif isinstance(value, tuple):
            words += [f"--{flag}", *map(str, value)]
        else:  # With "=" if it would be taken for a flag.
            words += [f"--{flag}={value}"] if str(value)[0:1] == "-" else [f"--{flag}", str(value)]
    return tuple(words)
