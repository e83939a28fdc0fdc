"""From `preset --flag value ...` to a configuration; from a mistake to one line that says so."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import io
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import tyro

from experiments.shell.errors import UserError

ConfigT = TypeVar("ConfigT")


def parse(
    arguments: Sequence[str], presets: Mapping[str, tuple[str, ConfigT]], *, prog: str
) -> ConfigT:
    """Reads a command line of the form `preset --flag value ...`.

    Args:
        arguments: the words after the program's name.
        presets: name to (one line for the help, configuration); the flags are the fields of the
            configuration, and its values their defaults.
        prog: the program's name in the help.

    Returns:
        The preset's configuration with the flags' values in it.

    Raises:
        UserError: an unknown preset or flag, or a value of the wrong type.
        SystemExit: after `--help` (code 0), or without any argument (code 2, after the help).
    """
    preset = arguments[0] if arguments else "--help"
    if not preset.startswith("-"):
        check_name("preset", preset, presets)
    elif preset not in ("-h", "--help"):
        raise UserError(
            f"a preset comes first, then flags; got {preset!r}. Presets: {', '.join(presets)}. "
            f"For example: {prog} {next(iter(presets))} {' '.join(arguments)}"
        )

    try:
        with one_line_errors():
            config, unknown = tyro.cli(
                tyro.extras.subcommand_type_from_defaults(
                    {name: config for name, (_, config) in presets.items()},
                    {name: description for name, (description, _) in presets.items()},
                ),
                prog=prog,
                description=f"Presets and their flags: {prog} PRESET --help",
                args=[preset, *arguments[1:]],
                config=(
                    tyro.conf.AvoidSubcommands,
                    tyro.conf.OmitArgPrefixes,
                    tyro.conf.FlagCreatePairsOff,
                ),
                return_unknown_args=True,
            )
    except SystemExit:
        raise SystemExit(0 if arguments else 2) from None
    if unknown:
        raise_unknown_flag(unknown[0], config, f"{prog} {preset} --help")
    return config


@contextlib.contextmanager
def one_line_errors() -> Iterator[None]:
    """Turns what tyro prints about a mistake, before it exits, into a `UserError`."""
    message = io.StringIO()
    try:
        with contextlib.redirect_stderr(message):
            yield
    except SystemExit as stop:
        if stop.code:
            raise UserError(_first_paragraph(message.getvalue())) from None
        raise


def check_name(what: str, name: str, known: Iterable[str]) -> None:
    """Raises a `UserError` that suggests the nearest known name, unless `name` is one of them."""
    known = list(known)
    if name not in known:
        name = name[:100]  # It may come from anybody's file.
        raise UserError(f"unknown {what} {name!r}.{suggest(name, known)} Known: {', '.join(known)}")


def flags(config: Any) -> list[str]:
    """Returns the flags of a configuration dataclass and of those nested in it."""
    names = []
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        nested = dataclasses.is_dataclass(value)
        names += flags(value) if nested else ["--" + field.name.replace("_", "-")]
    return names


def raise_unknown_flag(word: str, config: Any, help_command: str) -> None:
    """Raises a `UserError` about a word that tyro could not place; suggests the nearest flag."""
    if not word.startswith("-"):
        raise UserError(f"unexpected word {word!r}: values follow a flag. See: {help_command}")
    word = word.split("=")[0]
    raise UserError(f"unknown flag {word}.{suggest(word, flags(config))} See: {help_command}")


def suggest(name: str, known: Sequence[str]) -> str:
    """Returns ` Did you mean NEAREST?`, or nothing if no known name is near."""

    def similarity(candidate: str) -> tuple[float, int]:
        ratio = difflib.SequenceMatcher(None, name, candidate).ratio()
        return ratio, len(os.path.commonprefix([name, candidate]))

    nearest = max(known, key=similarity)
    return f" Did you mean {nearest}?" if similarity(nearest)[0] >= 0.5 else ""


def _first_paragraph(box: str) -> str:
    """Turns tyro's framed message into one line: the text between the title and the next rule.

    Where standard output is not UTF-8 the frame is of blanks, and its rules are of hyphens.
    """
    lines = []
    for line in box.splitlines()[1:]:
        text = line.strip(" │")
        if not set(text) <= set("─╰╯-"):
            lines.append(text)
        elif lines:
            break
    return " ".join(" ".join(lines).removeprefix("Error parsing ").split()) or box.strip()
