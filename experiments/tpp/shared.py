"""Folders of what several runs have in common: computed by the first that needs it, then read."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from experiments.processes import distributed
from experiments.storage import files, locking, run_folder
from experiments.tpp.config import Config, network_name


def path(config: Config, kind: str, identity: Mapping[str, Any]) -> Path:
    """Returns the folder `kind/network-seed-digest` of `--runs-dir`.

    Args:
        config: of a run.
        kind: what is in the folder.
        identity: all that it depends on.
    """
    digest = files.digest(identity)[:10]
    return config.runs_dir / kind / f"{network_name(config)}-seed{config.seed}-{digest}"


@contextlib.contextmanager
def folder(config: Config, kind: str, identity: Mapping[str, Any]) -> Iterator[tuple[Path, str]]:
    """Makes the folder if need be, and waits until no other program is in it; in the leader.

    Yields:
        The folder, and what identifies its checkpoints.

    Raises:
        UserError: it cannot be made.
    """
    place = path(config, kind, identity)
    with contextlib.ExitStack() as stack:
        if distributed.is_leader():
            run_folder.make(place)
            stack.enter_context(locking.hold(place, wait=True))
            files.remove_leftovers(place)
            run_folder.write_json(place / "config.json", identity)
        yield place, distributed.from_leader(lambda: run_folder.identity(place))
