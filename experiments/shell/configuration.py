"""Typed configurations: the ranges stand at the fields, for the command line and files alike.

    @configuration
    class Search:
        density: Annotated[float, Field(gt=0, le=1)] = 0.05
        \"\"\"Fraction of the weights that is kept.\"\"\"

is a frozen dataclass of pydantic's: whoever constructs one, be it by `dataclasses.replace`, gets
one whose values make sense, or a `UserError` that names the flag. `read` checks what stands in TOML
and JSON against the same fields.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import json
import re
import types
import typing
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Annotated, Any, TypeVar

import pydantic
from pydantic import AfterValidator, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic_core import ErrorDetails
from typing_extensions import Doc

from experiments.shell.errors import UserError

T = TypeVar("T")


# -- Types of fields -----------------------------------------------------------------------------


def _printable(value: Any) -> Any:
    text = str(value)
    if len(text) > 1000:
        raise ValueError("expected at most 1000 characters")
    if not text.isprintable():
        raise ValueError("expected printable characters only")
    return value


def _no_flag(text: str) -> str:
    if text.startswith("-"):
        raise ValueError("expected no hyphen at its beginning")
    return text


def _increasing(numbers: tuple[int, ...]) -> tuple[int, ...]:
    if list(numbers) != sorted(set(numbers)):
        raise ValueError("expected increasing integers")
    return numbers


def _part_of_a_file_name(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_.+-]{0,100}", text):
        raise ValueError("expected at most 100 letters, digits and . _ + -")
    return text


Count = Annotated[int, Field(ge=1, lt=2**31)]
CountOrZero = Annotated[int, Field(ge=0, lt=2**31)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
Epochs = Annotated[tuple[Count, ...], AfterValidator(_increasing)]
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Text = Annotated[str, AfterValidator(_printable), AfterValidator(_no_flag)]
Label = Annotated[str, AfterValidator(_part_of_a_file_name)]
Folder = Annotated[Path, AfterValidator(_printable)]
File = Annotated[Path, AfterValidator(_printable)]


def name_of(what: str, known: Collection[str]) -> AfterValidator:
    """Makes the check of a field that takes a name, which suggests the nearest one."""
    return AfterValidator(lambda name: check_name(what, name, known))


def check_name(what: str, name: str, known: Collection[str]) -> str:
    """Returns `name`, or raises a `UserError` that suggests the nearest one that is known."""
    if name not in known:
        raise UserError(unknown(what, name, known))
    return name


def unknown(what: str, name: str, known: Collection[str]) -> str:
    """Returns the message about an unknown name, with the nearest one that is known."""
    name = name[:100]  # It may come from anybody's file.
    nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    suggestion = f" Did you mean {nearest[0]}?" if nearest else ""
    return f"unknown {what} {name!r}.{suggestion} Known: {', '.join(known)}"


# -- Configurations ------------------------------------------------------------------------------


@typing.dataclass_transform(
    frozen_default=True, kw_only_default=True, field_specifiers=(dataclasses.field,)
)
def configuration(cls: type[T]) -> type[T]:
    """Makes a class a frozen dataclass, keyword-only, whose constructor checks its values.

    Raises (the constructor):
        UserError: a value out of its range or of another type; the message begins with the flag.
    """
    config = ConfigDict(extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)
    made: Any = pydantic.dataclasses.dataclass(frozen=True, kw_only=True, config=config)(cls)
    init: Callable[..., None] = made.__init__
    # For the help, which would keep the line breaks of the source.
    hints = typing.get_type_hints(made, include_extras=True)
    for name, field in made.__pydantic_fields__.items():
        if "\n" in (field.description or ""):
            text = Doc(" ".join(field.description.split()))
            made.__annotations__[name] = Annotated[hints[name], text]

    @functools.wraps(init)
    def checked_init(self: Any, **values: Any) -> None:
        try:
            init(self, **values)
        except ValidationError as error:
            raise UserError(_describe(error, made, "")) from None

    made.__init__ = checked_init
    return made


def read(kind: Any, value: Any, where: str, *, strict: bool = True) -> Any:
    """Returns what TOML or JSON holds as a configuration, or as the type of one field.

    Args:
        kind: the class of the configuration, whose missing fields have their defaults; or the type
            of a field, such as `Count` or `int | None`.
        value: whoever wrote it. TOML knows no `None`: the string `"none"` stands for it.
        where: names the value in messages, such as `my.toml, [grid] density`.
        strict: a string is no number. On the command line, where all are strings, it may be one.

    Raises:
        UserError: an unknown field, or a value out of range or of another type.
    """
    bare = typing.get_args(kind)[0] if typing.get_origin(kind) is Annotated else kind
    if value in ("none", "None") and types.NoneType in typing.get_args(bare):
        value = None
    try:
        if not strict:
            return _adapter(kind).validate_python(value)
        # As JSON, where an array is a tuple and a string a path, and a string is no number.
        return _adapter(kind).validate_json(json.dumps(value), strict=True)
    except ValidationError as error:
        raise UserError(_describe(error, kind, where)) from None
    except (TypeError, ValueError, RecursionError) as error:
        raise UserError(f"{where}: expected what JSON can hold: {error}") from None


def to_dict(config: Any) -> dict[str, Any]:
    """Returns a configuration as a nested dictionary of what JSON can hold."""
    kind: Any = type(config)
    return _adapter(kind).dump_python(config, mode="json")


@functools.cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


# -- Messages ------------------------------------------------------------------------------------


def _describe(error: ValidationError, kind: Any, where: str) -> str:
    """Says in one line what is wrong with the first wrong value."""
    first = error.errors(include_url=False)[0]
    names = [part for part in first["loc"] if isinstance(part, str)]
    if first["type"] == "unexpected_keyword_argument":
        message = unknown("field", names.pop(), _field_names(kind, names))
    else:
        message = _message(first)
    if names and not where:
        names = ["--" + names[-1].replace("_", "-")]
    return ": ".join([*([where] if where else []), *names, message])


def _message(error: ErrorDetails) -> str:
    message = error["msg"].removeprefix("Value error, ")
    if message.startswith("unknown "):
        return message
    message = re.sub(r"^\w+ should be ", "expected ", message)
    message = re.sub(r"^\w+ should ", "expected to ", message)
    return f"{message}, got {show(error['input'])}"


def _field_names(kind: Any, path: list[str]) -> list[str]:
    for name in path:
        kind = typing.get_type_hints(kind)[name]
    return [field.name for field in dataclasses.fields(kind)]


def show(value: Any) -> str:
    """Writes a value as TOML does, in at most 80 printable characters.

    >>> show([True, "a", 2])
    '[true, "a", 2]'
    """
    text = f"{value:.4g}" if isinstance(value, float) else json.dumps(value, default=str)
    return text if len(text) <= 80 else f"{text[:80]}..."
