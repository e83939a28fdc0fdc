"""`python -m experiments.data`: what is there, and how to get the rest."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import tyro

from experiments.data import catalogue, prepared
from experiments.data.loading import find_streamed
from experiments.data.prepare import prepare
from experiments.shell import command_line, exits
from experiments.shell import console as screen
from experiments.shell.configuration import Folder, Text, check_name, configuration

PROG = "python -m experiments.data"


@configuration
class Prepare:
    """Download a data set and write the folder that TFDS reads."""

    name: tyro.conf.Positional[Text]
    """cifar10, cifar100 or fashion_mnist."""
    data_dir: Folder | None = None
    """Folder of prepared data sets (default: TFDS_DATA_DIR, else ~/tensorflow_datasets)."""
    url: Text | None = None
    """Folder of a mirror that holds the official files: http(s)://... or file:///..."""


@configuration
class List:
    """Show the data sets, and which of them are ready."""

    data_dir: Folder | None = None
    """Folder of prepared data sets (default: TFDS_DATA_DIR, else ~/tensorflow_datasets)."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the program; mistakes and interruptions end it with one line and a non-zero code."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    with exits.in_one_line():
        if arguments and not arguments[0].startswith("-"):
            check_name("command", arguments[0], ("prepare", "list"))
        command = command_line.read(Prepare | List, arguments, prog=PROG, about=__doc__)
        root = prepared.data_root(command.data_dir)
        if isinstance(command, List):
            _show(root)
        else:
            print(prepare(catalogue.find(command.name), root, url=command.url))


def _show(root: Path) -> None:
    rows: list[tuple[str, ...]] = []
    for spec in catalogue.SPECS.values():
        is_there = prepared.is_there(prepared.folder(spec, root))
        state = "embedded" if not spec.version else "prepared" if is_there else "not prepared"
        shape = "x".join(map(str, spec.image_shape))
        counts = f"{spec.num_train:,}", f"{spec.num_test:,}"
        rows.append((spec.name, *counts, shape, str(spec.num_classes), state))
    for streamed in catalogue.STREAMED.values():
        state = "found" if find_streamed(streamed, root) else "not there"
        size = streamed.image_size
        rows.append((streamed.name, "", "", f"{size}x{size}x3", "", state))
    header = ("data set", "train", "test", "image", "classes", "state")
    console = screen.open_console()
    console.print(f"Folder of prepared data sets: {root}", soft_wrap=True, markup=False)
    screen.show_table(console, "", header, rows)
