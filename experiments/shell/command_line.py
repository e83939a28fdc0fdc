"""From `preset --flag value ...` to a configuration; from a mistake to one line that says so."""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import tyro

from experiments.shell.configuration import check_name
from experiments.shell.errors import UserError, causes

T = TypeVar("T")


def parse(
    arguments: Sequence[str], presets: Mapping[str, tuple[str, T]], *, prog: str, more: str = ""
) -> T:
    """Reads a command line of the form `preset --flag value ...`.

    Args:
        arguments: the words after the program's name.
        presets: name to (one line for the help, configuration); the flags are the fields of the
            configuration, and its values their defaults.
        prog: the program's name in the help.
        more: what the help says in the end.

    Returns:
        The preset's configuration with the flags' values in it.

    Raises:
        UserError: an unknown preset or flag, or a value that makes no sense.
        SystemExit: after `--help` (code 0), or without any argument (code 2, after the help).
    """
    if not arguments or arguments[0] in ("-h", "--help"):
        print(f"usage: {prog} PRESET [--flag value ...]\n\nPresets, by {prog} PRESET --help:")
        for name, (description, _) in presets.items():
            print(f"  {name:<{max(map(len, presets))}}  {description}")
        print(f"\n{more}" if more else "", end="")
        raise SystemExit(0 if arguments else 2)
    preset, *flags = arguments
    if preset.startswith("-"):
        raise UserError(
            f"a preset comes first, then flags; got {preset!r}. Presets: {', '.join(presets)}. "
            f"For example: {prog} {next(iter(presets))} {' '.join(arguments)}"
        )
    description, config = presets[check_name("preset", preset, presets)]
    return read(type(config), flags, prog=f"{prog} {preset}", about=description, default=config)


def read(kind: Any, arguments: Sequence[str], *, prog: str, about: str, default: Any = None) -> Any:
    """Reads flags into a configuration, whose fields they are.

    Args:
        kind: its class; or a union of classes, whose names are commands.
        arguments: the words of the command line.
        prog: the program's name in the help.
        about: what it does, for the help.
        default: a configuration that holds the defaults.

    Raises:
        UserError: an unknown flag, or a value that makes no sense.
        SystemExit: after `--help`.
    """
    options = {} if default is None else {"default": default}
    message = io.StringIO()
    try:
        with contextlib.redirect_stderr(message):
            return tyro.cli(
                kind,
                prog=prog,
                description=about,
                args=list(arguments),
                config=(tyro.conf.OmitArgPrefixes, tyro.conf.FlagCreatePairsOff),
                **options,
            )
    except SystemExit as stop:
        if not stop.code:
            raise
        # What a configuration says of its values is said better than in tyro's frame.
        ours = [str(error) for error in causes(stop) if isinstance(error, UserError)]
        raise UserError(ours[0] if ours else _one_line(message.getvalue(), prog)) from None


def _one_line(box: str, prog: str) -> str:
    """Turns tyro's framed message into one line: its first paragraph, and what it suggests.

    Where standard output is not UTF-8 the frame is of blanks, and its rules are of hyphens.
    """
    lines: list[str] = []
    for line in box.splitlines()[1:]:
        text = line.strip(" │")
        if not set(text) <= set("─╰╯-"):
            lines.append(text)
        elif lines:
            break
    words = " ".join(" ".join(lines).removeprefix("Error parsing ").split()) or box.strip()
    suggestion = re.search(r"Perhaps you meant:\W+(--[\w-]+)", box)
    near = f". Did you mean {suggestion[1]}?" if suggestion else ""
    return words + near + (f" See: {prog} --help" if "nrecognized" in words else "")
